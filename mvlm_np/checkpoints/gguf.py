"""Reads GGUF, llama.cpp's file format, by memory map.

The format (versions 2 and 3, little-endian):

    "GGUF"  version u32  tensors u64  settings u64
    settings:  key (string)  kind u32  value; an array is kind u32, count u64, values
    tensors:   name (string)  dimensions u32  sizes u64 (innermost first)  type u32  offset u64
    padding to a multiple of `general.alignment` (32 if not set), then the tensors' bytes

A string is a length u64 and that many bytes of UTF-8. A tensor's offset counts from the end of the padding.

Every count, length, kind and offset comes from outside and is checked before anything is allocated for it.
The limits below bound what any file can cost: half a second and 100 MB, whatever its size.
"""

import struct
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any, NoReturn

from mvlm_np.checkpoints.gguf_blocks import TYPES, StoredType
from mvlm_np.checkpoints.sniff import HEAD, what_is
from mvlm_np.checkpoints.tensors import PLAIN, MappedFile, Tensor
from mvlm_np.errors import CheckpointError

# The largest vocabulary that LLaMA's relatives have, with its merges, needs half of each.
MAX_ELEMENTS = 1 << 20  # of all arrays together
MAX_TEXT = 1 << 24  # bytes of all strings together
MAX_SETTINGS = 1 << 10
MAX_TENSORS = 1 << 12
MAX_NAME = 63  # bytes of a tensor's name; llama.cpp's own limit
MAX_KEY = (1 << 16) - 1  # bytes of a key; the format's own limit
MAX_ALIGNMENT = 1 << 20

_STRING, _ARRAY, _BOOL = 8, 9, 7
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", _BOOL: "B", 10: "Q", 11: "q", 12: "d"}
_LENGTH = struct.Struct("<Q")


@dataclass(frozen=True)
class GGUFFile:
    """A file's settings (int, float, bool, str, or lists of these) and its tensors, unread."""

    file: MappedFile
    metadata: dict[str, Any]
    tensors: dict[str, Tensor]


def read_gguf(path: Path) -> GGUFFile:
    """The settings and tensors of a GGUF file.

    Shapes are outermost first, as everywhere but in the format. Names are the file's own. A tensor of
    a type that only the `gguf` package decodes is listed too; it is `float32()` that needs the package.

    Raises CheckpointError, which names the setting or tensor and the rule that it breaks.
    """
    file = MappedFile(path)
    reader = _Reader(file)
    counts = reader.header()
    metadata = reader.settings(counts[1])
    return GGUFFile(file, metadata, reader.tensors(counts[0], _alignment(reader, metadata)))


