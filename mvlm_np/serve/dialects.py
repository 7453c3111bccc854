"""What both dialects share: refusals, JSON within limits, its fields, and what a request asks for.

A dialect (`openai`, `ollama`) makes a `Call` of a request's body, and replies of the engine's events.
"""

import binascii
import json
import re
import reprlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import isfinite
from typing import Any, NoReturn, Protocol

from mvlm_np.errors import GenerationError, MemoryNeeded, PromptTooLong, UserError
from mvlm_np.generation import Settings
from mvlm_np.inputs.conversation import Message
from mvlm_np.inputs.picture_file import Encoded
from mvlm_np.serve.requests import (
    ALTERNATIVES,
    STOPS,
    Busy,
    Finished,
    NotRead,
    Piece,
    Request,
    Stopping,
    TokenChance,
    WaitedTooLong,
)

MESSAGES, PICTURES = 64, 12  # in a request, at most; 13 pictures would leave no room for a chat
ANSWERS = 4  # to one request, at most
SEEDS = 1 << 63


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


# ---------------------------------------------------------------- JSON


def read_json(body: bytes) -> "Fields":
    """The object that a body is. Refused: it is none, too deep, or holds numbers that JSON does not have."""

    def none(word: str) -> NoReturn:
        raise ValueError(f"{word} is no number in JSON")

    try:
        value = json.loads(body or b"{}", parse_constant=none, parse_float=_finite)
    except RecursionError:
        raise Refused("body", "is nested too deep", "JSON of a few levels") from None
    except UnicodeDecodeError:
        raise Refused("body", "is not UTF-8", "JSON") from None
    except ValueError as error:
        reason = str(error).partition(";")[0]
        raise Refused("body", f"is not JSON ({reason:.120})", "a JSON object") from None
    if not isinstance(value, dict):
        raise Refused("body", f"is JSON of {_kind(value)}", "an object")
    return Fields(value)


def _finite(digits: str) -> float:
    value = float(digits)
    if not isfinite(value):
        raise ValueError(f"{digits:.20} is too large")
    return value


def _kind(value: object) -> str:
    kinds = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return kinds.get(type(value), "a number")


class Fields:
    """A JSON object whose fields are asked for by name and kind. What is null counts as absent.

    Refused, which names the field: it is of another kind, or out of its range.
    """

    def __init__(self, values: Mapping[str, Any], path: str = ""):
        self.values, self._path = values, path

    def __contains__(self, name: str) -> bool:
        return self.values.get(name) is not None

    def path(self, name: str) -> str:
        """A field's name in the whole body."""
        return f"{self._path}.{name}" if self._path else name

    def refuse(self, name: str, found: object, wanted: object = None, fix: str | None = None) -> NoReturn:
        raise Refused(self.path(name), found, wanted, fix, field=self.path(name))

    def get(self, name: str) -> Any:
        return self.values.get(name)

    def _of(self, name: str, kinds: type | tuple[type, ...], wanted: str) -> Any:
        value = self.values.get(name)
        right = isinstance(value, kinds) and (kinds is bool or not isinstance(value, bool))
        if value is not None and not right:
            self.refuse(name, f"found {shown(value)}", wanted)
        return value

    def text(self, name: str) -> str | None:
        value = self._of(name, str, "text")
        return None if value is None else clean(value)

    def flag(self, name: str) -> bool:
        return bool(self._of(name, bool, "true or false"))

    def number(self, name: str, least: float, most: float) -> float | None:
        wanted = f"a number from {least:g} to {most:g}"
        value: float | None = self._of(name, (int, float), wanted)
        if value is not None and not least <= value <= most:
            self.refuse(name, f"found {shown(value)}", wanted)
        return value

    def whole(self, name: str, least: int | None = None, most: int | None = None) -> int | None:
        """Also one that is written as 64.0."""
        wanted = "a whole number"
        if least is not None:
            wanted += f" from {least}" if most is None else f" from {least} to {most}"
        value: float | None = self._of(name, (int, float), wanted)
        if value is None:
            return None
        inside = (least is None or value >= least) and (most is None or value <= most)
        if value != int(value) or not inside:
            self.refuse(name, f"found {shown(value)}", wanted)
        return int(value)

    def list(self, name: str) -> Sequence[Any]:
        return self._of(name, list, "a list") or []

    def object(self, name: str) -> "Fields":
        """An object that is absent has no fields."""
        return Fields(self._of(name, dict, "an object") or {}, self.path(name))

    def objects(self, name: str) -> Iterator["Fields"]:
        """The objects of a list."""
        for i, value in enumerate(self.list(name)):
            if not isinstance(value, dict):
                self.refuse(f"{name}[{i}]", f"found {shown(value)}", "an object")
            yield Fields(value, self.path(f"{name}[{i}]"))


