"""Where rows come from: pictures, folders, globs, lists, tables (CSV, TSV) and JSON lines.

All are read as they are needed; of a row that is done, only its name is kept. A line of which no row can be
made becomes a row that has failed, with an error that names file and line; what is wrong with a whole file is
a UserError.

    photo.jpg                          asked each of the questions
    folder, "2024-*.jpg"               its pictures, by name, and those in folders within it; what matches
    list.txt                           a picture a line
    rows.csv, rows.tsv, rows.jsonl     picture and question; also id and max_new_tokens. Rows without a
                                       question are asked each of the questions
    -                                  standard input: pictures, or JSON lines
"""

import csv
import glob
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from mvlm_np.checkpoints.sniff import BOM, what_is, why_unreadable
from mvlm_np.errors import UserError, some
from mvlm_np.generation import NEW_TOKENS
from mvlm_np.paths import local
from mvlm_np.rows.row import Answered, Row

ENDINGS = (
    ".jpg",
    ".jpeg",
    ".png",
    ".webp",
    ".gif",
    ".bmp",
    ".tif",
    ".tiff",
    ".avif",
)  # of pictures in a folder
TABLES, JSON_LINES, LISTS = (".csv", ".tsv"), (".jsonl", ".ndjson"), (".txt", ".lst")
STDIN = "-"
LONGEST = 1 << 20  # bytes of a row; a question that fits a model has some thousand
QUESTION = 100_000  # characters, more than any model's context holds
# What columns and fields are called, ours first.
NAMES = {
    "picture": ("picture", "image", "image_path", "filename", "file", "path"),
    "question": ("question", "prompt", "text"),
    "id": ("id", "key", "question_id"),
    "max_new_tokens": ("max_new_tokens",),
}


