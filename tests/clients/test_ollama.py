"""The ollama package."""

import asyncio
import base64
import json
from typing import Any

import pytest

from tests.clients.conftest import KEY
from tests.clients.served import PICTURE, QUESTION, Server

ollama = pytest.importorskip("ollama", reason="make test-clients installs it")

ABOUT = [{"role": "user", "content": QUESTION, "images": [str(PICTURE)]}]
GREEDY = {"temperature": 0}


@pytest.fixture
def client(server: Server) -> Any:
    return ollama.Client(host=server.url)


def test_models(client: Any) -> None:
    assert [model.model for model in client.list().models] == ["demo:latest"]
    assert [model.model for model in client.ps().models] == ["demo:latest"]
    assert client.show("demo").capabilities == ["completion", "vision"]
    assert client.pull("demo").status == "success"
    assert [part.status for part in client.pull("demo", stream=True)] == ["success"]


def test_an_answer(client: Any, answer: str) -> None:
    data = PICTURE.read_bytes()
    for image in (str(PICTURE), data, base64.b64encode(data).decode()):
        reply = client.chat(
            "demo", [{"role": "user", "content": QUESTION, "images": [image]}], options=GREEDY
        )
        assert reply.message.content == answer and reply.done_reason == "stop"
        assert reply.eval_count and reply.eval_duration and reply.total_duration
    assert client.generate("demo", QUESTION, images=[data], keep_alive=-1).response == answer


def test_a_stream(client: Any, answer: str) -> None:
    parts = list(client.chat("demo:latest", ABOUT, stream=True))
    assert "".join(part.message.content for part in parts) == answer
    assert [part.done for part in parts] == [False] * (len(parts) - 1) + [True]
    parts = list(client.generate("demo", QUESTION, images=[str(PICTURE)], stream=True))
    assert "".join(part.response for part in parts) == answer


def test_options(client: Any) -> None:
    reply = client.chat("demo", ABOUT, options={"num_predict": 3, "num_ctx": 8192})
    assert (reply.eval_count, reply.done_reason) == (3, "length")


def test_an_answer_in_json(client: Any) -> None:
    schema = {"type": "object", "properties": {"lamps": {"type": "integer"}}, "required": ["lamps"]}
    reply = client.chat("demo", ABOUT, format=schema, options={"num_predict": 60})
    assert isinstance(json.loads(reply.message.content)["lamps"], int)


def test_a_long_chat_loses_its_oldest_turns(client: Any) -> None:
    turns = [{"role": "user", "content": "word " * 200}, {"role": "assistant", "content": "so"}] * 20
    assert client.chat("demo", [*turns, *ABOUT], options={"num_predict": 1}).prompt_eval_count < 2048


def test_several_clients_at_once(server: Server, answer: str) -> None:
    async def run() -> list[Any]:
        client = ollama.AsyncClient(host=server.url)
        return await asyncio.gather(*(client.chat("demo", ABOUT) for _ in range(3)))

    assert {reply.message.content for reply in asyncio.run(run())} == {answer}


def test_errors(client: Any, guarded: Server) -> None:
    def tool(x: int) -> int:
        """Does nothing.

        Args:
            x: a number
        """
        return x

    with pytest.raises(ollama.ResponseError) as error:
        client.chat("llava", ABOUT)
    assert error.value.status_code == 404
    with pytest.raises(ollama.ResponseError, match="does not support tools"):
        client.chat("demo", ABOUT, tools=[tool])
    with pytest.raises(ollama.ResponseError) as error:
        ollama.Client(host=guarded.url).list()
    assert error.value.status_code == 401
    headers = {"Authorization": f"Bearer {KEY}"}
    assert ollama.Client(host=guarded.url, headers=headers).list().models
