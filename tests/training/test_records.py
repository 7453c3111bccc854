"""Data files that anybody may have written: a sound one is read, any other is one line."""

import json
import logging
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mvlm_np import memory
from mvlm_np.errors import UserError
from tools.training.records import Record, read_records

TURNS = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A cat."}]
CONVERSATION = 'a list like [{"from": "human", "value": ...}, {"from": "gpt", "value": ...}]'


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("cat.png").touch()
    return Path()


def written(content: Any, name: str = "data.json") -> Path:
    file = Path(name)
    file.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return file


def refused(content: Any, name: str = "data.json", **options: bool) -> str:
    with pytest.raises(UserError) as error:
        read_records(written(content, name), Path(), **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_records_are_read_as_they_stand(folder: Path) -> None:
    entries = [
        {"id": "a", "image": "cat.png", "conversations": TURNS, "score": float("nan")},
        {"conversations": [{"from": "gpt", "value": " Hi\n"}]},
        {"id": 7, "image": None, "conversations": [{"from": "human", "value": "<image>"}] * 2},
    ]
    assert read_records(written(entries), folder) == [
        Record("data.json: record 1 (id a)", Path("cat.png"), tuple((t["from"], t["value"]) for t in TURNS)),
        Record("data.json: record 2", None, (("gpt", " Hi\n"),)),
        Record("data.json: record 3 (id 7)", None, (("human", "<image>"),) * 2),
    ]


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"", "is empty, wanted a JSON file; mend it, or make it again"),
        (b"hello", "is a text that begins 'hello', wanted a JSON file; download the file again"),
        (b"<!doctype html>", "is a web page, wanted a JSON file; download the file again"),
        ("[{}]".encode("utf-16"), "is a text in UTF-16, wanted a JSON file; save it in UTF-8"),
        (b"\x1f\x8b\x08\x00", "is compressed with gzip, wanted a JSON file; unpack it"),
        (b'[{"id', "cannot be read as JSON: Unterminated string"),
        (b"[" * 100_000, "cannot be read as JSON: it is nested too deeply"),
        (b"[" + b"9" * 5000 + b"]", "cannot be read as JSON: Exceeds the limit"),
        ('["é"]'.encode("latin-1"), "cannot be read as JSON: 'utf-8' codec can't decode byte 0xe9"),
        (b'[{"image": "a", "image": "b"}]', "cannot be read as JSON: the key 'image' is there twice"),
        ({"data": []}, "is a JSON object, wanted a list of records; put the records in square brackets"),
        ([], "is an empty list, wanted at least one record"),
    ],
)
def test_a_file_that_is_no_list_of_records_is_one_line(folder: Path, content: Any, found: str) -> None:
    assert refused(content).startswith(f"data.json: {found}")


def test_files_of_other_kinds_are_named(folder: Path) -> None:
    assert refused(b"{}", "a.jsonl") == (
        "a.jsonl: is JSON lines, wanted one JSON list; make one: jq -s . IN.jsonl > OUT.json"
    )
    assert "tools/make_data.py makes it of a table" in refused(b"a,b", "a.csv")
    for path, found in (
        (folder, ": is not a regular file, wanted a JSON file"),
        (Path("/dev/zero"), ": is not a regular file, wanted a JSON file"),
        (Path("none.json"), "none.json: cannot be read (No such file or directory)"),
        (Path("a" * 300), ": cannot be read (File name too long)"),
    ):
        with pytest.raises(UserError) as error:
            read_records(path, folder)
        assert found in str(error.value)


def test_a_file_that_memory_does_not_hold_is_not_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available", lambda: 1000)
    assert "at most the" in refused([{"conversations": TURNS}] * 10)


