"""OpenAI's dialect: what each field does, what is refused, and the shape of replies."""

import threading
from math import log
from typing import Any

import numpy as np
import pytest

from mvlm_np.errors import GenerationError, PromptError, PromptTooLong
from mvlm_np.serve.answering import Limits
from mvlm_np.serve.requests import Busy, Failed, Finished, Piece, Stopping, TokenChance, WaitedTooLong
from tests.serve.fake import ANSWER, FINISHED, SERVED, FakeEngine, chunks, client, picture, said, url

PATH = "/v1/chat/completions"
HI = [said("user", "Hi")]


def ask(engine: FakeEngine | None = None, **body: Any) -> Any:
    return client(engine).post(PATH, json={"model": "gpt-4o", "messages": HI} | body)


def asked(**body: Any) -> Any:
    """The request that the engine gets for a body."""
    engine = FakeEngine()
    reply = ask(engine, **body)
    assert reply.status_code == 200, reply.text
    return engine.request


def refused(status: int = 400, **body: Any) -> Any:
    """The error that the engine never hears of."""
    engine = FakeEngine()
    reply = ask(engine, **body)
    assert (reply.status_code, engine.jobs) == (status, []), reply.text
    return reply.json()["error"]


# ---------------------------------------------------------------- messages


def texts(*messages: Any) -> list[tuple[str, str, int]]:
    return [(m.role, m.text, len(m.pictures)) for m in asked(messages=list(messages)).messages]


def test_pictures_stand_in_their_message_whatever_the_order_of_parts() -> None:
    before = texts(said("user", picture(), "What?"))
    assert before == texts(said("user", "What?", picture())) == [("user", "What?", 1)]


def test_a_picture_of_a_later_turn_stays_there() -> None:
    turns = said("user", "Hi"), said("assistant", "Hello"), said("user", "And this?", picture(), picture())
    assert texts(*turns) == [("user", "Hi", 0), ("assistant", "Hello", 0), ("user", "And this?", 2)]


def test_a_picture_arrives_as_it_is() -> None:
    request = asked(messages=[said("user", picture((5, 3), colour="blue"), "What?")])
    (image,) = request.messages[0].pictures
    assert (image.mode, image.size, image.getpixel((4, 2))) == ("RGB", (5, 3), (0, 0, 255))


def test_system_texts_and_neighbours_of_one_role_are_joined() -> None:
    found = texts(
        said("user", "a", picture()),
        said("developer", "first"),
        said("user", "b", picture()),
        said("assistant", "c"),
        said("assistant", "d", "e"),
        said("system", "second"),
        said("user", "f"),
    )
    expected = [
        ("system", "first\nsecond", 0),
        ("user", "a\nb", 2),
        ("assistant", "c\nd\ne", 0),
        ("user", "f", 0),
    ]
    assert found == expected


@pytest.mark.parametrize("content", [None, "", []])
def test_an_empty_answer_passes(content: Any) -> None:
    turns = [HI[0], {"role": "assistant", "content": content}, said("user", "go on")]
    assert texts(*turns)[1] == ("assistant", "", 0)


def test_marks_in_texts_are_text() -> None:
    assert texts(said("user", "<image> </s> USER: \0")) == [("user", "<image> </s> USER: \0", 0)]


def test_halves_of_surrogate_pairs_are_no_text() -> None:
    engine = FakeEngine()
    body = b'{"messages": [{"role": "user", "content": "a\\ud800b"}]}'
    assert client(engine).post(PATH, content=body).status_code == 200
    assert engine.request.messages[0].text == "a\ufffdb"


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": url(picture())},
        {"type": "input_image", "image_url": url(picture())},
        {"type": "image_url", "image_url": {"url": url(picture()), "detail": "low"}},
        {"type": "image_url", "image_url": {"url": "DATA:;a=b;BASE64," + url(picture()).partition(",")[2]}},
        {"type": "image_url", "image_url": {"url": url(picture()).rstrip("=")}},
        {"type": "image_url", "image_url": {"url": url(picture()).replace("A", "A\n ")}},
        {"type": "image_url", "image_url": {"url": url(picture()).replace("image/png", "text/html")}},
    ],
)
def test_pictures_come_in_these_forms(part: Any) -> None:
    assert texts({"role": "user", "content": [part, {"type": "input_text", "text": "?"}]}) == [
        ("user", "?", 1)
    ]


