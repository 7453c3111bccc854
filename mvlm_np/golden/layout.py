"""What stands where in a stage: positions x channels, words for places, other orders of the same numbers."""

from collections.abc import Iterator
from itertools import permutations
from math import isqrt, prod

import numpy as np

MOST = 2304  # slices that are matched with each other: the square of their number must fit in memory
SAMPLE = 256  # numbers by which two slices are told apart
PROBES = 8


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


# ---------------------------------------------------------------- words for places


class Places:
    """Words for the rows and columns of a stage's matrix.

    image  the decoder's positions that the picture takes up, as a range, where that is known
    """

    def __init__(self, name: str, shape: tuple[int, ...], image: range | None = None):
        self.name, self.shape, self.image = name, shape, image
        turned = [shape[axis] for axis in axes(name, len(shape))]
        self.channels = turned[-1] if turned else 1
        self.heads = len(shape) == 3 and name.startswith("decoder.")

    def row(self, i: int) -> str:
        name = self.name
        if name == "pixel_values":
            return f"row {i}"
        if name.startswith("vision."):
            side = isqrt(self.shape[0])
            with_class = side * side != self.shape[0]
            if with_class and i == 0:
                return "the class token"
            row, column = divmod(i - with_class, side)
            return f"patch {i - with_class} (row {row}, column {column})"
        if name.startswith("projector."):
            side = isqrt(prod(self.shape[1:]) if len(self.shape) == 3 else self.shape[0])
            return f"token {i} (row {i // side}, column {i % side})"
        if name.startswith("decode."):
            return f"generated token {i}"
        if self.image and i in self.image:
            return f"position {i} (image token {i - self.image.start})"
        return f"position {i}"

    def column(self, i: int) -> str:
        if self.name == "pixel_values":
            return f"{'RGB'[i // self.channels % 3]}, column {i % self.channels}"
        if self.heads:
            return f"head {i // self.channels}, element {i % self.channels}"
        return f"channel {i}"

    def rows(self, wrong: np.ndarray) -> str:
        """Words for a set of rows (a mask), if there are good ones."""
        n, at = len(wrong), np.flatnonzero(wrong)
        if len(at) == n:
            return f"all {n} {self._plural()}"
        if len(at) == 1:
            return self.row(int(at[0]))
        if self.image and (at >= self.image.start).all() and (at < self.image.stop).all():
            return f"the picture's positions only ({len(at)} of {len(self.image)})"
        if self.image and not np.isin(at, np.array(self.image)).any():
            return f"the text's positions only ({len(at)} of {n - len(self.image)})"
        if self.name.startswith("vision.") and len(at) == n - 1 and not wrong[0]:
            return f"all {n - 1} patches, but not the class token"
        if at[-1] - at[0] == len(at) - 1:
            return f"{self._plural()} {at[0]} to {at[-1]} of {n}"
        return f"{len(at)} of {n} {self._plural()}"

    def columns(self, wrong: np.ndarray) -> str:
        n, at = len(wrong), np.flatnonzero(wrong)
        if len(at) == n:
            return "all channels"
        if len(at) <= 4:
            return ", ".join(self.column(int(i)) for i in at)
        return f"{len(at)} of {n} channels"

    def _plural(self) -> str:
        if self.name == "pixel_values":
            return "rows"
        if self.name.startswith("vision."):
            return "patches"
        if self.name.startswith("decode."):
            return "generated tokens"
        return "tokens" if self.name.startswith("projector.") else "positions"


# ---------------------------------------------------------------- other orders of the same numbers


