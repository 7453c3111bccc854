"""Ollama's dialect: `/api/chat`, `/api/generate`, and what clients ask about models before.

An over-long chat loses its oldest turns, as Ollama has it. Options that change nothing here (`num_ctx`,
`num_gpu`, ...) are passed over.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from mvlm_np.constrained.schema import ANY_OBJECT
from mvlm_np.generation import Settings
from mvlm_np.inputs.conversation import as_jinja
from mvlm_np.inputs.picture_file import Encoded
from mvlm_np.serve.dialects import (
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
from mvlm_np.serve.fields import Fields, shown
from mvlm_np.serve.openai import logprobs, refuse_tools
from mvlm_np.serve.pictures import Link, from_base64, picture_at
from mvlm_np.serve.refused import Refused
from mvlm_np.serve.requests import Finished, Piece

ROLES = ("system", "user", "assistant")
VERSION = "0.12.11"  # of Ollama, whose requests this module reads; clients go by it
BUSY = 503  # the status of a full queue

# ---------------------------------------------------------------- requests


def read_chat(body: Fields, served: Served) -> Call:
    """The body of `POST /api/chat`. Some clients put `system` and `images` beside the messages."""
    model = require_model(body, served)
    refuse_tools(body, served)
    messages = [_message(message, served) for message in body.objects("messages")]
    if not messages:
        return _call(body, served, model, ())
    if system := body.text("system"):
        messages.insert(0, Draft("system", system))
    if pictures := _pictures(body):
        at = max((i for i, message in enumerate(messages) if message.role == "user"), default=-1)
        if at < 0:
            body.refuse("images", "no message of the user", "one that they belong to")
        messages[at] = replace(messages[at], pictures=messages[at].pictures + pictures)
    return _call(body, served, model, in_turns(messages, "messages"))


def read_generate(body: Fields, served: Served) -> Call:
    """The body of `POST /api/generate`: one question."""
    model = require_model(body, served)
    if body.get("suffix"):
        body.refuse("suffix", f"{served.name} does not support insert")
    for name in ("template", "context", "raw"):
        if body.get(name):
            fix = "send a chat's turns to /api/chat" if name == "context" else None
            body.refuse(name, "is not supported here", "none", fix)
    question, pictures = body.text("prompt") or "", _pictures(body)
    if not question and not pictures:
        return _call(body, served, model, ())
    system = [Draft("system", text)] if (text := body.text("system")) else []
    messages = in_turns([*system, Draft("user", question, pictures)], "prompt")
    return _call(body, served, model, messages)


def require_model(body: Fields, served: Served) -> str:
    """The model's name as the request has it. Refused: it is another model's."""
    name = body.text("model") or body.text("name")
    if not name:
        body.refuse("model", "is missing", served.name)
    if name.removesuffix(":latest") != served.name:
        raise Refused("model", f"{shown(name)} not found", served.name, status=404, field="model")
    return name


def _message(message: Fields, served: Served) -> Draft:
    role = message.text("role")
    if role not in ROLES:
        message.refuse("role", f"found {shown(role)}", f"one of {', '.join(ROLES)}")
    if message.get("tool_calls"):
        message.refuse("tool_calls", f"{served.name} does not support tools")
    pictures = _pictures(message)
    if pictures and role != "user":
        message.refuse("images", f"a picture in a message of {role}", "it in the user's")
    return Draft(role, message.text("content") or "", pictures)


def _pictures(fields: Fields) -> tuple[Encoded | Link, ...]:
    found = list[Encoded | Link]()
    for i, text in enumerate(fields.list("images")):
        name = fields.path(f"images[{i}]")
        if not isinstance(text, str):
            raise Refused(name, f"found {shown(text)}", "a picture's file in base64", field=name)
        url = text[:5].lower() == "data:"
        found.append(picture_at(text, name) if url else from_base64(text, name))
    return tuple(found)


def _call(body: Fields, served: Served, model: str, messages: tuple[Draft, ...]) -> Call:
    if body.get("think"):
        body.refuse("think", f"{served.name} does not support thinking")
    options = body.object("options")
    limit = options.whole("num_predict") or -1  # -1 and -2: as long as there is room
    longest = min(limit, served.max_tokens) if limit > 0 else served.max_tokens
    return Call(
        messages=messages,
        settings=Settings(max_new_tokens=longest, **_sampling(options)),
        model=model,
        stop=stops(options),
        top_logprobs=chances_wanted(body),
        schema=_schema(body),
        drop_oldest=True,
        answers=min(1, len(messages)),
        stream=body.get("stream") is None or body.flag("stream"),
        unload=body.get("keep_alive") in (0, "0", "0s", "0m"),
    )


def _sampling(options: Fields) -> dict[str, Any]:
    given = sampling(options)
    if (last := options.whole("repeat_last_n", -1)) is not None:
        given["repeat_last_n"] = last
    if (seed := options.whole("seed")) is not None and seed < 0:
        del given["seed"]  # another answer each time
    return given


def _schema(body: Fields) -> Any:
    wanted = body.get("format")
    if wanted in (None, ""):
        return None
    if wanted == "json":
        return ANY_OBJECT
    if not isinstance(wanted, dict):
        body.refuse("format", f"found {shown(wanted)}", 'a JSON schema or "json"')
    return schema_in(body, "format")


# ---------------------------------------------------------------- replies


class Reply:
    """A reply of `/api/chat` or `/api/generate`, whole or as lines of JSON."""

    media_type = "application/x-ndjson"
    ping = None  # clients take each line for a part of the answer

    def __init__(self, call: Call, served: Served, chat: bool):
        self._call, self._chat, self._began = call, chat, time.perf_counter()

    def _part(self, text: str, done: bool, chances: Sequence[Any] = (), **more: Any) -> dict[str, Any]:
        said = {"message": {"role": "assistant", "content": text}} if self._chat else {"response": text}
        wanted = self._call.top_logprobs is not None and (chances or not done)
        tokens = {"logprobs": [*logprobs(chances)]} if wanted else {}
        return {"model": self._call.model, "created_at": now(), **said, **tokens, "done": done, **more}

    def first(self, i: int, ahead: int) -> bytes:
        return b""

    def piece(self, i: int, piece: Piece) -> bytes:
        return line(self._part(piece.text, False, piece.chances))

    def last(self, i: int, finished: Finished) -> bytes:
        return line(self._part("", True, **self._numbers(finished)))

    def end(self, finished: Sequence[Finished]) -> bytes:
        return b""

    def failure(self, refused: Refused) -> bytes:
        return line(error(refused))

    def whole(self, answers: Sequence[Answer]) -> dict[str, Any]:
        answer = answers[0]
        assert answer.finished
        return self._part(answer.text, True, answer.chances, **self._numbers(answer.finished))

    def nothing(self) -> dict[str, Any]:
        """A request without a question is one to load the model, or to unload it; it stays."""
        return self._part("", True, done_reason="unload" if self._call.unload else "load")

    def _numbers(self, finished: Finished) -> dict[str, Any]:
        """Times are in nanoseconds. Clients divide by them, so none is 0."""

        def nanoseconds(seconds: float) -> int:
            return max(1, round(seconds * 1e9))

        seconds = {name: finished.seconds.get(name, 0.0) for name in ("encode", "prefill", "decode")}
        return {
            "done_reason": finished.reason,
            "total_duration": nanoseconds(time.perf_counter() - self._began),
            "load_duration": nanoseconds(0),
            "prompt_eval_count": finished.prompt_tokens,
            "prompt_eval_duration": nanoseconds(seconds["encode"] + seconds["prefill"]),
            "eval_count": finished.completion_tokens,
            "eval_duration": nanoseconds(seconds["decode"]),
        }


def line(value: dict[str, Any]) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


def error(refused: Refused) -> dict[str, Any]:
    if refused.code == "server_busy":  # as Ollama says it; clients look for these words
        return {"error": "server busy, please try again.  maximum pending requests exceeded"}
    return {"error": str(refused)}


def now(seconds: float | None = None) -> str:
    """A time as Ollama writes it; None: this moment."""
    moment = datetime.now(UTC) if seconds is None else datetime.fromtimestamp(seconds, UTC)
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")


# ---------------------------------------------------------------- about models


def _described(served: Served) -> dict[str, Any]:
    """The model, as several replies describe it."""
    return {
        "name": f"{served.name}:latest",
        "model": f"{served.name}:latest",
        "size": served.size,
        "digest": served.fingerprint,
        "details": _details(served),
    }


def _details(served: Served) -> dict[str, Any]:
    return {
        "parent_model": "",
        "format": "mvlm",
        "family": "mobilevlm",
        "families": ["mobilevlm"],
        "parameter_size": served.parameters,
        "quantization_level": served.precision,
    }


def tags(served: Served) -> dict[str, Any]:
    return {"models": [_described(served) | {"modified_at": now(served.since)}]}


def running(served: Served) -> dict[str, Any]:
    """The model is there for as long as the server."""
    forever = {"expires_at": "2318-01-01T00:00:00Z", "size_vram": 0, "context_length": served.context}
    return {"models": [_described(served) | forever]}


def show(served: Served) -> dict[str, Any]:
    return {
        "modelfile": "",
        "parameters": f"num_predict {served.max_tokens}\nnum_ctx {served.context}\ntemperature 0",
        "template": as_jinja("v1"),
        "details": _details(served),
        "model_info": {
            "general.architecture": "mobilevlm",
            "general.basename": served.name,
            "mobilevlm.context_length": served.context,
        },
        "capabilities": ["completion", "vision"] if served.sees else ["completion"],
        "modified_at": now(served.since),
    }
