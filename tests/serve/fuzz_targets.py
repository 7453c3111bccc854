"""The ways in to `mvlm serve`, for `tests.fuzz`: what is sent could be answered, or is refused.

Everything is read as the server reads it, up to the queue of an engine, from which it is taken at once.
"""

import json
from collections.abc import Callable, Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

from tests.fuzz_target import Target

PACKAGES = ("mvlm_np.serve", "mvlm_np.constrained", "mvlm_np.inputs.conversation")
PATHS = {"openai": "/v1/chat/completions", "ollama-chat": "/api/chat", "ollama-generate": "/api/generate"}


@lru_cache(1)
def _engine() -> Any:
    from mvlm_np.serve.engine import Engine
    from tests.serve.fakes import FakeModel

    return Engine(FakeModel())


def request(path: str, body: bytes) -> list[Any]:
    """The jobs of a body. UserError, from which a refusal follows: there are none."""
    from mvlm_np.errors import UserError
    from mvlm_np.serve import ollama, openai
    from mvlm_np.serve.refused import refusal

    try:
        return queued(path, body)
    except UserError as error:
        refused = refusal(error)
        assert refused.status in (400, 404) and len(str(refused)) < 1000 and "\n" not in str(refused)
        json.dumps(openai.error(refused)).encode(), json.dumps(ollama.error(refused)).encode()
        raise


def queued(path: str, body: bytes) -> list[Any]:
    from PIL import Image

    from mvlm_np.serve.app import DIALECTS
    from mvlm_np.serve.fetching import Where
    from mvlm_np.serve.fields import read_json
    from mvlm_np.serve.pictures import Link, decode
    from tests.serve.fake import ANSWER, FINISHED, SERVED

    dialect, engine = DIALECTS[path], _engine()
    call = dialect.read(read_json(bytearray(body)), SERVED)
    assert 1 <= call.settings.max_new_tokens <= SERVED.max_tokens
    assert len(call.stop) <= 4 and all(call.stop) and 0 <= call.answers <= 4
    pictures = []
    for picture in call.pictures:
        if isinstance(picture, Link):
            Where.of(picture)
            pictures.append(Image.new("RGB", (4, 4)))
        else:
            pictures += decode([picture])
    jobs = []
    try:
        for asked in call.requests(pictures, client="me", owner="me"):
            jobs.append(engine.submit(asked, print))
    finally:
        for job in jobs:
            engine.cancel(job)
        engine.step()
        assert not engine.is_busy
    replies(dialect.reply(call, SERVED), call.answers, ANSWER, FINISHED)
    return jobs or ["nothing was asked"]


def replies(reply: Any, answers: int, events: Any, finished: Any) -> None:
    """All that a reply consists of is text, and JSON."""
    from mvlm_np.serve.dialects import Answer

    whole = []
    for i in range(answers):
        answer = Answer()
        for event in events:
            answer.add(event)
            part = reply.last(i, event) if event is finished else reply.piece(i, event)
            json.loads(part.decode().removeprefix("data: "))
        reply.first(i, 1).decode()
        whole.append(answer)
    json.dumps(reply.whole(whole) if answers else reply.nothing(), allow_nan=False).encode()
    reply.end([finished] * answers).decode() if answers else None


def _bodies() -> list[bytes]:
    from tests.serve.fake import picture, said, url
    from tests.serve.test_any_body import OF_OLLAMA, WHOLE

    schema = {
        "type": "object",
        "$defs": {"lamp": {"enum": ["on", "off", None, 1.5]}},
        "properties": {
            "lamp": {"$ref": "#/$defs/lamp"},
            "number": {"type": "integer", "minimum": -5, "exclusiveMaximum": 12},
            "words": {"type": "array", "items": {"type": "string", "maxLength": 5}, "maxItems": 3},
            "either": {"anyOf": [{"type": "boolean"}, {"type": "null"}, {"const": "x"}]},
        },
        "required": ["lamp"],
        "additionalProperties": False,
    }
    wanted = {"type": "json_schema", "json_schema": {"schema": schema}}
    asked = {"messages": [said("user", "What?")], "model": "tiny", "prompt": "What?"}
    jpeg, sent = picture(format="JPEG"), {"type": "input_image", "image_url": url(picture())}
    link = {"type": "image_url", "image_url": "https://example.org/a.png?b=c"}
    bodies: list[dict[str, Any]] = [
        asked,
        WHOLE,
        OF_OLLAMA,
        asked | {"response_format": wanted, "format": schema, "max_tokens": 90},
        asked | {"messages": [{"role": "user", "content": [link, sent]}]},
        asked | {"messages": [said("user", jpeg, "A?"), said("assistant", "B"), said("user", "C")]},
        asked | {"messages": [], "prompt": "", "keep_alive": 0},
    ]  # fmt: skip
    return [json.dumps(body).encode() for body in bodies]


