"""GQA as the parquet files that are passed around: pictures and questions in two folders of tables."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mvlm_np.errors import EvaluationError, some
from mvlm_np.evaluation.files import DOWNLOAD, Record, library

IMAGES, QUESTIONS = "testdev_balanced_images", "testdev_balanced_instructions"


def is_gqa(folder: Path) -> bool:
    """Whether a folder is a copy of GQA in parquet."""
    return any((folder / name).is_dir() for name in (IMAGES, QUESTIONS))


def gqa_questions(folder: Path) -> Iterator[tuple[str, str, bytes, Record]]:
    """Of each question: its id, its picture's name and file, and what GQA says of it."""
    pictures = {
        row.text("id"): _bytes(row) for row in _rows(folder / IMAGES, ["id", "image"], "the pictures")
    }
    for name, record in gqa_gold(folder).items():
        image = record.text("imageId")
        if image not in pictures:
            raise EvaluationError(record.where, f"its picture {image} is not in {IMAGES}", fix=DOWNLOAD)
        yield name, image, pictures[image], record


def gqa_gold(folder: Path) -> dict[str, Record]:
    """{question_id: what GQA says of it}"""
    columns = ["id", "imageId", "question", "answer", "isBalanced", "groups", "types", "semantic"]
    return {row.text("id"): row for row in _rows(folder / QUESTIONS, columns, "the questions")}


def _bytes(row: Record) -> bytes:
    found = row.record("image").values.get("bytes")
    if not isinstance(found, bytes):
        raise EvaluationError(row.where, "its image has no bytes", "the picture's file", DOWNLOAD)
    return found


def _rows(folder: Path, columns: list[str], what: str) -> Iterator[Record]:
    """The rows of all parquet files of a folder, in the order of the files' names, some at a time."""
    files = sorted(folder.glob("*.parquet"))
    if not files:
        raise EvaluationError(folder, "has no parquet file", f"{what} of GQA", "download the folder again")
    pq: Any = library(_pyarrow, "evaluate", str(files[0]))
    for path in files:
        try:
            with pq.ParquetFile(path) as table:
                if missing := [name for name in columns if name not in table.schema_arrow.names]:
                    raise EvaluationError(path, f"has no column {some(missing)}", f"those of {what} of GQA")
                number = 0
                for batch in table.iter_batches(batch_size=64, columns=columns):
                    for values in batch.to_pylist():
                        yield Record(values, f"{path}, row {number}")
                        number += 1
        except (OSError, ValueError) as reason:  # pyarrow's own errors are these
            if isinstance(reason, EvaluationError):
                raise
            raise EvaluationError(path, f"cannot be read: {reason}", "parquet", DOWNLOAD) from None


def _pyarrow() -> Any:
    from pyarrow import parquet

    return parquet
