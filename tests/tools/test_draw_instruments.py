"""Pictures of instruments for the demo model to learn: always the same, and every answer as often."""

import csv
from collections import Counter

import pytest
from PIL import Image

from tools.demo.instruments import ANSWERS, INSTRUMENTS, QUESTIONS, SPLITS, example
from tools.draw_instruments import main


@pytest.mark.parametrize("kind", INSTRUMENTS)
def test_a_picture_follows_from_its_number_alone(kind: str) -> None:
    first, again, other = (example(kind, "train", n) for n in (7, 7, 9))
    assert first.picture.tobytes() == again.picture.tobytes() != other.picture.tobytes()
    assert first[1:] == again[1:]


@pytest.mark.parametrize("kind", INSTRUMENTS)
def test_no_picture_is_in_both_splits(kind: str) -> None:
    train, held_out = ({example(kind, split, n).picture.tobytes() for n in range(30)} for split in SPLITS)
    assert len(train) == len(held_out) == 30 and not train & held_out


@pytest.mark.parametrize("kind", INSTRUMENTS)
def test_neither_question_nor_number_tells_the_answer(kind: str) -> None:
    pairs = [(question, answer) for question in QUESTIONS[kind] for answer in ANSWERS[kind]]
    drawn = [example(kind, "train", n) for n in range(2 * len(pairs))]
    assert Counter((one.question, one.answer) for one in drawn) == dict.fromkeys(pairs, 2)


def test_the_table_names_the_pictures_that_are_there(tmp_path) -> None:
    options = ["--pictures", "5", "--instrument", "slider", "--split", "held-out"]
    assert main([str(tmp_path / "a"), *options]) == 0
    with open(tmp_path / "a/photos.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["answer"] for row in rows] == ["0", "1", "2", "3", "4"]
    assert {path.name for path in (tmp_path / "a").glob("*.png")} == {row["picture"] for row in rows}
    for number, row in enumerate(rows):
        with Image.open(tmp_path / "a" / row["picture"]) as picture:
            assert picture.tobytes() == example("slider", "held-out", number).picture.tobytes()


def test_a_table_that_is_there_is_kept(tmp_path, capsys) -> None:
    (tmp_path / "photos.csv").write_text("mine")
    assert main([str(tmp_path), "--pictures", "2"]) == 2
    said = f"draw_instruments: {tmp_path}/photos.csv: is there already, wanted a new folder; "
    assert capsys.readouterr().err == said + "name another, or remove the table\n"
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("photos.csv", "mine")]


def test_what_was_stopped_can_be_done_again(tmp_path, capsys, monkeypatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "save", interrupted)
        assert main([str(tmp_path), "--pictures", "2"]) == 130
    assert capsys.readouterr().err.count("\n") == 1
    assert main([str(tmp_path), "--pictures", "2"]) == 0


def interrupted(*_: object) -> None:
    raise KeyboardInterrupt


def test_a_folder_that_cannot_be_is_one_line(tmp_path, capsys) -> None:
    (tmp_path / "a").write_text("")
    assert main([str(tmp_path / "a")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
