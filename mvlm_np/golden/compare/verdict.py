"""The verdict on one stage of a candidate: right, wrong, or the golden's numbers in another order."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import permutations

import numpy as np

from mvlm_np.golden.compact import Sketch, sha256
from mvlm_np.golden.compare.orders import Axes, arrangements, describe_permutation, permutation
from mvlm_np.golden.compare.places import Places, place
from mvlm_np.golden.compare.tolerance import ALIKE, Bound
from mvlm_np.golden.layout import axes, matrix
from mvlm_np.golden.measure import TINY, Distance, Measured, distance, measure, measure_sketch
from mvlm_np.golden.stages import without_leading_axes

RIGHT = "right"  # within the bound
WRONG = "wrong"  # beyond it
REORDERED = "reordered"  # the golden's numbers, in other places
SHAPE = "shape"  # not the golden's size
NOT_FINITE = "not finite"  # NaN or infinity
MISPLACED = "misplaced"  # the dump holds another stage's numbers, see `misplaced`
MISSING = "missing"  # not in the candidate
UNJUDGED = "not judged"  # the precision class alone may change it that much
FAILED = (WRONG, REORDERED, SHAPE, NOT_FINITE)


@dataclass(frozen=True)
class StageResult:
    """A stage's verdict. `distance` and `bound` are None where nothing could be measured.

    where  the place of the error, in words
    note   what a reader should know: the order of axes that fits, the shape that was found
    map    errors as a picture, float32 (rows, columns): the largest difference in each cell, as a part of
           the golden's largest magnitude
    profile  the rms error of each row of the stage's matrix, as a part of the golden's rms
    """

    name: str
    verdict: str
    distance: Distance | None = None
    bound: Bound | None = None
    where: str = ""
    note: str = ""
    map: np.ndarray | None = field(default=None, repr=False, compare=False)
    profile: np.ndarray | None = field(default=None, repr=False, compare=False)

    @property
    def failed(self) -> bool:
        return self.verdict in FAILED


def compare_stage(
    name: str,
    golden: np.ndarray,
    found: np.ndarray,
    bound: Bound,
    image: range | None = None,
    search: bool = True,
    first: int = 0,
) -> StageResult:
    """One stage of floating-point numbers. golden: without batch axis.

    found  with any number of leading axes of 1, its axes in any order: where the shape tells that they
           stand in another order than the golden's, they are put in order, and the note says so
    image  the positions of the picture in the decoder, if they are known
    search whether to look for the golden's numbers in another order, if the stage is wrong
    first  the position of the first row
    """
    found = without_leading_axes(found, golden.ndim)
    if not np.isfinite(found).all():
        return StageResult(name, NOT_FINITE, note=_not_finite(found))
    read = _readings(golden.shape, found)
    if not read:
        return _other_size(name, golden, found, bound)

    def noted(order: Axes, more: str = "") -> str:
        return "; ".join(part for part in (_read_as(order, found, golden.shape), more) if part)

    tried = [(order, array, measure(matrix(name, golden), matrix(name, array))) for order, array in read]
    order, _, m = tried[decisive([one[2].distance.rms for one in tried])]
    if bound.admits(m.distance.rms, m.distance.relative):
        return _measured(name, RIGHT, m, bound, note=noted(order))
    if not bound.judges:
        return _measured(name, UNJUDGED, m, bound, note=noted(order))
    places = Places(name, golden.shape, image, first)
    for other, array, measured in tried if search else ():
        if reordered := _reordering(name, golden, array, bound):
            return _measured(name, REORDERED, measured, bound, note=noted(other, reordered))
    return _measured(
        name, WRONG, m, bound, place(m, bound, places), noted(order, _zeros(name, golden, found, places))
    )


def decisive(errors: Sequence[float]) -> int:
    """Which of the ways to read an array is taken, by the error of each: the first, which is the golden's own
    order, unless another one is far nearer. What is wrong is like nothing, and by chance a little less unlike
    in one order than in another."""
    best = int(np.argmin(errors))
    return best if errors[best] <= min(ALIKE, errors[0] / 2) else 0


def _zeros(name: str, golden: np.ndarray, found: np.ndarray, places: Places) -> str:
    """Words for numbers that were never written."""
    if not found.any():
        return "every number is 0: it was never written"
    if found.shape != golden.shape:
        return ""
    written, wanted = (np.asarray(matrix(name, array).any(1)) for array in (found, golden))
    empty = ~written & wanted
    return f"all 0 in {places.rows(empty)}" if empty.any() else ""


def compare_sketch(
    name: str, golden: Sketch, found: np.ndarray, bound: Bound, image: range | None = None
) -> StageResult:
    """One stage of a compact golden. Of another order of axes it sees only what the shape tells."""
    found = without_leading_axes(found, len(golden.shape))
    if not np.isfinite(found).all():
        return StageResult(name, NOT_FINITE, note=_not_finite(found))
    read = _readings(golden.shape, found)
    if not read:
        return StageResult(name, SHAPE, note=_wanted_shape(found, golden.shape))
    tried = [(order, measure_sketch(golden, matrix(name, array))) for order, array in read]
    order, m = tried[decisive([one[1].distance.rms for one in tried])]
    for other, array in read:
        if sha256(array) == golden.sha256:  # every bit is the golden's: the estimates need not be trusted
            none = Distance(0.0, 0.0, 0.0, 1.0, (0, 0))
            exact = replace(m, distance=none, map=np.zeros_like(m.map), rows=np.zeros_like(m.rows))
            order, m = other, exact
    note = _read_as(order, found, golden.shape)
    if bound.admits(m.distance.rms, m.distance.relative):
        return _measured(name, RIGHT, m, bound, note=note)
    verdict = WRONG if bound.judges else UNJUDGED
    where = place(m, bound, Places(name, golden.shape, image))
    return _measured(name, verdict, m, bound, where, note)


def _readings(shape: tuple[int, ...], found: np.ndarray) -> list[tuple[Axes, np.ndarray]]:
    """The ways to read an array as one of `shape`: as it is if it has that shape, else see `arrangements`."""
    if found.shape == shape:
        return [(tuple(range(len(shape))), found)]
    return list(arrangements(shape, found))


def _read_as(order: Axes, found: np.ndarray, shape: tuple[int, ...]) -> str:
    """What a reader should know of the way in which an array was read; nothing if its axes are in order."""
    if order == tuple(range(len(shape))):
        return ""
    return f"read as {_shape(found)} with {_order(order, shape)}"


def _measured(
    name: str, verdict: str, m: Measured, bound: Bound, where: str = "", note: str = ""
) -> StageResult:
    profile = np.sqrt(m.rows / max(m.golden_rows.mean(), TINY**2)).astype(np.float32)
    return StageResult(name, verdict, m.distance, bound, where, note, m.map, profile)


def close(bound: Bound) -> float:
    """The rms up to which numbers in another place count as the golden's.

    Neighbouring slices may be alike, so they must fit well.
    """
    return min(3 * bound.rms, 0.3)


def _reordering(name: str, golden: np.ndarray, found: np.ndarray, bound: Bound) -> str | None:
    """In which other order the golden's numbers stand here; None if they do not."""

    def right(array: np.ndarray) -> bool:
        return distance(name, golden, array).rms <= close(bound)

    for order in list(permutations(range(golden.ndim)))[1:]:
        same_shape = tuple(golden.shape[axis] for axis in order) == golden.shape
        if same_shape and right(found.transpose(order)):
            return f"transposed: {_order(order, golden.shape)}"
    for axis in range(golden.ndim):
        p = permutation(golden, found, axis, close(bound))
        if p is not None and right(np.take(found, np.argsort(p), axis)):
            return f"{_axis_name(name, golden.ndim, axis)}: {describe_permutation(p)}"
    return None


