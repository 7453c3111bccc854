"""Compares a candidate with a golden: which stage is the first that is wrong, by how much, and where."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf, log10

import numpy as np

from mvlm_np.golden.candidates import Candidate
from mvlm_np.golden.format import Golden, order
from mvlm_np.golden.tolerance import Bound, bounds

RIGHT, WRONG, REORDERED, NOT_FINITE, SHAPE, MISSING = (
    "right", "wrong", "reordered", "not finite", "shape", "missing",
)  # fmt: skip
TINY = 2.0**-126  # the smallest normal float32: a stage of zeros has no relative error
FAILED = {WRONG, REORDERED, NOT_FINITE, SHAPE}


@dataclass(frozen=True)
class Distance:
    """How far an array lies from the golden's.

    worst     the largest difference
    relative  the same, as a part of the golden's largest magnitude
    rms       |candidate - golden| / |golden|, Euclidean norms
    cosine    of the angle between the two, as vectors
    at        where the largest difference is
    """

    worst: float
    relative: float
    rms: float
    cosine: float
    at: tuple[int, ...]

    @property
    def snr(self) -> float:
        """Signal to noise in dB, 20 log10 (1 / rms)."""
        return -20 * log10(self.rms) if self.rms > 0 else inf


@dataclass(frozen=True)
class StageResult:
    """A stage's verdict. `distance` and `bound` are None where nothing could be measured.

    where  what the largest difference, or all of it, is at, in words
    note   what a reader should know: the order of axes that fits, the shape that was found
    """

    name: str
    verdict: str
    distance: Distance | None = None
    bound: Bound | None = None
    where: str = ""
    note: str = ""

    @property
    def failed(self) -> bool:
        return self.verdict in FAILED


@dataclass(frozen=True)
class Comparison:
    """The result of a whole comparison, stages in the order in which they are computed."""

    kind: str
    stages: list[StageResult]
    notes: list[str] = field(default_factory=list)

    @property
    def first_wrong(self) -> StageResult | None:
        return next((s for s in self.stages if s.failed), None)

    @property
    def last_right(self) -> StageResult | None:
        """The last stage before the first wrong one that was given and is right."""
        before = self.stages[: self.stages.index(self.first_wrong)] if self.first_wrong else self.stages
        return next((s for s in reversed(before) if s.verdict == RIGHT), None)

    @property
    def right(self) -> bool:
        return self.first_wrong is None


def compare(golden: Golden, candidate: Candidate, kind: str = "float32") -> Comparison:
    """Every stage of the golden against the candidate's, in a precision class of `tolerance.CLASSES`."""
    return Comparison(kind, compare_stages(golden.stages, candidate.stages, bounds(golden, kind)))


def compare_stages(
    golden: Mapping[str, np.ndarray], candidate: Mapping[str, np.ndarray], allowed: Mapping[str, Bound]
) -> list[StageResult]:
    """The same for plain dicts of arrays."""
    results = []
    for name in sorted(golden, key=order):
        if name not in candidate:
            results.append(StageResult(name, MISSING))
            continue
        results.append(compare_stage(name, golden[name], candidate[name], allowed[name]))
        for stages in (golden, candidate):
            if forget := getattr(stages, "forget", None):
                forget(name)
    return results


def compare_stage(name: str, golden: np.ndarray, candidate: np.ndarray, allowed: Bound) -> StageResult:
    """One stage. golden without batch axis; candidate with any number of leading axes of 1."""
    found = candidate
    while found.ndim > golden.ndim and len(found) == 1:
        found = found[0]
    if found.shape != golden.shape and found.ndim == 1 and found.size == golden.size:
        found = found.reshape(golden.shape)
    if found.shape != golden.shape:
        return StageResult(name, SHAPE, note=f"has the shape {found.shape} instead of {golden.shape}")
    if golden.dtype.kind == "i":
        same = np.array_equal(found, golden)
        return StageResult(name, RIGHT if same else WRONG)
    if not np.isfinite(found).all():
        return StageResult(name, NOT_FINITE, note="NaN or infinity")
    d = distance(golden, found)
    right = d.rms <= allowed.rms and d.relative <= allowed.relative
    return StageResult(name, RIGHT if right else WRONG, d, allowed)


def distance(golden: np.ndarray, found: np.ndarray) -> Distance:
    """How far `found` lies from `golden`; the same shape, finite."""
    g, f = golden.astype(np.float64).ravel(), found.astype(np.float64).ravel()
    e = f - g
    at = int(np.abs(e).argmax())
    worst, norm = float(abs(e[at])), float(np.sqrt(g @ g))
    rms = float(np.sqrt(e @ e))
    fnorm = float(np.sqrt(f @ f))
    return Distance(
        worst,
        worst / max(float(np.abs(g).max()), TINY),
        rms / max(norm, TINY),
        float(g @ f / (norm * fnorm)) if norm and fnorm else float(norm == fnorm),
        tuple(int(i) for i in np.unravel_index(at, golden.shape)),
    )
