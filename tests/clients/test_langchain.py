"""langchain-openai and langchain-ollama."""

import base64
from typing import Any

import pytest

from tests.clients.served import PICTURE, QUESTION, Server

langchain_openai = pytest.importorskip("langchain_openai", reason="make test-clients installs it")
langchain_ollama = pytest.importorskip("langchain_ollama", reason="make test-clients installs it")

URL = "data:image/png;base64," + base64.b64encode(PICTURE.read_bytes()).decode()
ABOUT = [
    {
        "role": "user",
        "content": [{"type": "text", "text": QUESTION}, {"type": "image_url", "image_url": {"url": URL}}],
    }
]


@pytest.fixture(params=["openai", "ollama"])
def chat(request: pytest.FixtureRequest, server: Server) -> Any:
    if request.param == "ollama":
        return langchain_ollama.ChatOllama(model="demo", base_url=server.url, temperature=0)
    return langchain_openai.ChatOpenAI(
        model="demo", base_url=f"{server.url}/v1", api_key="any", temperature=0
    )


def test_answers(chat: Any, answer: str) -> None:
    assert chat.invoke(ABOUT).content == answer
    assert "".join(part.content for part in chat.stream(ABOUT)) == answer
    assert [reply.content for reply in chat.batch([ABOUT, ABOUT])] == [answer, answer]


def test_limits_and_system_texts(chat: Any) -> None:
    limit = {"num_predict": 2} if "Ollama" in type(chat).__name__ else {"max_tokens": 2}
    short = type(chat)(**chat.model_dump(include={"base_url"}) | limit | settings(chat))
    assert short.invoke([("system", "You are kind."), ("user", "Hi")]).content is not None


def settings(chat: Any) -> dict[str, Any]:
    if "Ollama" in type(chat).__name__:
        return {"model": "demo", "base_url": chat.base_url}
    return {"model": "demo", "base_url": chat.openai_api_base, "api_key": "any"}
