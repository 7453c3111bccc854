"""What programs that are no Python packages send, by their sources: each is answered, or told why not.

Nothing here is copied: the bodies have the shapes that these programs give them, with texts of our own.
"""

import json
from typing import Any

import pytest

from tests.serve.fake import FakeEngine, chunks, client, in_base64, lines, picture, said, url

PNG, JPEG = in_base64(picture()), in_base64(picture(format="JPEG"))
SCHEMA = {"type": "object", "properties": {"lamp": {"type": "string"}}, "required": ["lamp"]}
Turns = list[tuple[str, str, int]]


def turns(engine: FakeEngine) -> Turns:
    return [(m.role, m.text, len(m.pictures)) for m in engine.request.messages]


def post(engine: FakeEngine, path: str, body: Any, **headers: str) -> Any:
    """Without a Content-Type, as some of them send it."""
    reply = client(engine).post(path, content=json.dumps(body), headers=headers)
    assert reply.status_code == 200, reply.text
    return reply


# ---------------------------------------------------------------- Home Assistant, by Ollama's dialect


def home_assistant(**more: Any) -> dict[str, Any]:
    rounds = [
        {"role": role, "content": f"{role} {i}", "thinking": None, "images": None, "tool_calls": None}
        for i in range(20)
        for role in ("user", "assistant")
    ]
    question = {"role": "user", "content": "Which lamp is on?", "images": [JPEG]}
    system = {"role": "system", "content": "You are a voice assistant."}
    options = {"num_ctx": 8192.0}
    body = {"model": "tiny:latest", "messages": [system, *rounds, question], "options": options, "tools": []}
    return body | {"stream": True, "format": "", "keep_alive": "300s", "think": False} | more


def test_home_assistant() -> None:
    engine = FakeEngine()
    reply = post(engine, "/api/chat", home_assistant(), authorization="Bearer k")
    assert "".join(line["message"]["content"] for line in lines(reply.text)) == "a cat"
    found = turns(engine)
    assert len(found) == 42 and found[0][0] == "system" and found[-1] == ("user", "Which lamp is on?", 1)
    assert engine.request.drop_oldest


def test_home_assistants_task_with_a_structure() -> None:
    engine = FakeEngine()
    post(engine, "/api/chat", home_assistant(format=SCHEMA, keep_alive=-1))
    assert engine.request.schema == SCHEMA


def test_home_assistant_that_may_control_the_house_is_told_why_not() -> None:
    tool = {"type": "function", "function": {"name": "HassTurnOn", "parameters": {"type": "object"}}}
    reply = client().post("/api/chat", json=home_assistant(tools=[tool]))
    assert reply.status_code == 400 and reply.json()["error"] == "tools: tiny does not support tools"


# ---------------------------------------------------------------- Frigate


def test_frigate_by_ollamas_dialect() -> None:
    engine = FakeEngine()
    assert client(engine).post("/api/show", json={"model": "tiny"}).json()["model_info"]
    options = {"repeat_penalty": 1.05, "presence_penalty": 0.3, "temperature": 0.5}
    body = {"model": "tiny", "prompt": "What does the person do?", "images": [JPEG] * 3, "options": options}
    reply = post(engine, "/api/generate", body | {"stream": False, "keep_alive": "1h"})
    assert reply.json()["response"].strip() == "a cat"
    settings = engine.request.settings
    assert (settings.repeat_penalty, settings.presence_penalty, settings.temperature) == (1.05, 0.3, 0.5)
    assert turns(engine) == [("user", "What does the person do?", 3)]


