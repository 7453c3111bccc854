"""Answers in a file: whole rows whatever happens, and a run that was killed goes on where it was."""

import csv
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mvlm_np.errors import UserError
from mvlm_np.rows.output import FIELDS, Output
from mvlm_np.rows.row import Answered, Row
from tests.conftest import ROOT

CALL = [sys.executable, str(ROOT / "tests" / "rows" / "pretended.py")]
ENV = {**os.environ, "PYTHONPATH": str(ROOT)}
ROWS = 200

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | st.just("a\rb")
several = st.lists(
    st.builds(
        lambda picture, question, answer: (picture, question, answer),
        texts.filter(bool),
        texts,
        st.none() | texts,
    ),
    min_size=1,
    max_size=5,
)


def answered(several: list[tuple[str, str, str | None]]) -> list[Answered]:
    return [
        Answered(
            Row(str(i), picture, question), answer, None if answer is not None else "it failed", 3, 0.5, 1.0
        )
        for i, (picture, question, answer) in enumerate(several)
    ]


@given(several, st.booleans(), st.data())
def test_a_file_cut_anywhere_is_gone_on_with(tmp_path_factory, several, is_csv, data):
    path, rows = tmp_path_factory.mktemp("cut") / "answers", answered(several)
    with Output(path, is_csv) as output:
        for row in rows:
            output.write(row)
    whole = path.read_bytes()
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole)))])
    with Output(path, is_csv, resume=True) as output:
        had = [output.has(row.row) for row in rows]
        assert had == sorted(had, reverse=True)
        for row in rows[sum(had) :]:
            output.write(row)
        assert output.failed == sum(row.answer is None for row in rows)
    assert path.read_bytes() == whole
    if is_csv:
        with path.open(newline="") as file:
            found = list(csv.DictReader(file))
        assert [row["answer"] for row in found] == [row.answer or "" for row in rows]
    else:
        records = [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]
        assert [tuple(record) for record in records] == [FIELDS] * len(rows)
        assert [record["answer"] for record in records] == [row.answer for row in rows]


def test_what_is_there_is_not_overwritten_nor_mixed(tmp_path):
    path, (row,) = tmp_path / "a.jsonl", answered([("a.jpg", "What?", "x")])
    with Output(path) as output:
        output.write(row)
        with pytest.raises(UserError, match="is being written by another run"):
            Output(path, resume=True)
    with pytest.raises(UserError, match="is there already"):
        Output(path)
    with Output(path, resume=True) as output, pytest.raises(UserError, match="another picture or question"):
        output.has(Row("0", "a.jpg", "Why?"))
    with pytest.raises(UserError, match="row 1 is"):
        Output(path, is_csv=True, resume=True)
    path.write_bytes(b'{"a": 1}\n' + path.read_bytes())
    before = path.read_bytes()
    with pytest.raises(UserError, match=r"row 1 is '\{\"a\": 1\}"):
        Output(path, resume=True)
    assert path.read_bytes() == before


def test_nothing_is_left_of_a_run_without_rows(tmp_path):
    with Output(tmp_path / "a.csv", is_csv=True):
        assert (tmp_path / "a.csv").exists()
    assert not (tmp_path / "a.csv").exists()


def test_a_name_that_is_not_utf8_comes_back(tmp_path):
    path, row = tmp_path / "a.jsonl", Row("x", os.fsdecode(b"caf\xe9.jpg"), "What?")
    for is_csv in (False, True):
        with Output(path, is_csv) as output:
            output.write(Answered(row, "é"))
        with Output(path, is_csv, resume=True) as output:
            assert output.has(row)
        path.unlink()


def test_a_full_disk_is_one_line():
    with Output(Path("/dev/full")) as output, pytest.raises(UserError, match="No space left on device"):
        output.write(*answered([("a.jpg", "What?", "x")]))


# ---------------------------------------------------------------- kill -9


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "rows.csv"
    lines = ["picture,question", *(f"{i // 4}.jpg,Question {i}?" for i in range(ROWS))]
    lines[50] += ",too many"
    path.write_text("\n".join(lines))
    return path


@pytest.mark.parametrize("ending", ["jsonl", "csv"])
def test_killed_ten_times_the_file_is_that_of_an_undisturbed_run(table, tmp_path, ending):
    undisturbed, path = tmp_path / f"a.{ending}", tmp_path / f"b.{ending}"
    subprocess.run([*CALL, table, "-o", undisturbed], env=ENV, capture_output=True, check=False)
    whole, rng, killed = undisturbed.read_bytes(), random.Random(ending), 0
    assert whole.count(b"rows.csv:") >= ROWS
    for kill in range(10):
        aim = int(len(whole) * (0.09 * kill + 0.05 * rng.random()))  # bytes that are to be there
        run = subprocess.Popen([*CALL, table, "-o", path, "--resume"], env=ENV, stderr=subprocess.DEVNULL)
        end = time.monotonic() + 60
        while run.poll() is None and time.monotonic() < end:
            if path.exists() and path.stat().st_size > aim:
                break
            time.sleep(0.001)
        run.kill()
        killed += run.wait() == -9
        there = path.read_bytes()
        assert there and whole.startswith(there)
        if kill % 3 == 0:  # and the machine lost power while a row was written
            os.truncate(path, rng.randrange(len(there)))
    assert killed > 5, "it was to be killed at work"
    last = subprocess.run([*CALL, table, "-o", path, "--resume"], env=ENV, capture_output=True, check=False)
    assert last.returncode == 1 and path.read_bytes() == whole  # 1, as rows have failed
    again = subprocess.run([*CALL, table, "-o", path, "--resume"], env=ENV, capture_output=True, check=False)
    assert path.read_bytes() == whole and b"loaded" in last.stderr and b"loaded" not in again.stderr
