"""From a benchmark's questions to rows for the engine, and from what it answered to an answers file."""

import io
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image

from mvlm_np.errors import EvaluationError
from mvlm_np.evaluation.answers import answer_line
from mvlm_np.evaluation.asked import PAD, PAD_FIRST, Asked
from mvlm_np.evaluation.benchmark import Benchmark
from mvlm_np.evaluation.files import json_lines
from mvlm_np.rows.row import Row

END = "</s>"  # what ends an answer; the published code cuts it off where it is left in the text
GREY = ("1", "L", "LA")


def check_pictures(benchmark: Benchmark, asked: Sequence[Asked]) -> None:
    """EvaluationError: pictures are missing; said before the first question, not when its turn comes."""
    files = dict.fromkeys(one.source for one in asked if isinstance(one.source, Path))
    missing = [path for path in files if not path.is_file()]
    if missing:
        found = f"is missing, as {len(missing)} of the {len(files)} pictures are"
        raise EvaluationError(missing[0], found, fix=benchmark.images)


def rows(benchmark: Benchmark, asked: Sequence[Asked], as_published: bool = False) -> Iterator[Row]:
    """The questions as rows, one picture's after another, so that each picture is encoded once.

    A grey picture that would be padded before it becomes RGB, which the published code cannot do, becomes RGB
    first; with as_published its row fails.
    """
    order = {picture: i for i, picture in enumerate(dict.fromkeys(one.picture for one in asked))}
    for one in sorted(asked, key=lambda one: order[one.picture]):
        preparation = benchmark.preparation
        if preparation == PAD_FIRST and not as_published and isinstance(one.source, bytes):
            preparation = PAD if _is_grey(one.source) else PAD_FIRST
        yield one.row(benchmark.max_new_tokens, preparation)


def _is_grey(file: bytes) -> bool:
    try:
        with Image.open(io.BytesIO(file)) as picture:
            return picture.mode in GREY
    except Exception:  # of as many kinds as there are broken pictures; the row will say it
        return False


def write_answers(path: Path, asked: Sequence[Asked], answered: Path, model: str) -> int:
    """Writes an answers file, in the questions' order, from the rows that `rows.output` has kept in a file.

    Returns how many questions have no answer, for their rows failed. What was there is replaced as a whole.
    """
    lines = {line.text("id"): line for line in json_lines(answered)}
    new = path.with_name(f".{path.name}.new")
    failed = 0
    try:
        with open(new, "w", encoding="utf-8") as file:
            for one in asked:
                text = lines[one.id].values["answer"]
                if text is None:
                    failed += 1
                    continue
                file.write(answer_line(one, cut(text), lines[one.id].values["probability"], model))
            file.flush()
            os.fsync(file.fileno())  # before the .part file goes
        os.replace(new, path)
    except OSError as error:
        raise EvaluationError(path, f"cannot be written ({error.strerror})") from None
    finally:
        new.unlink(missing_ok=True)
    return failed


def cut(answer: str) -> str:
    """An answer as the published code keeps it."""
    return answer.strip().removesuffix(END).strip()
