"""A weight that knows how to multiply. The precision of a model is the type of its weights."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Protocol

import numpy as np

from mvlm_np.backend import Ops
from mvlm_np.kernels.pack import Packed


class Linear(Protocol):
    """y = x W^T + b for x (T, K) -> (T, N), in whatever precision W is kept."""

    @property
    def kind(self) -> str:
        """The type of W: one of `kernels.pack.KINDS`, or a type of floats."""

    @property
    def shape(self) -> tuple[int, int]:
        """Of W: (N, K)."""

    @property
    def nbytes(self) -> int:
        """Bytes of W, which one multiplication reads."""

    def __call__(self, x: np.ndarray) -> np.ndarray: ...


@dataclass(eq=False, repr=False)
class Dense:
    """y = x W^T + b in floating point.

    weight (N, K), bias (N,) or None; x (..., K) -> (..., N). The product is BLAS's: its summation
    order, and so the last bits, may change with the number of rows and of BLAS threads.
    """

    weight: np.ndarray
    bias: np.ndarray | None = None

    @property
    def kind(self) -> str:
        return self.weight.dtype.name

    @property
    def shape(self) -> tuple[int, int]:
        N, K = self.weight.shape
        return N, K

    @property
    def nbytes(self) -> int:
        return self.weight.nbytes

    def __call__(self, x: np.ndarray) -> np.ndarray:
        y = x @ self.weight.T
        if self.bias is not None:
            y += self.bias
        return y


class Quantized:
    """y = x W^T + b with W packed, and x rounded to int8 group by group; see `ops.quantized_matmul`.

    packed  W as `kernels.pack` lays it out
    bias    (N,) or None
    ops     the backend that multiplies
    """

    def __init__(self, packed: Packed, bias: np.ndarray | None, ops: Ops):
        self.packed, self.bias, self.ops = packed, bias, ops

    @cached_property
    def _multiply(self) -> Callable[[np.ndarray], list[np.ndarray]]:
        """Made when it is first used: most layers are part of a `Joined`."""
        return self.ops.packed_product([self.packed], [self.bias])

    @property
    def kind(self) -> str:
        return self.packed.kind

    @property
    def shape(self) -> tuple[int, int]:
        return self.packed.N, self.packed.K

    @property
    def nbytes(self) -> int:
        return self.packed.nbytes

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return self._multiply(x)[0]


class Joined:
    """Two or three linear layers with the same input, such as q, k and v: what each of them makes of it.

    Quantised ones of the same kind round their input once and are multiplied in one go, each where it lies.
    """

    def __init__(self, *layers: Linear):
        self.layers = layers

    @cached_property
    def _multiply(self) -> Callable[[np.ndarray], list[np.ndarray]]:
        layers = self.layers
        alike: dict[str, list[int]] = {}
        for i, layer in enumerate(layers):
            kind = layer.packed.kind if isinstance(layer, Quantized) else f"dense {i}"
            alike.setdefault(kind, []).append(i)
        products = [(places, _product([layers[i] for i in places])) for places in alike.values()]

        def one_after_another(x: np.ndarray) -> list[np.ndarray]:
            found = dict[int, np.ndarray]()
            for places, product in products:
                found |= zip(places, product(x), strict=True)
            return [found[i] for i in range(len(layers))]

        return products[0][1] if len(products) == 1 else one_after_another

    @property
    def nbytes(self) -> int:
        return sum(layer.nbytes for layer in self.layers)

    def __call__(self, x: np.ndarray) -> list[np.ndarray]:
        return self._multiply(x)


def _product(layers: Sequence[Linear]) -> Callable[[np.ndarray], list[np.ndarray]]:
    """What layers make of one input: quantised ones of the same kind, or a single one."""
    quantized = [layer for layer in layers if isinstance(layer, Quantized)]
    if len(quantized) < len(layers):
        return lambda x: [layer(x) for layer in layers]
    packed, biases = zip(*((layer.packed, layer.bias) for layer in quantized), strict=True)
    return quantized[0].ops.packed_product(packed, biases)


# The table of embeddings: token ids (T,) -> float32 (T, D). Only the rows asked for are read.
Embedding = Callable[[np.ndarray], np.ndarray]


class Norm(NamedTuple):
    """Gain and bias of a LayerNorm, (n,) each."""

    weight: np.ndarray
    bias: np.ndarray
