"""What is asked: the published loaders' prompts and picture handling, character by character."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mvlm_np.evaluation.asked import Asked
from mvlm_np.evaluation.benchmark import Benchmark
from mvlm_np.evaluation.benchmarks import BENCHMARKS, limited, read
from mvlm_np.inputs.conversation import render
from tests.conftest import DATA, shared_path
from tests.evaluation.fixtures import benchmarks, folder


def prompts(benchmark: Benchmark) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder(benchmark.key) / "prompts.jsonl").read_text().splitlines()]


def handed_over(asked: Asked, benchmark: Benchmark) -> dict[str, Any] | None:
    """Mode and size of the picture that CLIP's processor gets, as the row's preparation says."""
    if asked.source is None:
        return None
    row = asked.row(benchmark.max_new_tokens, benchmark.preparation)
    file = io.BytesIO(row.picture) if isinstance(row.picture, bytes) else str(row.picture)
    with Image.open(file) as picture:
        if row.preparation.aspect_ratio == "crop":
            return {"mode": picture.mode, "size": [*picture.size]}
        return {"mode": picture.mode if row.preparation.pad_first else "RGB", "size": [max(picture.size)] * 2}


@benchmarks
def test_prompts_and_pictures_are_the_published_ones(benchmark: Benchmark) -> None:
    asked = read(benchmark, folder(benchmark.key))
    wanted = prompts(benchmark)
    assert len(asked) == len(wanted)
    for one, published in zip(asked, wanted, strict=True):
        row = one.row(benchmark.max_new_tokens, benchmark.preparation)
        assert one.question_id == published["question_id"]
        assert render("v1", row.question, n_images=int(row.picture is not None)) == published["prompt"]
        assert one.prompt == published["logged_prompt"]
        assert handed_over(one, benchmark) == published["image_input"]
        assert row.max_new_tokens == published["generate"]["max_new_tokens"]
        assert not row.preparation.exif
        if isinstance(one.source, Path):
            assert one.source.is_file()
            assert one.source.as_posix().endswith(published["image"])


def test_the_folder_of_all_benchmarks_will_do() -> None:
    for benchmark in BENCHMARKS.values():
        assert read(benchmark, DATA / "evaluation") == read(benchmark, folder(benchmark.key))


def test_the_fixtures_are_the_reference_materials() -> None:
    original = shared_path("evaluation/fixtures")
    for benchmark in BENCHMARKS:
        for path in (original / benchmark).rglob("*"):
            if path.is_file():
                assert (DATA / "evaluation" / path.relative_to(original)).read_bytes() == path.read_bytes()


def test_the_small_table_of_mmbench_names_pictures_of_other_rows(tmp_path: Path) -> None:
    (tmp_path / "MMBench_DEV_EN.tsv").symlink_to(folder("mmbench") / "MMBench_DEV_EN.tsv")
    assert read(BENCHMARKS["mmbench"], tmp_path) == read(BENCHMARKS["mmbench"], folder("mmbench"))


@benchmarks
@pytest.mark.parametrize("limit", [1, 8, 15, 1000])
def test_a_limit_keeps_groups_whole_and_takes_of_every_category(benchmark: Benchmark, limit: int) -> None:
    asked = read(benchmark, folder(benchmark.key))
    kept = limited(asked, limit)
    groups = {one.group for one in kept}
    assert kept == [one for one in asked if one.group in groups]
    assert {one.category for one in kept} == {one.category for one in asked}
    if limit >= len(asked):
        assert kept == asked
    shares = [
        sum(one.category == category for one in kept) / sum(one.category == category for one in asked)
        for category in {one.category for one in asked}
    ]
    if benchmark.key == "pope":
        assert max(shares) == min(shares) and len(kept) in (3, 9, 15, 24)
