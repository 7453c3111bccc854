"""JSON from files that anybody may have written: configs, indexes of shards, headers of safetensors.

    get = Fields(read_json(path), path)
    layers = get.whole("num_hidden_layers", most=1024)

Whatever is wrong is an error that names the file and the key. Reading costs at most some 30 times
MAX_JSON of memory, and a fraction of a second.
"""

import json
import os
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mvlm_np.checkpoints.sniff import BOM, HEAD, show, what_is, why_unreadable
from mvlm_np.errors import ConfigError, UserError

MAX_PARTS = 400_000  # lists and objects; a tokenizer.json of LLaMA's has a sixth
MAX_JSON = 1 << 20  # bytes; the largest that is published, the 7B's index, has less than a tenth


def read_json(
    path: Path,
    error: type[UserError] = ConfigError,
    most: int = MAX_JSON,
    parts: int = MAX_PARTS,
    fix: str = "download it again",
) -> Any:
    """What a JSON file says that has at most `most` bytes and `parts` lists and objects.

    `error` is raised where it cannot be read, and ends in `fix`, unless there is a better one.
    """
    try:
        if path.exists() and not path.is_file():  # reading a pipe or a device may never end
            raise error(path, "is not a regular file", "a JSON file")
        with open(path, "rb") as file:
            raw = file.read(most + 1)
            size = os.fstat(file.fileno()).st_size
    except OSError as reason:
        found, remedy = why_unreadable(path, reason)
        raise error(path, found, "a JSON file", remedy) from None
    if len(raw) > most:
        raise error(path, f"has {size} bytes", f"at most {most}", fix)
    raw = raw.removeprefix(BOM)
    if not raw.lstrip().startswith((b"{", b"[")):
        found, remedy = what_is(raw[:HEAD]) if raw else ("is empty", fix)
        raise error(path, found, "a JSON file", remedy)
    return parse_json(raw, path, error, parts, fix)


def parse_json(
    raw: bytes,
    where: object,
    error: type[UserError],
    parts: int = MAX_PARTS,
    fix: str = "download it again",
) -> Any:
    """The value of a JSON text in UTF-8. No object may have a key twice: readers differ in which counts."""
    try:
        if raw.count(b"[") + raw.count(b"{") > parts:  # the costliest of what a text can hold
            raise ValueError(f"it has more than {parts} lists and objects")
        return json.loads(raw.decode("utf-8"), object_pairs_hook=_once)
    except RecursionError:
        reason = "it is nested too deeply"
    except ValueError as problem:  # of UTF-8, of JSON, of `_once`, or a number of thousands of digits
        reason = str(problem)
    raise error(where, f"cannot be read as JSON: {reason:.200}", fix=fix) from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {show(twice)} is there twice")
    return values


_short = reprlib.Repr()
_short.maxstring = _short.maxother = 60


def short(value: object) -> str:
    """A value out of a file, fit for an error line: short, however long or deep it is."""
    return _short.repr(value)


class Fields:
    """The values of a JSON object, each checked as it is asked for. A null counts as absent."""

    def __init__(self, values: object, where: object):
        if not isinstance(values, Mapping):
            raise ConfigError(where, f"found {short(values)}", "a JSON object")
        self.values, self.where = values, where

    def inner(self, key: str) -> "Fields":
        """The object under a key."""
        return Fields(self.values.get(key), f"{self.where}: {key}")

    def whole(self, key: str, default: int | None = None, least: int = 1, most: int = 1 << 20) -> int:
        value = self._get(key, default)
        if type(value) is not int or not least <= value <= most:
            self._refuse(key, f"a whole number from {least} to {most}")
        return value

    def number(self, key: str, default: float | None = None, above: float = 0, most: float = 1e9) -> float:
        value = self._get(key, default)
        if type(value) not in (int, float) or not above < value <= most:  # NaN is neither
            self._refuse(key, f"a number above {above:g} and up to {most:g}")
        return float(value)

    def text(self, key: str, default: str | None = None) -> str:
        value = self._get(key, default)
        if not isinstance(value, str):
            self._refuse(key, "a text")
        return value

    def flag(self, key: str, default: bool) -> bool:
        value = self._get(key, default)
        if not isinstance(value, bool):
            self._refuse(key, "true or false")
        return value

    def only(self, key: str, *accepted: object) -> None:
        """If the key is there, its value must be one of these: the engine computes nothing else."""
        if key in self.values and self.values[key] not in accepted:
            wanted = " or ".join(repr(value) for value in accepted if value is not None)
            self._refuse(key, wanted or "none", "this engine does not compute other models")

    def _get(self, key: str, default: Any) -> Any:
        value = self.values.get(key)
        if value is None:
            value = default
        if value is None:
            raise ConfigError(
                f"{self.where}: {key}", "is missing", fix="use the config.json of the checkpoint"
            )
        return value

    def _refuse(self, key: str, wanted: str, fix: str | None = None) -> None:
        raise ConfigError(f"{self.where}: {key}", f"found {short(self.values.get(key))}", wanted, fix)