WORDS = rb"""
"messages":[    "role":"user"  "role":"assistant"  "role":"system"  "content":[  "images":["
{"type":"image_url","image_url":{"url":"  data:image/png;base64,  "http://  "\ud800"  [[[[[[[[  {"a":{"a":{
"format":{  "$ref":"#"  "enum":[  "oneOf":[  "uniqueItems":true  "maxItems":99999999  "stop":["
"minimum":1e300  "maxLength":999999999  1e999  -0.0  NaN
""".split()


# ---------------------------------------------------------------- the door, and addresses


def door(path: Path) -> Iterable[object]:
    """Lines: a path, then headers. Who is let in where a key is needed has brought it."""
    import h11
    from starlette.datastructures import Headers

    from mvlm_np.serve.safety import OPEN_PATHS, Safety

    asked, *lines = path.read_bytes().split(b"\n")
    pairs = [line.partition(b":") for line in lines]
    try:  # which first refuses what no header may hold
        raw = h11.Request(
            method="GET", target="/", headers=[(a, b.strip()) for a, _, b in pairs]
        ).headers.raw_items()
    except h11.ProtocolError:
        return []
    raw = [(name.lower(), value) for name, value in raw]
    safety = Safety(("secret-key",), ("pi.example",), ("https://chat.example",))
    name = safety.check(asked.decode("latin-1"), Headers(raw=raw))
    if asked.decode("latin-1") not in OPEN_PATHS:
        assert name and any(value.endswith(b"secret-key") for _, value in raw)
    origins = [value for key, value in raw if key == b"origin"]
    assert all(value.lower().startswith((b"http://", b"https://")) for value in origins)
    return [name or "open"]


def _doors() -> list[bytes]:
    return [
        b"/v1/models\nhost: localhost:8080\nauthorization: Bearer secret-key",
        b"/\nhost: [::1]:8080\norigin: http://[::1]:8080",
        b"/api/chat\nhost: pi.example\nx-api-key: secret-key\norigin: https://chat.example",
        b"/health\nhost: pi.local.\norigin: https://pi.local",
    ]


def address(path: Path) -> Iterable[object]:
    """An address of a picture: what is connected to and what is sent there say the same."""
    from urllib.parse import urlsplit

    import h11

    from mvlm_np.serve.fetching import Where, is_public
    from mvlm_np.serve.pictures import Link, picture_at

    link = picture_at(path.read_bytes().decode("latin-1"), "picture")
    if isinstance(link, Link):
        where = Where.of(link)
        h11.Request(method="GET", target=where.target, headers=[("Host", where.header)])
        again = urlsplit(f"{where.scheme}://{where.header}{where.target}")
        default = {"http": 80, "https": 443}[where.scheme]
        assert (again.hostname, default if again.port is None else again.port) == (where.host, where.port)
        assert not again.username and not where.is_listed(frozenset(["other.example"]))
        is_public(where.host)
    return [link]


def _addresses() -> list[bytes]:
    return [
        b"http://example.org/a.png?b=c#d",
        b"https://[2001:db8::1]:8443/%41 \xe4",
        b"http://127.0.0.1:80/",
        b"http://user:password@example.org./a\\b",
        b"data:;base64,AAAA",
    ]


def _asking(path: str) -> Callable[[Path], Iterable[object]]:
    return lambda file: request(path, file.read_bytes())


TARGETS = {
    **{
        name: Target(_asking(path), _bodies, words=tuple(WORDS), instrument=PACKAGES)
        for name, path in PATHS.items()
    },
    "door": Target(
        door,
        _doors,
        words=(b"\nhost: ", b"\norigin: ", b"\nauthorization: Bearer ", b"\nx-api-key: ", b"secret-key"),
        instrument=PACKAGES,
    ),
    "address": Target(
        address,
        _addresses,
        words=tuple(b"http:// https:// @ [::1] 127.0.0.1 \\ %2f :80 .. ? # xn--".split()),
        instrument=PACKAGES,
    ),
}  # fmt: skip
