"""Files of benchmarks and answers, which anybody may have written: each error names the file and the line."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from mvlm_np.checkpoints.sniff import BOM, HEAD, show, what_is, why_unreadable
from mvlm_np.errors import EvaluationError

MOST_LINE = 1 << 25  # bytes; the longest lines hold a picture in base64
MOST_JSON = 1 << 28  # bytes; the largest of the six benchmarks' files has a tenth
DOWNLOAD = "download it again"


def required(path: Path, source: str) -> Path:
    """A file or folder that has to be there. source: where it is to be had."""
    if not path.exists():
        raise EvaluationError(path, "is missing", fix=source)
    return path


def lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a text in UTF-8, with their numbers from 1 and their line breaks."""
    with _opened(path, "a text") as file:
        yield from _lines(file, path)


@contextmanager
def _opened(path: Path, wanted: str) -> Iterator[BinaryIO]:
    """An open file. EvaluationError: it cannot be read, or is a pipe or device, which may never end."""
    if path.exists() and not path.is_file():
        raise EvaluationError(path, "is not a regular file", wanted)
    try:
        with open(path, "rb") as file:
            yield file
    except OSError as reason:
        found, fix = why_unreadable(path, reason)
        raise EvaluationError(path, found, wanted, fix) from None


def _lines(file: BinaryIO, path: Path) -> Iterator[tuple[int, str]]:
    number = 0
    while raw := file.readline(MOST_LINE + 1):
        number += 1
        where = f"{path}, line {number}"
        if len(raw) > MOST_LINE:
            raise EvaluationError(where, f"has more than {MOST_LINE} bytes", fix=DOWNLOAD)
        if number == 1:
            raw = raw.removeprefix(BOM)
        try:
            text = raw.decode()
        except UnicodeDecodeError:
            found, fix = what_is(raw[:HEAD]) if number == 1 else ("is not in UTF-8", "save the file in UTF-8")
            raise EvaluationError(where, found, "a text in UTF-8", fix) from None
        yield number, text


class Record:
    """A JSON object of a file. Each value is checked as it is asked for."""

    def __init__(self, values: object, where: str):
        if not isinstance(values, Mapping):
            raise EvaluationError(where, f"found {show(str(values))}", "a JSON object")
        self.values, self.where = values, where

    def text(self, key: str, default: str | None = None) -> str:
        return self._get(key, str, "a text", default)

    def whole(self, key: str) -> int:
        return self._get(key, int, "a whole number")

    def flag(self, key: str) -> bool:
        return self._get(key, bool, "true or false")

    def name(self, key: str) -> str | int:
        """An identifier: a text or a whole number."""
        return self._get(key, (str, int), "a text or a whole number")

    def texts(self, key: str) -> list[str]:
        found = self._get(key, list, "a list of texts")
        if not all(isinstance(one, str) for one in found):
            raise EvaluationError(self.where, f"{key!r} is {show(str(found))}", "a list of texts")
        return found

    def record(self, key: str) -> "Record":
        return Record(self._get(key, Mapping, "an object"), f"{self.where}: {key}")

    def records(self, key: str) -> list["Record"]:
        found = self._get(key, list, "a list of objects")
        return [Record(one, f"{self.where}: {key}[{i}]") for i, one in enumerate(found)]

    def _get(self, key: str, kind: Any, wanted: str, default: Any = None) -> Any:
        value = self.values.get(key)
        if value is None:
            value = default
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            found = f"has no {key!r}" if value is None else f"{key!r} is {show(str(value))}"
            raise EvaluationError(self.where, found, wanted)
        return value


def json_lines(path: Path) -> Iterator[Record]:
    """The objects of a file with one JSON object a line; blank lines are skipped."""
    for number, line in lines(path):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        yield Record(_parse(line, where), where)


def json_file(path: Path) -> Any:
    """What a JSON file says."""
    with _opened(path, "a JSON file") as file:
        raw = file.read(MOST_JSON + 1).removeprefix(BOM)
    if len(raw) > MOST_JSON:
        raise EvaluationError(path, f"has more than {MOST_JSON} bytes", fix=DOWNLOAD)
    if not raw.lstrip().startswith((b"{", b"[")):
        found, fix = what_is(raw[:HEAD]) if raw else ("is empty", DOWNLOAD)
        raise EvaluationError(path, found, "a JSON file", fix)
    return _parse(raw, str(path))


def by_name(path: Path, value: Any) -> dict[str, Record]:
    """{key: object} of a JSON object that holds objects."""
    found = Record(value, str(path)).values
    return {key: Record(one, f"{path}, {show(str(key))}") for key, one in found.items()}


def _parse(text: str | bytes, where: str) -> Any:
    try:
        return json.loads(text if isinstance(text, str) else text.decode())
    except RecursionError:
        reason = "it is nested too deeply"
    except ValueError as problem:  # of UTF-8, of JSON, or a number of thousands of digits
        reason = str(problem)
    raise EvaluationError(where, f"cannot be read as JSON: {reason:.200}", fix=DOWNLOAD)


def library(load: Callable[[], Any], extra: str, what: str) -> Any:
    """A module of an extra, with the line that names the extra where it is not installed."""
    try:
        return load()
    except ImportError:
        fix = f"pip install 'mvlm-np[{extra}]'"
        raise EvaluationError(what, f"needs the extra {extra}, which is not installed", fix=fix) from None