class Sources:
    """Rows of everything that is named, in this order.

    given           see above
    questions       asked about each picture that comes without one
    max_new_tokens  of rows that have no number of their own

    UserError: something is not there, or there are no questions for it.
    """

    def __init__(self, given: Sequence[str], questions: Sequence[str], max_new_tokens: int = NEW_TOKENS):
        self.given, self.questions, self.most = list(dict.fromkeys(given)), list(questions), max_new_tokens
        self.keys = set[str]()
        for text in self.given:
            path = local(text, "the pictures")
            if text != STDIN and not os.path.exists(path) and not glob.has_magic(text):
                raise UserError(text, "there is no such file or folder", fix="check the path")
            if not (self.questions or has_questions(text)):
                raise UserError("the question", f"is missing for {text}", fix="it comes last, in quotes")

    @property
    def can_be_read_again(self) -> bool:
        """Whether `rows` gives the same rows another time."""
        return STDIN not in self.given

    def rows(self) -> Iterator[Row | Answered]:
        """All of them; those that have failed are `Answered`. UserError: a file cannot be read."""
        self.keys.clear()
        for text in self.given:
            path = local(text, "the pictures")
            ending = os.path.splitext(path)[1].lower()
            if text == STDIN:
                yield from self._lines(text, sys.stdin.buffer)
            elif os.path.isdir(path):
                for picture in pictures_in(Path(path)):
                    yield from self._asked(str(picture), str(picture))
            elif not os.path.exists(path):
                matches = sorted(glob.glob(path, recursive=True))
                if not matches:
                    raise UserError(text, "matches no file", fix="check the folder and the pattern")
                for match in matches:
                    if os.path.isfile(match):
                        yield from self._asked(match, match)
            elif ending in TABLES + JSON_LINES + LISTS:
                with opened(path) as file:
                    yield from self._table(path, file) if ending in TABLES else self._lines(path, file)
            else:
                yield from self._asked(path, path)

    def _asked(
        self, key: str, picture: str | None, question: str | None = None, most: int | None = None
    ) -> Iterator[Row | Answered]:
        """A picture with a question, or with each of those that are asked about all."""
        questions = self.questions if question is None else [question]
        for number, text in enumerate(questions, 1):
            name = key if len(questions) == 1 else f"{key}#{number}"
            row = Row(name, picture, text, self.most if most is None else most)
            if name in self.keys:
                if picture == key:  # named twice, as by a folder and a glob
                    continue
                raise UserError(name, "stands for two rows", fix="give each row an id of its own")
            self.keys.add(name)
            yield row

    def _row(self, where: str, file: str, fields: Mapping[str, Any]) -> Iterator[Row | Answered]:
        """A row of a table or of JSON lines. where: the line of it, which names it if it has no id."""
        picture, question, id, most = (fields.get(name) for name in NAMES)
        try:
            if picture is not None and (not isinstance(picture, str) or not picture.strip()):
                raise UserError(
                    where, "has no picture", fix="name a file, or ask without one by null in JSON"
                )
            if not isinstance(question, str | None):
                raise UserError(where, f"has no text as its question but {question!r:.80}")
            if question and len(question) > QUESTION:
                raise UserError(where, f"has a question of {len(question)} characters", f"at most {QUESTION}")
            if not question and not self.questions:
                raise UserError(where, "has no question", fix="fill it in, or give one that is for all")
            if id is not None and (not isinstance(id, str | int) or {str(id), f"{id}#1"} & self.keys):
                found = f"has the id {id!r:.80}, as a row before it"
                raise UserError(where, found, "a text or a number that no other row has")
            if isinstance(most, str) and most.strip().isdecimal():
                most = int(most)
            if most not in (None, "") and not (type(most) is int and most >= 0):
                raise UserError(where, f"max_new_tokens is {most!r:.80}", "a whole number from 0")
            if picture is not None:
                try:
                    picture = beside(file, local(picture.strip()))
                except UserError as error:
                    raise UserError(where, error) from None
        except UserError as error:
            yield broken(where, error)
            return
        key = where if id is None or id == "" else str(id)
        yield from self._asked(key, picture, question or None, most if type(most) is int else None)

    def _table(self, path: str, file: IO[bytes]) -> Iterator[Row | Answered]:
        lines = Lines(file)
        columns, delimiter = header(path, lines)
        for number, fields in records(lines, delimiter):
            where = f"{path}:{number}"
            if isinstance(fields, str):
                yield broken(where, UserError(where, fields))
            elif any(fields[len(columns) :]):
                found = f"has {len(fields)} fields"
                fix = "put fields that hold the separator in quotes"
                yield broken(where, UserError(where, found, f"{len(columns)}, as the first line has", fix))
            elif any(fields):
                named = dict(zip(columns, fields, strict=False))
                ours = {name: named[column] for name in NAMES if (column := named_as(name, named))}
                yield from self._row(where, path, {"picture": "", "id": ""} | ours)

    def _lines(self, path: str, file: IO[bytes]) -> Iterator[Row | Answered]:
        """A list or JSON lines."""
        lines, is_json = Lines(file), path.lower().endswith(JSON_LINES)
        for line in lines:
            where = f"{path}:{lines.number}"
            try:
                text = decoded(line).strip()
                if text and (is_json or (path == STDIN and text.startswith("{"))):
                    yield from self._row(where, path, json_row(text))
                elif text:
                    yield from self._row(where, path, {"picture": text})
            except ValueError as error:
                yield broken(where, error if isinstance(error, UserError) else UserError(where, error))


# ---------------------------------------------------------------- what is named


def has_questions(text: str) -> bool:
    """Whether a source has rows with questions of their own, if it is a file."""
    return text == STDIN or text.lower().endswith(TABLES + JSON_LINES)


def pictures_in(folder: Path) -> list[Path]:
    """The pictures in a folder and those within it, by their endings, sorted; hidden ones are left out."""

    def failed(error: OSError) -> None:
        raise UserError(error.filename, f"cannot be read ({error.strerror})")

    found = list[Path]()
    for path, folders, files in os.walk(folder, onerror=failed):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(path, n) for n in files if n.lower().endswith(ENDINGS) and not n.startswith(".")]
    if not found:
        raise UserError(folder, "holds no picture", f"files that end in {', '.join(ENDINGS)}")
    return sorted(found)


