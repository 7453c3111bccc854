"""From stored tensors to a model's weights, strictly: nothing is guessed, filled in or skipped.

Each part of the model asks for its weights by our own names (`vision.layers.0.attention.q`), with the
shapes its config implies. It asks twice: first a `Manifest`, which only notes what is wanted, so that
everything wrong with a checkpoint is known before a byte of it is read; then a `Loader`.
"""

from collections.abc import Callable, Iterable, Mapping
from copy import copy
from math import inf
from typing import Any

import numpy as np

from mvlm_np.checkpoints.packed import packed
from mvlm_np.checkpoints.sniff import show
from mvlm_np.checkpoints.tensors import Tensor
from mvlm_np.errors import CheckpointError
from mvlm_np.kernels.pack import Packed
from mvlm_np.linear import Dense, Embedding, Linear, Norm, Quantized


class Binder:
    """Hands out weights by name. `at(part)` is the same binder one level further down the names."""

    def __init__(self, prefix: str = ""):
        self.prefix = prefix

    def at(self, part: str) -> "Binder":
        inner = copy(self)
        inner.prefix = f"{self.prefix}{part}."
        return inner

    def array(self, name: str, *shape: int) -> np.ndarray:
        """The float32 weight `name` of exactly this shape."""
        raise AssertionError("a Binder is a Manifest or a Loader")

    def linear(self, name: str, N: int, K: int, bias: bool = True) -> Linear:
        """The linear layer `name`, K inputs -> N outputs."""
        return Dense(self.array(f"{name}.weight", N, K), self.array(f"{name}.bias", N) if bias else None)

    def embedding(self, name: str, N: int, D: int) -> Embedding:
        """The table `name` of N embeddings."""
        return self.array(f"{name}.weight", N, D).__getitem__

    def conv1x1(self, name: str, N: int, K: int, bias: bool = True) -> Linear:
        """A 1 x 1 convolution, which is a linear layer over the channels of each pixel."""
        weight = self.array(f"{name}.weight", N, K, 1, 1).reshape(N, K)
        return Dense(weight, self.array(f"{name}.bias", N) if bias else None)

    def norm(self, name: str, n: int) -> Norm:
        """Gain and bias of a LayerNorm over n features."""
        return Norm(self.array(f"{name}.weight", n), self.array(f"{name}.bias", n))


class Manifest(Binder):
    """Notes what is asked for, and hands out zeros that occupy no memory.

    shapes    of every weight, by our names
    matrices  names of those that a precision applies to, the weights of the linear layers
    """

    def __init__(self) -> None:
        super().__init__()
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.matrices: set[str] = set()

    def array(self, name: str, *shape: int) -> np.ndarray:
        self.shapes[self.prefix + name] = shape
        return np.broadcast_to(np.float32(0), shape)

    def linear(self, name: str, N: int, K: int, bias: bool = True) -> Linear:
        self.matrices.add(f"{self.prefix}{name}.weight")
        return super().linear(name, N, K, bias)

    def conv1x1(self, name: str, N: int, K: int, bias: bool = True) -> Linear:
        self.matrices.add(f"{self.prefix}{name}.weight")
        return super().conv1x1(name, N, K, bias)


class Loader(Binder):
    """Reads what is asked for. `tensors` are keyed by our names and have passed `check`.

    precision  of the linear layers: None (as stored), "float32", "int8" or "int4"; see `bits`
    ops        the backend's vocabulary, for layers in int8 and int4
    progress   called with the bytes of each tensor that is read
    """

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        precision: str | None = None,
        ops: Any = None,
        progress: Callable[[int], object] = lambda _: None,
    ):
        super().__init__()
        self.tensors, self.precision, self.ops, self.progress = tensors, precision, ops, progress
        self._counted: set[str] = set()  # a tied table of embeddings is asked for twice
        self._rounded: dict[
            tuple[str, int], list[float]
        ] = {}  # signal-to-noise in dB, by stored type and bits

    def array(self, name: str, *shape: int) -> np.ndarray:
        return self._take(name).float32()

    def embedding(self, name: str, N: int, D: int) -> Embedding:
        return self._take(f"{name}.weight").rows

    def linear(self, name: str, N: int, K: int, bias: bool = True) -> Linear:
        tensor = self._take(f"{name}.weight")
        b = self.array(f"{name}.bias", N) if bias else None
        kept = bits(f"{self.prefix}{name}.weight", tensor, self.precision)
        if kept is None:
            return Dense(tensor.float32().reshape(N, K), b)
        values, scales, snr = packed(tensor, kept)
        if snr < inf:
            self._rounded.setdefault((tensor.dtype, kept), []).append(snr)
        return Quantized(Packed(kept, values, scales, N, K), b, self.ops)

    conv1x1 = linear

    def notes(self) -> list[str]:
        """What rounding has cost, a line for each type that matrices were stored in."""
        return [
            f"matrices stored as {stored}, {len(ratios)} in all, were rounded anew to int{kept}, "
            f"with a signal-to-noise ratio of {min(ratios):.1f} dB or more"
            for (stored, kept), ratios in self._rounded.items()
        ]

    def _take(self, name: str) -> Tensor:
        tensor = self.tensors[self.prefix + name]
        if self.prefix + name not in self._counted:
            self._counted.add(self.prefix + name)
            self.progress(tensor.nbytes)
        return tensor


def bits(name: str, tensor: Tensor, precision: str | None) -> int | None:
    """In how many bits the matrix `name` of a linear layer is kept; None for float32.

    As stored (precision None), GGUF's Q4_0 is kept in 4 bits and every other block type in 8. "int4"
    means the decoder's blocks: the vision tower, the projector and lm_head, to which the answer is more
    sensitive and which are smaller, are kept in 8 bits unless they are stored in 4.
    """
    stored = {"int8": 8, "int4": 4, "q8_0": 8, "q4_0": 4}.get(tensor.dtype, 8 if tensor.decode else None)
    if precision is None:
        return stored
    if precision == "int4" and (stored == 4 or name.startswith("decoder.layers.")):
        return 4
    return None if precision == "float32" else 8


def check(
    where: object,
    wanted: Mapping[str, tuple[int, ...]],
    tensors: Mapping[str, Tensor],
    spelling: Callable[[str], str],
    ignored: Callable[[str], bool],
) -> dict[str, Tensor]:
    """The wanted tensors under our names, or one error that lists all that is missing, extra and misshapen.

    spelling  our name -> the name in the checkpoint
    ignored   whether a tensor that nobody asked for may be there all the same
    """
    theirs = {spelling(name): shape for name, shape in wanted.items()}
    missing = [name for name in theirs if name not in tensors]
    extra = [show(name) for name in tensors if name not in theirs and not ignored(name)]
    misshapen = [
        f"{name} is {list(tensors[name].shape)} instead of {list(shape)}"
        for name, shape in theirs.items()
        if name in tensors and tensors[name].shape != shape
    ]
    problems = [
        f"{len(names)} {kind}: {_some(names)}"
        for kind, names in (("missing", missing), ("not known", extra), ("misshapen", misshapen))
        if names
    ]
    if problems:
        raise CheckpointError(
            where,
            "the tensors do not fit config.json: " + "; ".join(problems),
            fix="use the config.json that belongs to these weights, or download the checkpoint again",
        )
    return {name: tensors[spelling(name)] for name in wanted}


def _some(names: Iterable[str], most: int = 4) -> str:
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
