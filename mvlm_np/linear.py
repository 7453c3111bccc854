"""A weight that knows how to multiply. The precision of a model is the type of its weights."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np

from mvlm_np import ops
from mvlm_np.kernels import pack


class Linear(Protocol):
    """y = x W^T + b for x (T, K) -> (T, N), in whatever precision W is kept."""

    @property
    def nbytes(self) -> int:
        """Bytes of W, which one multiplication reads."""

    def __call__(self, x: np.ndarray) -> np.ndarray: ...


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

    def __call__(self, x: np.ndarray) -> np.ndarray:
        y = x @ self.weight.T
        if self.bias is not None:
            y += self.bias
        return y


def packed_matmul(
    x: np.ndarray, bits: int, values: np.ndarray, scales: np.ndarray, N: int, K: int
) -> np.ndarray:
    """`ops.quantized_matmul` with packed weights, all unpacked each time: x (M, K) -> float32 (M, N)."""
    return ops.quantized_matmul(x, *pack.unpack(bits, values, scales, N, K))


@dataclass(frozen=True)
class Quantized:
    """y = x W^T + b with W in int8 or int4, and x rounded to int8 group by group.

    bits            8 or 4
    values, scales  W as `kernels.pack` lays it out
    N, K            outputs and inputs
    ops             the backend's vocabulary
    """

    bits: int
    values: np.ndarray
    scales: np.ndarray
    N: int
    K: int
    bias: np.ndarray | None
    ops: Any

    @property
    def nbytes(self) -> int:
        return self.values.nbytes + self.scales.nbytes

    def __call__(self, x: np.ndarray) -> np.ndarray:
        y = self.ops.packed_matmul(x, self.bits, self.values, self.scales, self.N, self.K)
        if self.bias is not None:
            y += self.bias
        return y


# The table of embeddings: token ids (T,) -> float32 (T, D). Only the rows asked for are read.
Embedding = Callable[[np.ndarray], np.ndarray]


class Norm(NamedTuple):
    """Gain and bias of a LayerNorm, (n,) each."""

    weight: np.ndarray
    bias: np.ndarray
