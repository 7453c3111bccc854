"""Ollama's dialect: what each field does, what is refused, and the shape of replies."""

import threading
from typing import Any

import pytest

from mvlm_np.errors import GenerationError
from mvlm_np.serve.answering import Limits
from mvlm_np.serve.requests import Busy, Failed, Finished, Piece, Stopping
from tests.serve.fake import FINISHED, FakeEngine, client, in_base64, lines, picture, url
from tests.serve.test_openai import CHANCES

HI = [{"role": "user", "content": "Hi"}]
PNG = in_base64(picture())


def chat(engine: FakeEngine | None = None, **body: Any) -> Any:
    return client(engine).post("/api/chat", json={"model": "tiny", "messages": HI} | body)


def generate(engine: FakeEngine | None = None, **body: Any) -> Any:
    return client(engine).post("/api/generate", json={"model": "tiny", "prompt": "Hi"} | body)


def asked(post: Any = chat, **body: Any) -> Any:
    """The request that the engine gets for a body."""
    engine = FakeEngine()
    reply = post(engine, **body)
    assert reply.status_code == 200, reply.text
    return engine.request


def texts(post: Any = chat, **body: Any) -> list[tuple[str, str, int]]:
    return [(m.role, m.text, len(m.pictures)) for m in asked(post, **body).messages]


# ---------------------------------------------------------------- requests


def test_a_chat() -> None:
    messages = [
        {"role": "system", "content": "be kind"},
        {"role": "user", "content": "What?", "images": [PNG, url(picture())]},
        {"role": "assistant", "content": "a cat", "thinking": "hm", "tool_calls": []},
        {"role": "user", "content": "And?", "images": None},
    ]
    expected = [
        ("system", "be kind", 0),
        ("user", "What?", 2),
        ("assistant", "a cat", 0),
        ("user", "And?", 0),
    ]
    assert texts(messages=messages) == expected
    assert asked(messages=messages).drop_oldest


def test_what_stands_beside_the_messages_is_not_lost() -> None:
    messages = [*HI, {"role": "assistant", "content": "Hello"}, {"role": "user", "content": "What?"}]
    found = texts(messages=messages, system="be kind", prompt=[], images=[PNG])
    assert found == [
        ("system", "be kind", 0),
        ("user", "Hi", 0),
        ("assistant", "Hello", 0),
        ("user", "What?", 1),
    ]


def test_a_question() -> None:
    assert texts(generate, images=[PNG], system="be kind") == [("system", "be kind", 0), ("user", "Hi", 1)]
    assert texts(generate, prompt="", images=[PNG]) == [("user", "", 1)]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, {"temperature": 0.0, "top_k": 50, "seed": None, "max_new_tokens": 100, "repeat_penalty": 1.0}),
        ({"num_predict": 5}, {"max_new_tokens": 5}),
        ({"num_predict": 5.0}, {"max_new_tokens": 5}),
        ({"num_predict": -1}, {"max_new_tokens": 100}),
        ({"num_predict": -2}, {"max_new_tokens": 100}),
        ({"num_predict": 0}, {"max_new_tokens": 100}),
        ({"temperature": 0.8, "top_k": 0, "top_p": 0.9}, {"temperature": 0.8, "top_k": 0, "top_p": 0.9}),
        ({"seed": 7}, {"seed": 7}),
        ({"seed": -1}, {"seed": None}),
        (
            {"repeat_penalty": 1.05, "presence_penalty": 0.3},
            {"repeat_penalty": 1.05, "presence_penalty": 0.3},
        ),
        ({"repeat_last_n": -1, "frequency_penalty": 1}, {"repeat_last_n": -1, "frequency_penalty": 1}),
        ({"num_ctx": 8192, "num_gpu": 99, "mirostat": 1}, {"temperature": 0.0}),
    ],
)
def test_options(options: dict[str, Any], expected: dict[str, Any]) -> None:
    for post in (chat, generate):
        settings = asked(post, options=options).settings
        assert {name: getattr(settings, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"options": {"stop": ["a", "b"]}}, {"stop": ("a", "b")}),
        ({"options": {"stop": "a"}}, {"stop": ("a",)}),
        ({"format": ""}, {"schema": None}),
        ({"format": None}, {"schema": None}),
        ({"format": "json"}, {"schema": {"type": "object"}}),
        ({"format": {"type": "object"}}, {"schema": {"type": "object"}}),
        ({"logprobs": True, "top_logprobs": 3}, {"top_logprobs": 3}),
        ({"keep_alive": -1.0, "think": False, "tools": [], "something_new": 1}, {"stop": ()}),
        ({"model": "tiny:latest"}, {"stop": ()}),
        ({"model": None, "name": "tiny"}, {"stop": ()}),
    ],
)
def test_what_else_the_engine_is_told(body: dict[str, Any], expected: dict[str, Any]) -> None:
    request = asked(**body)
    assert {name: getattr(request, name) for name in expected} == expected


