"""What is not answered, and why, in words and a status that clients know what to do with."""

from collections.abc import Mapping
from typing import Any

from mvlm_np.errors import GenerationError, MemoryNeeded, PromptTooLong, UserError
from mvlm_np.serve.requests import Busy, NotRead, Stopping, WaitedTooLong


class Refused(UserError):
    """A request that is not answered. Each dialect has its own shape for it.

    field    what of the request is wrong, None where it is no field
    status   of HTTP
    code     a short word for programs
    headers  of the reply
    more     fields of the reply's error in OpenAI's dialect
    """

    def __init__(
        self,
        where: str,
        found: object,
        wanted: object = None,
        fix: str | None = None,
        *,
        field: str | None = None,
        status: int = 400,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
        more: Mapping[str, Any] | None = None,
    ):
        super().__init__(where, found, wanted, fix)
        self.field, self.status, self.code = field, status, code
        self.headers, self.more = dict(headers or {}), dict(more or {})


def refusal(error: Exception, late: bool = False) -> Refused:
    """An error, of whatever kind, as one that a client may read.

    late: it came from the engine while it answered, where a GenerationError is no fault of the request.
    """
    if isinstance(error, Refused):
        return error
    where, _, found = str(error).partition(": ")
    if isinstance(error, Busy):
        wait = {"retry-after": str(max(1, round(error.seconds)))}
        return Refused(where, found, status=429, code="server_busy", headers=wait)
    if isinstance(error, WaitedTooLong | NotRead):
        return Refused(where, found, status=504, code="timeout")
    if isinstance(error, Stopping):
        return Refused(where, found, status=503, code="stopping")
    if isinstance(error, MemoryNeeded | MemoryError):
        return Refused("server", "out of memory", fix="try again later", status=503, code="out_of_memory")
    if not isinstance(error, UserError) or (late and isinstance(error, GenerationError)):
        # Nothing that a client could mend, and asking again gives it again.
        never = {"x-should-retry": "false"}
        what = found if isinstance(error, UserError) else "an internal error, which is in the server's log"
        return Refused("server", what, status=500, code="internal_error", headers=never)
    if isinstance(error, PromptTooLong):
        more = {"n_prompt_tokens": error.positions, "n_ctx": error.context}
        return Refused(where, found, field="messages", code="context_length_exceeded", more=more)
    return Refused(where, found, field=where)