def shown(value: object) -> str:
    """A value as an error shows it."""
    return reprlib.repr(value)


def clean(text: str) -> str:
    """Text without halves of surrogate pairs, which JSON can hold and UTF-8 cannot."""
    return re.sub("[\ud800-\udfff]", "\ufffd", text)


# ---------------------------------------------------------------- pictures


def data_url(url: str, name: str) -> Encoded:
    """The picture in `data:[type][;parameter];base64,...`, whose type is not believed.

    Refused: it is another URL, or none.
    """
    head, comma, data = url.partition(",")
    head = head.lower().strip()
    if not (comma and head.startswith("data:") and head.endswith(";base64")):
        wanted = "data:image/jpeg;base64,... with the picture's file"
        scheme = re.match(r"[A-Za-z][A-Za-z0-9+.-]*:", url)
        found = f"is a URL of {scheme[0].lower()}" if scheme else f"found {shown(url)}"
        raise Refused(name, found, wanted, "send the picture itself", field=name)
    return from_base64(data, name)


def from_base64(text: str, name: str) -> Encoded:
    """A picture's file in base64, with white space or without, with padding or without."""
    text = "".join(text.split()).rstrip("=")
    try:
        data = binascii.a2b_base64(text + "=" * (-len(text) % 4), strict_mode=True) if text else b""
    except ValueError:
        raise Refused(name, "is not base64", "a picture's file in base64", field=name) from None
    return Encoded(data, name)


# ---------------------------------------------------------------- what a request asks for


@dataclass(frozen=True)
class Draft:
    """A message whose pictures are not decoded yet."""

    role: str
    text: str
    pictures: tuple[Encoded, ...] = ()


@dataclass(frozen=True)
class Call:
    """What a request asks for, in whatever dialect.

    messages  a system message first, if any; then user and assistant by turns, the user last
    answers   how many; their seeds follow each other; 0: nothing is asked, but that the model be there
    stream    the reply is sent as it comes
    usage     the stream's last chunk counts tokens
    unload    where nothing is asked: the model is not needed any more
    model     what the request calls the model
    The others are those of `requests.Request`.
    """

    messages: tuple[Draft, ...]
    settings: Settings
    model: str
    stop: tuple[str, ...] = ()
    top_logprobs: int | None = None
    schema: Mapping[str, Any] | None = None
    drop_oldest: bool = False
    look: bool = False
    answers: int = 1
    stream: bool = False
    usage: bool = False
    unload: bool = False

    @property
    def pictures(self) -> list[Encoded]:
        return [picture for message in self.messages for picture in message.pictures]

    def requests(self, pictures: Sequence[Any], client: str, low_priority: bool) -> list[Request]:
        """One for each answer. pictures: those of `pictures`, decoded."""
        rest = iter(pictures)
        messages = tuple(
            Message(m.role, m.text, tuple(next(rest) for _ in m.pictures)) for m in self.messages
        )
        seed = self.settings.seed
        return [
            Request(
                messages,
                self.settings if seed is None else replace(self.settings, seed=(seed + i) % SEEDS),
                self.stop,
                self.top_logprobs,
                self.schema,
                self.drop_oldest,
                self.look,
                client,
                low_priority,
            )
            for i in range(self.answers)
        ]


def in_turns(messages: Sequence[Draft], name: str) -> tuple[Draft, ...]:
    """A chat as the model's template can write it: system texts in front, neighbours of one role joined.

    Refused: there are too many messages or pictures, or the last one is not the user's.
    """
    if len(messages) > MESSAGES:
        raise Refused(name, f"found {len(messages)}", f"at most {MESSAGES}", field=name)
    if (pictures := sum(len(message.pictures) for message in messages)) > PICTURES:
        raise Refused(name, f"found {pictures} pictures", f"at most {PICTURES}", field=name)
    turns: list[Draft] = []
    for message in sorted(messages, key=lambda message: message.role != "system"):  # the rest stays in order
        if turns and turns[-1].role == message.role:
            before = turns.pop()
            text = "\n".join(text for text in (before.text, message.text) if text)
            message = Draft(message.role, text, before.pictures + message.pictures)
        turns.append(message)
    if not turns or turns[-1].role != "user":
        found = "found no message" if not turns else f"the last is of {turns[-1].role}"
        raise Refused(name, found, "a last message of the user", field=name)
    if turns[turns[0].role == "system"].role == "assistant":
        raise Refused(name, "the first is of assistant", "a message of the user before it", field=name)
    return tuple(turns)


