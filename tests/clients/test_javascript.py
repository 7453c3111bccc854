"""The packages openai and ollama for JavaScript, under Node."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.clients.conftest import KEY
from tests.clients.served import PICTURE, QUESTION, ROOT, Server

PACKAGES = ROOT / ".cache/clients"
SCRIPT = Path(__file__).with_name("ask.mjs")


def test_answers(guarded: Server, answer: str) -> None:
    if shutil.which("node") is None or not (PACKAGES / "node_modules/ollama").is_dir():
        pytest.skip("needs Node; make test-clients installs the packages where npm is")
    command = ["node", str(SCRIPT), guarded.url, str(PICTURE), QUESTION, KEY, str(PACKAGES)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [answer] * 4