class _Reader:
    """Takes values off the file one after another; `at` is where the next one begins."""

    def __init__(self, file: MappedFile):
        self.file, self.data, self.at = file, memoryview(file.bytes(0, file.size).data), 0
        self.elements_left, self.text_left = MAX_ELEMENTS, MAX_TEXT

    def refuse(self, item: str, found: str, wanted: object = None, fix: str | None = None) -> NoReturn:
        raise CheckpointError(f"{self.file.path}: {show(item)}", found, wanted, fix)

    def numbers(self, code: str, count: int, item: str) -> tuple:
        """`count` numbers of the `struct` code; the caller has bounded the count."""
        layout = struct.Struct(f"<{count}{code}")
        if layout.size > self.file.size - self.at:
            self.truncated(item)
        self.at += layout.size
        return layout.unpack_from(self.data, self.at - layout.size)

    def truncated(self, item: str) -> NoReturn:
        self.refuse(item, "goes past the end of the file", fix="truncated: download it again")

    def strings(self, count: int, item: str) -> list[str]:
        """`count` strings. Vocabularies of 32,000 are read here, hence the bare loop."""
        found: list[str] = []
        data, at, end = self.data, self.at, min(self.file.size, self.at + 8 * count + self.text_left)
        for _ in range(count):
            if at + 8 > end:
                break
            (length,) = _LENGTH.unpack_from(data, at)
            at += 8 + length
            if at > end:
                break
            try:
                found.append(str(data[at - length : at], "utf-8"))
            except UnicodeDecodeError:
                self.refuse(item, "is not UTF-8 text")
        if len(found) < count:
            if end == self.file.size:
                self.truncated(item)
            self.refuse(item, "has too long a text", f"at most {MAX_TEXT} bytes of text in the file")
        self.text_left -= at - self.at - 8 * count
        self.at = at
        return found

    def string(self, item: str, most: int = MAX_TEXT) -> str:
        start = self.at
        (text,) = self.strings(1, item)
        if self.at - start - 8 > most:
            self.refuse(item, f"has {self.at - start - 8} bytes", f"at most {most}")
        return text

    def header(self) -> tuple[int, int]:
        """The number of tensors and of settings."""
        head = bytes(self.data[:HEAD])
        if head[:4] != b"GGUF":
            kind, fix = what_is(head)
            raise CheckpointError(self.file.path, kind, "a GGUF file", fix)
        self.at = 4
        (version,) = self.numbers("I", 1, "version")
        if version & 0xFFFF == 0 and version:
            self.refuse("version", "is big-endian", "a little-endian file")
        if version not in (2, 3):
            self.refuse("version", f"is {version}", "2 or 3", "convert the model with a current llama.cpp")
        tensors, settings = self.numbers("Q", 2, "header")
        if tensors > MAX_TENSORS:
            self.refuse("header", f"announces {tensors} tensors", f"at most {MAX_TENSORS}")
        if settings > MAX_SETTINGS:
            self.refuse("header", f"announces {settings} settings", f"at most {MAX_SETTINGS}")
        return tensors, settings

    def settings(self, count: int) -> dict[str, Any]:
        metadata: dict[str, Any] = {}
        for i in range(count):
            key = self.string(f"key of setting {i}", MAX_KEY)
            if not key:
                self.refuse(f"key of setting {i}", "is empty")
            if key in metadata:
                self.refuse(key, "is set twice")
            (kind,) = self.numbers("I", 1, key)
            metadata[key] = self.value(kind, key)
        return metadata

    def value(self, kind: int, key: str) -> Any:
        if kind != _ARRAY:
            return self.values(kind, 1, key)[0]
        (kind,), (count,) = self.numbers("I", 1, key), self.numbers("Q", 1, key)
        if kind == _ARRAY:
            self.refuse(key, "is an array of arrays", "an array of numbers or texts")
        if count > self.elements_left:
            self.refuse(key, f"has {count} elements", f"at most {MAX_ELEMENTS} in all arrays of the file")
        self.elements_left -= count
        return self.values(kind, count, key)

    def values(self, kind: int, count: int, key: str) -> list:
        if kind == _STRING:
            return self.strings(count, key)
        if kind not in _NUMBERS:
            self.refuse(key, f"is of kind {kind}", "a kind from 0 to 12")
        numbers = self.numbers(_NUMBERS[kind], count, key)
        if kind != _BOOL:
            return list(numbers)
        if max(numbers, default=0) > 1:
            self.refuse(key, f"is a truth value of {max(numbers)}", "0 or 1")
        return [number == 1 for number in numbers]

    def tensors(self, count: int, alignment: int) -> dict[str, Tensor]:
        entries = {}
        for i in range(count):
            name = self.string(f"name of tensor {i}", MAX_NAME)
            if name in entries:
                self.refuse(name, "is the name of two tensors")
            entries[name] = self.entry(name, alignment)
        start = -(-self.at // alignment) * alignment
        tensors = {name: self.tensor(name, start, entry) for name, entry in entries.items()}
        for first, second in pairwise(sorted(tensors.values(), key=lambda tensor: tensor.offset)):
            if first.offset + first.nbytes > second.offset:
                self.refuse(second.name, f"overlaps {show(first.name)}", "tensors apart from each other")
        return tensors

    def entry(self, name: str, alignment: int) -> tuple[int, StoredType, tuple[int, ...]]:
        """Offset, type and shape of a tensor, each possible by itself."""
        (dimensions,) = self.numbers("I", 1, name)
        if not 1 <= dimensions <= 4:
            self.refuse(name, f"has {dimensions} dimensions", "1 to 4")
        *shape, number, offset = self.numbers("Q" * dimensions + "IQ", 1, name)
        shape.reverse()
        if 0 in shape:
            self.refuse(name, f"has the shape {shape}", "no zeros")
        stored = TYPES.get(number)
        if stored is None:
            self.refuse(name, f"is of type {number}", "a type that GGUF has", "convert the model again")
        if shape[-1] % stored.values:
            self.refuse(name, f"has rows of {shape[-1]}", f"a multiple of {stored.values} for {stored.name}")
        if offset % alignment:
            self.refuse(name, f"begins at {offset}", f"a multiple of the alignment {alignment}")
        return offset, stored, tuple(shape)

    def tensor(self, name: str, start: int, entry: tuple[int, StoredType, tuple[int, ...]]) -> Tensor:
        """The tensor, if it lies inside the file, whose data begin at `start`."""
        offset, stored, shape = start + entry[0], *entry[1:]
        nbytes = prod(shape) // stored.values * stored.nbytes
        if offset + nbytes > self.file.size:
            found = f"its {nbytes} bytes at {offset} end after the file's {self.file.size}"
            self.refuse(name, found, fix="truncated: download it again")
        raw = self.file.bytes(offset, nbytes)
        plain = PLAIN.get(stored.name)
        raw = raw.reshape(-1, stored.nbytes) if plain is None else raw.view(plain).reshape(shape)
        return Tensor(name, stored.name, shape, self.file, offset, raw, stored.decode)


def _alignment(reader: _Reader, metadata: dict[str, Any]) -> int:
    value = metadata.get("general.alignment", 32)
    if type(value) is not int or not 8 <= value <= MAX_ALIGNMENT or value & (value - 1):
        reader.refuse("general.alignment", f"is {show(value)}", f"a power of two from 8 to {MAX_ALIGNMENT}")
    return value


def show(value: object) -> str:
    """A name or value for an error: printable, and short however long it is."""
    text = value if isinstance(value, str) and value.isprintable() else repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