def stops(body: Fields, name: str = "stop") -> tuple[str, ...]:
    """Stop strings: none, one as text, or a list."""
    value = body.get(name)
    found = [value] if isinstance(value, str) else body.list(name)
    if len(found) > STOPS or not all(isinstance(text, str) and text for text in found):
        body.refuse(name, f"found {shown(value)}", f"text, or up to {STOPS} texts, none of them empty")
    return tuple(clean(text) for text in found)


def chances_wanted(body: Fields) -> int | None:
    """`logprobs` and `top_logprobs` as `Request.top_logprobs`."""
    top = body.whole("top_logprobs", 0, ALTERNATIVES)
    if body.flag("logprobs"):
        return top or 0
    if top:
        body.refuse("top_logprobs", f"found {top}", "logprobs: true beside it")
    return None


def sampling(body: Fields) -> dict[str, Any]:
    """The settings that both dialects spell alike, those that are there."""
    given = {
        "temperature": body.number("temperature", 0, 2),
        "top_p": body.number("top_p", 0, 1),
        "top_k": body.whole("top_k"),
        "frequency_penalty": body.number("frequency_penalty", -2, 2),
        "presence_penalty": body.number("presence_penalty", -2, 2),
        "repeat_penalty": body.number("repeat_penalty", 0, 10),
    }
    if given["top_p"] == 0:
        given["top_p"] = 1e-9  # the likeliest alone
    if (top_k := given["top_k"]) is not None and top_k < 0:
        given["top_k"] = 0  # all, as others write it
    if (seed := body.whole("seed")) is not None:
        given["seed"] = seed % SEEDS
    return {name: value for name, value in given.items() if value is not None}


def schema_in(body: Fields, name: str) -> Mapping[str, Any]:
    """A JSON schema. What stands in it is looked at when it is queued."""
    if name not in body:
        body.refuse(name, "is missing", "a JSON schema")
    return body.object(name).values


# ---------------------------------------------------------------- replies


@dataclass(frozen=True)
class Served:
    """The model that answers, as replies describe it.

    name         what clients call it
    context      positions of its context
    sees         whether it takes pictures
    max_tokens   of an answer, at most
    fingerprint  changes with this program's version and with the weights
    since        when it was loaded, in seconds since 1970
    size         of its files, in bytes
    parameters   such as "1.7B"; empty if unknown
    precision    of its weights, such as "int4"
    """

    name: str
    context: int
    sees: bool
    max_tokens: int = 512
    fingerprint: str = ""
    since: float = 0.0
    size: int = 0
    parameters: str = ""
    precision: str = ""


@dataclass
class Answer:
    """An answer as far as it has come."""

    text: str = ""
    chances: list[TokenChance] = field(default_factory=list)
    finished: Finished | None = None

    def add(self, event: Piece | Finished) -> None:
        if isinstance(event, Finished):
            self.finished = event
        else:
            self.text += event.text
            self.chances += event.chances


class Reply(Protocol):
    """A reply in one dialect. Parts of streams are bytes for the wire; i is the answer's number."""

    @property
    def media_type(self) -> str:
        """Of streams."""
        ...

    @property
    def ping(self) -> bytes | None:
        """What may be sent while nothing comes."""
        ...

    def first(self, i: int, ahead: int) -> bytes:
        """ahead: how many requests are before this one."""
        ...

    def piece(self, i: int, piece: Piece) -> bytes: ...
    def last(self, i: int, finished: Finished) -> bytes: ...
    def end(self, finished: Sequence[Finished]) -> bytes: ...
    def failure(self, refused: Refused) -> bytes: ...
    def whole(self, answers: Sequence[Answer]) -> dict[str, Any]: ...
    def nothing(self) -> dict[str, Any]:
        """Where nothing was asked."""
        ...


@dataclass(frozen=True)
class Dialect:
    """How a path's requests are read and answered."""

    read: Callable[[Fields, Served], Call]
    reply: Callable[[Call, Served], Reply]