def _axis_name(name: str, ndim: int, axis: int) -> str:
    if name == "pixel_values":
        return ("colours", "rows", "columns")[axis]
    if ndim == 3 and axes(name, 3) == (1, 0, 2):
        return ("heads", "positions", "elements of each head")[axis]
    if ndim == 3:
        return ("channels", "rows", "columns")[axis]
    kind = "patches" if name.startswith("vision.") else "positions"
    return (kind, "channels")[axis] if ndim == 2 else "elements"


def _order(order: Axes, shape: tuple[int, ...]) -> str:
    return f"axes {'-'.join(map(str, order))} of the golden's {_shape(shape)}"


def _shape(value: np.ndarray | tuple[int, ...]) -> str:
    return " x ".join(map(str, value.shape if isinstance(value, np.ndarray) else value))


def _wanted_shape(found: np.ndarray, shape: tuple[int, ...]) -> str:
    return f"has the shape {_shape(found)}, wanted {_shape(shape)}"


def _not_finite(found: np.ndarray) -> str:
    bad = ~np.isfinite(found)
    nan = int(np.isnan(found).sum())
    counts = {"NaN": nan, "infinite": int(bad.sum()) - nan}
    kinds = [f"{count} {kind}" for kind, count in counts.items() if count]
    at = [int(i) for i in np.unravel_index(int(bad.argmax()), found.shape)]
    return f"{' and '.join(kinds)} of {found.size} numbers, the first at {at}"


def _other_size(name: str, golden: np.ndarray, found: np.ndarray, bound: Bound) -> StageResult:
    """A stage of another size: is it the golden with rows left out or added at one end?"""
    note = _wanted_shape(found, golden.shape)
    if found.ndim == 2 and golden.ndim == 2 and found.shape[1] == golden.shape[1]:
        extra = len(found) - len(golden)
        few = min(len(found), len(golden))
        for end, g, f in (("first", golden[-few:], found[-few:]), ("last", golden[:few], found[:few])):
            if distance(name, g, f).rms <= close(bound):
                rows = f"{abs(extra)} row{'s' * (abs(extra) > 1)}"
                what = f"with {rows} before it" if end == "first" else f"with {rows} behind it"
                note += f": it is the golden {what if extra > 0 else f'without its {end} {rows}'}"
                break
    return StageResult(name, SHAPE, note=note)
