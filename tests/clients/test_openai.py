"""The openai package."""

import asyncio
import base64
import json
from typing import Any

import pytest

from tests.clients.conftest import KEY
from tests.clients.served import PICTURE, QUESTION, Server

openai = pytest.importorskip("openai", reason="make test-clients installs it")

URL = "data:image/png;base64," + base64.b64encode(PICTURE.read_bytes()).decode()
ABOUT: Any = [
    {
        "role": "user",
        "content": [
            {"type": "text", "text": QUESTION},
            {"type": "image_url", "image_url": {"url": URL, "detail": "low"}},
        ],
    }
]
HI: Any = [{"role": "user", "content": "Hi"}]


@pytest.fixture
def client(server: Server) -> Any:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0)


def ask(client: Any, messages: Any = ABOUT, **options: Any) -> Any:
    return client.chat.completions.create(model="gpt-4o", messages=messages, **options)


def test_models(client: Any) -> None:
    (model,) = client.models.list().data
    assert client.models.retrieve(model.id).id == model.id == "demo"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-4o")


def test_an_answer(client: Any, answer: str) -> None:
    reply = ask(client)
    assert reply.choices[0].message.content == answer and reply.choices[0].finish_reason == "stop"
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens
    assert ask(client).usage.prompt_tokens_details.cached_tokens > 100


def test_a_stream(client: Any, answer: str) -> None:
    chunks = list(ask(client, stream=True, stream_options={"include_usage": True}))
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == answer
    assert chunks[-1].usage.total_tokens > 100 and not chunks[-1].choices
    of = client.chat if hasattr(client.chat.completions, "stream") else client.beta.chat  # of openai 1
    with of.completions.stream(model="demo", messages=ABOUT) as stream:
        assert stream.get_final_completion().choices[0].message.content == answer


def test_limits_and_stops(client: Any, answer: str) -> None:
    for name in ("max_tokens", "max_completion_tokens"):
        reply = ask(client, **{name: 3})
        assert reply.usage.completion_tokens == 3 and reply.choices[0].finish_reason == "length"
        assert answer.startswith(reply.choices[0].message.content)
    word = answer.split()[3]
    reply = ask(client, stop=[word, "nowhere"])
    assert reply.choices[0].message.content == answer[: answer.index(word)].rstrip()


def test_seeds_and_several_answers(client: Any) -> None:
    options = {"seed": 7, "temperature": 1.5, "n": 2, "max_tokens": 12}
    first, second = ([c.message.content for c in ask(client, **options).choices] for _ in range(2))
    assert first == second and len(first) == 2


def test_log_probabilities(client: Any) -> None:
    (choice,) = ask(client, logprobs=True, top_logprobs=5, max_tokens=4).choices
    assert len(choice.logprobs.content) == 4
    for token in choice.logprobs.content:
        assert token.logprob <= 0 and len(token.top_logprobs) == 5
        assert token.top_logprobs[0].token == token.token  # greedy takes the likeliest


def test_an_answer_in_json(client: Any) -> None:
    lamp = {"type": "object", "properties": {"colour": {"type": "string"}, "on": {"type": "boolean"}}}
    schema = lamp | {"required": ["colour", "on"], "additionalProperties": False}
    wanted = {"type": "json_schema", "json_schema": {"name": "lamp", "strict": True, "schema": schema}}
    reply = ask(client, response_format=wanted, max_tokens=60)
    found = json.loads(reply.choices[0].message.content)
    assert found.keys() == {"colour", "on"} and isinstance(found["on"], bool)
    with pytest.raises(openai.BadRequestError):
        ask(client, response_format=wanted, max_tokens=1)


def test_a_chat_of_several_turns(client: Any, answer: str) -> None:
    turns = [
        *ABOUT,
        {"role": "assistant", "content": answer},
        *ABOUT,
        {"role": "assistant", "content": None},
        *HI,
    ]
    assert ask(client, turns).usage.prompt_tokens > 2 * 144


def test_where_it_looked(client: Any) -> None:
    looked = ask(client, extra_body={"mvlm": {"look": True}}).model_extra["mvlm"].get("looked")
    assert looked is None or [(len(rows), len(rows[0])) for rows in looked] == [(12, 12)]  # a map a picture


def test_several_clients_at_once(server: Server, answer: str) -> None:
    async def run() -> list[Any]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="any") as client:
            return await asyncio.gather(*(ask(client) for _ in range(4)))

    assert {reply.choices[0].message.content for reply in asyncio.run(run())} == {answer}


def test_errors(client: Any, guarded: Server) -> None:
    for wrong in ({"temperature": 9}, {"tools": [{"type": "function", "function": {"name": "f"}}]}, {"n": 9}):
        with pytest.raises(openai.BadRequestError) as error:
            ask(client, **wrong)
        assert error.value.param in wrong
    with pytest.raises(openai.BadRequestError) as error:
        ask(client, [{"role": "user", "content": "word " * 3000}])
    assert error.value.code == "context_length_exceeded"
    with pytest.raises(openai.AuthenticationError):
        ask(openai.OpenAI(base_url=f"{guarded.url}/v1", api_key="wrong"))
    ask(openai.OpenAI(base_url=f"{guarded.url}/v1", api_key=KEY), HI, max_tokens=1)
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(model="demo", input="Hi")
