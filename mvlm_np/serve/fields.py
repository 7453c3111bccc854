"""JSON within limits, and its fields by name and kind."""

import json
import re
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from math import isfinite
from typing import Any, NoReturn

from mvlm_np.serve.refused import Refused


def read_json(body: bytes | bytearray) -> "Fields":
    """The object that a body is. Refused: it is none, too deep, or holds numbers that JSON does not have."""

    def none(word: str) -> NoReturn:
        raise ValueError(f"{word} is no number in JSON")

    try:
        value = json.loads(body or b"{}", parse_constant=none, parse_float=_finite)
    except RecursionError:
        raise Refused("body", "is nested too deep", "JSON of a few levels") from None
    except UnicodeDecodeError:
        raise Refused("body", "is not UTF-8", "JSON") from None
    except ValueError as error:
        reason = str(error).partition(";")[0]
        raise Refused("body", f"is not JSON ({reason:.120})", "a JSON object") from None
    if not isinstance(value, dict):
        raise Refused("body", f"is JSON of {_kind(value)}", "an object")
    return Fields(value)


def _finite(digits: str) -> float:
    value = float(digits)
    if not isfinite(value):
        raise ValueError(f"{digits:.20} is too large")
    return value


def _kind(value: object) -> str:
    kinds = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return kinds.get(type(value), "a number")


class Fields:
    """A JSON object whose fields are asked for by name and kind. What is null counts as absent.

    Refused, which names the field: it is of another kind, or out of its range.
    """

    def __init__(self, values: Mapping[str, Any], path: str = ""):
        self.values, self._path = values, path

    def __contains__(self, name: str) -> bool:
        return self.values.get(name) is not None

    def path(self, name: str) -> str:
        """A field's name in the whole body."""
        return f"{self._path}.{name}" if self._path else name

    def refuse(self, name: str, found: object, wanted: object = None, fix: str | None = None) -> NoReturn:
        raise Refused(self.path(name), found, wanted, fix, field=self.path(name))

    def get(self, name: str) -> Any:
        return self.values.get(name)

    def _of(self, name: str, kinds: type | tuple[type, ...], wanted: str) -> Any:
        value = self.values.get(name)
        right = isinstance(value, kinds) and (kinds is bool or not isinstance(value, bool))
        if value is not None and not right:
            self.refuse(name, f"found {shown(value)}", wanted)
        return value

    def text(self, name: str) -> str | None:
        value = self._of(name, str, "text")
        return None if value is None else clean(value)

    def flag(self, name: str) -> bool:
        return bool(self._of(name, bool, "true or false"))

    def number(self, name: str, least: float, most: float) -> float | None:
        wanted = f"a number from {least:g} to {most:g}"
        value: float | None = self._of(name, (int, float), wanted)
        if value is not None and not least <= value <= most:
            self.refuse(name, f"found {shown(value)}", wanted)
        return value

    def whole(self, name: str, least: int | None = None, most: int | None = None) -> int | None:
        """Also one that is written as 64.0."""
        wanted = "a whole number"
        if least is not None:
            wanted += f" from {least}" if most is None else f" from {least} to {most}"
        value: float | None = self._of(name, (int, float), wanted)
        if value is None:
            return None
        inside = (least is None or value >= least) and (most is None or value <= most)
        if value != int(value) or not inside:
            self.refuse(name, f"found {shown(value)}", wanted)
        return int(value)

    def list(self, name: str) -> Sequence[Any]:
        return self._of(name, list, "a list") or []

    def object(self, name: str) -> "Fields":
        """An object that is absent has no fields."""
        return Fields(self._of(name, dict, "an object") or {}, self.path(name))

    def objects(self, name: str) -> Iterator["Fields"]:
        """The objects of a list."""
        for i, value in enumerate(self.list(name)):
            if not isinstance(value, dict):
                self.refuse(f"{name}[{i}]", f"found {shown(value)}", "an object")
            yield Fields(value, self.path(f"{name}[{i}]"))


def shown(value: object) -> str:
    """A value as an error shows it."""
    return reprlib.repr(value)


def clean(text: str) -> str:
    """Text without halves of surrogate pairs, which JSON can hold and UTF-8 cannot."""
    return re.sub("[\ud800-\udfff]", "\ufffd", text)
