"""OpenAI's dialect: `POST /v1/chat/completions` and `GET /v1/models`.

Fields that change nothing here (`user`, `store`, `service_tier`, ...) and fields that nobody knows yet are
passed over. What would change the answer and cannot be done is refused, with the field's name.
"""

import json
import secrets
import time
from collections.abc import Iterator, Sequence
from typing import Any

from mvlm_np.constrained.schema import ANY_OBJECT
from mvlm_np.generation import Settings
from mvlm_np.inputs.picture_file import Encoded
from mvlm_np.serve.dialects import (
    ANSWERS,
    Answer,
    Call,
    Draft,
    Served,
    chances_wanted,
    in_turns,
    sampling,
    schema_in,
    stops,
)
from mvlm_np.serve.fields import Fields, clean, shown
from mvlm_np.serve.pictures import Link, picture_at
from mvlm_np.serve.refused import Refused
from mvlm_np.serve.requests import Finished, Piece, TokenChance

ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
TEXT_PARTS, PICTURE_PARTS = ("text", "input_text"), ("image_url", "input_image")
TYPES = {  # of errors, by status
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}

# ---------------------------------------------------------------- requests


def read(body: Fields, served: Served) -> Call:
    """The body of `POST /v1/chat/completions`. Whatever `model` is, the one that is here answers."""
    refuse_tools(body, served)
    if body.get("logit_bias"):
        body.refuse("logit_bias", "is not supported here", "none")
    if "audio" in body.list("modalities") or "audio" in body:
        body.refuse("modalities", "audio is not supported here", "text")
    limit = body.whole("max_completion_tokens", -1)
    if limit is None:
        limit = body.whole("max_tokens", -1)
    if limit == 0:
        body.refuse("max_tokens", "found 0", "a whole number from 1")
    longest = served.max_tokens if limit in (None, -1) else min(limit, served.max_tokens)
    stream = body.flag("stream")
    return Call(
        messages=in_turns([_message(message) for message in body.objects("messages")], "messages"),
        settings=Settings(max_new_tokens=longest, **sampling(body)),
        model=body.text("model") or served.name,
        stop=stops(body),
        top_logprobs=chances_wanted(body),
        schema=_schema(body),
        look=body.object("mvlm").flag("look"),
        answers=body.whole("n", 1, ANSWERS) or 1,
        stream=stream,
        usage=stream and body.object("stream_options").flag("include_usage"),
    )


def refuse_tools(body: Fields, served: Served) -> None:
    for name in ("tools", "functions"):
        if body.list(name) and body.get("tool_choice") != "none":
            body.refuse(name, f"{served.name} does not support tools")


def _message(message: Fields) -> Draft:
    role = message.text("role")
    if role not in ROLES:
        message.refuse("role", f"found {shown(role)}", f"one of {', '.join(ROLES)}")
    if message.get("tool_calls"):
        message.refuse("tool_calls", "tools are not supported here", "none")
    content = message.get("content")
    if content is None and role != "assistant":
        message.refuse("content", "is missing", "text or a list of parts")
    if not isinstance(content, list):
        return Draft(ROLES[role], message.text("content") or "")
    texts, pictures = [], []
    for part in message.objects("content"):
        kind = part.get("type")
        if kind in TEXT_PARTS:
            texts.append(part.text("text") or "")
        elif kind in PICTURE_PARTS:
            if ROLES[role] != "user":
                part.refuse("type", f"a picture in a message of {role}", "it in the user's")
            pictures.append(_picture(part))
        else:
            part.refuse("type", f"found {shown(kind)}", "text or image_url")
    return Draft(ROLES[role], "\n".join(text for text in texts if text), tuple(pictures))


def _picture(part: Fields) -> Encoded | Link:
    """`image_url` is an object with a `url`, or the URL itself."""
    if isinstance(part.get("image_url"), dict):
        part = part.object("image_url")
        url, name = part.text("url"), part.path("url")
    else:
        url, name = part.text("image_url"), part.path("image_url")
    if url is None:
        raise Refused(name, "is missing", "data:image/jpeg;base64,...", field=name)
    return picture_at(url, name)


def _schema(body: Fields) -> Any:
    wanted = body.object("response_format")
    kind = wanted.text("type") or "text"
    if kind == "text":
        return None
    if kind == "json_object":
        return ANY_OBJECT
    if kind != "json_schema":
        wanted.refuse("type", f"found {shown(kind)}", "text, json_object or json_schema")
    return schema_in(wanted.object("json_schema"), "schema")


# ---------------------------------------------------------------- replies


