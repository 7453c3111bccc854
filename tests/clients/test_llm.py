"""The command `llm`."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.clients.served import PICTURE, QUESTION, Server

pytest.importorskip("llm", reason="make test-clients installs it")
LLM = shutil.which("llm", path=str(Path(sys.executable).parent)) or "llm"


def llm(folder: Path, *arguments: str) -> str:
    environment = os.environ | {"LLM_USER_PATH": str(folder)}
    done = subprocess.run([LLM, *arguments], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def folder(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The settings that docs/serve.md has for it."""
    folder = tmp_path_factory.mktemp("llm")
    text = f"- model_id: mvlm\n  model_name: demo\n  api_base: {server.url}/v1\n  vision: true\n"
    (folder / "extra-openai-models.yaml").write_text(text)
    return folder


def test_an_answer(folder: Path, answer: str) -> None:
    for more in ([], ["--no-stream"]):
        assert llm(folder, "-m", "mvlm", QUESTION, "-a", str(PICTURE), *more).strip() == answer


def test_a_chat(folder: Path) -> None:
    llm(folder, "-m", "mvlm", QUESTION, "-a", str(PICTURE), "-o", "max_tokens", "5")
    llm(folder, "-c", "And then?", "-o", "max_tokens", "5")
