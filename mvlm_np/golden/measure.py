"""How far one stage lies from another: in numbers, by row and by channel, and as a picture."""

from dataclasses import dataclass
from difflib import SequenceMatcher
from math import inf, log10, sqrt

import numpy as np

from mvlm_np.golden.compact import Sketch, sample, sums
from mvlm_np.golden.layout import matrix

TINY = 2.0**-126  # the smallest normal float32: a stage of zeros has no relative error
CHUNK = 1 << 18  # numbers measured at a time: their float64 copies stay in the processor's cache
MAP = (72, 96)  # cells of an error map, at most


def decibels(error: float) -> float:
    """Signal to noise of a relative error: 20 log10 (1 / error)."""
    return -20 * log10(error) if error > 0 else inf


@dataclass(frozen=True)
class Distance:
    """How far an array lies from the golden's.

    worst     the largest difference
    relative  the same, as a part of the golden's largest magnitude
    rms       |candidate - golden| / |golden|, Euclidean norms
    cosine    of the angle between the two, as vectors
    at        where the largest difference is: row and column of the stage's matrix
    """

    worst: float
    relative: float
    rms: float
    cosine: float
    at: tuple[int, int]

    @property
    def snr(self) -> float:
        """Signal to noise in dB."""
        return decibels(self.rms)


@dataclass(frozen=True)
class Measured:
    """An array against the golden's: the distance, and the energy of the error by row and by column."""

    distance: Distance
    rows: np.ndarray  # (T,) sums of squares of the error
    golden_rows: np.ndarray  # (T,) and of the golden
    columns: np.ndarray  # (C,) of the error
    map: np.ndarray  # the largest error in each cell, as a part of the golden's largest magnitude


