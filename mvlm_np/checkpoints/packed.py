"""Our own int8 and int4 tensors inside safetensors files: mapped, and used as they lie.

A matrix NAME (N, K) is stored as two tensors, NAME.values and NAME.scales, in the layout of
`kernels.pack`. The file's metadata says so: {"mvlm_np.packed": "1", NAME: "int4 N K"}. The kernels of 1 x 1
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

MARK, VERSION = "mvlm_np.packed", "1"
VALUES, SCALES = ".values", ".scales"
VALUE_DTYPES = {8: "int8", 4: "uint8"}


@dataclass(frozen=True)
class PackedTensor(Tensor):
    """A packed matrix: `raw` holds the values, `scales` the scales; dtype is "int8" or "int4"."""

    scales: np.ndarray | None = None
    scales_offset: int = 0  # in the same file

    @property
    def nbytes(self) -> int:
        assert self.scales is not None
        return self.raw.nbytes + self.scales.nbytes

    @property
    def bits(self) -> int:
        return pack.BITS[self.dtype]

    def float32(self) -> np.ndarray:
        """The values, dequantised."""
        assert self.scales is not None
        N, K = matrix(self.shape)
        return quantize.dequantize(*pack.unpack(self.bits, self.raw, self.scales, N, K)).reshape(self.shape)

    def forget(self) -> None:
        assert self.scales is not None
        self.file.forget(self.offset, self.raw.nbytes)
        self.file.forget(self.scales_offset, self.scales.nbytes)

    def rows(self, ids: np.ndarray | slice) -> np.ndarray:
        """Rows `ids`, dequantised: (T, K)."""
        assert self.scales is not None
        N, K = matrix(self.shape)
        tile, row = np.divmod(np.arange(N)[ids], pack.ROWS)
        values = self.raw.reshape(*self.raw.shape[:3], pack.ROWS, 4)[tile, :, :, row]  # (T, groups, bits, 4)
        q = pack.unpack_groups(self.bits, values).reshape(len(tile), -1)
        return quantize.dequantize(q[:, :K], self.scales[tile, :, row])


def matrix(shape: tuple[int, ...]) -> tuple[int, int]:
    """Rows and columns of a matrix, or of a 1 x 1 convolution's kernel (N, K, 1, 1)."""
    return shape[0], prod(shape[1:])


def packed(tensor: Tensor, bits: int, quality: str = "high") -> tuple[np.ndarray, np.ndarray, float]:
    """A matrix in the packed layout: values, scales, and the signal-to-noise ratio of rounding it, in dB.

    As it lies in the file if it is packed already, its scales not looked through (see `require_finite`);
    without loss from GGUF's Q4_0 (to 4 bits) and Q8_0 (to 8); else rounded, see `quantize`. Raises
    CheckpointError if the weights or scales that it rounds or repacks are not finite.
    """
    if isinstance(tensor, PackedTensor) and tensor.bits == bits:
        assert tensor.scales is not None
        return tensor.raw, tensor.scales, inf
    from mvlm_np.checkpoints.gguf_blocks import split_q4_0, split_q8_0

    N, K = matrix(tensor.shape)
    q, scales = np.empty((N, K), np.int8), np.empty((N, -(-K // pack.GROUP)), np.float16)
    split = {("q4_0", 4): split_q4_0, ("q8_0", 8): split_q8_0}.get((tensor.dtype, bits))
    step = max(1, CHUNK // K)
    signal = noise = 0.0
    for start in range(0, N, step):
        part = slice(start, start + step)
        if split:
            blocks = tensor.stored().reshape(N, -1, tensor.raw.shape[-1])[part]
            q_part, d = split(blocks.reshape(-1, blocks.shape[-1]))
            q[part], scales[part] = q_part.reshape(-1, K), d.reshape(-1, K // pack.GROUP)
        else:
            w = tensor.rows(part).reshape(-1, K)
            q[part], scales[part] = quantize.quantize(w, bits, quality, _where(tensor))
            error = w - quantize.dequantize(q[part], scales[part])
            signal, noise = signal + np.vdot(w, w), noise + np.vdot(error, error)
    if not _are_finite(scales):
        raise _damaged(tensor)
    tensor.forget()
    if bits == 8:
        np.maximum(q, -127, out=q)  # -128 is not ours; ggml never writes it into a Q8_0 either
    return *pack.pack(bits, q, scales), 10 * log10(signal / noise) if noise else inf


def require_finite(tensors: Sequence[PackedTensor]) -> None:
    """CheckpointError: the scales of a packed matrix hold NaN or infinity. Two threads look through them."""
    damaged: list[int] = []

    def look(first: int) -> None:
        for i in range(first, len(tensors), 2):
            scales = tensors[i].scales
            assert scales is not None
            if not _are_finite(scales):
                damaged.append(i)
                return

    other = Thread(target=look, args=(1,))
    other.start()
    look(0)
    other.join()
    if damaged:
        raise _damaged(tensors[min(damaged)])


def _are_finite(scales: np.ndarray) -> bool:
    """Seen as whole numbers, a float16's infinity is 0x7C00, or 0xFC00 with a sign, and NaNs lie above.

    NumPy's `isfinite` takes ten times as long, and a 1.7B model in int4 has 100 MB of scales.
    """
    return not scales.size or bool(
        scales.view(np.int16).max() < 0x7C00 and scales.view(np.uint16).max() < 0xFC00
    )


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
        pair = [joined.pop(name + part, None) for part in (VALUES, SCALES)]
        sizes = pack.shapes(pack.BITS[kind], *matrix(shape))
        expected = zip(sizes, (VALUE_DTYPES[pack.BITS[kind]], "float16"), strict=True)
        for tensor, part, (size, dtype) in zip(pair, (VALUES, SCALES), expected, strict=True):
            if tensor is None or tensor.shape != size or tensor.dtype != dtype:
                found = "are missing" if tensor is None else f"are {tensor.dtype} {list(tensor.shape)}"
                wanted = f"{dtype} {list(size)} for {description}"
                where = f"{path}: {show(name)}"
                raise CheckpointError(where, f"its {part[1:]} {found}", wanted, "convert again")
        values, scales = pair
        assert values is not None and scales is not None
        joined[name] = PackedTensor(
            name,
            kind,
            shape,
            values.file,
            values.offset,
            values.raw,
            scales=scales.raw,
            scales_offset=scales.offset,
        )
    return joined


def describe(bits: int, shape: tuple[int, ...]) -> str:
    """What the metadata says of a packed matrix."""
    return f"int{bits} " + " ".join(map(str, shape))


def _parse(path: Path, name: str, description: str) -> tuple[str, tuple[int, ...]]:
    kind, *sizes = description.split() or [""]
    if (
        kind in pack.BITS
        and 2 <= len(sizes) <= 4
        and all(re.fullmatch("[1-9][0-9]{0,8}", size) for size in sizes)
    ):
        return kind, tuple(map(int, sizes))
    where, wanted = f"{path}: {show(name)}", "int8 or int4 and a shape, such as int4 2048 5632"
    raise CheckpointError(where, f"found {show(description)}", wanted)
