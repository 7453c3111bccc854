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
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from mvlm_np.checkpoints import packed
from mvlm_np.checkpoints.json_files import MAX_JSON, parse_json, short
from mvlm_np.checkpoints.sniff import HEAD, show, what_is
from mvlm_np.checkpoints.tensors import PLAIN, MappedFile, Tensor
from mvlm_np.errors import CheckpointError

MAX_DIMS = 8
MAX_SIZE = 1 << 40  # product of the other dimensions of an empty tensor
DTYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64",
    "I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool",
}  # fmt: skip
KEYS = {"dtype", "shape", "data_offsets"}
DOWNLOAD = "download it again"


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, unread. A CheckpointError names the tensor and the rule it breaks."""
    return packed.join(path, *read_with_metadata(path))


def read_with_metadata(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the file's `__metadata__`."""
    file = MappedFile(path)
    header, start = _header(file)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise CheckpointError(f"{path}: __metadata__", f"found {short(metadata)}", "texts by name")
    tensors = {name: _tensor(file, start, name, entry) for name, entry in header.items()}
    end, before = start, None
    for tensor in sorted(tensors.values(), key=lambda tensor: (tensor.offset, tensor.nbytes)):
        if tensor.offset != end:
            relation = "overlaps" if tensor.offset < end else "leaves a hole behind"
            where, last = f"{path}: {show(tensor.name)}", _called(before)
            raise CheckpointError(where, f"{relation} {last}", "tensors end to end", DOWNLOAD)
        end, before = tensor.offset + tensor.nbytes, tensor
    if end != file.size:
        found = f"holds {file.size - end} bytes behind {_called(before)}"
        raise CheckpointError(path, found, "none", DOWNLOAD)
    return tensors, metadata


def _called(tensor: Tensor | None) -> str:
    return show(tensor.name) if tensor else "the header"


def _header(file: MappedFile) -> tuple[dict[str, Any], int]:
    """The header, and where the tensors' bytes start."""
    head = file.bytes(0, min(HEAD, file.size)).tobytes()
    if head[8:9] != b"{":
        found, fix = what_is(head)
        raise CheckpointError(file.path, found, "a safetensors file", fix)
    start = 8 + int.from_bytes(head[:8], "little")
    if start > 8 + MAX_JSON:
        raise CheckpointError(
            file.path, f"has a header of {start - 8} bytes", f"at most {MAX_JSON}", "check the file's origin"
        )
    if start > file.size:
        found = f"has {file.size} bytes, which ends within its header of {start - 8}"
        raise CheckpointError(file.path, found, "the whole file", DOWNLOAD)
    raw = file.bytes(8, start - 8).tobytes()
    return parse_json(raw, f"{file.path}: header", CheckpointError), start


def _tensor(file: MappedFile, start: int, name: str, entry: Any) -> Tensor:
    """What an entry of the header describes; its sizes must agree with each other and with the file."""

    def refusal(found: str, wanted: str, fix: str | None = None) -> CheckpointError:
        return CheckpointError(f"{file.path}: {show(name)}", found, wanted, fix)

    if not isinstance(entry, dict) or entry.keys() != KEYS:
        raise refusal(f"is described by {short(entry)}", "dtype, shape and data_offsets alone")
    kind, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(kind, str) or kind not in DTYPES:
        fix = "save the weights in float32, float16 or bfloat16"
        raise refusal(f"has the dtype {short(kind)}", f"one of {', '.join(DTYPES)}", fix)
    if not _are_sizes(shape) or len(shape) > MAX_DIMS:
        raise refusal(f"has the shape {short(shape)}", f"up to {MAX_DIMS} whole numbers from 0")
    if not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise refusal(f"has the data_offsets {short(offsets)}", "a begin and an end, whole numbers from 0")
    begin, end = offsets
    if end > file.size - start:
        raise refusal(f"ends at byte {end}", f"at most the {file.size - start} that the file has", DOWNLOAD)
    dtype = PLAIN[DTYPES[kind]]
    nbytes = prod(shape) * dtype.itemsize
    if end - begin != nbytes:
        raise refusal(f"has {end - begin} bytes", f"{nbytes} for {kind} {short(shape)}")
    if nbytes == 0 and prod(size or 1 for size in shape) > MAX_SIZE:
        raise refusal(f"has the shape {short(shape)}", f"sizes with a product of at most {MAX_SIZE}")
    raw = file.array(start + begin, dtype, shape)
    return Tensor(name, DTYPES[kind], tuple(shape), file, start + begin, raw)


def _are_sizes(value: Any) -> bool:
    return isinstance(value, list) and not [n for n in value if type(n) is not int or not 0 <= n < 1 << 62]


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
    """Writes a file tensor by tensor, in the order given: only what `produce` gives is in memory.

    Written under another name first, so that no half of it can be taken for the whole.
    """
    entries = list(entries)
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