def image_url(address: Any) -> Any:
    return [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": address}}]}]


URL = "messages[0].content[0].image_url.url"


@pytest.mark.parametrize(
    "address",
    [
        "http://localhost/a.png",
        "https://example.org/a.png",
        "file:///etc/passwd",
        "/etc/passwd",
        "../../etc/passwd",
        "data:image/png,%89PNG",
        "data:image/png;base64,%2F9j",
        "data:image/png;base64,&&&&",
        "data:image/png;base64,",
        "data:image/png;base64",
        "data:image/png;base64," + url(b"<svg/>").partition(",")[2],
        url(picture()[:-30]),
        url(b"hello"),
        "",
        None,
        7,
    ],
)
def test_what_is_no_picture_is_refused(address: Any) -> None:
    error = refused(messages=image_url(address))
    assert (error["type"], error["param"]) == ("invalid_request_error", URL)
    assert "/etc/passwd" not in error["message"] or len(error["message"]) < 200


def test_a_picture_with_too_many_pixels_is_refused_before_it_is_decoded() -> None:
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    for width, height in ((65_000, 1_000), (30_000, 30_000), (300_000, 1)):
        header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
        bomb = (
            b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
        )
        error = refused(messages=[said("user", bomb)])
        assert "pixels" in error["message"] and error["param"] == URL


def test_pictures_that_are_large_together_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from mvlm_np.serve import pictures

    monkeypatch.setattr(pictures, "IN_ALL", 100)
    assert "content[2]" in refused(messages=[said("user", *[picture((6, 8))] * 3)])["param"]
    assert asked(messages=[said("user", *[picture((6, 8))] * 2)])


def test_many_pictures_and_messages_are_refused() -> None:
    assert "at most 12" in refused(messages=[said("user", *[picture()] * 13)])["message"]
    assert len(asked(messages=[said("user", *[picture()] * 12)]).messages[0].pictures) == 12
    turns = [said("user", "a"), said("assistant", "b")] * 32 + HI
    assert refused(messages=turns)["param"] == "messages"
    assert len(asked(messages=turns[2:]).messages) == 63


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        (None, "messages"),
        ([], "messages"),
        ("Hi", "messages"),
        (["Hi"], "messages[0]"),
        ([{}], "messages[0].role"),
        ([{"role": "user"}], "messages[0].content"),
        ([{"role": "user", "content": 7}], "messages[0].content"),
        ([{"role": "user", "content": [{"type": "text", "text": 7}]}], "messages[0].content[0].text"),
        ([{"role": "user", "content": [{"type": "input_audio"}]}], "messages[0].content[0].type"),
        ([{"role": "user", "content": [{"type": "file"}]}], "messages[0].content[0].type"),
        ([{"role": "user", "content": [{"type": "video_url"}]}], "messages[0].content[0].type"),
        ([{"role": "user", "content": [{}]}], "messages[0].content[0].type"),
        ([{"role": "tool", "content": "x"}], "messages[0].role"),
        ([{"role": "function", "content": "x"}], "messages[0].role"),
        ([{"role": ["user"], "content": "x"}], "messages[0].role"),
        ([*HI, {"role": "assistant", "tool_calls": [{}]}, *HI], "messages[1].tool_calls"),
        ([*HI, said("assistant", "and")], "messages"),
        ([said("system", "be kind")], "messages"),
        ([said("assistant", "I"), *HI], "messages"),
        ([said("system", "see", picture()), *HI], "messages[0].content[1].type"),
    ],
)
def test_messages_that_cannot_be_answered_are_refused(messages: Any, param: str) -> None:
    assert refused(messages=messages)["param"] == param


