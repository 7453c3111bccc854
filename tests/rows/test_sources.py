"""Rows from what people have: folders, globs, lists, tables, JSON lines, and all of these damaged."""

import io
import itertools
import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mvlm_np.errors import UserError
from mvlm_np.rows.row import Answered, Row
from mvlm_np.rows.sources import LONGEST, Lines, Sources, records

Write = Callable[[str, str | bytes], str]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Writes a file into an empty folder, which is the current one."""
    monkeypatch.chdir(tmp_path)

    def write(name: str, content: str | bytes = b"") -> str:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(content.encode() if isinstance(content, str) else content)
        return name

    return write


def asked(*given: str, questions: tuple[str, ...] = ("What?",)) -> list[tuple[str, object, str]]:
    """Key, picture and question of each row; the error in place of the question where there is one."""
    rows = Sources(given, questions).rows()
    return [
        (row.row.key, None, str(row.error))
        if isinstance(row, Answered)
        else (row.key, row.picture, row.question)
        for row in rows
    ]


def test_files_folders_and_globs_are_asked_each_question_once(write):
    for name in (
        "b.PNG",
        "a/2.jpg",
        "a/10.webp",
        "a/deep/x.tiff",
        "a/.hidden.jpg",
        "a/.git/y.jpg",
        "a/note.md",
    ):
        write(name)
    in_a = ["a/10.webp", "a/2.jpg", "a/deep/x.tiff"]
    assert asked("b.PNG", "a") == [(name, name, "What?") for name in ["b.PNG", *in_a]]
    assert asked("a/*.jpg", "a", "a/2.jpg") == [
        (n, n, "What?") for n in ("a/2.jpg", "a/10.webp", "a/deep/x.tiff")
    ]
    assert [name for name, *_ in asked("**/*.tiff")] == ["a/deep/x.tiff"]
    two = asked("b.PNG", questions=("Who?", "Why?"))
    assert two == [("b.PNG#1", "b.PNG", "Who?"), ("b.PNG#2", "b.PNG", "Why?")]


def test_tables_have_questions_of_their_own_or_those_for_all(write):
    write("set/a.jpg")
    table = 'id,Picture,Question\r\n7,a.jpg,"Is it ""new"",\nor old?"\r\n,b.jpg,\r\n\r\nlast,/c.jpg,Who?\r\n'
    at = write("set/rows.csv", b"\xef\xbb\xbf" + table.encode())
    assert asked(at) == [
        ("7", "set/a.jpg", 'Is it "new",\nor old?'),  # beside the table
        ("set/rows.csv:4", "b.jpg", "What?"),  # from here
        ("last", "/c.jpg", "Who?"),
    ]
    for name, separator in (("a.csv", ";"), ("b.tsv", "\t")):
        text = f"path{separator}prompt\nx.jpg{separator}Is it, well, new?\n"
        assert asked(write(name, text)) == [(f"{name}:2", "x.jpg", "Is it, well, new?")]


def test_json_lines_lists_and_numbers_of_tokens(write):
    lines = [
        {"image": "x.jpg", "text": "Who?", "id": 3, "max_new_tokens": 7},
        {"picture": None, "question": "Hi"},
    ]
    at = write("rows.jsonl", "\n".join(map(json.dumps, lines)))
    rows = [row for row in Sources([at], [], 99).rows() if isinstance(row, Row)]
    assert [(row.key, row.picture, row.max_new_tokens) for row in rows] == [
        ("3", "x.jpg", 7),
        ("rows.jsonl:2", None, 99),
    ]
    assert asked(write("list.txt", "x.jpg\n\n  y z.jpg \r\n")) == [
        ("list.txt:1", "x.jpg", "What?"),
        ("list.txt:3", "y z.jpg", "What?"),
    ]


def test_standard_input_is_a_list_or_json_lines(monkeypatch):
    text = b'x.jpg\n{"picture": "y.jpg", "question": "Who?"}\n'
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text)))
    sources = Sources(["-"], ["What?"])
    assert not sources.can_be_read_again
    rows = [(row.key, row.picture, row.question) for row in sources.rows() if isinstance(row, Row)]
    assert rows == [("-:1", "x.jpg", "What?"), ("-:2", "y.jpg", "Who?")]


@pytest.mark.parametrize(
    "line, error",
    [
        (b"a.jpg,Is it new, or old?", "has 3 fields, wanted 2"),
        (b"a.jpg", "has no question"),
        (b",What?", "has no picture"),
        (b"a.jpg,caf\xe9", "is not UTF-8 (byte e9 at 10)"),
        (b'a.jpg,"never closed', "opens a quote that is not closed"),
        (b'a.jpg,"closed" too early', "expected after"),
        (b"a.jpg," + b"x" * LONGEST, "is longer than 1 MB"),
        (b"a.jpg," + b"x" * 120_000, "has a question of 120000 characters"),
        (b"a.jpg," + b"x" * 140_000, "field larger than field limit"),
    ],
)
def test_a_broken_line_of_a_table_fails_alone_and_is_named(write, line, error):
    write("rows.csv", b"picture,question\na.jpg,What?\n" + line + b"\nb.jpg,Who?\nc.jpg,Why?\n")
    first, second, *rest = asked("rows.csv", questions=())
    assert first[1] == "a.jpg"
    assert second[:2] == ("rows.csv:3", None) and second[2].startswith("rows.csv:3: ") and error in second[2]
    assert [(key, picture) for key, picture, _ in rest] == [("rows.csv:4", "b.jpg"), ("rows.csv:5", "c.jpg")]


@pytest.mark.parametrize(
    "line, error",
    [
        (b"{", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"[1]", "wanted an object"),
        (b'{"question": "x"}', "wanted picture and question"),
        (b'{"picture": 3, "question": "x"}', "has no picture"),
        (b'{"picture": "a", "question": 3}', "has no text as its question but 3"),
        (b'{"picture": "a"}', "has no question"),
        (b'{"picture": "a", "question": "x", "id": [1]}', "has the id [1]"),
        (b'{"picture": "a", "question": "x", "id": 1}', "has the id 1"),
        (b'{"picture": "a", "question": "x", "max_new_tokens": -1}', "max_new_tokens is -1"),
        (b'{"picture": "\xff", "question": "x"}', "is not UTF-8"),
        (b"x" * (LONGEST + 5), "is longer than 1 MB"),
    ],
)
def test_a_broken_line_of_json_fails_alone_and_is_named(write, line, error):
    good = b'{"picture": "a", "question": "x", "id": %d}\n'
    write("rows.jsonl", good % 1 + line + b"\n" + good % 2)
    first, second, third = asked("rows.jsonl", questions=())
    assert (first[0], third[0]) == ("1", "2")
    assert second[0] == "rows.jsonl:2" and second[2].startswith("rows.jsonl:2: ") and error in second[2]


@pytest.mark.parametrize(
    "name, content, error",
    [
        ("none.jpg", None, "there is no such file or folder"),
        ("*.jpg", None, "matches no file"),
        ("empty/x.md", "", "holds no picture"),
        ("rows.csv", "", "names no column picture"),
        ("rows.csv", "a.jpg,What?\n", "names no column picture but 'a.jpg,What?'"),
        ("rows.csv", "picture,question\n".encode("utf-16"), "UTF-16"),
        ("rows.csv", b"PK\x03\x04\0\0\0", "is a zip archive"),
        ("rows.jsonl", "{}".encode("utf-16"), "UTF-16"),
    ],
)
def test_what_is_no_source_at_all_is_one_line(write, name, content, error):
    if content is not None:
        write(name, content)
    with pytest.raises(UserError) as raised:
        asked("empty" if name.startswith("empty") else name)
    assert error in str(raised.value) and name.split("/")[0] in str(raised.value)


def test_a_question_is_missed(write):
    with pytest.raises(UserError, match=r"the question: is missing for a.jpg"):
        asked(write("a.jpg"), questions=())


def test_a_long_line_takes_little_memory():
    class Endless(io.RawIOBase):
        left = 64 * LONGEST

        def readable(self) -> bool:
            return True

        def readinto(self, buffer) -> int:
            n = min(len(buffer), self.left)
            buffer[:n] = b"x" * n
            self.left -= n
            if n == 0:
                self.left = 0
                buffer[:7] = b"\nnext,\n"
                return 7
            return n

    tracemalloc.start()
    lines = Lines(io.BufferedReader(Endless()))
    long, following = next(lines), next(lines)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(long) == LONGEST + 1 and following == b"next,\n" and lines.number == 2
    assert peak < 8 * LONGEST


cells = st.text(st.characters(codec="utf-8", exclude_characters="\r\0"), max_size=8)


@given(st.lists(st.lists(cells, min_size=1, max_size=4), max_size=8), st.sampled_from(",;\t"))
def test_tables_are_read_as_the_csv_module_writes_them(rows, delimiter):
    import csv

    text = io.StringIO()
    csv.writer(text, delimiter=delimiter, lineterminator="\n").writerows(rows)
    found = list(records(Lines(io.BytesIO(text.getvalue().encode())), delimiter))
    assert [fields for _, fields in found] == rows
    starts = itertools.accumulate((sum(cell.count("\n") for cell in row) + 1 for row in rows), initial=1)
    assert [number for number, _ in found] == list(starts)[:-1]
