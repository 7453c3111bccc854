"""Stages of which a candidate has some rows only: the first generated tokens, or the last positions."""

from collections.abc import Mapping
from math import prod

import numpy as np

from mvlm_np.golden.stages import without_leading_axes

TAIL = ".tail"


def in_rows(name: str, shape: tuple[int, ...], found: np.ndarray) -> np.ndarray:
    """An array of a stage of this shape with the stage's number of axes, whatever its number of rows is.

    A raw file is numbers without a shape: rows of the golden's width, if there are not as many numbers as the
    golden has. If there are, their axes may stand in another order, but for generated tokens, which come one
    by one. What fits in no such way is given back as it is.
    """
    found, axis = without_leading_axes(found, len(shape)), row_axis(shape)
    width = prod(shape) // max(shape[axis], 1)
    by_row = found.size != prod(shape) or name.startswith("decode.")
    if found.ndim == 1 < len(shape) and by_row and width and found.size % width == 0:
        return found.reshape(*shape[:axis], -1, *shape[axis + 1 :])
    return found


def row_axis(shape: tuple[int, ...]) -> int:
    """The axis of positions in a stage of the decoder: (T, D), or (KV, T, d)."""
    return 1 if len(shape) == 3 else 0


def excerpt(
    name: str, shape: tuple[int, ...], found: np.ndarray, fed: int | None = None
) -> tuple[slice, slice] | None:
    """Which rows of the golden's stage, and which of the candidate's, are to be compared; None: all with all.

    found  as `in_rows` gives it
    fed    how many of the golden's generated ids the candidate has fed; None: as many as it has rows
    """
    axis = row_axis(shape)
    if found.ndim != len(shape) or any(
        a != b for i, (a, b) in enumerate(zip(found.shape, shape, strict=True)) if i != axis
    ):
        return None
    ours, theirs = shape[axis], found.shape[axis]
    n = min(ours, theirs)
    if name.startswith("decode."):
        n = n if fed is None else min(n, fed)
        return (slice(n), slice(n)) if n < ours else None
    if (name == "logits" or name.endswith(TAIL)) and ours != theirs:
        return slice(ours - n, None), slice(theirs - n, None)
    return None


def partner(name: str, there: Mapping[str, object]) -> str | None:
    """The name under which a stage is there: its own, or that of its last positions or of the whole of it."""
    other = name.removesuffix(TAIL) if name.endswith(TAIL) else name + TAIL
    return next((n for n in (name, other) if n in there), None)
