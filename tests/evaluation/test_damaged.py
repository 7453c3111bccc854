"""Folders and answers that are damaged, half there or hostile: one line that names the file and the place."""

import csv
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from mvlm_np.errors import EvaluationError
from mvlm_np.evaluation import files, mme
from mvlm_np.evaluation.answers import read_answers
from mvlm_np.evaluation.benchmarks import BENCHMARKS, limited, read, score
from mvlm_np.evaluation.running import check_pictures
from tests.evaluation.fixtures import answers, folder

NEEDED = {
    "gqa": ["llava_gqa_testdev_balanced.jsonl", "testdev_balanced_questions.json"],
    "mmbench": ["mmbench_dev_en_20231003.tsv"],
    "mme": ["llava_mme.jsonl", "images/count/000000900001.txt"],
    "pope": ["llava_pope_test.jsonl", "coco/coco_pope_random.json"],
    "sqa": ["llava_test_CQM-A.json", "problems.json"],
    "textvqa": ["llava_textvqa_val_v051_ocr.jsonl", "TextVQA_0.5.1_val.json"],
}
EACH_FILE = [(key, name) for key, names in NEEDED.items() for name in names]


@pytest.fixture
def copy(tmp_path: Path) -> Callable[[str], Path]:
    def copied(key: str) -> Path:
        shutil.copytree(folder(key), tmp_path / key)
        return tmp_path / key

    return copied


def refusal(key: str, data: Path) -> str:
    with pytest.raises(EvaluationError) as error:
        score(BENCHMARKS[key], data, answers(key))
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("key, name", EACH_FILE)
def test_a_file_is_missing(copy: Callable[[str], Path], key: str, name: str) -> None:
    data = copy(key)
    (data / name).unlink()
    (data / "MMBench_DEV_EN.tsv").unlink(missing_ok=True)
    assert name in refusal(key, data)


@pytest.mark.parametrize("key, name", EACH_FILE)
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe\x00",
        b"<!DOCTYPE html><html>",
        b"version https://git-lfs.github.com/spec/v1\n",
        b"[1, 2]\n",
        b"{",
    ],
    ids=["empty", "utf-16", "html", "lfs", "list", "cut"],
)
def test_a_file_is_something_else(copy: Callable[[str], Path], key: str, name: str, content: bytes) -> None:
    data = copy(key)
    (data / name).write_bytes(content)
    said = refusal(key, data)
    assert str(data) in said
    if not (content == b"" and name.endswith((".jsonl", ".tsv"))):
        assert Path(name).name in said


@pytest.mark.parametrize("key, name", EACH_FILE)
def test_a_file_is_a_pipe_without_end(copy: Callable[[str], Path], key: str, name: str) -> None:
    data = copy(key)
    (data / name).unlink()
    os.mkfifo(data / name)
    assert f"{name}: is not a regular file" in refusal(key, data)


@pytest.mark.parametrize("key, name", [(key, name) for key, name in EACH_FILE if name.endswith("l")])
def test_a_broken_line_is_named(copy: Callable[[str], Path], key: str, name: str) -> None:
    data = copy(key)
    lines = (data / name).read_bytes().splitlines(keepends=True)
    for damage in (b'{"question_id": \n', b"[]\n", b"{}\n", b'{"text": "\xff"}\n', b"[" * 100_000 + b"\n"):
        (data / name).write_bytes(b"".join([*lines[:3], damage, *lines[3:]]))
        assert f"{name}, line 4" in refusal(key, data)


def test_a_line_without_end_is_not_read_to_its_end(
    copy: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "MOST_LINE", 100_000)
    for key, name in (("gqa", NEEDED["gqa"][0]), ("mmbench", NEEDED["mmbench"][0])):
        data = copy(key)
        with open(data / name, "ab") as file:
            file.write(b'{"a": "' + b"x" * 300_000)
        assert re.search(rf"{name}, line \d+: has more than 100000 bytes", refusal(key, data))


@pytest.mark.parametrize("key", [key for key in NEEDED if key != "mmbench"])  # which has all in one file
@pytest.mark.parametrize("place", [0, -1])
def test_a_question_of_which_the_gold_is_missing(copy: Callable[[str], Path], key: str, place: int) -> None:
    data = copy(key)
    one = read(BENCHMARKS[key], data)[place]
    if key == "pope":
        path = data / "coco" / f"coco_pope_{one.category}.json"
        lines = path.read_text().splitlines(keepends=True)
        del lines[place]
        path.write_text("".join(lines))
        assert f"{path.name}: has no label for question {one.id}" in refusal(key, data)
        return
    if key == "mme":
        path = next((data / "images" / one.category).rglob("*.txt"))
        path.write_text("What is it?\tYes\n")
        assert f"{path.name}: does not have the question" in refusal(key, data)
        return
    path = data / NEEDED[key][1]
    gold = json.loads(path.read_text())
    if key == "textvqa":
        del gold["data"][place]
    else:
        del gold[one.id]
    path.write_text(json.dumps(gold))
    assert path.name in refusal(key, data) and "does not have" in refusal(key, data)


