"""A stage as a matrix, positions x channels: what stands where in it."""

from math import prod

import numpy as np


def axes(name: str, ndim: int) -> tuple[int, ...]:
    """The order of axes in which a stage is a matrix: first those that count positions, then channels."""
    if ndim == 3:
        heads_or_rows = name == "pixel_values" or ".keys." in name or ".values." in name
        return (1, 0, 2) if heads_or_rows else (1, 2, 0)  # (KV, T, d) -> (T, KV, d); (D, h, w) -> (h, w, D)
    return tuple(range(ndim))


def matrix(name: str, array: np.ndarray) -> np.ndarray:
    """A stage as positions x channels.

    (T, D) as it is; keys and values (KV, T, d) -> (T, KV*d); pictures (D, h, w) -> (h*w, D); pixel values
    (3, h, w) -> (h, 3*w), since the channels of a pixel are too few to see anything.
    """
    return array.transpose(axes(name, array.ndim)).reshape(rows(name, array.shape), -1)


def rows(name: str, shape: tuple[int, ...]) -> int:
    """How many positions a stage of this shape has."""
    if len(shape) < 3:
        return shape[0] if len(shape) == 2 else 1
    return shape[1] if axes(name, 3) == (1, 0, 2) else prod(shape[1:])