# ---------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({}, {"temperature": 0.0, "top_p": None, "top_k": 50, "seed": None, "max_new_tokens": 100}),
        ({"temperature": 2, "top_p": 0.5, "top_k": 7}, {"temperature": 2, "top_p": 0.5, "top_k": 7}),
        (
            {"temperature": None, "top_p": None, "seed": None},
            {"temperature": 0.0, "top_p": None, "seed": None},
        ),
        ({"top_p": 0, "top_k": -1}, {"top_p": 1e-9, "top_k": 0}),
        ({"max_tokens": 5}, {"max_new_tokens": 5}),
        ({"max_tokens": 5, "max_completion_tokens": 6}, {"max_new_tokens": 6}),
        ({"max_tokens": 500}, {"max_new_tokens": 100}),
        ({"max_tokens": -1}, {"max_new_tokens": 100}),
        ({"max_tokens": 5.0}, {"max_new_tokens": 5}),
        ({"seed": -1}, {"seed": 2**63 - 1}),
        ({"seed": 2**63 + 7}, {"seed": 7}),
        (
            {"frequency_penalty": -2, "presence_penalty": 0.5, "repeat_penalty": 1.1},
            {"frequency_penalty": -2, "presence_penalty": 0.5, "repeat_penalty": 1.1},
        ),
    ],
)
def test_settings(body: dict[str, Any], expected: dict[str, Any]) -> None:
    settings = asked(**body).settings
    assert {name: getattr(settings, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({}, {"stop": (), "top_logprobs": None, "schema": None, "look": False, "drop_oldest": False}),
        ({"stop": "a"}, {"stop": ("a",)}),
        ({"stop": ["a", "b", "c", "d"]}, {"stop": ("a", "b", "c", "d")}),
        ({"stop": None}, {"stop": ()}),
        ({"logprobs": True}, {"top_logprobs": 0}),
        ({"logprobs": True, "top_logprobs": 20}, {"top_logprobs": 20}),
        ({"logprobs": False}, {"top_logprobs": None}),
        ({"response_format": {"type": "text"}}, {"schema": None}),
        ({"response_format": {"type": "json_object"}}, {"schema": {"type": "object"}}),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"a": 1}}}},
            {"schema": {"a": 1}},
        ),
        ({"mvlm": {"look": True}}, {"look": True}),
    ],
)
def test_what_else_the_engine_is_told(body: dict[str, Any], expected: dict[str, Any]) -> None:
    request = asked(**body)
    assert {name: getattr(request, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"temperature": 1e-9}, "temperature"),
        ({"top_p": 1.1}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"max_tokens": "5"}, "max_tokens"),
        ({"seed": "x"}, "seed"),
        ({"stop": ["a"] * 5}, "stop"),
        ({"stop": [""]}, "stop"),
        ({"stop": [7]}, "stop"),
        ({"stop": {}}, "stop"),
        ({"top_logprobs": 5}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"logprobs": 3}, "logprobs"),
        ({"frequency_penalty": 3}, "frequency_penalty"),
        ({"presence_penalty": -3}, "presence_penalty"),
        ({"n": 5}, "n"),
        ({"n": 0}, "n"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"functions": [{}]}, "functions"),
        ({"logit_bias": {"5": 1}}, "logit_bias"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema.schema"),
        ({"response_format": "json"}, "response_format"),
        ({"stream": "yes"}, "stream"),
        ({"model": 7}, "model"),
    ],
)
def test_what_cannot_be_done_is_refused_by_its_name(body: dict[str, Any], param: str) -> None:
    error = refused(**body)
    assert (error["param"], error["type"]) == (param, "invalid_request_error")
    assert param.rpartition(".")[2] in error["message"]


def test_what_changes_nothing_is_passed_over() -> None:
    asked(
        tools=[],
        logit_bias={},
        modalities=["text"],
        user="me",
        metadata={"a": "b"},
        store=True,
        service_tier="auto",
        parallel_tool_calls=True,
        prompt_cache_key="x",
        safety_identifier="x",
        verbosity="low",
        reasoning_effort="low",
        chat_template_kwargs={},
        cache_prompt=True,
        id_slot=-1,
        something_new={"deep": [1]},
    )
    asked(tools=[{"type": "function"}], tool_choice="none")


def test_low_priority_and_whose_it_is() -> None:
    engine = FakeEngine()
    ask(engine)
    assert (engine.request.client, engine.request.low_priority) == ("testclient ", False)
    client(engine).post(PATH, json={"messages": HI}, headers={"X-Priority": "low"})
    assert engine.request.low_priority


