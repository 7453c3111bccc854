"""tools/score_answers.py: what answers are worth, and one line for whatever is wrong with them."""

import json
from pathlib import Path

import pytest

from tools.score_answers import main

TABLE = "picture,question,answer\na.png,Open?,yes\nb.png,Open?,no\nc.png,Open?,yes\nd.png,Say?,3\n"


def answers(file: Path, *said: str | None, questions: str = "Open? Open? Open? Say?") -> Path:
    asked = questions.split()
    rows = [
        {"id": f"elsewhere/t.csv:{number}", "question": asked[number - 2], "answer": answer}
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


def test_what_mvlm_batch_has_not_written_is_one_line(table: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "a.jsonl").write_text("[1]\n")
    assert main([str(table), str(tmp_path / "a.jsonl")]) == 2
    assert "a.jsonl:1: is no answer" in capsys.readouterr().err