def test_missing_pictures_are_said_before_anything_is_asked(copy: Callable[[str], Path]) -> None:
    for benchmark in BENCHMARKS.values():
        data = copy(benchmark.key)
        asked = read(benchmark, data)
        check_pictures(benchmark, asked)
        if benchmark.key == "mmbench":
            continue
        pictures = [one.source for one in asked if isinstance(one.source, Path)]
        pictures[0].unlink()
        with pytest.raises(EvaluationError, match="is missing, as 1 of the") as error:
            check_pictures(benchmark, asked)
        assert pictures[0].name in str(error.value) and benchmark.images in str(error.value)
        check_pictures(benchmark, [one for one in asked if one.source != pictures[0]])


@pytest.mark.parametrize(
    "damage, said",
    [
        (lambda row: [*row[:-1], "x", "y"], r"line 4: has 15 cells, wanted 14"),
        (lambda row: ["x", *row[1:]], r"line 4: has the index 'x', wanted a number"),
        (lambda row: ["11", *row[1:]], r"line 4: has the index 11, as a row before"),
        (lambda row: [*row[:9], "no picture"], r"line 4: found the image 'no picture'"),
        (lambda row: [*row[:9], "é" * 80], r"line 4: found the image '\\xe9"),
        (lambda row: [*row[:9], "²"], r"line 4: found the image '\\xb2'"),
        (lambda row: [*row[:9], "9999"], r"line 4: found the image '9999'"),
        (lambda row: row[:5], r"line 4: found the image ''"),
    ],
)
def test_a_broken_row_of_mmbench_is_named(copy: Callable[[str], Path], damage: Callable, said: str) -> None:
    data = copy("mmbench")
    path = data / NEEDED["mmbench"][0]
    lines = path.read_text().split("\n")
    assert '"' not in "".join(lines[:3])  # each a row of its own
    lines[3:4] = ["\t".join(damage(lines[2].replace("25", "26").split("\t"))), lines[3]]
    path.write_text("\n".join(lines))
    limit = csv.field_size_limit()
    assert re.search(said, refusal("mmbench", data))
    assert csv.field_size_limit() == limit


@pytest.mark.parametrize(
    "line, said",
    [
        ('{"prompt": "a", "text": "b"}', "has no 'question_id', wanted a text or a whole number"),
        ('{"question_id": true, "prompt": "a", "text": "b"}', "'question_id' is 'True'"),
        ('{"question_id": 1, "prompt": "a", "text": null}', "has no 'text', wanted a text"),
        ('{"question_id": 1, "prompt": 7, "text": "b"}', "'prompt' is '7', wanted a text"),
        ("yes", "cannot be read as JSON"),
    ],
)
def test_a_broken_answer_is_named(tmp_path: Path, line: str, said: str) -> None:
    path = tmp_path / "answers.jsonl"
    good = json.dumps({"question_id": 1, "prompt": "a", "text": "b"})
    path.write_text(f"{good}\n\n{line}\n{good}\n")
    with pytest.raises(EvaluationError, match=re.escape(f"{path}, line 3: ") + f".*{re.escape(said)}"):
        read_answers(path)


@pytest.mark.parametrize("metadata", ["7", "{}", *(f'{{"probability": {p}}}' for p in ("NaN", -1, 2, "[]"))])
def test_a_probability_that_is_none_is_not_known(tmp_path: Path, metadata: str) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_text(f'{{"question_id": 1, "prompt": "a", "text": "b", "metadata": {metadata}}}\n')
    assert read_answers(path)[0].probability is None


def test_what_is_no_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="is no folder, wanted the folder with GQA's files"):
        read(BENCHMARKS["gqa"], tmp_path / "nothing")


def test_a_limit_of_nothing_is_refused() -> None:
    with pytest.raises(EvaluationError, match="--limit: found 0, wanted at least 1"):
        limited(read(BENCHMARKS["gqa"], folder("gqa")), 0)


def test_mmes_texts_may_end_in_blanks_and_with_line_breaks_of_windows(copy: Callable[[str], Path]) -> None:
    data = copy("mme")
    for path in data.rglob("*.txt"):
        if path.parent.name != "results":
            path.write_bytes(path.read_bytes().replace(b"\n", b" \r\n") + b"\r\n")
    assert score(BENCHMARKS["mme"], data, answers("mme"))[0].value == 1050


def test_a_picture_of_mme_with_three_questions_is_refused(copy: Callable[[str], Path]) -> None:
    data = copy("mme")
    path = data / NEEDED["mme"][0]
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines, lines[0]]))
    assert "does not have two questions about" in refusal("mme", data)
    assert mme.said("") == "other"
