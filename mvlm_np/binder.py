"""How a part of the model asks for its weights: by their names in a checkpoint, with the shapes it needs.

A part asks twice: first a `Manifest`, which only notes what is wanted, so that everything wrong with a
checkpoint is known before a byte of it is read; then a binder that reads files (`checkpoints.loader`).
"""

from abc import ABC, abstractmethod
from copy import copy
from typing import Self

import numpy as np

from mvlm_np.linear import Dense, Embedding, Linear, Norm

# Where a checkpoint of MobileVLM keeps CLIP's own names, and the projector's.
VISION_TOWER, PROJECTOR = "model.vision_tower.vision_tower.", "model.mm_projector"


class Binder(ABC):
    """Hands out weights by name. `at(module)` is the same binder inside that module."""

    def __init__(self, prefix: str = ""):
        self.prefix = prefix

    def at(self, module: str) -> Self:
        """The same binder, inside a module of the checkpoint."""
        inner = copy(self)
        inner.prefix = f"{self.prefix}{module}."
        return inner

    @abstractmethod
    def array(self, name: str, *shape: int) -> np.ndarray:
        """The float32 weight `name` of exactly this shape."""

    def linear(self, name: str, N: int, K: int, bias: bool = True) -> Linear:
        """The linear layer `name`, K inputs -> N outputs."""
        return Dense(self.array(f"{name}.weight", N, K), self.array(f"{name}.bias", N) if bias else None)

    def conv1x1(self, name: str, N: int, K: int, bias: bool = True) -> Linear:
        """A 1 x 1 convolution, which is a linear layer over the channels of each pixel."""
        weight = self.array(f"{name}.weight", N, K, 1, 1).reshape(N, K)
        return Dense(weight, self.array(f"{name}.bias", N) if bias else None)

    def embedding(self, name: str, N: int, D: int) -> Embedding:
        """The table `name` of N embeddings."""
        return self.array(f"{name}.weight", N, D).__getitem__

    def norm(self, name: str, n: int) -> Norm:
        """Gain and bias of a LayerNorm over n features."""
        return Norm(self.array(f"{name}.weight", n), self.array(f"{name}.bias", n))


_ZERO = bytes(4)


class Manifest(Binder):
    """Notes what is asked for, and hands out zeros that occupy no memory.

    shapes    of every weight
    matrices  names of those that a precision applies to, the weights of the linear layers
    """

    def __init__(self) -> None:
        super().__init__()
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.matrices: set[str] = set()

    def array(self, name: str, *shape: int) -> np.ndarray:
        """Zeros of this shape."""
        self.shapes[self.prefix + name] = shape
        return np.ndarray(shape, np.float32, _ZERO, strides=(0,) * len(shape))

    def linear(self, name: str, N: int, K: int, bias: bool = True) -> Linear:
        self.matrices.add(f"{self.prefix}{name}.weight")
        return super().linear(name, N, K, bias)

    def conv1x1(self, name: str, N: int, K: int, bias: bool = True) -> Linear:
        self.matrices.add(f"{self.prefix}{name}.weight")
        return super().conv1x1(name, N, K, bias)
