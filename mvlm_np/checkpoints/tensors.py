"""Stored tensors: where their bytes lie in a file, and how they are read as float32.

Every reader of a file format (`safetensors`, `pickles`, `gguf`) returns `{name: Tensor}` and
nothing else, so the rest of the house does not know formats. Opening costs no memory: the bytes
stay in a mapped file until `float32()` is called, and what was read is given back to the system.
"""

import mmap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mvlm_np.checkpoints.sniff import why_unreadable
from mvlm_np.errors import CheckpointError

CHUNK = 1 << 22  # values converted at a time: 16 MB of float32, so that converting needs no second copy


class MappedFile:
    """A read-only memory-mapped file.

    `bytes(offset, count)` is a view, not a copy. `forget(offset, count)` tells the system that
    those pages are no longer needed, so that they do not count as this process's memory.
    """

    def __init__(self, path: Path):
        self.path = Path(path)
        try:
            if self.path.exists() and not self.path.is_file():  # opening a pipe may take for ever
                raise OSError(None, "not a regular file")
            with open(self.path, "rb") as f:
                self._map = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            found, fix = why_unreadable(self.path, error)
            raise CheckpointError(self.path, found, "a weight file", fix) from None
        except ValueError:  # an empty file cannot be mapped
            raise CheckpointError(self.path, "is empty", "a weight file", "download it again") from None
        self.size = len(self._map)

    def bytes(self, offset: int, count: int) -> np.ndarray:
        """uint8 view of `count` bytes from `offset`; the caller has checked the range."""
        return np.frombuffer(self._map, np.uint8, count, offset)

    def array(self, offset: int, dtype: np.dtype, shape: Sequence[int]) -> np.ndarray:
        """The same as an array."""
        return np.ndarray(shape, dtype, self._map, offset)

    def forget(self, offset: int, count: int) -> None:
        """Gives the pages wholly inside the range back to the system; reading them again still works."""
        start = -(-offset // mmap.PAGESIZE) * mmap.PAGESIZE
        end = (offset + count) // mmap.PAGESIZE * mmap.PAGESIZE
        if end > start:
            self._map.madvise(mmap.MADV_DONTNEED, start, end - start)


def float32_to_bfloat16(x: np.ndarray) -> np.ndarray:
    """float32 -> uint16 bit patterns, rounding half to even; a NaN stays one."""
    bits = np.ascontiguousarray(x).view(np.uint32)
    rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
    return np.where(np.isnan(x), bits >> 16 | 0x40, rounded).astype(np.uint16)


def bfloat16_to_float32(raw: np.ndarray) -> np.ndarray:
    """uint16 bit patterns -> float32, exactly: a bfloat16 is the upper half of a float32."""
    return (raw.astype(np.uint32) << 16).view(np.float32)


# Storage types whose values are plain numbers, and the NumPy type of their bytes. bfloat16 is
# unknown to NumPy and so is seen as its bit pattern.
PLAIN: dict[str, np.dtype] = {
    name: np.dtype("uint16" if name == "bfloat16" else name)
    for name in "float64 float32 float16 bfloat16 int64 int32 int16 int8 uint8 bool".split()
}


@dataclass(eq=False, repr=False)  # a model has a thousand, and frozen ones take three times as long to make
class Tensor:
    """One tensor of a checkpoint, still in its file. Nobody changes it.

    name    as the file spells it
    dtype   a key of `PLAIN`, or a GGUF block type such as "q4_0"
    shape   of the values, outermost dimension first
    file    the mapped file it lies in, for messages and for giving pages back
    offset  of its first byte in the file
    raw     read-only view of the stored bytes in the order of the values, with the strides that the
            file has: for plain types an array of `PLAIN[dtype]`, for block types uint8 with the bytes
            of a block as its last axis. Its other axes may be finer than `shape`; `stored` has them right
    decode  block types only: uint8 (n, bytes per block) -> float32 (n, values per block)
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: MappedFile
    offset: int
    raw: np.ndarray
    decode: Callable[[np.ndarray], np.ndarray] | None = None

    @property
    def nbytes(self) -> int:
        """Bytes that the values occupy in the file."""
        return self.raw.nbytes

    def stored(self) -> np.ndarray:
        """`raw` in plain form: `shape` for plain types, (blocks, bytes per block) for block types.

        A view, unless the file keeps the values in another order (a transposed tensor in a pickle, the
        rotary rows of a GGUF); then a copy, made anew by every call.
        """
        return self.raw.reshape((-1, self.raw.shape[-1]) if self.decode else self.shape)

    def float32(self) -> np.ndarray:
        """The values as float32 of `shape`.

        float32 comes back as a view of the mapped file (read-only, no copy), unless it lies there at an
        address that BLAS and compiled code do not take. Any other type is converted a chunk at a time,
        and the pages of each chunk are given back.
        """
        if self.dtype == "float32" and self.raw.flags.aligned:
            return self.stored()
        if self.nbytes < CHUNK or not self.raw.flags.c_contiguous:  # one layer's matrix at most: in one go
            values = self._convert(self.stored()).reshape(self.shape)
            self.file.forget(self.offset, self.nbytes)
            return values
        values = np.empty(self.shape, np.float32)
        rows = self.stored() if self.decode else self.raw.reshape(-1, 1)
        flat = values.reshape(len(rows), values.size // max(1, len(rows)))
        step = max(1, CHUNK // max(1, flat.shape[1]))
        for start in range(0, len(rows), step):
            part = rows[start : start + step]
            flat[start : start + step] = self._convert(part)
            self.file.forget(self.offset + start * rows.strides[0], part.nbytes)
        return values

    def forget(self) -> None:
        """Gives the pages of the stored values back to the system; reading them again still works."""
        self.file.forget(self.offset, self.nbytes)

    def rows(self, ids: np.ndarray | slice) -> np.ndarray:
        """Rows `ids` (T,) of a matrix as float32 (T, ...); nothing else is read."""
        if self.decode:
            blocks = self.stored().reshape(self.shape[0], -1, self.raw.shape[-1])[ids]  # (T, blocks, bytes)
            return self.decode(blocks.reshape(-1, self.raw.shape[-1])).reshape(len(blocks), *self.shape[1:])
        return self._convert(self.stored()[ids])

    def _convert(self, stored: np.ndarray) -> np.ndarray:
        if self.decode:
            return self.decode(stored)
        if self.dtype == "bfloat16":
            return bfloat16_to_float32(stored)
        return stored.astype(np.float32)
