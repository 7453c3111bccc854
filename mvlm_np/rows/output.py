"""Answers in a file, row by row: JSON lines or CSV, which a run that was interrupted goes on with."""

import csv
import fcntl
import io
import json
import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

from mvlm_np.checkpoints.sniff import show
from mvlm_np.errors import UserError
from mvlm_np.rows.row import Answered, Row

FIELDS = ("id", "picture", "question", "answer", "error", "tokens", "probability", "seconds")
GO_ON = "go on with --resume, or name another file"


def record(answered: Answered) -> dict[str, Any]:
    """What is written of a row, by the names in FIELDS."""
    row = answered.row
    picture = os.fsdecode(row.picture) if isinstance(row.picture, str | os.PathLike) else None
    asked = {"id": row.key, "picture": picture, "question": row.question}
    came = {name: getattr(answered, name) for name in FIELDS[3:]}
    return asked | came | {"seconds": round(answered.seconds, 3)}


class Output:
    """Where answers go. Each is there as a whole once `write` returns; what is cut off, `resume` removes.

    path    a file; None: standard output
    is_csv  CSV with a first line of names; else JSON lines
    resume  go on behind what is there already

    done    {id: (picture, question)} of rows that are there
    failed  how many of them hold an error

    UserError: the file is there and is not to be gone on with, holds something else, is in use, or cannot be
    written.
    """

    def __init__(self, path: Path | None, is_csv: bool = False, resume: bool = False):
        self.path, self.is_csv = path, is_csv
        self.done, self.failed = dict[str, tuple[str | None, str]](), 0
        if path is not None:
            try:
                self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
            except OSError as error:
                raise UserError(path, f"cannot be written ({error.strerror})") from None
            try:
                self._open(path, resume)
            except BaseException:
                os.close(self._file)
                raise
        self._wants_header = is_csv and (path is None or self._is_empty())

    def _open(self, path: Path, resume: bool) -> None:
        if not self._is_regular():
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(path, "is being written by another run", "a file of its own") from None
        except OSError:
            pass  # a file system without locks
        if resume:
            self._read(path)
        elif not self._is_empty():
            raise UserError(path, "is there already", "a new file", GO_ON)

    def _is_regular(self) -> bool:
        return stat.S_ISREG(os.fstat(self._file).st_mode)

    def _is_empty(self) -> bool:
        return os.fstat(self._file).st_size == 0

    def _read(self, path: Path) -> None:
        """Learns what is there, and removes a last row that is not whole."""
        end = 0
        with open(path, "rb") as file:
            for number, text in enumerate(_rows(file, self.is_csv), 1):
                end += len(text)
                if self.is_csv and number == 1:
                    if text != _csv_line(FIELDS):
                        raise _other(path, number, text)
                    continue
                found = _parsed(text, self.is_csv)
                if found is None:
                    raise _other(path, number, text)
                self.done[found["id"]] = found["picture"] or None, found["question"]
                self.failed += bool(found["error"])
        os.truncate(self._file, end)

    def has(self, row: Row) -> bool:
        """Whether a row is there. UserError: one of the same name is, and asks something else."""
        if row.key not in self.done:
            return False
        wanted = record(Answered(row, None))
        found = self.done[row.key]
        if found != (wanted["picture"], wanted["question"]):
            text = f"has the row {show(row.key)} with another picture or question"
            raise UserError(self.path, text, "the same rows as before", "name another file")
        return True

    def write(self, answered: Answered) -> None:
        """Adds a row."""
        found = record(answered)
        self.failed += answered.error is not None
        if self.is_csv:
            line = _csv_line(FIELDS) if self._wants_header else b""
            line += _csv_line(found.values())
            self._wants_header = False
        else:
            text = json.dumps(found, ensure_ascii=False) + "\n"
            try:
                line = text.encode()
            except UnicodeEncodeError:  # a file's name that is not UTF-8
                line = (json.dumps(found) + "\n").encode()
        self._append(line)

    def _append(self, data: bytes) -> None:
        try:
            if self.path is None:
                sys.stdout.buffer.write(data)
                sys.stdout.buffer.flush()
            else:
                while data:
                    data = data[os.write(self._file, data) :]
        except BrokenPipeError:
            raise
        except OSError as error:
            where, found = self.path or "standard output", f"cannot be written ({error.strerror})"
            raise UserError(where, found, fix="make room, then go on with --resume") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self.path is not None:
            if self._is_regular() and self._is_empty():  # nothing came of it
                self.path.unlink(missing_ok=True)
            os.close(self._file)


def _csv_line(values: Any) -> bytes:
    text = io.StringIO()
    csv.writer(text).writerow(values)  # ends in \r\n; with \n alone, a \r within a text would not be quoted
    return (text.getvalue().removesuffix("\r\n") + "\n").encode(errors="surrogateescape")


def _rows(file: Any, is_csv: bool) -> Iterator[bytes]:
    """The whole rows of a file; a quoted field of CSV may go over several lines."""
    row = b""
    for line in file:
        row += line
        if row.endswith(b"\n") and not (is_csv and row.count(b'"') % 2):
            yield row
            row = b""


def _parsed(text: bytes, is_csv: bool) -> dict[str, Any] | None:
    """What `record` made of a row; None: it made no such thing."""
    try:
        if is_csv:
            (values,) = csv.reader([text.decode(errors="surrogateescape")], strict=True)
            found = dict(zip(FIELDS, values, strict=True))
        else:
            found = json.loads(text)
        is_ours = isinstance(found, dict) and list(found) == list(FIELDS) and isinstance(found["id"], str)
        return found if is_ours else None
    except (ValueError, csv.Error, RecursionError):
        return None


def _other(path: Path, number: int, text: bytes) -> UserError:
    found = f"row {number} is {show(text[:80].decode(errors='replace'))}"
    return UserError(path, found, "what mvlm batch writes in this format", "name another file")
