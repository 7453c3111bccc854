"""A weight that knows how to multiply. The precision of a model is the type of its weights."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np

from mvlm_np import ops
from mvlm_np.kernels import pack
from mvlm_np.kernels.pack import Packed


class Linear(Protocol):
    """y = x W^T + b for x (T, K) -> (T, N), in whatever precision W is kept."""

    @property
    def nbytes(self) -> int:
        """Bytes of W, which one multiplication reads."""

    def __call__(self, x: np.ndarray, add_to: np.ndarray | None = None) -> np.ndarray:
        """x W^T + b; with `add_to` (T, N), a residual, the sum of both."""

    def after(self, op: Callable, *args: Any, add_to: np.ndarray | None = None) -> np.ndarray:
        """self(op(*args), add_to). A function of the vocabulary may be computed with the rounding."""


@dataclass(frozen=True)
class Dense:
    """y = x W^T + b in floating point.

    weight (N, K), bias (N,) or None; x (..., K) -> (..., N). The product is BLAS's: its summation
    order, and so the last bits, may change with the number of rows and of BLAS threads.
    """

    weight: np.ndarray
    bias: np.ndarray | None = None

    @property
    def nbytes(self) -> int:
        return self.weight.nbytes

    def __call__(self, x: np.ndarray, add_to: np.ndarray | None = None) -> np.ndarray:
        y = x @ self.weight.T
        if self.bias is not None:
            y += self.bias
        if add_to is not None:
            y += add_to
        return y

    def after(self, op: Callable, *args: Any, add_to: np.ndarray | None = None) -> np.ndarray:
        return self(op(*args), add_to)


def prepare(matrices: Sequence[Packed]) -> Any:
    """Packed matrices with the same input, as `packed_matmul` takes them: a backend may prepare them."""
    return matrices


def packed_matmul(
    op: Callable | None,
    args: tuple,
    matrices: Any,
    bias: np.ndarray | None = None,
    add_to: np.ndarray | None = None,
) -> list[np.ndarray]:
    """`ops.quantized_matmul` of x = op(*args), or args[0], with each of up to three packed matrices.

    x (M, K); the matrices agree in K and in bits. bias: of all matrices, one after the other, each as long
    as its packed rows; add_to (M, N): only with a single matrix. Returns float32 (M, N) for each matrix.
    """
    x = op(*args) if op else args[0]
    outputs, start = [], 0
    for bits, values, scales, N, K in matrices:
        y = ops.quantized_matmul(x, *pack.unpack(bits, values, scales, N, K))
        if bias is not None:
            y += bias[start : start + N]
        if add_to is not None:
            y += add_to
        outputs.append(y)
        start += len(values) * pack.ROWS
    return outputs


class Quantized:
    """y = x W^T + b with W in int8 or int4, and x rounded to int8 group by group.

    packed  W as `kernels.pack` lays it out
    bias    (N,) or None
    ops     the backend's vocabulary
    """

    def __init__(self, packed: Packed, bias: np.ndarray | None, ops: Any):
        self.packed, self.bias, self.ops = packed, bias, ops
        self._bias, self._ready = _packed_bias([self]), ops.prepare([packed])

    @property
    def nbytes(self) -> int:
        return self.packed.values.nbytes + self.packed.scales.nbytes

    def __call__(self, x: np.ndarray, add_to: np.ndarray | None = None) -> np.ndarray:
        return self.ops.packed_matmul(None, (x,), self._ready, self._bias, add_to)[0]

    def after(self, op: Callable, *args: Any, add_to: np.ndarray | None = None) -> np.ndarray:
        return self.ops.packed_matmul(op, args, self._ready, self._bias, add_to)[0]


class Joined:
    """Two or three linear layers with the same input, such as q, k and v.

    Quantised ones of the same kind round their input once and are multiplied in one go, each where it lies.
    """

    def __init__(self, *layers: Linear):
        self.layers = layers
        quantized = [layer for layer in layers if isinstance(layer, Quantized)]
        self._together = (
            len(quantized) == len(layers) and len({layer.packed.bits for layer in quantized}) == 1
        )
        if self._together:
            self._ops, self._bias = quantized[0].ops, _packed_bias(quantized)
            self._ready = self._ops.prepare([layer.packed for layer in quantized])

    @property
    def nbytes(self) -> int:
        return sum(layer.nbytes for layer in self.layers)

    def after(self, op: Callable, *args: Any) -> list[np.ndarray]:
        """What each layer makes of op(*args)."""
        if self._together:
            return self._ops.packed_matmul(op, args, self._ready, self._bias)
        x = op(*args)
        return [layer(x) for layer in self.layers]


def _packed_bias(layers: Sequence[Quantized]) -> np.ndarray | None:
    """Biases one after the other, each as long as the packed rows of its layer; None if there are none."""
    if all(layer.bias is None for layer in layers):
        return None
    padded = []
    for layer in layers:
        rows = np.zeros(len(layer.packed.values) * pack.ROWS, np.float32)
        if layer.bias is not None:
            rows[: layer.packed.N] = layer.bias
        padded.append(rows)
    return np.concatenate(padded)


# The table of embeddings: token ids (T,) -> float32 (T, D). Only the rows asked for are read.
Embedding = Callable[[np.ndarray], np.ndarray]


class Norm(NamedTuple):
    """Gain and bias of a LayerNorm, (n,) each."""

    weight: np.ndarray
    bias: np.ndarray
