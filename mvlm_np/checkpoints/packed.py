"""Our own packed tensors inside safetensors files: mapped, and used as they lie.

A matrix NAME (N, K) is stored as the arrays that `kernels.pack` lays out: NAME.values, NAME.scales and, in
uint4, NAME.tops. The file's metadata says so: {"mvlm_np.packed": "1", NAME: "int4 N K"}. The kernels of 1 x 1
convolutions are matrices whose shape ends in 1 1.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf, log10, prod
from pathlib import Path
from threading import Thread

import numpy as np

from mvlm_np import quantize
from mvlm_np.checkpoints.sniff import show
from mvlm_np.checkpoints.tensors import CHUNK, Tensor
from mvlm_np.errors import CheckpointError
from mvlm_np.kernels import pack
from mvlm_np.kernels.pack import KINDS, Packed, Rounded

MARK, VERSION = "mvlm_np.packed", "1"
LOSSLESS = {"q8_0": "int8", "q4_0": "int4", "q4_k": "uint4"}  # GGUF's block types, and who holds them exactly


@dataclass(eq=False, repr=False)
class PackedTensor(Tensor):
    """A packed matrix: dtype is its kind, `raw` its values, and `factors` its scales and tops, as they lie in
    the same file."""

    factors: tuple[Tensor, ...] = ()

    @property
    def nbytes(self) -> int:
        return self.packed.nbytes

    @property
    def packed(self) -> Packed:
        return Packed(self.dtype, *matrix(self.shape), self.raw, *(factor.raw for factor in self.factors))

    def float32(self) -> np.ndarray:
        """The values, dequantised."""
        return quantize.dequantize(*pack.unpack(self.packed)).reshape(self.shape)

    def forget(self) -> None:
        self.file.forget(self.offset, self.raw.nbytes)
        for factor in self.factors:
            factor.forget()

    def rows(self, ids: np.ndarray | slice) -> np.ndarray:
        """Rows `ids`, dequantised: (T, K)."""
        return quantize.dequantize(*pack.unpack_rows(self.packed, ids))


def matrix(shape: tuple[int, ...]) -> tuple[int, int]:
    """Rows and columns of a matrix, or of a 1 x 1 convolution's kernel (N, K, 1, 1)."""
    return shape[0], prod(shape[1:])


def packed(tensor: Tensor, kind: str, quality: str = "high") -> tuple[Packed, float]:
    """A matrix in the packed layout, and the signal-to-noise ratio of rounding it, in dB.

    As it lies in the file if it is packed already, its scales not looked through (see `require_finite`);
    without loss from GGUF's Q8_0 to int8, Q4_0 to int4 and Q4_K to uint4; else rounded, see `quantize`.
    CheckpointError: the weights or scales that it rounds or repacks are not finite.
    """
    if isinstance(tensor, PackedTensor) and tensor.dtype == kind:
        return tensor.packed, inf
    from mvlm_np.checkpoints.gguf_blocks import split

    N, K = matrix(tensor.shape)
    step = max(1, CHUNK // K)
    found = list[Rounded]()
    signal = noise = 0.0
    for start in range(0, N, step):
        part = slice(start, start + step)
        if LOSSLESS.get(tensor.dtype) == kind:
            blocks = tensor.stored().reshape(N, -1, tensor.raw.shape[-1])[part]
            found.append(split(tensor.dtype, blocks))
        else:
            w = tensor.rows(part).reshape(-1, K)
            found.append(quantize.quantize(w, kind, quality, _where(tensor)))
            error = w - quantize.dequantize(*found[-1])
            signal, noise = signal + np.vdot(w, w), noise + np.vdot(error, error)
    q, *factors = (np.concatenate(parts) for parts in zip(*found, strict=True))
    if not _are_finite(factors[-1]):
        raise _damaged(tensor)
    tensor.forget()
    if kind == "int8":
        np.maximum(q, -127, out=q)  # -128 is not ours; ggml never writes it into a Q8_0 either
    return pack.pack(kind, q, *factors), 10 * log10(signal / noise) if noise else inf


def require_finite(tensors: Sequence[PackedTensor]) -> None:
    """CheckpointError: the scales of a packed matrix hold NaN or infinity. Two threads look through them."""
    damaged: list[int] = []

    def look(first: int) -> None:
        for i in range(first, len(tensors), 2):
            if not _are_finite(tensors[i].factors[-1].raw):
                damaged.append(i)
                return

    other = Thread(target=look, args=(1,))
    other.start()
    look(0)
    other.join()
    if damaged:
        raise _damaged(tensors[min(damaged)])


def _are_finite(scales: np.ndarray) -> bool:
    """Of float16: the last of a kind's factors is, the scales or the tops.

    Seen as whole numbers, its infinity is 0x7C00, or 0xFC00 with a sign, and NaNs lie above. NumPy's
    `isfinite` takes ten times as long, and a 1.7B model in int4 has 100 MB of scales. Where none is
    negative, the largest tells all.
    """
    if not scales.size:
        return True
    largest = scales.view(np.uint16).max()
    return bool(largest < 0x7C00 or (largest < 0xFC00 and scales.view(np.int16).max() < 0x7C00))


def _damaged(tensor: Tensor) -> CheckpointError:
    return CheckpointError(_where(tensor), "holds NaN or infinity", "finite numbers", "download it again")


def _where(tensor: Tensor) -> str:
    return f"{tensor.file.path}: {tensor.name}"


def join(path: Path, tensors: dict[str, Tensor], metadata: Mapping[str, str]) -> dict[str, Tensor]:
    """The tensors of a file with each packed pair as one; a file that holds none comes back as it is."""
    if MARK not in metadata:
        return tensors
    if metadata[MARK] != VERSION:
        found = f"found version {show(metadata[MARK])}"
        raise CheckpointError(f"{path}: {MARK}", found, VERSION, "convert the model again")
    joined = dict(tensors)
    for name, description in metadata.items():
        if name in (MARK, "format"):
            continue
        if name in joined:
            where = f"{path}: {show(name)}"
            raise CheckpointError(where, "is there packed and as it is", "one of the two", "convert again")
        kind, shape = _parse(path, name, description)
        arrays = []
        for part, (dtype, size) in pack.parts(kind, *matrix(shape)).items():
            tensor = joined.pop(f"{name}.{part}", None)
            if tensor is None or tensor.shape != size or tensor.dtype != dtype:
                found = "are missing" if tensor is None else f"are {tensor.dtype} {list(tensor.shape)}"
                wanted = f"{dtype} {list(size)} for {description}"
                where = f"{path}: {show(name)}"
                raise CheckpointError(where, f"its {part} {found}", wanted, "convert again")
            arrays.append(tensor)
        values, *factors = arrays
        joined[name] = PackedTensor(
            name, kind, shape, values.file, values.offset, values.raw, factors=tuple(factors)
        )
    return joined


def describe(kind: str, shape: tuple[int, ...]) -> str:
    """What the metadata says of a packed matrix."""
    return f"{kind} " + " ".join(map(str, shape))


def _parse(path: Path, name: str, description: str) -> tuple[str, tuple[int, ...]]:
    kind, *sizes = description.split() or [""]
    if (
        kind in KINDS
        and 2 <= len(sizes) <= 4
        and all(re.fullmatch("[1-9][0-9]{0,8}", size) for size in sizes)
    ):
        return kind, tuple(map(int, sizes))
    where, wanted = f"{path}: {show(name)}", f"{' or '.join(KINDS)} and a shape, such as int4 2048 5632"
    raise CheckpointError(where, f"found {show(description)}", wanted)
