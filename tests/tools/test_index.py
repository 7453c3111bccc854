"""tools/README.md lists every script, and only those; each says in its first lines how it is called."""

import ast
import re

import pytest

from tests.conftest import ROOT

# All of tools/, and of tools/ports/ those that can be called.
MAIN = 'if __name__ == "__main__":'
PORTS = [path for path in (ROOT / "tools/ports").glob("*.py") if MAIN in path.read_text("utf-8")]
SCRIPTS = sorted([*(ROOT / "tools").glob("*.py"), *PORTS])


def test_the_index_lists_every_script_once_and_nothing_else() -> None:
    rows = re.findall(r"^\| `python (\S+)` \| \S.* \|$", (ROOT / "tools/README.md").read_text("utf-8"), re.M)
    assert sorted(rows) == sorted(str(script.relative_to(ROOT)) for script in SCRIPTS)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_a_script_says_how_it_is_called(script) -> None:
    code = script.read_text("utf-8")
    assert f"python {script.relative_to(ROOT)}" in (ast.get_docstring(ast.parse(code)) or "")
    assert MAIN in code