def thumbnails(n: int) -> list[dict[str, Any]]:
    return [
        {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{JPEG}", "detail": "low"}}
        for _ in range(n)
    ]


def test_frigate_by_openais_dialect() -> None:
    engine = FakeEngine()
    content = [{"type": "text", "text": "What happens?"}, *thumbnails(10)]
    body = {"model": "tiny", "messages": [{"role": "user", "content": content}], "timeout": 60}
    assert post(engine, "/v1/chat/completions", body).json()["choices"][0]["message"]["content"] == "a cat"
    assert turns(engine) == [("user", "What happens?", 10)]


def test_frigate_by_the_way_of_llama_cpp() -> None:
    web = client()
    assert web.get("/props").json()["modalities"]["vision"]
    (model,) = web.get("/v1/models").json()["data"]
    assert "image" in model["architecture"]["input_modalities"] and model["meta"]["n_ctx"] == 2048
    body = {"model": "tiny", "messages": [said("user", picture(), "What?")], "temperature": 0.7, "top_p": 0.8}
    schema = {"type": "json_schema", "json_schema": {"name": "review", "strict": True, "schema": SCHEMA}}
    engine = FakeEngine()
    post(
        engine,
        "/v1/chat/completions",
        body | {"top_k": 20, "repeat_penalty": 1.05, "response_format": schema},
    )
    assert engine.request.schema == SCHEMA and engine.request.settings.top_k == 20


# ---------------------------------------------------------------- ha-llmvision


def test_llmvision_by_openais_dialect() -> None:
    engine = FakeEngine()
    body = {"model": "gpt-4o-mini", "messages": [said("user", "Hi")], "max_completion_tokens": 1}
    assert (
        post(engine, "/v1/chat/completions", body, authorization="Bearer k").headers["content-type"]
        == "application/json"
    )
    content = []
    for i in (1, 2):
        content += [
            {"type": "text", "text": f"Image {i}:"},
            {"type": "image_url", "image_url": {"url": url(picture())}},
        ]
    messages = [
        said("system", "You watch a door."),
        {"role": "user", "content": content},
        {"role": "user", "content": [{"type": "text", "text": "What changed?"}]},
    ]
    post(engine, "/v1/chat/completions", body | {"messages": messages, "temperature": 0.5, "top_p": 0.9})
    assert turns(engine) == [
        ("system", "You watch a door.", 0),
        ("user", "Image 1:\nImage 2:\nWhat changed?", 2),
    ]


def test_llmvision_by_the_way_of_localai() -> None:
    assert client().get("/readyz").status_code == 200
    body = {
        "model": "tiny",
        "messages": [said("user", picture(), "What?")],
        "max_tokens": 9,
        "temperature": 0.5,
    }
    post(FakeEngine(), "/v1/chat/completions", body)


def test_llmvision_by_ollamas_dialect() -> None:
    engine = FakeEngine()
    message = {"role": "user", "content": "Image 1:", "images": [JPEG]}
    body: dict[str, Any] = {
        "model": "tiny",
        "messages": [message, {"role": "user", "content": "What changed?"}],
        "prompt": [],
    }
    options = {"top_p": 0.9, "temperature": 0.5, "num_predict": 60}
    body |= {"system": "You watch a door.", "stream": False, "keep_alive": 5, "options": options}
    assert post(engine, "/api/chat", body).json()["message"]["content"] == "a cat"
    assert turns(engine) == [("system", "You watch a door.", 0), ("user", "Image 1:\nWhat changed?", 1)]


# ---------------------------------------------------------------- Open WebUI


def test_open_webui() -> None:
    engine = FakeEngine()
    question = said("user", "What is this?", picture())
    history = [question, said("assistant", "a cat"), said("user", "And its colour?")]
    body = {"model": "tiny", "messages": history, "stream": True, "stream_options": {"include_usage": True}}
    *events, done = chunks(post(engine, "/v1/chat/completions", body).text)
    assert done == "[DONE]" and events[-1]["usage"]["total_tokens"] == 193
    assert turns(engine) == [
        ("user", "What is this?", 1),
        ("assistant", "a cat", 0),
        ("user", "And its colour?", 0),
    ]

    # Then it wants a title, tags and more questions, each as a chat of its own.
    titles = {"model": "tiny", "messages": [said("user", "### Task: a title in JSON")], "stream": False}
    post(
        engine,
        "/v1/chat/completions",
        titles | {"max_completion_tokens": 1000, "metadata": {"task": "title"}},
    )
    assert engine.request.settings.max_new_tokens == 100


@pytest.mark.parametrize("path", ["/v1/api/version", "/v1/api/tags"])
def test_open_webui_that_takes_one_dialect_for_the_other(path: str) -> None:
    reply = client().get(path)
    assert reply.status_code == 404 and "there is no such path" in reply.json()["error"]["message"]


# ---------------------------------------------------------------- litellm, which asks before and after


def test_litellm_asks_without_naming_what_it_sends() -> None:
    engine = FakeEngine()
    assert post(engine, "/api/show", {"name": "tiny"}).json()["capabilities"]
    body = {
        "model": "tiny",
        "prompt": "### User:\nWhat is this?\n\n",
        "options": {},
        "stream": False,
        "images": [PNG],
    }
    assert post(engine, "/api/generate", body).json()["response"] == "a cat"
    assert turns(engine) == [("user", "### User:\nWhat is this?\n\n", 1)]