class Reply:
    """A chat completion, whole or as server-sent events."""

    media_type = "text/event-stream"
    ping = b": \n\n"

    def __init__(self, call: Call, served: Served):
        self._call, self._served = call, served
        self._id, self._created = f"chatcmpl-{secrets.token_hex(12)}", int(time.time())

    def _head(self, kind: str) -> dict[str, Any]:
        return {
            "id": self._id,
            "object": kind,
            "created": self._created,
            "model": self._served.name,
            "system_fingerprint": self._served.fingerprint,
        }

    def _chunk(self, choices: list[dict[str, Any]], **more: Any) -> bytes:
        usage = {"usage": None} if self._call.usage else {}
        return _event(self._head("chat.completion.chunk") | {"choices": choices} | usage | more)

    def _choice(self, i: int, delta: dict[str, Any], **more: Any) -> dict[str, Any]:
        return {"index": i, "delta": delta, "logprobs": None, "finish_reason": None} | more

    def first(self, i: int, ahead: int) -> bytes:
        more = {"mvlm": {"ahead": ahead}} if ahead else {}
        return self._chunk([self._choice(i, {"role": "assistant", "content": ""})], **more)

    def piece(self, i: int, piece: Piece) -> bytes:
        return self._chunk([self._choice(i, {"content": piece.text}, logprobs=self._logprobs(piece.chances))])

    def last(self, i: int, finished: Finished) -> bytes:
        return self._chunk([self._choice(i, {}, finish_reason=finished.reason)], mvlm=_ours(finished))

    def end(self, finished: Sequence[Finished]) -> bytes:
        counted = self._chunk([], usage=_usage(finished)) if self._call.usage else b""
        return counted + b"data: [DONE]\n\n"

    def failure(self, refused: Refused) -> bytes:
        return _event(error(refused))

    def whole(self, answers: Sequence[Answer]) -> dict[str, Any]:
        finished = [answer.finished for answer in answers if answer.finished]
        choices = [
            {
                "index": i,
                "message": {"role": "assistant", "content": answer.text, "refusal": None},
                "logprobs": self._logprobs(answer.chances),
                "finish_reason": finished[i].reason,
            }
            for i, answer in enumerate(answers)
        ]
        head = self._head("chat.completion") | {"choices": choices}
        return head | {"usage": _usage(finished), "mvlm": _ours(finished[0])}

    def nothing(self) -> dict[str, Any]:
        raise AssertionError("here, a request without messages is refused")

    def _logprobs(self, chances: Sequence[TokenChance]) -> dict[str, Any] | None:
        if self._call.top_logprobs is None:
            return None
        return {"content": [*logprobs(chances)], "refusal": None}


def logprobs(chances: Sequence[TokenChance]) -> Iterator[dict[str, Any]]:
    """Both dialects have tokens' log-probabilities in this shape."""
    for chance in chances:
        yield _logprob(chance) | {"top_logprobs": [_logprob(other) for other in chance.top]}


def _logprob(chance: TokenChance) -> dict[str, Any]:
    # JSON has no infinity, and this is what the API's description says for a token that cannot come.
    return {
        "token": clean(chance.token),
        "logprob": max(chance.logprob, -9999.0),
        "bytes": [*chance.raw],
    }


def _usage(finished: Sequence[Finished]) -> dict[str, Any]:
    """Several answers share one prompt."""
    prompt, answer = finished[0].prompt_tokens, sum(one.completion_tokens for one in finished)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": answer,
        "total_tokens": prompt + answer,
        "prompt_tokens_details": {"cached_tokens": finished[0].cached_tokens},
    }


def _ours(finished: Finished) -> dict[str, Any]:
    """What no other server says: how long each part took, and where the pictures were looked at."""
    seconds = {name: round(value, 4) for name, value in finished.seconds.items()}
    looked = [one.astype(float).round(6).tolist() for one in finished.looked]
    return {"seconds": seconds} | ({"looked": looked} if looked else {})


def _event(value: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


def error(refused: Refused) -> dict[str, Any]:
    kind = "server_error" if refused.status >= 500 else TYPES.get(refused.status, "invalid_request_error")
    fields = {"message": str(refused), "type": kind, "param": refused.field, "code": refused.code}
    return {"error": fields | refused.more}


def models(served: Served) -> dict[str, Any]:
    return {"object": "list", "data": [model(served)]}


def require_model(name: str, served: Served) -> None:
    """Refused: it is another model's name."""
    if name.removesuffix(":latest") != served.name:
        found = f"there is no {shown(name)}"
        raise Refused("model", found, served.name, field="model", status=404, code="model_not_found")


def model(served: Served) -> dict[str, Any]:
    """What `GET /v1/models/{id}` says. The last three are what some clients size their requests by."""
    return {
        "id": served.name,
        "object": "model",
        "created": int(served.since),
        "owned_by": "mvlm-np",
        "max_model_len": served.context,
        "meta": {"n_ctx": served.context},
        "architecture": {"input_modalities": ["text", "image"] if served.sees else ["text"]},
    }