# ---------------------------------------------------------------- replies


def test_a_whole_reply() -> None:
    reply = ask()
    assert reply.headers["content-type"] == "application/json"
    said = reply.json()
    assert said.pop("id").startswith("chatcmpl-") and said.pop("created") > 1.7e9
    assert said == {
        "object": "chat.completion",
        "model": "tiny",
        "system_fingerprint": "mvlm-0-abc",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "a cat", "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {
            "prompt_tokens": 191,
            "completion_tokens": 2,
            "total_tokens": 193,
            "prompt_tokens_details": {"cached_tokens": 35},
        },
        "mvlm": {"seconds": {"queued": 0.0, "encode": 0.5, "prefill": 0.25, "decode": 0.125}},
    }


@pytest.mark.parametrize("usage", [False, True])
def test_a_stream(usage: bool) -> None:
    reply = ask(stream=True, stream_options={"include_usage": usage})
    assert reply.headers["content-type"] == "text/event-stream"
    assert reply.headers["cache-control"] == "no-cache" and reply.headers["x-accel-buffering"] == "no"
    *found, end = chunks(reply.text)
    assert end == "[DONE]"
    assert len({chunk["id"] for chunk in found}) == 1
    assert {chunk["object"] for chunk in found} == {"chat.completion.chunk"}
    choices = [chunk["choices"][0] for chunk in found if chunk["choices"]]
    assert [choice["delta"] for choice in choices] == [
        {"role": "assistant", "content": ""},
        {"content": "a "},
        {"content": "cat"},
        {},
    ]
    assert [choice["finish_reason"] for choice in choices] == [None, None, None, "stop"]
    counted = [chunk.get("usage", "absent") for chunk in found]
    if usage:
        assert counted[:-1] == [None] * 4 and counted[-1]["total_tokens"] == 193 and not found[-1]["choices"]
    else:
        assert counted == ["absent"] * 4


def test_a_stream_says_how_many_are_before_it() -> None:
    engine = FakeEngine()
    assert "mvlm" not in chunks(ask(engine, stream=True).text)[0]
    engine.ahead = 3
    assert chunks(ask(engine, stream=True).text)[0]["mvlm"] == {"ahead": 3}


def test_several_answers_have_seeds_of_their_own() -> None:
    engine = FakeEngine()
    said = ask(engine, n=3, seed=2**63 - 1, temperature=1).json()
    assert [job.request.settings.seed for job in engine.jobs] == [2**63 - 1, 0, 1]
    assert [choice["index"] for choice in said["choices"]] == [0, 1, 2]
    assert {choice["message"]["content"] for choice in said["choices"]} == {"a cat"}
    assert said["usage"] == said["usage"] | {
        "prompt_tokens": 191,
        "completion_tokens": 6,
        "total_tokens": 197,
    }
    assert all(job.cancelled.is_set() for job in engine.jobs)  # of finished ones too, which does nothing

    found = chunks(ask(n=2, stream=True).text)
    for i in (0, 1):
        deltas = [c["choices"][0]["delta"] for c in found[:-1] if c["choices"][0]["index"] == i]
        assert "".join(delta.get("content", "") for delta in deltas) == "a cat"


CHANCES = (
    TokenChance("a", b"a", -0.5, (TokenChance("a", b"a", -0.5), TokenChance("\ufffd", b"\xc3", -np.inf))),
    TokenChance(" ", b" ", float(np.float32(log(0.5)))),
)


@pytest.mark.parametrize("stream", [False, True])
def test_log_probabilities(stream: bool) -> None:
    engine = FakeEngine([Piece("a ", CHANCES), FINISHED])
    reply = ask(engine, logprobs=True, top_logprobs=2, stream=stream)
    choice = chunks(reply.text)[1]["choices"][0] if stream else reply.json()["choices"][0]
    first, second = choice["logprobs"]["content"]
    assert first == {
        "token": "a",
        "logprob": -0.5,
        "bytes": [97],
        "top_logprobs": [
            {"token": "a", "logprob": -0.5, "bytes": [97]},
            {"token": "\ufffd", "logprob": -9999.0, "bytes": [195]},
        ],
    }
    assert second["top_logprobs"] == [] and abs(second["logprob"] - log(0.5)) < 1e-6


