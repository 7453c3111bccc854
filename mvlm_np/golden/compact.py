"""A stage in a few kilobytes, which still shows that a candidate departs from it, how far, and where.

A sketch of a stage's matrix (positions x channels) keeps

    rows     for each position, the sum of its channels, each with a sign of its own
    columns  for each channel, the sum over the positions, likewise
    sample   some channels of some positions, as they are

The signs are pseudo-random and fixed. An error in one number shows in its row's sum and in its column's,
undiminished, and so names its place; of many errors the squares add up on average, so that the norm of the
difference between two sketches is about that of the difference between the two stages.
"""

import hashlib
from dataclasses import dataclass
from math import prod, sqrt

import numpy as np

from mvlm_np.golden.layout import matrix, rows

MOST = 2048  # sums along an axis; neighbours share one where the axis is longer
SAMPLE = (4, 128)  # positions, channels


@dataclass(frozen=True)
class Sketch:
    """Shape, norm, largest magnitude and SHA-256 (of its float32 bytes) of a stage; what is kept."""

    shape: tuple[int, ...]
    norm: float
    peak: float
    sha256: str
    rows: np.ndarray
    columns: np.ndarray
    sample: np.ndarray

    def check(self, name: str) -> None:
        """ValueError: the parts are not of the sizes that the shape asks for."""
        T = rows(name, self.shape)
        wanted = [(min(T, MOST),), (min(prod(self.shape) // T, MOST),)]
        if [self.rows.shape, self.columns.shape] != wanted or self.sample.ndim != 2:
            raise ValueError(f"the sketch of {name} does not fit its shape")


def sketch(name: str, array: np.ndarray) -> Sketch:
    """What a compact golden keeps of a stage, which has no batch axis."""
    m = matrix(name, array)
    squares = sum(float(np.square(row, dtype=np.float64).sum()) for row in m)
    return Sketch(array.shape, sqrt(squares), float(np.abs(m).max()), sha256(array), *sums(m), sample(m))


def sha256(array: np.ndarray) -> str:
    """Of the numbers as float32, in C order."""
    return hashlib.sha256(np.ascontiguousarray(array, np.float32).data).hexdigest()


def sums(m: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The signed sums of a matrix by row and by column, float32, in at most `MOST` bins each."""
    T, C = m.shape
    row_signs, column_signs = signs(T), signs(C)
    by_row, by_column = np.empty(T), np.zeros(C)
    step = max(1, (1 << 20) // C)
    for start in range(0, T, step):
        part = m[start : start + step].astype(np.float64)
        by_row[start : start + step] = part @ column_signs
        by_column += row_signs[start : start + step] @ part
    return binned(by_row * row_signs), binned(by_column * column_signs)


def binned(values: np.ndarray) -> np.ndarray:
    """Sums of neighbours, so that at most `MOST` remain."""
    n, bins = len(values), min(len(values), MOST)
    return np.add.reduceat(values, np.arange(bins) * n // bins).astype(np.float32)


def sample(m: np.ndarray) -> np.ndarray:
    at = [np.unique(np.linspace(0, n - 1, most).astype(int)) for n, most in zip(m.shape, SAMPLE, strict=True)]
    return m[np.ix_(*at)].astype(np.float32)


def signs(n: int) -> np.ndarray:
    """+1 or -1 for 0 .. n-1: the top bit of SplitMix64 (Steele et al. 2014) of the index."""
    with np.errstate(over="ignore"):
        z = (np.arange(n, dtype=np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.where((z ^ (z >> np.uint64(31))) >> np.uint64(63), 1.0, -1.0)