def opened(path: str) -> IO[bytes]:
    """A file of rows. UserError: it cannot be read, or is no text in UTF-8 at all."""
    try:
        file = open(path, "rb")  # noqa: SIM115
    except OSError as error:
        found, fix = why_unreadable(Path(path), error)
        raise UserError(path, found, "rows", fix) from None
    head = file.read(512)
    if head.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in head:
        file.close()
        found, fix = what_is(head)
        raise UserError(path, found, "a text in UTF-8", fix)
    file.seek(len(BOM) if head.startswith(BOM) else 0)
    return file


def beside(file: str, picture: str) -> str:
    """A picture that a file of rows names: it lies beside the file, or where the path leads from here."""
    at = os.path.join(os.path.dirname(file), picture)
    return at if file != STDIN and os.path.exists(at) else picture


def broken(where: str, error: UserError) -> Answered:
    """A row that has failed, as there is no question in it."""
    return Answered(Row(where, None, ""), None, str(error))


# ---------------------------------------------------------------- lines


class Lines:
    """The lines of a file, one at a time. What a line has beyond LONGEST bytes is never in memory.

    number  of the line that came last, from 1
    """

    def __init__(self, file: IO[bytes]):
        self._file, self._again, self.number = file, list[bytes](), 0

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        if self._again:
            line = self._again.pop()
        else:
            line = rest = self._file.readline(LONGEST + 1)
            while len(rest) > LONGEST and not rest.endswith(b"\n"):
                rest = self._file.readline(LONGEST + 1)
        if not line:
            raise StopIteration
        self.number += 1
        return line

    def back(self, lines: Sequence[bytes]) -> None:
        """Has lines that have come come once more."""
        self._again += reversed(lines)
        self.number -= len(lines)


def decoded(line: bytes) -> str:
    """A line as text. ValueError: it is too long, or not UTF-8."""
    if len(line) > LONGEST:
        raise ValueError(f"is longer than {LONGEST >> 20} MB")
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        found = f"is not UTF-8 (byte {line[error.start]:02x} at {error.start + 1})"
        raise ValueError(f"{found}; save the file in UTF-8") from None


def json_row(text: str) -> dict[str, Any]:
    """The fields of a line of JSON, by our names. ValueError: it is no object, or names no picture."""
    try:
        found = json.loads(text)
    except RecursionError:
        raise ValueError("is not JSON: it is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise ValueError(f"is {text[:40]!r}, wanted an object with picture and question")
    fields = {name: found[called] for name in NAMES if (called := named_as(name, found))}
    if "picture" not in fields:
        raise ValueError(f"has {some(map(repr, found)) or 'nothing'}, wanted picture and question")
    return fields


def named_as(name: str, found: Mapping[str, Any]) -> str | None:
    """By which of its names something is there; None: by none."""
    return next((called for called in NAMES[name] if called in found), None)


def header(path: str, lines: Lines) -> tuple[list[str], str]:
    """The columns of a table, and what separates them. UserError: its first line does not name them."""
    first = next(lines, b"")
    try:
        text = decoded(first)
    except ValueError as error:
        raise UserError(f"{path}:1", error) from None
    for delimiter in ",;\t":
        columns = [name.strip().lower() for name in next(csv.reader([text], delimiter=delimiter), [])]
        if named_as("picture", dict.fromkeys(columns)):
            return columns, delimiter
    fix = "name them in the first line, say: picture,question"
    raise UserError(f"{path}:1", f"names no column picture but {text[:60].strip()!r}", "columns by name", fix)


def records(lines: Lines, delimiter: str) -> Iterator[tuple[int, list[str] | str]]:
    """The records of a table: the number of the first line, and the fields or what is wrong.

    A quoted field may go over several lines. One whose quote is never closed spoils its own line only.
    """
    for first in lines:
        number, taken = lines.number, [first]

        def text(first: bytes = first, taken: list[bytes] = taken) -> Iterator[str]:
            yield decoded(first)
            size = len(first)
            for line in lines:
                taken.append(line)
                size += len(line)
                if size > LONGEST:
                    raise ValueError("opens a quote that is not closed")
                yield decoded(line)

        try:
            yield number, next(csv.reader(text(), delimiter=delimiter, strict=True))
        except (csv.Error, ValueError) as error:
            lines.back(taken[1:])
            unclosed = len(taken) > 1 or "end of data" in str(error)
            yield number, "opens a quote that is not closed" if unclosed else str(error)