def measure(golden: np.ndarray, found: np.ndarray) -> Measured:
    """Two finite matrices of the same shape, in chunks of rows."""
    T, C = golden.shape
    gg = ff = gf = 0.0
    worst, peak, at = -1.0, 0.0, (0, 0)
    rows, golden_rows = np.empty(T), np.empty(T)
    columns = np.zeros(C)
    first_rows, first_columns = (np.arange(k) * n // k for n, k in ((T, min(T, MAP[0])), (C, min(C, MAP[1]))))
    by_row = np.empty((T, len(first_columns)))
    step = max(1, CHUNK // C)
    for start in range(0, T, step):
        g = golden[start : start + step].astype(np.float64)
        f = found[start : start + step].astype(np.float64)
        gf += float(np.vdot(g, f))
        ff += float(np.vdot(f, f))
        peak = max(peak, float(np.max(np.abs(g))))
        np.square(g, out=g)
        gg += float(g.sum())
        golden_rows[start : start + step] = g.sum(1)
        e = np.subtract(f, golden[start : start + step], out=f)
        np.abs(e, out=e)
        here = int(e.argmax())
        if e.flat[here] > worst:
            worst, at = float(e.flat[here]), (start + here // C, here % C)
        by_row[start : start + step] = np.maximum.reduceat(e, first_columns, axis=1)
        np.square(e, out=e)
        rows[start : start + step], columns = e.sum(1), columns + e.sum(0)
    norm, length = sqrt(gg), sqrt(ff)
    cosine = gf / (norm * length) if norm and length else float(norm == length)
    distance = Distance(
        worst, worst / max(peak, TINY), sqrt(rows.sum()) / max(norm, TINY), min(1.0, cosine), at
    )
    picture = (np.maximum.reduceat(by_row, first_rows, axis=0) / max(peak, TINY)).astype(np.float32)
    return Measured(distance, rows, golden_rows, columns, picture)


def distance(name: str, golden: np.ndarray, found: np.ndarray) -> Distance:
    """How far a stage lies from the golden's: finite, the same shape."""
    return measure(matrix(name, golden), matrix(name, found)).distance


def measure_sketch(golden: Sketch, found: np.ndarray) -> Measured:
    """A finite matrix against a sketch of the golden's; the distances are estimates."""

    def norm(a: np.ndarray) -> float:
        return float(np.linalg.norm(a.astype(np.float64)))

    T, C = found.shape
    rows, columns = sums(found)
    e_rows, e_columns = (
        np.abs(a.astype(np.float64) - b) for a, b in ((rows, golden.rows), (columns, golden.columns))
    )
    g, f = golden.sample.astype(np.float64), sample(found).astype(np.float64)
    e = np.abs(f - g)
    # A sum of n errors is sqrt(n) times one of them, a single error among n is seen undiminished.
    peak = max(golden.peak, TINY)
    worst = max(float(np.max(e)), float(np.max(e_rows)) / sqrt(C), float(np.max(e_columns)) / sqrt(T))
    of_sample = max(norm(g), golden.norm * sqrt(g.size / (T * C)), TINY)
    rms = max(max(norm(e_rows), norm(e_columns)) / max(golden.norm, TINY), norm(e) / of_sample)
    both = norm(golden.rows) * norm(rows)
    cosine = float(golden.rows.astype(np.float64) @ rows / both) if both else float(golden.norm == 0)
    at = (int(e_rows.argmax()) * T // len(rows), int(e_columns.argmax()) * C // len(columns))
    d = Distance(worst, worst / peak, rms, cosine, at)
    energy = e_rows**2, e_columns**2
    picture = np.sqrt(np.outer(energy[0][: MAP[0]], energy[1][: MAP[1]]) / max(energy[1].sum(), TINY)) / peak
    golden_rows = np.full(len(rows), golden.norm**2 / len(rows))
    return Measured(d, energy[0], golden_rows, energy[1], picture.astype(np.float32))


def on_even_steps(x: np.ndarray, most: int = 256, least: int = 512) -> bool:
    """Whether an array of at least so many numbers takes few values, which lie whole steps apart, and less
    than `most` steps in all: what is left of a tensor that is quantised to 8 bits with one range."""
    if x.size < least or len(np.unique(x.ravel()[:: max(1, x.size // 4096)])) > most:
        return False
    values = np.unique(x).astype(np.float64)
    if not 2 < len(values) <= most or not np.isfinite(values).all():
        return False
    step = float(np.diff(values).min())
    steps = (values - values[0]) / step
    return bool(steps[-1] < most - 0.5 and np.abs(steps - np.rint(steps)).max() < 0.05)


# ---------------------------------------------------------------- any two arrays, in one number


def relative_error(found: np.ndarray, wanted: np.ndarray) -> float:
    """|found - wanted| / |wanted|, as `Distance.rms`, of whatever a port may have computed.

    Infinite if the shapes differ, or the places of NaN and infinity, which do not count where they agree. Of
    token ids, the part that would have to be edited.
    """
    if wanted.dtype.kind == "i":
        return 1 - SequenceMatcher(None, found.tolist(), wanted.tolist(), autojunk=False).ratio()
    if found.shape != wanted.shape:
        return inf
    f, w = found.astype(np.float64).ravel(), wanted.astype(np.float64).ravel()
    sound = np.isfinite(w)
    if not sound.all():
        if not np.array_equal(sound, np.isfinite(f)):
            return inf
        f, w = f[sound], w[sound]
    error = _norm(f - w) / max(_norm(w), TINY)
    return error if error == error else inf  # NaN where there should be none


def cosine(found: np.ndarray, wanted: np.ndarray) -> float:
    """Of the angle between two arrays as vectors, where both are finite; 0 if the shapes differ."""
    if found.shape != wanted.shape:
        return 0.0
    f, w = found.astype(np.float64).ravel(), wanted.astype(np.float64).ravel()
    sound = np.isfinite(w) & np.isfinite(f)
    f, w = f[sound], w[sound]
    return float(f @ w) / max(_norm(f) * _norm(w), TINY)


def _norm(x: np.ndarray) -> float:
    return float(np.sqrt(x @ x))
