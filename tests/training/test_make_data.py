"""tools/make_data.py: from a folder and a table to a data file, and what the model will see of it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from mvlm_np.demo import PICTURES
from tests.training.fixtures import tokenizer
from tools import make_data
from tools.training import table
from tools.training.records import read_records
from tools.training.shown import pieces
from tools.training.wording import IGNORED, Sample

TABLE = """picture,question,answer
0.png,What is it?,42
1.png, Is it? ,"yes, it is"
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with pictures in `photos`, which is the current one."""
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    for name in ("0.png", "1.png", "2.png"):
        Path("photos", name).symlink_to(PICTURES / name)
    return tmp_path


def made(table: str | bytes, *options: str, name: str = "gauge.csv") -> int:
    Path(name).write_bytes(table if isinstance(table, bytes) else table.encode())
    return make_data.main(["photos", name, "-o", "gauge.json", *options])


def test_a_table_becomes_a_data_file(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert made(TABLE) == 0
    assert capsys.readouterr().out.splitlines() == [
        "gauge.json: 2 records about 2 pictures",
        "1 pictures of photos are in no record: 2.png",
    ]
    assert json.loads(Path("gauge.json").read_text()) == [
        {
            "id": "gauge-2",
            "image": "0.png",
            "conversations": [
                {"from": "human", "value": "<image>\nWhat is it?"},
                {"from": "gpt", "value": "42"},
            ],
        },
        {
            "id": "gauge-3",
            "image": "1.png",
            "conversations": [
                {"from": "human", "value": "<image>\nIs it?"},
                {"from": "gpt", "value": "yes, it is"},
            ],
        },
    ]
    first, _ = read_records(Path("gauge.json"), Path("photos"))
    assert first.turns == (("human", "<image>\nWhat is it?"), ("gpt", "42"))


@pytest.mark.parametrize(
    "table",
    [
        "\ufeffanswer;file;id;notes\r\n42;0.png;x;\r\n43;1.png;y;\r\n".encode(),
        b"label\tpath\tid\n42\t0.png\tx\n\n43\t1.png\ty\n",
    ],
)
def test_columns_have_several_names_and_one_question_may_be_for_all(folder: Path, table: bytes) -> None:
    assert made(table, "--question", "What?", name="a.tsv") == 0
    entries = json.loads(Path("gauge.json").read_text())
    assert [(e["id"], e["image"], e["conversations"][1]["value"]) for e in entries] == [
        ("x", "0.png", "42"),
        ("y", "1.png", "43"),
    ]
    assert {e["conversations"][0]["value"] for e in entries} == {"<image>\nWhat?"}


BAD = {
    "0.png,,42": "has no question; fill it in; give one for all with --question",
    "0.png,What?, ": "has no answer; fill it in",
    ",What?,42": "has no picture; fill it in",
    "0.png": "has no question; fill it in; give one for all with --question",
    "no.png,What?,42": "photos/no.png: there is no such file; check the path",
    "cut.png,What?,42": "photos/cut.png: cannot be read (image file is truncated), wanted a whole picture; "
    "fetch or save it again",
    "text.png,What?,42": "photos/text.png: is no picture that Pillow can read",
    "0.png,What?,4,2": "has 4 fields, wanted 3; put fields with ',' in quotes",
    '0.png,"What?,42': "opens a quote that is not closed",
    "0.png,What is <image>?,42": "has <image> in its question, wanted text alone; leave it out",
    "0.png,What?,<image>": "has <image> in its answer",
    "./1.png,Is it?,no": "answers 'no', but line 3 'yes, it is' to the same question, "
    "wanted one right answer; mend or remove one of them",
    "0.png,What?,\udce9": "is not UTF-8 (byte e9 at 13); save the file in UTF-8",
}


def spoilt() -> bytes:
    Path("photos", "cut.png").write_bytes((PICTURES / "3.png").read_bytes()[:2000])
    Path("photos", "text.png").write_text("text")
    return (TABLE + "\n".join(BAD) + "\n2.png,Is it?,no\n").encode("utf-8", "surrogateescape")


def test_bad_rows_are_named_by_line_and_nothing_is_written(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("gauge.json").write_text("[1]")
    assert made(spoilt()) == 2
    *lines, last = capsys.readouterr().err.splitlines()
    assert len(lines) == len(BAD)
    for number, (line, found) in enumerate(zip(lines, BAD.values(), strict=True), 4):
        assert line.startswith(f"make_data: gauge.csv:{number}: {found}")
    assert last == (
        f"make_data: gauge.csv: {len(BAD)} of {len(BAD) + 3} rows are bad; "
        "mend them, or leave them out with --skip-bad"
    )
    assert Path("gauge.json").read_text() == "[1]"


def test_bad_rows_are_left_out_on_request(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert made(spoilt(), "--skip-bad") == 0
    said = capsys.readouterr()
    assert said.out.startswith(f"gauge.json: 3 records about 3 pictures; {len(BAD)} rows are left out\n")
    assert len(said.err.splitlines()) == len(BAD)
    assert [e["image"] for e in json.loads(Path("gauge.json").read_text())] == ["0.png", "1.png", "2.png"]


def test_of_very_many_bad_rows_the_first_are_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert made(TABLE + "0.png\n" * 100) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == make_data.MOST_LINES + 2
    assert lines[-2] == "make_data: 80 more rows are bad"


@pytest.mark.parametrize(
    ("table", "found"),
    [
        ("", "gauge.csv:1: names no column picture but ''"),
        ("a,b\n", "gauge.csv:1: names no column picture but 'a,b'"),
        ("picture,question\n0.png,What?\n", "gauge.csv:1: names no column answer but picture, question"),
        ("picture,answer,answer\n", "gauge.csv:1: names answer twice, wanted each column once"),
        ("picture,answer\n", "gauge.csv: has no row that can be used, wanted at least one"),
        (
            "picture,answer\n0.png,1".encode("utf-16"),
            "gauge.csv: is a text in UTF-16, wanted a text in UTF-8",
        ),
        (b"\0" * 600, "gauge.csv: begins with zeros"),
    ],
)
def test_what_is_no_such_table_is_one_line(
    folder: Path, table: str | bytes, found: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert made(table) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"make_data: {found}")
    assert not Path("gauge.json").exists()


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (["gauge.csv"], "gauge.csv: is a table, wanted a name for the data file; add -o DATA.json"),
        (["data.json", "-o", "x.json"], "data.json: is no table, wanted .csv or .tsv with -o"),
        (["data.json"], "data.json: is a data file already; add --check to see what it teaches"),
        (["none.csv", "-o", "x.json"], "none.csv: cannot be read (No such file or directory)"),
        (["none.json", "--check"], "none.json: cannot be read (No such file or directory)"),
        (["gauge.csv", "-o", "no/x.json"], "no/x.json: cannot be written (No such file or directory)"),
        (["gauge.csv", "-o", "photos"], "photos: is no name for a data file, wanted one that ends in .json"),
        (["gauge.csv", "-o", ""], ".: is no name for a data file"),
        (["gauge.csv", "-o", "gauge.csv"], "gauge.csv: is no name for a data file"),
        (["gauge.csv", "-o", "a" * 300 + ".json"], "a" * 300 + ".json: cannot be written (File name too"),
        (["data.json", "--check", "photos"], "photos: is a folder, wanted a file in a folder that exists"),
        (["data.json", "--check", "--model", "none"], "none: does not exist"),
    ],
)
def test_hostile_arguments_are_one_line(
    folder: Path, arguments: list[str], found: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("gauge.csv").write_text(TABLE)
    Path("data.json").write_text(json.dumps([{"conversations": [{"from": "gpt", "value": "a"}]}]))
    assert make_data.main(["photos", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"make_data: {found}")
    assert sorted(path.name for path in folder.iterdir()) == ["data.json", "gauge.csv", "photos"]


def test_only_a_data_file_is_replaced(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("gauge.json").write_text('{"settings": 1}')
    assert made(TABLE) == 2
    found = "is something else, which a data file would replace, wanted a new file; name another"
    assert capsys.readouterr().err == f"make_data: gauge.json: {found}\n"
    assert Path("gauge.json").read_text() == '{"settings": 1}'
    Path("gauge.json").unlink()
    os.mkfifo("gauge.json")
    assert made(TABLE) == 2
    assert Path("gauge.json").is_fifo()
    Path("gauge.json").unlink()
    Path("gauge.json").mkdir()
    assert made(TABLE) == 2
    Path("gauge.json").rmdir()
    Path("gauge.json").symlink_to("gauge.csv")
    assert made(TABLE) == 2
    assert Path("gauge.csv").read_text() == TABLE
    Path("gauge.json").unlink()
    for _ in range(2):
        assert made(TABLE) == 0


def test_a_page_takes_the_place_of_no_data(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for page in ("gauge.csv", "gauge.json", "photos/mine.png"):
        Path("photos/mine.png").write_bytes(b"x")
        assert made(TABLE, "--check", page) == 2
        assert f"make_data: {page}: holds something else" in capsys.readouterr().err
    assert Path("gauge.csv").read_text() == TABLE
    assert len(json.loads(Path("gauge.json").read_text())) == 2
    assert Path("photos/mine.png").read_bytes() == b"x"


@pytest.mark.parametrize("before", [None, "[1]"])
def test_ctrl_c_is_one_line(folder: Path, before: str | None, capsys, monkeypatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    if before:
        Path("gauge.json").write_text(before)
    monkeypatch.setattr(table, "open_image", interrupted)
    assert made(TABLE) == 130
    assert capsys.readouterr().err == "make_data: stopped\n"
    assert (Path("gauge.json").read_text() if before else None) == before
    assert {path.name for path in folder.iterdir()} <= {"photos", "gauge.csv", "gauge.json"}


def test_table_and_data_file_take_the_same_names(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("photos/0.png").rename("photos/at 3.04\u202fPM.png")
    assert made(TABLE.replace("0.png", "at 3.04\u202fPM.png")) == 0
    assert len(read_records(Path("gauge.json"), Path("photos"))) == 2
    Path("photos/1.png").rename("photos/1\n2.png")
    assert made(TABLE.replace("0.png", '"1\n2.png"')) == 2
    found = "image is '1\\n2.png', wanted a name without control characters; rename the file"
    assert f"make_data: gauge.csv:2: {found}\n" in capsys.readouterr().err


# ---------------------------------------------------------------- what the model will see


def entry(number: int, answer: str, **more: str) -> dict:
    turns = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": answer}]
    return {"id": number, "image": f"{number % 3}.png", "conversations": turns} | more


def test_a_check_shows_samples_and_counts_what_teaches_nothing(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    entries = [entry(i, f"{i}") for i in range(30)]
    entries.append({"conversations": [{"from": "human", "value": "Hello?"}]})
    Path("data.json").write_text(json.dumps(entries))
    assert make_data.main(["photos", "data.json", "--check", "--samples", "31"]) == 1
    out = capsys.readouterr().out
    assert "data.json: record 12 (id 11): 45 tokens and 144 positions of the picture; 4 are learned\n" in out
    assert "\n    photos/2.png: 192 x 256 pixels, seen as 128 x 128\n" in out
    assert "USER: <image> \n    What is it? ASSISTANT:[[ 11</s>]]\n" in out
    assert (
        "data.json: record 31: 0 tokens; 0 are learned\n    no picture\n    teaches nothing: it has no" in out
    )
    *_, whole, nothing = out.splitlines()
    assert whole.startswith("data.json: 31 records, 30 with a picture that is seen; ")
    assert (
        nothing
        == "1 of 31 records: teaches nothing: it has no question with an answer (data.json: record 31)"
    )
    assert make_data.main(["photos", "data.json", "--check"]) == 1
    assert capsys.readouterr().out.count("ASSISTANT:") == 10


def test_what_the_published_training_loses_is_shown(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("data.json").write_text(json.dumps([entry(0, "a"), entry(1, "a</s>b")]))
    check = ["photos", "data.json", "--check"]
    assert make_data.main(check) == 0
    assert "[[ a</s>b</s>]]" in capsys.readouterr().out
    assert make_data.main([*check, "--as-published"]) == 1
    assert "1 of 2 records: teaches nothing: tokenization mismatch: " in capsys.readouterr().out
    assert make_data.main([*check, "--as-published", "--limit", "42"]) == 1
    assert "teaches nothing: no token up to the 42th is learned" in capsys.readouterr().out
    assert make_data.main([*check, "--version", "plain"]) == 0
    assert "<s><image>[[ a\n    ]]" in capsys.readouterr().out


def test_a_page_holds_the_pictures_and_the_tokens(folder: Path) -> None:
    assert made(TABLE.replace("42", "4 < 5 & \x1b"), "--check", "gauge.html") == 0
    page = Path("gauge.html").read_text()
    assert page.count("data:image/png;base64,") == 2
    assert "<span class=learned>&lt;/s&gt;</span>" in page
    assert "<span class=learned> &lt;</span>" in page or "<span class=learned>&lt;</span>" in page
    assert "gauge.json: 2 records, 2 with a picture that is seen" in page
    assert "$" not in page.split("</style>")[1]


def test_a_picture_is_shown_as_the_model_sees_it(folder: Path) -> None:
    from mvlm_np.config import ImageConfig
    from tools.training.records import Record
    from tools.training.shown import look

    Image.new("RGB", (60, 20), "red").save("photos/wide.png")
    one = Record("", Path("photos/wide.png"), ())
    shown = look(one, Sample([], []), ImageConfig(resize=30, crop=(30, 30)), as_published=False)
    assert shown.picture is not None and shown.picture.size == (30, 30)
    assert [shown.picture.getpixel((15, y)) for y in (2, 15, 28)] == [
        (122, 116, 104),
        (255, 0, 0),
        (122, 116, 104),
    ]


def test_the_pieces_are_the_text_and_a_character_comes_whole() -> None:
    ids = tokenizer().encode("a 🐱é</s>")
    whole = [*pieces(Sample(ids, ids), tokenizer())]
    assert "".join(text for text, _ in whole) == "<s> a 🐱é</s>"
    assert ("🐱", True) in whole


def test_a_character_that_is_learned_in_part_is_shown_in_two() -> None:
    ids = tokenizer().encode("🐱")
    assert len(ids) == 6  # <s>, a blank, four bytes
    found = [*pieces(Sample(ids, [IGNORED] * 4 + ids[4:]), tokenizer())]
    assert found == [("<s>", False), (" ", False), ("\ufffd", False), ("\ufffd\ufffd", True)]


def test_a_reader_that_goes_away_is_no_error(folder: Path) -> None:
    assert made(TABLE) == 0
    tool = [sys.executable, make_data.__file__, "photos", "gauge.json", "--check"]
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as gone:
        ran = subprocess.run(tool, stdout=gone, stderr=subprocess.PIPE, text=True, timeout=120)
    assert ran.returncode == 141 and "Traceback" not in ran.stderr
