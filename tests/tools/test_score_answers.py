"""tools/score_answers.py: what answers are worth, and one line for whatever is wrong with them."""

import json
from pathlib import Path

import pytest

from tools.score_answers import main

TABLE = "picture,question,answer\na.png,Open?,yes\nb.png,Open?,no\nc.png,Open?,yes\nd.png,Say?,3\n"


def answers(file: Path, *said: str | None, questions: str = "Open? Open? Open? Say?") -> Path:
    asked = questions.split()
    rows = [
        {
            "id": f"elsewhere/t.csv:{number}",
            "picture": f"elsewhere/{'abcd'[number - 2]}.png",
            "question": asked[number - 2],
            "answer": answer,
        }
        for number, answer in enumerate(said, 2)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.fixture
def table(tmp_path: Path) -> Path:
    (tmp_path / "t.csv").write_text(TABLE)
    return tmp_path / "t.csv"


def test_scores_and_the_guess_are_counted(table: Path, tmp_path: Path, capsys) -> None:
    file = answers(tmp_path / "a.jsonl", "yes", " no ", "no", None)
    assert main([str(table), str(file)]) == 0
    said = capsys.readouterr().out
    assert "all               4   50.0%" in said
    assert "yes               2   50.0%" in said and "no                1  100.0%" in said
    assert "a guess from the questions alone: 75.0%" in said  # yes, yes, yes, 3
    assert "wrong: c.png: Open? -> 'no', right is 'yes'" in said
    assert main([str(table), str(file), "--least", "0.6"]) == 1


def test_two_runs_are_compared(table: Path, tmp_path: Path, capsys) -> None:
    one = answers(tmp_path / "a.jsonl", "yes", "no", "yes", "3")
    other = answers(tmp_path / "b.jsonl", "yes", "no", "yes", "4")
    assert main([str(table), str(one), "--against", str(other)]) == 0
    assert "1 of 4 answers differ, +25.00 points" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("said", "questions", "error"),
    [
        (("yes", "no"), "Open? Open? Open? Say?", "has no answer to t.csv:4, nor to 1 more of 4 rows"),
        (("yes", "no", "yes", "3"), "Open? Open? Say? Say?", "t.csv:4 asks 'Say?', wanted 'Open?'"),
    ],
)
def test_answers_to_something_else_are_one_line(table, tmp_path, capsys, said, questions, error) -> None:
    file = answers(tmp_path / "a.jsonl", *said, questions=questions)
    assert main([str(table), str(file)]) == 2
    line = capsys.readouterr().err
    assert error in line and line.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("picture,question\na.png,Open?\n", "t.csv:2: found ['a.png', 'Open?']"),
        ("picture,question,answer\n", "has no rows"),
        ("picture,question,answer\na.png,Open?,\n", "t.csv:2"),
        ("question,answer\nOpen?,yes\n", "t.csv:1: names no column picture"),
    ],
)
def test_a_table_without_answers_is_one_line(tmp_path, capsys, text, error) -> None:
    (tmp_path / "t.csv").write_text(text)
    assert main([str(tmp_path / "t.csv"), str(answers(tmp_path / "a.jsonl"))]) == 2
    line = capsys.readouterr().err
    assert error in line and line.count("\n") == 1


ROW = {"id": "t.csv:2", "picture": "a.png", "question": "Open?", "answer": "yes"}


@pytest.mark.parametrize(
    "row", [[1], {}, *(ROW | {name: 0} for name in ROW), ROW | {"id": None}, ROW | {"question": None}]
)
def test_what_mvlm_batch_has_not_written_is_one_line(table: Path, tmp_path: Path, capsys, row) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps(row) + "\n")
    assert main([str(table), str(tmp_path / "a.jsonl")]) == 2
    assert "a.jsonl:1: is no answer, wanted a line of mvlm batch's JSON lines" in capsys.readouterr().err


def scored(folder: Path, table: str, *ids: str) -> int:
    """Of rows about a.png, which all say yes."""
    (folder / "t.csv").write_text("picture,question,answer,id\n" + table)
    rows = "".join(json.dumps(ROW | {"id": id}) + "\n" for id in ids)
    (folder / "a.jsonl").write_text(rows)
    return main([str(folder / "t.csv"), str(folder / "a.jsonl")])


def test_ids_count_as_they_are_written(tmp_path: Path, capsys) -> None:
    table = "a.png,Open?,yes,a/1\na.png,Open?,no,b/1\na.png,Open?,yes,\n"
    assert scored(tmp_path, table, "b/1", "a/1", "old/t.csv:4", "old/1") == 0
    assert "all               3   66.7%" in capsys.readouterr().out
    assert scored(tmp_path, table, "b/1", "1", "t.csv:4") == 2
    assert "has no answer to a/1, nor to 0 more of 3 rows" in capsys.readouterr().err


def test_an_id_that_is_there_twice_is_one_line(tmp_path: Path, capsys) -> None:
    assert scored(tmp_path, "a.png,Open?,yes,x\na.png,Open?,no,x\n", "x") == 2
    assert "t.csv:3: has the id 'x', as a row before it, wanted an id that" in capsys.readouterr().err
    assert scored(tmp_path, "a.png,Open?,yes,x\n", "x", "x") == 2
    assert "a.jsonl:2: is a second answer to 'x', wanted one to each row" in capsys.readouterr().err
    assert scored(tmp_path, "a.png,Open?,yes,\n", "one/t.csv:2", "two/t.csv:2") == 2
    assert "a.jsonl:2: is a second answer to 't.csv:2'" in capsys.readouterr().err


def test_answers_about_other_pictures_are_one_line(tmp_path: Path, capsys) -> None:
    """As when the table got a new row in between, and all rows ask the same."""
    assert scored(tmp_path, "b.png,Open?,yes,\n", "t.csv:2") == 2
    assert "a.jsonl: t.csv:2 is about 'a.png', wanted 'b.png'" in capsys.readouterr().err


@pytest.mark.parametrize("least", ["95", "-0.1", "nan", "x"])
def test_the_least_score_is_a_share(table: Path, capsys, least: str) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([str(table), "a.jsonl", f"--least={least}"])
    assert stopped.value.code == 2
    assert "argument --least: " in capsys.readouterr().err