def test_where_the_picture_was_looked_at() -> None:
    looked = np.arange(144, dtype=np.float32).reshape(12, 12)
    events = [Finished("length", 1, 0, 1, {"decode": 1.0}, [looked, looked.T])]
    assert np.array_equal(ask(FakeEngine(events)).json()["mvlm"]["looked"], [looked, looked.T])
    last = chunks(ask(FakeEngine(events), stream=True).text)[-2]
    assert last["choices"][0]["finish_reason"] == "length" and np.array(last["mvlm"]["looked"]).shape == (
        2,
        12,
        12,
    )


@pytest.mark.parametrize(
    ("error", "status", "kind", "code"),
    [
        (PromptError("prompt", "is odd"), 400, "invalid_request_error", None),
        (PromptTooLong(3000, 2048), 400, "invalid_request_error", "context_length_exceeded"),
        (Busy(8, 12.4), 429, "rate_limit_error", "server_busy"),
        (Stopping(), 503, "server_error", "stopping"),
        (RuntimeError("/secret/path"), 500, "server_error", "internal_error"),
    ],
)
def test_what_the_queue_refuses(error: Exception, status: int, kind: str, code: str | None) -> None:
    reply = ask(FakeEngine(refuses=error), stream=True)
    said = reply.json()["error"]
    assert (reply.status_code, said["type"], said["code"]) == (status, kind, code)
    assert "/secret" not in reply.text
    assert reply.headers.get("retry-after") == ("12" if status == 429 else None)
    assert reply.headers.get("x-should-retry") == ("false" if status == 500 else None)
    if code == "context_length_exceeded":
        assert (said["n_prompt_tokens"], said["n_ctx"], said["param"]) == (3000, 2048, "messages")


FAILURES = [
    (GenerationError("logits", "the model computed NaN"), 500),
    (RuntimeError("/secret/path"), 500),
    (WaitedTooLong(120), 504),
    (Stopping(), 503),
]


@pytest.mark.parametrize(("error", "status"), FAILURES)
def test_an_answer_that_fails(error: Exception, status: int) -> None:
    engine = FakeEngine([Piece("a "), Failed(error)])
    reply = ask(engine)
    assert reply.status_code == status and reply.json()["error"]["type"] == "server_error"
    assert "/secret" not in reply.text

    *before, last = chunks(ask(engine, stream=True).text)
    assert set(last) == {"error"} and "/secret" not in last["error"]["message"]
    assert before[1]["choices"][0]["delta"]["content"] == "a "


def test_a_stream_says_that_it_is_alive() -> None:
    engine = FakeEngine(ANSWER, holds=1)
    threading.Timer(0.3, lambda: engine.jobs[0].listener(FINISHED)).start()
    web = client(engine, limits=Limits(silence=0.05))
    text = web.post(PATH, json={"messages": HI, "stream": True}).text
    assert 2 <= text.count(": \n\n") <= 6 and text.endswith("data: [DONE]\n\n")


# ---------------------------------------------------------------- models


def test_models() -> None:
    listed = client().get("/v1/models").json()
    assert listed["object"] == "list"
    (model,) = listed["data"]
    assert model == {
        "id": "tiny",
        "object": "model",
        "created": 10**9,
        "owned_by": "mvlm-np",
        "max_model_len": 2048,
        "meta": {"n_ctx": 2048},
        "architecture": {"input_modalities": ["text", "image"]},
    }
    assert client().get("/v1/models/tiny").json() == client().get("/v1/models/tiny:latest").json() == model
    for name in ("other", "../../etc/passwd", "a/b", "tiny:7b"):
        reply = client().get(f"/v1/models/{name.replace('..', '%2e%2e')}")
        assert (reply.status_code, reply.json()["error"]["code"]) == (404, "model_not_found")


def test_what_clients_of_llama_cpp_look_for() -> None:
    said = client().get("/props").json()
    assert said["default_generation_settings"]["n_ctx"] == SERVED.context and said["modalities"]["vision"]
