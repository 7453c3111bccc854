"""The edits that `make llama-cpp` makes: exactly those, in the source that is known, or none."""

from pathlib import Path

import pytest

from tools.parts.llama_cpp.edits import EDITS, FILE, edit

STOCK = (
    "before\n"
    + "".join(f"a = {old}b);\n" * times for old, _, times in EDITS)
    + "ggml_gelu_inplace(ctx0, x);\n"
)
CHANGED = (
    "before\n"
    + "".join(f"a = {new}b);\n" * times for _, new, times in EDITS)
    + "ggml_gelu_inplace(ctx0, x);\n"
)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / FILE).parent.mkdir(parents=True)
    return tmp_path / FILE


@pytest.mark.parametrize("text", [STOCK, CHANGED], ids=["as it is", "edited already"])
def test_the_known_source_is_edited(tmp_path: Path, file: Path, text: str) -> None:
    file.write_text(text)
    edit(tmp_path)
    assert file.read_text() == CHANGED


@pytest.mark.parametrize(
    "text",
    ["", STOCK + f"{EDITS[0].old}", STOCK.replace(EDITS[1].old, EDITS[1].new, 1), STOCK + EDITS[1].new],
    ids=["empty", "once more", "half edited", "both"],
)
def test_another_source_is_refused_in_one_line_and_left_alone(tmp_path: Path, file: Path, text: str) -> None:
    file.write_text(text)
    with pytest.raises(SystemExit) as refused:
        edit(tmp_path)
    (line,) = str(refused.value).splitlines()
    assert line.startswith(f"{file}: found ") and line.endswith("as docs/llama-cpp.md says")
    assert file.read_text() == text


def test_no_source_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="No such file"):
        edit(tmp_path)
