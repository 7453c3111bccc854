"""A weight that knows how to multiply. The precision of a model is the type of its weights."""

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np


class Linear(Protocol):
    """y = x W^T + b for x (..., K) -> (..., N), in whatever precision W is kept."""

    def __call__(self, x: np.ndarray) -> np.ndarray: ...


@dataclass(frozen=True)
class Dense:
    """y = x W^T + b in floating point.

    weight (N, K), bias (N,) or None; x (..., K) -> (..., N). The product is BLAS's: its summation
    order, and so the last bits, may change with the number of rows and of BLAS threads.
    """

    weight: np.ndarray
    bias: np.ndarray | None = None

    def __call__(self, x: np.ndarray) -> np.ndarray:
        y = x @ self.weight.T
        if self.bias is not None:
            y += self.bias
        return y


class Norm(NamedTuple):
    """Gain and bias of a LayerNorm, (n,) each."""

    weight: np.ndarray
    bias: np.ndarray
