"""The numbers of a stage in another order: axes that are merged or permuted, rows that stand elsewhere."""

from collections.abc import Iterator
from itertools import permutations
from math import isqrt, prod

import numpy as np

MOST = 2304  # slices that are matched with each other: the square of their number must fit in memory
SAMPLE = 256  # numbers by which two slices are told apart
PROBES = 8  # slices that are tried first

Axes = tuple[int, ...]  # an order of axes, as `np.transpose` takes it


def arrangements(shape: tuple[int, ...], found: np.ndarray) -> Iterator[tuple[Axes, np.ndarray]]:
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