@pytest.mark.parametrize("model", ["other", "tiny:7b", "Tiny", "../../etc/passwd", "tiny:latest:latest"])
def test_another_models_name_is_not_found(model: str) -> None:
    replies = [chat(model=model), generate(model=model)]
    replies += [client().post(f"/api/{path}", json={"model": model}) for path in ("show", "pull")]
    for reply in replies:
        assert reply.status_code == 404 and "not found" in reply.json()["error"]


@pytest.mark.parametrize(
    ("post", "body", "words"),
    [
        (chat, {"tools": [{"type": "function"}]}, "tiny does not support tools"),
        (chat, {"think": True}, "tiny does not support thinking"),
        (chat, {"think": "high"}, "tiny does not support thinking"),
        (generate, {"suffix": "x"}, "tiny does not support insert"),
        (generate, {"raw": True}, "raw"),
        (generate, {"template": "x"}, "template"),
        (generate, {"context": [1, 2]}, "context"),
        (generate, {"prompt": ["Hi"]}, "prompt"),
        (generate, {"images": ["&&&"]}, "images[0]: is not base64"),
        (generate, {"images": [in_base64(b"hello")]}, "images[0]: is no picture"),
        (generate, {"images": ["/etc/passwd"]}, "images[0]: is no picture"),
        (generate, {"images": ["http://localhost/a.png"]}, "images[0]"),
        (generate, {"images": [7]}, "images[0]"),
        (generate, {"images": PNG}, "images: found"),
        (generate, {"images": [PNG] * 13}, "at most 12"),
        (chat, {"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
        (
            chat,
            {"messages": [{"role": "user", "content": "x", "images": [""]}]},
            "messages[0].images[0]: is empty",
        ),
        (
            chat,
            {"messages": [{"role": "system", "content": "x", "images": [PNG]}, *HI]},
            "messages[0].images",
        ),
        (chat, {"messages": [*HI, {"role": "assistant", "content": "x"}]}, "messages"),
        (chat, {"messages": [{"role": "system", "content": "x"}], "images": [PNG]}, "images"),
        (chat, {"options": {"stop": ["a"] * 5}}, "options.stop"),
        (chat, {"options": {"temperature": "hot"}}, "options.temperature"),
        (chat, {"options": [1]}, "options"),
        (chat, {"format": "xml"}, "format"),
        (chat, {"model": None}, "model"),
    ],
)
def test_what_cannot_be_done_is_refused_by_its_name(post: Any, body: dict[str, Any], words: str) -> None:
    engine = FakeEngine()
    reply = post(engine, **body)
    assert (reply.status_code, engine.jobs) == (400, []), reply.text
    assert words in reply.json()["error"]


def test_pictures_need_no_padding() -> None:
    assert texts(generate, images=[PNG.rstrip("="), PNG[:40] + "\n" + PNG[40:]]) == [("user", "Hi", 2)]


# ---------------------------------------------------------------- replies

NUMBERS = {
    "done_reason": "stop",
    "load_duration": 1,
    "prompt_eval_count": 191,
    "prompt_eval_duration": 750_000_000,
    "eval_count": 2,
    "eval_duration": 125_000_000,
}


@pytest.mark.parametrize(("post", "key"), [(chat, "message"), (generate, "response")])
def test_a_whole_reply(post: Any, key: str) -> None:
    reply = post(stream=False)
    assert reply.headers["content-type"] == "application/json"
    said = reply.json()
    assert said.pop("created_at").endswith("Z") and said.pop("total_duration") > 0
    text = "a cat" if key == "response" else {"role": "assistant", "content": "a cat"}
    assert said == {"model": "tiny", key: text, "done": True} | NUMBERS


@pytest.mark.parametrize(("post", "key"), [(chat, "message"), (generate, "response")])
def test_a_stream_is_what_comes_unless_it_is_declined(post: Any, key: str) -> None:
    reply = post(model="tiny:latest")
    assert reply.headers["content-type"] == "application/x-ndjson"
    found = lines(reply.text)
    assert {line["model"] for line in found} == {"tiny:latest"}
    texts = [line[key] if key == "response" else line[key]["content"] for line in found]
    assert texts == ["a ", "cat", ""]
    assert [line["done"] for line in found] == [False, False, True]
    assert found[-1] == found[-1] | NUMBERS


def test_no_time_is_zero() -> None:
    said = chat(FakeEngine([Finished("length", 5, 5, 0, {})]), stream=False).json()
    assert (
        all(said[name] >= 1 for name in said if name.endswith("_duration"))
        and said["done_reason"] == "length"
    )


def test_log_probabilities() -> None:
    engine = FakeEngine([Piece("a ", CHANCES), FINISHED])
    whole = chat(engine, stream=False, logprobs=True, top_logprobs=2).json()
    part = lines(chat(engine, logprobs=True, top_logprobs=2).text)[0]
    assert whole["logprobs"] == part["logprobs"] and whole["logprobs"][0]["top_logprobs"][1]["bytes"] == [195]


def test_nothing_asked_is_a_wish_to_load() -> None:
    engine = FakeEngine()
    assert chat(engine, messages=[]).json()["done_reason"] == "load"
    assert generate(engine, prompt="", keep_alive=5).json()["done_reason"] == "load"
    assert generate(engine, prompt=None, keep_alive=0).json()["done_reason"] == "unload"
    assert engine.jobs == []


def test_a_full_queue() -> None:
    reply = chat(FakeEngine(refuses=Busy(8, 12.4)))
    assert (reply.status_code, reply.headers["retry-after"]) == (503, "12")
    assert reply.json() == {"error": "server busy, please try again.  maximum pending requests exceeded"}


@pytest.mark.parametrize(("error", "status"), [(GenerationError("logits", "NaN"), 500), (Stopping(), 503)])
def test_an_answer_that_fails(error: Exception, status: int) -> None:
    engine = FakeEngine([Piece("a "), Failed(error)])
    assert chat(engine, stream=False).status_code == status
    *_, last = lines(chat(engine).text)
    assert [*last] == ["error"]


def test_silence_sends_nothing() -> None:
    """Clients take each line of the stream for a part of the answer."""
    engine = FakeEngine(holds=1)
    threading.Timer(0.3, lambda: engine.jobs[0].listener(FINISHED)).start()
    web = client(engine, limits=Limits(silence=0.02))
    assert len(lines(web.post("/api/chat", json={"model": "tiny", "messages": HI}).text)) == 2


# ---------------------------------------------------------------- about models


def test_what_clients_ask_before() -> None:
    get = client().get
    assert get("/api/version").json()["version"].count(".") == 2
    (tag,), (running,) = get("/api/tags").json()["models"], get("/api/ps").json()["models"]
    assert tag["name"] == tag["model"] == running["name"] == "tiny:latest"
    assert tag["modified_at"] == "2001-09-09T01:46:40.000000Z" and running["expires_at"]
    shown = client().post("/api/show", json={"name": "tiny"}).json()
    assert shown["model_info"] and shown["capabilities"] == ["completion", "vision"]
    assert shown["details"] == tag["details"]


def test_pulling_what_is_here_succeeds() -> None:
    post = client().post
    assert post("/api/pull", json={"model": "tiny", "stream": False}).json() == {"status": "success"}
    assert lines(post("/api/pull", json={"name": "tiny:latest"}).text) == [{"status": "success"}]
