"""litellm, in its three ways."""

import base64
from typing import Any

import pytest

from tests.clients.served import PICTURE, QUESTION, Server

litellm = pytest.importorskip("litellm", reason="make test-clients installs it")

URL = "data:image/png;base64," + base64.b64encode(PICTURE.read_bytes()).decode()
ABOUT = [
    {
        "role": "user",
        "content": [{"type": "text", "text": QUESTION}, {"type": "image_url", "image_url": {"url": URL}}],
    }
]


def ask(server: Server, way: str, **options: Any) -> Any:
    base = f"{server.url}/v1" if way == "openai" else server.url
    return litellm.completion(f"{way}/demo", ABOUT, api_base=base, api_key="any", temperature=0, **options)


@pytest.mark.parametrize("way", ["openai", "ollama_chat"])
def test_an_answer(way: str, server: Server, answer: str) -> None:
    assert ask(server, way).choices[0].message.content == answer
    parts = [chunk.choices[0].delta.content or "" for chunk in ask(server, way, stream=True)]
    assert "".join(parts) == answer


def test_the_way_that_makes_one_text_of_a_chat(server: Server) -> None:
    """It writes `### User:` before the question, so the answer is another one."""
    assert ask(server, "ollama", max_tokens=5).usage.completion_tokens <= 5
