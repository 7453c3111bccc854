"""GQA as parquet files: the same questions and the same score as from the published files."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from mvlm_np.errors import EvaluationError
from mvlm_np.evaluation.benchmarks import BENCHMARKS, read, score
from mvlm_np.evaluation.parquet import IMAGES, QUESTIONS
from tests.evaluation.fixtures import answers, folder

GQA = BENCHMARKS["gqa"]


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """As it is passed around: pictures as {bytes, path}, each folder with one file or several."""
    import pyarrow as pa
    from pyarrow import parquet

    gold = json.loads((folder("gqa") / "testdev_balanced_questions.json").read_text())
    left_out = ("annotations", "entailed", "equivalent")  # empty here, which parquet does not write
    asked: list[dict[str, Any]] = [
        {"id": name, **{key: value for key, value in says.items() if key not in left_out}}
        for name, says in gold.items()
    ]
    pictures = [
        {"id": path.stem, "image": {"bytes": path.read_bytes(), "path": path.name}}
        for path in sorted((folder("gqa") / "images").iterdir())
    ]
    for name, tables in ((QUESTIONS, [asked]), (IMAGES, [pictures[:3], pictures[3:]])):
        (tmp_path / name).mkdir()
        for i, table in enumerate(tables):
            path = tmp_path / name / f"testdev-{i:05}-of-{len(tables):05}.parquet"
            parquet.write_table(pa.Table.from_pylist(table), path)
    return tmp_path


def test_the_same_questions_and_pictures(copy: Path) -> None:
    theirs, ours = read(GQA, folder("gqa")), read(GQA, copy)
    assert [(one.id, one.prompt, one.picture) for one in ours] == [
        (one.id, one.prompt, one.picture) for one in theirs
    ]
    for one, published in zip(ours, theirs, strict=True):
        assert isinstance(published.source, Path)
        assert one.source == published.source.read_bytes()


def test_the_same_score(copy: Path) -> None:
    assert score(GQA, copy, answers("gqa")) == score(GQA, folder("gqa"), answers("gqa"))


def test_questions_without_pictures(copy: Path) -> None:
    shutil.rmtree(copy / IMAGES)
    with pytest.raises(EvaluationError, match=f"{IMAGES}: has no parquet file, wanted the pictures of GQA"):
        read(GQA, copy)


@pytest.mark.parametrize("damage", [b"", b"PAR1", b"not parquet at all, however long it may be"])
def test_a_file_that_is_no_parquet_is_named(copy: Path, damage: bytes) -> None:
    path = next((copy / IMAGES).iterdir())
    path.write_bytes(damage)
    with pytest.raises(EvaluationError, match=f"{path.name}: cannot be read"):
        read(GQA, copy)


def test_a_missing_column_and_a_missing_picture_are_named(copy: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    last = sorted((copy / IMAGES).iterdir())[-1]
    last.unlink()
    with pytest.raises(EvaluationError, match=f"its picture n900004 is not in {IMAGES}"):
        read(GQA, copy)
    parquet.write_table(pa.table({"id": ["a"]}), last)
    with pytest.raises(EvaluationError, match="has no column image"):
        read(GQA, copy)


def test_without_pyarrow_the_extra_is_named(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(EvaluationError, match=r"needs the extra evaluate.*pip install 'mvlm-np\[evaluate\]'"):
        read(GQA, copy)
    read(GQA, folder("gqa"))  # the published files need nothing
