"""The blocks of docs/serve.md, as they stand there, but for the server's address."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.clients.served import PICTURE, ROOT, Server

PAGE = (ROOT / "docs/serve.md").read_text("utf-8")
ADDRESS = "http://127.0.0.1:8080"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


@pytest.fixture
def here(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a photo, in which a block runs; and the settings of `llm` that the page has."""
    (tmp_path / "photo.jpg").write_bytes(PICTURE.read_bytes())
    (settings,) = (block for block in blocks("yaml") if "model_id" in block)
    (tmp_path / "extra-openai-models.yaml").write_text(settings.replace(ADDRESS, server.url))
    monkeypatch.setenv("LLM_USER_PATH", str(tmp_path))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_page_has_blocks_for_each_client() -> None:
    code = "".join(blocks("py") + blocks("sh"))
    assert all(name in code for name in ("curl", "llm -m", "openai", "ollama", "langchain_", "litellm"))


@pytest.mark.parametrize(
    "block", blocks("py"), ids=lambda block: re.findall(r"(?:from|import) (\w+)", block)[-1]
)
def test_python(block: str, server: Server, here: Path) -> None:
    for module in re.findall(r"^(?:from|import) (\w+)", block, re.MULTILINE):
        pytest.importorskip(module, reason="make test-clients installs it")
    code = block.replace(ADDRESS, server.url)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr and done.stdout.strip()


@pytest.mark.parametrize("block", blocks("sh"), ids=["curl", "llm"])
def test_shell(block: str, server: Server, here: Path) -> None:
    if block.startswith("llm"):
        pytest.importorskip("llm", reason="make test-clients installs it")
    code = block.replace(ADDRESS, server.url)
    done = subprocess.run(["bash", "-euc", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "gauge" in done.stdout  # the demo model's description of the picture, or a part of it
