"""Rounding weights to int8, int4 and uint4: a group of 32 columns shares a scale, in uint4 a minimum as well.

A matrix is rounded in two steps, which may be taken apart: `find_factors` looks at groups of columns and
chooses what they are rounded by, and `round_with` rounds columns with that.

int8    weight = scale * q: scale = max |w| / 127.
int4    weight = scale * q: scale = (the w of largest magnitude) / -8, so that this w is exact and all 16
        values are used; or, at quality "high", whichever of several scales leaves the smallest squared error.
uint4   weight = scale * q - minimum: 16 values from the smallest w of the group to its largest; or, at
        quality "high", whichever of several such grids leaves the smallest squared error. A minimum is not
        negative, so the smallest value is 0 at most. Then scales and minima are rounded to whole numbers,
        0 .. 255, of what their super-block of 8 groups counts them in: 1/255 of the largest. A super-block
        where groups above 0 outweigh those below is rounded upside down, as -w: then the largest value is 0
        at least, and what it counts in is negative.

These are the grids of GGUF's Q8_0, Q4_0 and Q4_K (whose whole numbers go to 63); only the choice differs.

What groups count in is float16. A group of int8 or int4 whose scale is 0 there (no weight above 127 x 2^-25,
or 3.8e-6, in int8, and 8 x 2^-25, or 2.4e-7, in int4) becomes zeros. In uint4 it is at least 2^-24, so scales
and minima up to 2^-25, or 3e-8, become 0. What would be infinite in float16 (from 65520 on) cannot be stored
and is a CheckpointError, as are weights that are not finite.
"""

import numpy as np

from mvlm_np.errors import CheckpointError
from mvlm_np.kernels.pack import GROUP, Rounded
from mvlm_np.ops import SUPER, group_factors

# Factors on the plain 4-bit scale that quality "high" tries. Shrinking cuts the extreme weights a
# little and makes the rest finer; 1 keeps the plain choice among the candidates.
CANDIDATES = (1.0, 0.96, 0.92, 0.88, 0.84, 0.8)
BLOCK = 1 << 17  # weights that are rounded at a time: few enough to stay in a cache
LIMITS = {"int8": (-127, 127), "int4": (-8, 7), "uint4": (0, 15)}
WHOLE = 255  # the largest whole number that a scale or minimum of uint4 is rounded to


