"""From questions to rows, and from what was answered to a file that the published scripts read."""

import base64
import io
import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mvlm_np.config import ImageConfig
from mvlm_np.errors import ImageError
from mvlm_np.evaluation.answers import read_answers
from mvlm_np.evaluation.asked import PAD, PAD_FIRST
from mvlm_np.evaluation.benchmark import Benchmark
from mvlm_np.evaluation.benchmarks import BENCHMARKS, read
from mvlm_np.evaluation.running import cut, rows, write_answers
from mvlm_np.rows.output import Output
from mvlm_np.rows.row import Answered, Row
from tests.evaluation.fixtures import benchmarks, folder


@benchmarks
def test_answers_are_written_as_the_published_code_writes_them(benchmark: Benchmark, tmp_path: Path) -> None:
    """Line for line, but for the names of the model and the answer, and what is known of the answer."""
    asked = read(benchmark, folder(benchmark.key))
    says = json.loads((folder(benchmark.key) / "answers" / "main.json").read_text())
    texts = {one.id: text for one, text in zip(asked, says, strict=True)}
    with Output(tmp_path / "part") as output:
        for row in rows(benchmark, asked):
            output.write(Answered(row, f" {texts[row.key]}</s> \n", None, 3, 0.25, 0.1))
    assert write_answers(tmp_path / "new.jsonl", asked, tmp_path / "part", "some model") == 0

    def comparable(path: Path) -> list[dict]:
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        for line in lines:
            assert list(line)[-3:] == ["answer_id", "model_id", "metadata"]
            assert isinstance(line["answer_id"], str) and len(line["answer_id"]) == 22
        return [{**line, "answer_id": "", "model_id": "", "metadata": {}} for line in lines]

    new = comparable(tmp_path / "new.jsonl")
    published = comparable(folder(benchmark.key) / "predictions" / "main.jsonl")
    assert [json.dumps(line) for line in new] == [json.dumps(line) for line in published]
    assert {one.probability for one in read_answers(tmp_path / "new.jsonl")} == {0.25}
    assert {one.model for one in read_answers(tmp_path / "new.jsonl")} == {"some model"}


def test_rows_of_a_picture_follow_each_other() -> None:
    for benchmark in BENCHMARKS.values():
        asked = read(benchmark, folder(benchmark.key))
        in_order = list(rows(benchmark, asked))
        assert sorted(row.key for row in in_order) == sorted(one.id for one in asked)
        pictures = {one.id: one.picture for one in asked}
        seen = [pictures[row.key] for row in in_order]
        changes = sum(now != then for now, then in pairwise(seen))
        assert changes == len(set(seen)) - 1


def test_a_row_that_failed_has_no_line_and_is_counted(tmp_path: Path) -> None:
    benchmark = BENCHMARKS["gqa"]
    asked = read(benchmark, folder("gqa"))
    with Output(tmp_path / "part") as output:
        for i, row in enumerate(rows(benchmark, asked)):
            output.write(Answered(row, None, "no.png: is missing") if i == 2 else Answered(row, "yes"))
    assert write_answers(tmp_path / "new.jsonl", asked, tmp_path / "part", "m") == 1
    assert len(read_answers(tmp_path / "new.jsonl")) == len(asked) - 1


@pytest.mark.parametrize(
    "text, kept",
    [
        (" Yes\n", "Yes"),
        ("Yes</s>", "Yes"),
        ("Yes </s> ", "Yes"),
        ("a</s>b", "a</s>b"),
        ("x</s></s>", "x</s>"),
    ],
)
def test_answers_are_cut_as_the_published_code_cuts_them(text: str, kept: str) -> None:
    assert cut(text) == kept


# ---------------------------------------------------------------- MMBench's modes


def drawn(mode: str, width: int = 40, height: int = 20) -> bytes:
    out = io.BytesIO()
    ramp = np.linspace(0, 255, width * height).reshape(height, width).astype(np.uint8)
    picture = Image.fromarray(np.stack([ramp, 255 - ramp, ramp // 2], axis=-1)).convert(mode)
    picture.save(out, "PNG")
    return out.getvalue()


def mmbench_with(tmp_path: Path, picture: bytes) -> list:
    lines = (folder("mmbench") / "mmbench_dev_en_20231003.tsv").read_text().split("\n")
    cells = lines[1].split("\t")
    cells[9] = base64.b64encode(picture).decode()
    (tmp_path / "mmbench_dev_en_20231003.tsv").write_text("\n".join([lines[0], "\t".join(cells), ""]))
    return read(BENCHMARKS["mmbench"], tmp_path)


def only(found: Iterator[Row]) -> Row:
    (row,) = found
    return row


@pytest.mark.parametrize("mode", ["L", "LA", "1"])
def test_a_grey_picture_becomes_rgb_first_and_fails_as_published(tmp_path: Path, mode: str) -> None:
    asked = mmbench_with(tmp_path, drawn(mode))
    row = only(rows(BENCHMARKS["mmbench"], asked))
    assert row.preparation == PAD and row.source is not None
    assert row.preparation.pixels(row.source, ImageConfig()).shape == (3, 336, 336)
    published = only(rows(BENCHMARKS["mmbench"], asked, as_published=True))
    assert published.preparation == PAD_FIRST and published.source is not None
    with pytest.raises(ImageError, match=f"is of mode {mode}"):
        published.preparation.pixels(published.source, ImageConfig())


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_coloured_pictures_are_padded_in_their_own_mode(tmp_path: Path, mode: str) -> None:
    asked = mmbench_with(tmp_path, drawn(mode))
    assert only(rows(BENCHMARKS["mmbench"], asked)).preparation == PAD_FIRST