def arrangements(shape: tuple[int, ...], found: np.ndarray) -> Iterator[tuple[tuple[int, ...], np.ndarray]]:
    """The ways to read an array as one of `shape`: (order of axes in which it lies there, the array so read).

    Axes may be merged or split in it, and axes of length 1 added, as long as the order of its numbers is
    that of some order of the axes. The first is the order of `shape` itself.
    """
    squeezed = tuple(n for n in found.shape if n != 1)
    for order in permutations(range(len(shape))):
        laid = tuple(shape[axis] for axis in order)
        if prod(laid) == found.size and _refines(tuple(n for n in laid if n != 1), squeezed):
            yield order, found.reshape(laid).transpose(np.argsort(order))


def _refines(a: tuple[int, ...], b: tuple[int, ...]) -> bool:
    """Whether two shapes of the same size can be one array with axes merged or split: no axis straddles."""

    def ends(shape: tuple[int, ...]) -> set[int]:
        return set(np.cumprod(shape, dtype=np.int64).tolist())

    return ends(a) <= ends(b) or ends(b) <= ends(a)


def permutation(golden: np.ndarray, found: np.ndarray, axis: int, allowed: float) -> np.ndarray | None:
    """The order p of the slices along an axis with found[i] = golden[p[i]], or None if there is none.

    Slices are equal when their distance, as a part of the golden slice's norm, is at most `allowed`.
    """
    n = golden.shape[axis]
    g, f = (np.moveaxis(a, axis, 0).reshape(n, -1) for a in (golden, found))
    step = max(1, g.shape[1] // SAMPLE)
    g, f = (np.ascontiguousarray(a[:, ::step], np.float32) for a in (g, f))
    scale = np.maximum((g * g).sum(1), (g * g).sum() / n * 1e-6)
    moved = ((f - g) ** 2).sum(1) > allowed**2 * scale
    at = np.flatnonzero(moved)
    if not 2 <= len(at) <= MOST:
        return None
    # Only what is out of place is matched. |f - g|^2 = |f|^2 - 2 f g + |g|^2 cancels, hence float64.
    a, b = f[at].astype(np.float64), g[at].astype(np.float64)
    limit = max(allowed, 1e-6) ** 2 * scale[at]
    few = np.unique(np.linspace(0, len(at) - 1, PROBES).astype(int))
    for probed in (few, slice(None)):  # most often there is no permutation, which a few slices tell
        near = (a[probed] ** 2).sum(1)[:, None] - 2 * (a[probed] @ b.T) + (b * b).sum(1)[None]
        fits = near <= limit
        if not fits.any(1).all():
            return None
    order, taken = np.arange(n), np.zeros(len(at), bool)
    for i in range(len(at)):
        free = np.flatnonzero(fits[i] & ~taken)
        if not len(free):
            return None
        j = free[near[i, free].argmin()]
        taken[j] = True
        order[at[i]] = at[j]
    return order


def describe_permutation(order: np.ndarray) -> str:
    """Words for the order of slices along an axis. Slices that are alike may seem to be in their place."""
    n = len(order)
    moved = np.flatnonzero(order != np.arange(n))

    def is_like(other: np.ndarray) -> bool:
        return bool((order[moved] == other[moved]).all())

    if len(moved) == 2:
        return f"{moved[0]} and {moved[1]} are swapped"
    if is_like(np.arange(n)[::-1]):
        return "they stand in reverse"
    for first in (0, 1):  # a class token before the grid stays where it is
        side = isqrt(n - first)
        grid = np.arange(first, first + side**2).reshape(side, side).T.ravel()
        if first + side**2 == n and is_like(np.r_[np.arange(first), grid]):
            return "they stand column by column instead of row by row"
    shift = int(order[moved[0]] - moved[0]) % n
    if is_like(np.roll(np.arange(n), -shift)):
        return f"they are shifted: number {shift} stands first"
    halves = np.arange(n - n % 2).reshape(2, -1)
    if n % 2 == 0 and is_like(halves.T.ravel()):
        return "their two halves are interleaved"
    if n % 2 == 0 and is_like(np.argsort(halves.T.ravel())):
        return "every second one stands first, then the others"
    return f"{len(moved)} of {n} stand in another's place"