def quantize(
    w: np.ndarray,
    kind: str,
    quality: str = "high",
    where: object = "weight",
    whole: int = WHOLE,
    importance: np.ndarray | None = None,
) -> Rounded:
    """float32 (N, K) -> q (N, K), int8 or for uint4 uint8, and its factors: see `kernels.pack.Rounded`.

    Rounds half to even. A last group of fewer than 32 columns has factors of its own, and a last super-block
    may have fewer than 8 groups. quality: "high" or "fast". `where` names the weight in errors.
    whole: the largest whole number for the scales and minima of uint4.
    importance: (K,), positive: how much each column's squared error counts, where a group's smallest error is
    looked for; all count alike unless it is given.
    """
    N, K = w.shape
    step = max(1, BLOCK // K)
    done = []
    for start in range(0, N, step):
        rows = w[start : start + step]
        factors = find_factors(rows, kind, quality, where, whole, importance)
        done.append((round_by_groups(rows, kind, *factors), *factors))
    return tuple(np.concatenate(parts) for parts in zip(*done, strict=True))


def dequantize(q: np.ndarray, scales: np.ndarray, tops: np.ndarray | None = None) -> np.ndarray:
    """What `quantize` gives -> float32 (N, K)."""
    scale, minimum = group_factors(scales, tops)
    w = q * _by_column(scale, q.shape[1])
    if minimum is not None:
        w -= _by_column(minimum, q.shape[1])
    return w


def _by_column(factors: np.ndarray, K: int) -> np.ndarray:
    """What each of K columns has of (N, groups)."""
    return np.repeat(factors, GROUP, axis=1)[:, :K]


def find_factors(
    w: np.ndarray,
    kind: str,
    quality: str = "high",
    where: object = "weight",
    whole: int = WHOLE,
    importance: np.ndarray | None = None,
) -> Rounded:
    """What the groups of float32 (N, K) are best rounded by: scales (N, groups) float16, and for uint4 scales
    (N, groups, 2) uint8 and tops (N, supers, 2) float16. `ops.group_factors` says what they stand for.

    The first column begins a group, in uint4 a super-block.
    """
    if not np.isfinite(w).all():
        raise CheckpointError(where, "holds NaN or infinity", "finite numbers", "download it again")
    if kind == "uint4":
        return _with_minima(w, quality, where, whole, importance)
    groups = _groups(w).reshape(-1, GROUP)
    extreme = np.take_along_axis(groups, np.abs(groups).argmax(-1)[:, None], -1)[:, 0]
    plain = np.abs(extreme) / 127 if kind == "int8" else extreme / -8
    scales = _storable(plain, where)
    if kind == "int4" and quality == "high":
        scales = _refined(groups, plain, scales, _counts(importance, len(w)))
    return (scales.reshape(len(w), -1),)


def round_by_groups(w: np.ndarray, kind: str, *factors: np.ndarray) -> np.ndarray:
    """q (N, K) of float32 (N, K), each group rounded by what `find_factors` gives."""
    scale, minimum = group_factors(*factors)
    q = round_with(_groups(w), kind, scale[..., None], None if minimum is None else minimum[..., None])
    return q.reshape(len(w), -1)[:, : w.shape[1]]


def round_with(w: np.ndarray, kind: str, scale: np.ndarray, minimum: np.ndarray | None = None) -> np.ndarray:
    """The nearest q of some weights: weight = scale * q, or scale * q - minimum in uint4.

    scale, minimum  float32, of the shape of w or one that spreads to it, such as (N, 1) for columns (N, n) of
                    one group: see `ops.group_factors`. Where the scale is 0, q is 0
    """
    return _round(w, scale, *LIMITS[kind], minimum).astype(np.uint8 if kind == "uint4" else np.int8)


def _groups(w: np.ndarray) -> np.ndarray:
    """(N, K) -> (N, groups, 32), filled up with zeros."""
    ragged = -w.shape[1] % GROUP
    return (np.pad(w, ((0, 0), (0, ragged))) if ragged else w).reshape(len(w), -1, GROUP)


def _storable(scales: np.ndarray, where: object) -> np.ndarray:
    largest = np.abs(scales).max(initial=0)
    if largest >= 65520:  # would round to infinity
        raise CheckpointError(where, f"has a group with the scale {largest:.5g}", "below 65520")
    return scales.astype(np.float16)


def _round(
    w: np.ndarray, scale: np.ndarray, least: int, most: int, minimum: np.ndarray | None = None
) -> np.ndarray:
    """(w + minimum) / scale as the nearest whole numbers, still float32; 0 where the scale is 0."""
    scale = scale.astype(np.float32, copy=False)
    with np.errstate(over="ignore"):
        inverse = np.divide(1, scale, where=scale != 0, out=np.zeros_like(scale))
    inverse[np.isinf(inverse)] = 0  # of a scale that float32 can hardly hold
    q = w * inverse if minimum is None else (w + minimum) * inverse
    return np.clip(np.rint(q, out=q), least, most, out=q)


def _refined(
    groups: np.ndarray, plain: np.ndarray, scales: np.ndarray, counts: np.ndarray | None
) -> np.ndarray:
    """Tries scales around the plain one, each with its least-squares fit, and takes each group's best.

    groups (n, 32), plain (n,) float32, scales (n,) float16, the plain ones -> (n,) float16
    counts: see `_counts`
    """
    # A group to a column: what is done to every group is done to long rows, at which NumPy is fast.
    groups = np.ascontiguousarray(groups.T)

    def error(scales: np.ndarray) -> np.ndarray:
        difference = _round(groups, scales, -8, 7)
        difference *= scales.astype(np.float32)
        np.subtract(groups, difference, out=difference)
        return _dot(difference, difference, counts)

    least = error(scales)
    for factor in CANDIDATES:
        q = _round(groups, (plain * factor).astype(np.float16), -8, 7)
        # Given the integers, the scale of smallest squared error is <w, q> / <q, q>.
        qq = _dot(q, q, counts)
        fitted = np.divide(_dot(groups, q, counts), qq, where=qq != 0, out=np.zeros_like(qq))
        fitted = np.clip(fitted, -65504, 65504).astype(np.float16)
        fitted_error = error(fitted)
        scales = np.where(fitted_error < least, fitted, scales)
        least = np.minimum(fitted_error, least)
    return scales


def _counts(importance: np.ndarray | None, N: int, size: int = GROUP) -> np.ndarray | None:
    """What the error of each weight counts in its group, 1 in the mean: float32 (size, groups of N rows).

    importance  (K,), filled up to whole groups of `size`; None: all count the same
    """
    if importance is None:
        return None
    groups = np.pad(importance, (0, -len(importance) % size), mode="edge").reshape(-1, size)
    counts = (groups / groups.mean(1, keepdims=True)).astype(np.float32)
    return np.ascontiguousarray(np.tile(counts, (N, 1)).T)


def _dot(a: np.ndarray, b: np.ndarray, counts: np.ndarray | None) -> np.ndarray:
    """Sums of products within each group."""
    return np.einsum("ig,ig->g", a if counts is None else a * counts, b)


def _sum(a: np.ndarray, counts: np.ndarray | None) -> np.ndarray:
    """Sums within each group."""
    return a.sum(0) if counts is None else np.einsum("ig,ig->g", a, counts)


# ---------------------------------------------------------------- with minima


def _with_minima(
    w: np.ndarray, quality: str, where: object, whole: int, importance: np.ndarray | None
) -> Rounded:
    """`find_factors` for uint4."""
    N, K = w.shape
    starts = np.arange(0, K, GROUP)
    lows, highs = np.minimum.reduceat(w, starts, axis=1), np.maximum.reduceat(w, starts, axis=1)
    largest = max(highs.max(initial=0), -lows.min(initial=0))
    _storable(np.array([largest / whole]), where)
    of_supers = np.arange(0, len(starts), SUPER)
    above, below = (
        np.add.reduceat(np.maximum(a, 0), of_supers, axis=1, dtype=np.float64) for a in (lows, -highs)
    )
    signs = np.where(above > below, np.float16(-1), np.float16(1))  # (N, supers)
    if (signs < 0).any():
        w = w * np.repeat(signs, SUPER * GROUP, axis=1)[:, :K]
    found, cut = list[np.ndarray](), K // GROUP * GROUP
    for own in (slice(cut), slice(cut, K)):  # whole groups, and a shorter one
        if (part := w[:, own]).size:
            size = min(GROUP, part.shape[1])
            counts = _counts(None if importance is None else importance[own], N, size)
            found.append(_grids(part.reshape(-1, size), quality, counts).reshape(N, -1, 2))
    scales, tops = _counted(np.concatenate(found, axis=1), whole, where)
    return scales, tops * signs[..., None]


def _counted(both: np.ndarray, whole: int, where: object) -> Rounded:
    """Scales and minima, float32 (N, groups, 2), none of them negative: uint8 (N, groups, 2), and what they
    are counted in, float16 (N, supers, 2)."""
    most = np.maximum.reduceat(both, np.arange(0, both.shape[1], SUPER), axis=1)
    tops = _storable(most / whole, where)
    too_small = most > tops * (whole + np.float32(0.5))  # as the nearest of float16's denormals may be
    tops[too_small] = np.nextafter(tops[too_small], np.float16(1))
    scales = _round(both, np.repeat(tops, SUPER, axis=1)[:, : both.shape[1]], 0, whole)
    return scales.astype(np.uint8), tops


def recount(rounded: Rounded, whole: int) -> Rounded:
    """Weights of uint4 with scales and minima of `whole` at most. Super-blocks where larger ones are have
    them counted anew, and their weights rounded to that; the others stay as they are.
    """
    q, scales, tops = rounded
    scale, minimum = group_factors(scales, tops)
    assert minimum is not None
    counted, counts_in = _counted(np.abs(np.stack([scale, minimum], axis=-1)), whole, "weight")
    of_supers = np.arange(0, scales.shape[1], SUPER)
    fits = np.maximum.reduceat(scales.max(-1), of_supers, axis=1)[..., None] <= whole  # (N, supers, 1)
    new_tops = np.where(fits, tops, np.copysign(counts_in, tops))
    new_scales = np.where(np.repeat(fits, SUPER, axis=1)[:, : scales.shape[1]], scales, counted)
    again = round_by_groups(dequantize(q, scales, tops), "uint4", new_scales, new_tops)
    kept = np.repeat(fits[..., 0], SUPER * GROUP, axis=1)[:, : q.shape[1]]
    return np.where(kept, q, again), new_scales, new_tops


def _grids(groups: np.ndarray, quality: str, counts: np.ndarray | None) -> np.ndarray:
    """The scale and the minimum, float32 (n, 2), of groups (n, size); counts: see `_counts`."""
    # A group to a column: what is done to every group is done to long rows, at which NumPy is fast.
    x = np.array(groups.T, order="C")
    low = np.minimum(x.min(0), 0)
    x -= low  # 0 .. 15 scales
    plain = x.max(0) / 15
    scale, moved = plain, np.zeros_like(plain)  # x is scale * q - moved

    if quality == "high":
        size = len(x) if counts is None else counts.sum(0)
        sums, least = _sum(x, counts), _error(x, scale, moved, counts)
        for factor in CANDIDATES:
            narrow = plain * np.float32(factor)
            q = _round(x, narrow, 0, 15, (narrow - plain) * np.float32(7.5))  # both ends are cut
            # Given the integers, the grid of smallest squared error is a straight line through them.
            qs = _sum(q, counts)
            spread = _dot(q, q, counts) - qs * qs / size
            slope = np.divide(_dot(q, x, counts) - qs * sums / size, spread, where=spread > 0, out=narrow)
            offset = np.clip((slope * qs - sums) / size, low, 0)  # the minimum is from 0 to -low
            error = _error(x, slope, offset, counts)
            better = error < least
            scale, moved = np.where(better, slope, scale), np.where(better, offset, moved)
            least = np.minimum(error, least)
    return np.stack([scale, moved - low], axis=-1)


def _error(x: np.ndarray, scale: np.ndarray, minimum: np.ndarray, counts: np.ndarray | None) -> np.ndarray:
    """The squared error of each group, when x (size, n) is rounded."""
    difference = _round(x, scale, 0, 15, minimum)
    difference *= scale
    difference -= minimum
    np.subtract(x, difference, out=difference)
    return _dot(difference, difference, counts)