@pytest.mark.parametrize(
    ("entry", "found"),
    [
        (1, "found 1, wanted an object with conversations, and perhaps image"),
        ({}, f"has no conversations, wanted {CONVERSATION}"),
        ({"conversations": []}, f"conversations is [], wanted {CONVERSATION}"),
        ({"conversations": float("nan")}, f"conversations is nan, wanted {CONVERSATION}"),
        ({"conversations": {"from": "gpt"}}, "conversations is {'from': 'gpt'}, wanted a list like"),
        ({"conversations": ["q"]}, 'turn 1: found \'q\', wanted an object with "from" and "value"'),
        (
            {"conversations": [TURNS[0], {"role": "user", "content": "q"}]},
            "turn 2: has 'role', 'content', wanted \"from\" and \"value\"",
        ),
        (
            {"conversations": [{"from": "user", "value": "q"}]},
            'turn 1: "from" is \'user\', wanted "human" or "gpt"; rename or remove it',
        ),
        ({"conversations": [{"from": ["gpt"], "value": "q"}]}, "turn 1: \"from\" is ['gpt']"),
        (
            {"conversations": [{"from": "gpt", "value": 42}]},
            'turn 1: "value" is 42, wanted a text; put it in quotes',
        ),
        ({"conversations": [{"from": "gpt", "value": None}]}, 'turn 1: "value" is None'),
        (
            {"conversations": [{"from": "gpt", "value": "a\ud800"}]},
            "turn 1: half a character at 1, wanted valid Unicode; write it in UTF-8",
        ),
        ({"conversations": TURNS, "image": "no.png"}, "no.png: there is no such file; check the path"),
        ({"conversations": TURNS, "image": "."}, ".: is a directory, wanted a picture; name a file in it"),
        (
            {"conversations": TURNS, "image": "a\0b"},
            "image is 'a\\x00b', wanted a name without control characters; rename the file",
        ),
        ({"conversations": TURNS, "image": "a\udce9b"}, "image is 'a\\udce9b', wanted a name without"),
        (
            {"conversations": TURNS, "image": "a\u202fb.png"},
            "there is no file 'a\\u202fb.png'; check the path",
        ),
        ({"conversations": TURNS, "image": "a" * 5000}, "aaa"),
        ({"conversations": TURNS, "image": "https://a.b/c.png"}, "https://a.b/c.png: is a URL"),
        ({"conversations": TURNS, "image": ""}, "image is '', wanted the name of one picture's file"),
        (
            {"conversations": TURNS, "image": ["a.png", "b.png"]},
            "image is ['a.png', 'b.png'], wanted the name",
        ),
    ],
)
def test_a_bad_record_is_one_line_with_its_place(folder: Path, entry: Any, found: str) -> None:
    good = {"conversations": TURNS}
    assert refused([good, entry, good]).startswith(f"data.json: record 2: {found}")


@pytest.mark.parametrize("name", ["at 3.04.05\u202fPM.png", "a\u200bb.png", "\ue000.png", "\xa0 猫.png"])
def test_a_picture_may_have_any_name_that_a_line_can_show(folder: Path, name: str) -> None:
    """The first is how macOS names a picture of the screen."""
    Path(name).touch()
    (record,) = read_records(written([{"image": name, "conversations": TURNS}]), folder)
    assert record.image == Path(name)


def test_the_first_bad_record_is_explained_and_the_others_are_named(folder: Path) -> None:
    found = refused([{"id": "x\ny"}, {"conversations": TURNS}, *[{}] * 6])
    assert found.startswith("data.json: record 1 (id x\\ny): has no conversations")
    assert found.endswith(": records 3, 4, 5, 6 and 2 more are bad, too")


def test_a_null_in_place_of_a_picture_stops_the_published_code_alone(folder: Path) -> None:
    assert "image is None" in refused([{"image": None, "conversations": TURNS}], as_published=True)


def test_an_id_may_be_there_twice_and_is_logged(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    entries = [{"id": name, "conversations": TURNS} for name in ("x", "y", "x", "z", "y", "x")]
    with caplog.at_level(logging.WARNING):
        assert len(read_records(written(entries), folder)) == 6
    assert caplog.messages == [
        "data.json: several records have the same id, which is only a name: 'x' 3 times, 'y' 2 times"
    ]


ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(["human", "gpt"]),
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(st.sampled_from(["id", "image", "conversations", "from", "value"]), inner)
    ),
)


@given(content=ANY, as_published=st.booleans())
def test_whatever_stands_in_a_file_it_is_records_or_one_line(content: Any, as_published: bool) -> None:
    with TemporaryDirectory() as name:
        file = Path(name, "data.json")
        file.write_text(json.dumps(content))
        try:
            found = read_records(file, Path(name), as_published=as_published)
        except UserError as error:
            assert str(error).startswith(str(file)) and str(error).isprintable()
        else:
            assert len(found) == len(content)
