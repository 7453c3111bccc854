"""Reads and writes safetensors files: by memory map, tensor by tensor, bfloat16 included.

The format: 8 bytes of header length n (little-endian), n bytes of JSON, then the tensors' bytes. The JSON
maps a name to {"dtype", "shape", "data_offsets": [begin, end]} counted from the header's end; an optional
"__metadata__" maps texts to texts. Tensors lie without holes or overlap and fill the file. The
`safetensors` package cannot give NumPy a bfloat16 tensor; this reader sees its bit patterns.
"""

import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from mvlm_np.checkpoints import packed
from mvlm_np.checkpoints.tensors import PLAIN, MappedFile, Tensor
from mvlm_np.errors import CheckpointError

MAX_HEADER = 100_000_000  # bytes; the format's own limit
DTYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64",
    "I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool",
}  # fmt: skip


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, unread. A CheckpointError names the tensor and the rule it breaks."""
    return packed.join(*read_with_metadata(path))


def read_with_metadata(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the file's `__metadata__`."""
    file = MappedFile(path)
    header, start = _header(file)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise CheckpointError(f"{path}: __metadata__", "found other values", "texts only")
    tensors = {name: _tensor(file, start, name, entry) for name, entry in header.items()}
    by_offset = sorted(tensors.values(), key=lambda t: (t.offset, t.nbytes))
    for first, second in pairwise(by_offset):
        if first.offset + first.nbytes != second.offset:
            relation = "overlaps" if first.offset + first.nbytes > second.offset else "leaves a hole before"
            raise CheckpointError(f"{path}: {first.name}", f"{relation} {second.name}", "tensors end to end")
    end = by_offset[-1].offset + by_offset[-1].nbytes if by_offset else start
    if by_offset and by_offset[0].offset != start:
        raise CheckpointError(
            f"{path}: {by_offset[0].name}", "leaves a hole before it", "tensors from the header's end"
        )
    if end != file.size:
        raise CheckpointError(path, f"holds {file.size - end} bytes after the last tensor", "none")
    return tensors, metadata


def _header(file: MappedFile) -> tuple[dict[str, Any], int]:
    path, length = file.path, int.from_bytes(file.bytes(0, min(8, file.size)).tobytes(), "little")
    if file.size < 8:
        raise CheckpointError(path, f"has {file.size} bytes", "a safetensors file", "download it again")
    if length > MAX_HEADER:
        raise CheckpointError(
            path, f"header length is {length} bytes", f"at most {MAX_HEADER}; not a safetensors file?"
        )
    if 8 + length > file.size:
        raise CheckpointError(
            path,
            f"header of {length} bytes ends after the file's {file.size}",
            fix="truncated: download it again",
        )
    try:
        header = json.loads(file.bytes(8, length).tobytes(), object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError) as error:
        reason = str(error) if isinstance(error, ValueError) else "nested too deeply"
        raise CheckpointError(
            f"{path}: header", f"is not valid JSON ({reason[:80]})", fix="download it again"
        ) from None
    if not isinstance(header, dict):
        raise CheckpointError(f"{path}: header", "is not a JSON object")
    return header, 8 + length


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"duplicate key {next(n for n in names if names.count(n) > 1)!r}")
    return found


def _tensor(file: MappedFile, start: int, name: str, entry: Any) -> Tensor:
    where = f"{file.path}: {name}"
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise CheckpointError(where, "its entry has other keys", "dtype, shape and data_offsets")
    kind, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(kind, str) or kind not in DTYPES:
        raise CheckpointError(where, f"its dtype is {str(kind)[:30]!r}", f"one of {', '.join(DTYPES)}")
    if not _sizes(shape) or len(shape) > 8:
        raise CheckpointError(where, f"its shape is {str(shape)[:60]}", "up to 8 whole numbers from 0")
    if not _sizes(offsets) or len(offsets) != 2:
        raise CheckpointError(where, f"its data_offsets are {str(offsets)[:60]}", "[begin, end]")
    begin, end = offsets
    if not begin <= end <= file.size - start:
        raise CheckpointError(
            where,
            f"its bytes {begin} to {end} lie outside the file's {file.size - start}",
            fix="download it again",
        )
    dtype = PLAIN[DTYPES[kind]]
    if end - begin != prod(shape) * dtype.itemsize:
        raise CheckpointError(
            where, f"has {end - begin} bytes", f"{prod(shape) * dtype.itemsize} for {kind} {shape}"
        )
    raw = file.bytes(start + begin, end - begin).view(dtype).reshape(shape)
    return Tensor(name, DTYPES[kind], tuple(shape), file, start + begin, raw)


def _sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(n) is int and 0 <= n < 1 << 62 for n in value)


@dataclass(frozen=True)
class Entry:
    """A tensor to be written: `produce` gives its values, when its turn comes, in one array or in parts.

    dtype  a key of `PLAIN`; bfloat16 comes as its uint16 bit patterns
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    produce: Callable[[], Iterable[np.ndarray]]

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * PLAIN[self.dtype].itemsize


def write_safetensors(path: Path, entries: Iterable[Entry], metadata: dict[str, str]) -> None:
    """Writes a file tensor by tensor: only what `produce` gives is in memory.

    Written under another name first, so that no half of it can be taken for the whole.
    """
    entries = sorted(entries, key=lambda entry: -PLAIN[entry.dtype].itemsize)  # keeps every tensor aligned
    kinds = {ours: theirs for theirs, ours in DTYPES.items()}
    header: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for entry in entries:
        begin, end = end, end + entry.nbytes
        shape = list(entry.shape)
        header[entry.name] = {"dtype": kinds[entry.dtype], "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % 64)  # a register of 64 bytes loads fastest from such an address
    part = path.with_name(path.name + ".part")
    with open(part, "wb") as f:
        f.write(len(text).to_bytes(8, "little") + text)
        for entry in entries:
            before = f.tell()
            for values in entry.produce():
                assert values.dtype == PLAIN[entry.dtype], entry.name
                f.write(np.ascontiguousarray(values).data)
            assert f.tell() - before == entry.nbytes, entry.name
    os.replace(part, path)
