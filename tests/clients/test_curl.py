"""curl, as the documentation has it."""

import base64
import json
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from tests.clients.conftest import KEY
from tests.clients.served import PICTURE, QUESTION, Server

pytestmark = pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")


def curl(*arguments: str) -> str:
    done = subprocess.run(["curl", "-sS", *arguments], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def body(tmp_path_factory: pytest.TempPathFactory) -> str:
    """As an argument of curl, which is too long for the command line."""
    url = "data:image/png;base64," + base64.b64encode(PICTURE.read_bytes()).decode()
    parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": QUESTION}]
    file = tmp_path_factory.mktemp("curl") / "body.json"
    file.write_text(json.dumps({"messages": [{"role": "user", "content": parts}]}))
    return f"@{file}"


def text(reply: str) -> Any:
    return json.loads(reply)["choices"][0]["message"]["content"]


def test_a_question_about_a_picture(server: Server, body: str, answer: str) -> None:
    for more in ([], ["-H", "Content-Type: application/json"], ["--http1.0"], ["-H", "Expect: 100-continue"]):
        assert text(curl(f"{server.url}/v1/chat/completions", "-d", body, *more)) == answer


def test_a_stream(server: Server, body: str, answer: str, tmp_path: Path) -> None:
    request = json.loads(Path(body[1:]).read_text()) | {"stream": True}
    (tmp_path / "stream.json").write_text(json.dumps(request))
    reply = curl("-N", f"{server.url}/v1/chat/completions", "-d", f"@{tmp_path / 'stream.json'}")
    *events, done = [part.removeprefix("data: ") for part in reply.split("\n\n") if part.startswith("data: ")]
    deltas = [json.loads(event)["choices"][0]["delta"] for event in events]
    assert done == "[DONE]" and "".join(delta.get("content", "") for delta in deltas) == answer


def test_a_client_that_is_stopped_gives_its_place_free(server: Server) -> None:
    asking = {
        "stream": True,
        "temperature": 2,
        "top_k": 0,
        "messages": [{"role": "user", "content": "Say all."}],
    }
    url = f"{server.url}/v1/chat/completions"
    process = subprocess.Popen(["curl", "-sN", url, "-d", json.dumps(asking)], stdout=subprocess.PIPE)
    assert process.stdout and process.stdout.readline().startswith(b"data: ")
    process.terminate()
    process.wait(20)
    end = time.monotonic() + 20
    while json.loads(curl(f"{server.url}/health"))["running"]:
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_key(guarded: Server) -> None:
    url = f"{guarded.url}/v1/models"
    assert json.loads(curl(url, "-H", f"Authorization: Bearer {KEY}"))["data"][0]["id"] == "demo"
    assert json.loads(curl(url))["error"]["type"] == "authentication_error"
    assert json.loads(curl(f"{guarded.url}/health"))["status"] == "ok"
