"""Compares a candidate with a golden: which stage is the first that is wrong, by how much, and where."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import sqrt

import numpy as np

from mvlm_np.errors import GoldenError
from mvlm_np.golden.compare.candidates import Candidate
from mvlm_np.golden.compare.excerpts import excerpt, in_rows, row_axis
from mvlm_np.golden.compare.misplaced import find_twins, left_out, without
from mvlm_np.golden.compare.notes import notes
from mvlm_np.golden.compare.token_ids import compare_generated, compare_ids
from mvlm_np.golden.compare.tolerance import CLASSES, MARGIN, Bound, bounds
from mvlm_np.golden.compare.verdict import (
    MISPLACED,
    MISSING,
    RIGHT,
    UNJUDGED,
    WRONG,
    StageResult,
    compare_sketch,
    compare_stage,
)
from mvlm_np.golden.format import Golden
from mvlm_np.inputs.tokenizer import IMAGE_TOKEN

PROMPT = ("inputs_embeds", "decoder.", "logits")  # stages whose rows are positions of the prompt
ONSET = 3  # times its own level so far: there a candidate that is wrong later on begins to depart


@dataclass(frozen=True)
class Comparison:
    """The result of a whole comparison.

    kind         the precision class
    stages       in the order in which they are computed
    first_wrong  the first stage that departs from the golden, or None. Where an error grows over several
                 stages, this is where it begins, which may be within the bound
    notes        what it means and what to do, a line each
    guesses      those of the notes that are guesses at the mistake, which `explain` knows better
    """

    kind: str
    stages: list[StageResult]
    first_wrong: StageResult | None
    notes: list[str] = field(default_factory=list)
    guesses: list[str] = field(default_factory=list)

    @property
    def right(self) -> bool:
        """Whether at least one stage was judged, and none is wrong."""
        return self.first_wrong is None and any(s.verdict == RIGHT for s in self.stages)

    @property
    def last_right(self) -> StageResult | None:
        """The last stage before the first wrong one that was given and is right."""
        names = [s.name for s in self.stages]
        end = names.index(self.first_wrong.name) if self.first_wrong else len(names)
        return next((s for s in reversed(self.stages[:end]) if s.verdict == RIGHT), None)

    @property
    def between(self) -> list[str]:
        """Stages between the last right one and the first wrong one, of which nothing is known."""
        names = [s.name for s in self.stages]
        if self.first_wrong is None:
            return []
        start = names.index(self.last_right.name) + 1 if self.last_right else 0
        inside = self.stages[start : names.index(self.first_wrong.name)]
        return [s.name for s in inside if s.verdict in (MISSING, MISPLACED, UNJUDGED)]


def compare(golden: Golden, candidate: Candidate, kind: str = "float32") -> Comparison:
    """Every stage of the golden against the candidate's, in a precision class of `tolerance.CLASSES`."""
    if kind not in CLASSES:
        raise GoldenError("class", f"found {kind!r}", f"{', '.join(CLASSES[:-1])} or {CLASSES[-1]}")
    candidate, allowed = candidate.under(golden.names), bounds(golden, kind)
    ids = golden.stages.get("input_ids")
    image = picture_positions(golden, ids) if ids is not None else None
    tokens, comparable = compare_generated(golden, candidate, allowed, kind)
    results: list[StageResult] = []
    measured: list[StageResult] = []
    rms = 0.0
    steps = 1
    for name in golden.names:
        if name not in candidate.stages:
            result = StageResult(name, MISSING)
        elif name in tokens:
            result = tokens[name]
        elif name in golden.stages and golden.stages[name].dtype.kind == "i":
            result = compare_ids(name, golden.stages[name], candidate.stages[name])
        else:
            bound = allowed[name].grown_from(rms, steps)
            found = in_rows(name, golden.shape(name), candidate.stages[name])
            where = image if name.startswith(PROMPT) else None
            rows = excerpt(name, golden.shape(name), found, comparable)
            if rows is not None:
                result = _some_rows(name, golden, found, bound, *rows, where)
            elif name in golden.sketches:
                result = compare_sketch(name, golden.sketches[name], found, bound, where)
            else:
                # Behind a wrong stage all are, and none of them holds the golden's numbers.
                search = not measured or measured[-1].verdict != WRONG
                result = compare_stage(name, golden.stages[name], found, bound, where, search)
            if result.distance and result.verdict == RIGHT:
                rms = max(rms, result.distance.rms)
        measured += [result] * (result.distance is not None)
        steps = 1 if result.distance else steps + 1
        results.append(result)
        for stages in (golden.stages, candidate.stages):
            if (forget := getattr(stages, "forget", None)) and name in stages:
                forget(name)
    twins = find_twins(golden, candidate.stages, results)
    results = without(results, twins, left_out(twins, results))
    first = onset(results)
    lines, guesses = notes(golden, candidate, kind, results, first, twins)
    return Comparison(kind, results, first, [*lines, *guesses], guesses)


def _some_rows(
    name: str,
    golden: Golden,
    found: np.ndarray,
    bound: Bound,
    ours: slice,
    theirs: slice,
    image: range | None,
) -> StageResult:
    """A stage of which the candidate has some rows only, as `excerpt` says, or too many."""
    axis = row_axis(golden.shape(name))
    total = golden.shape(name)[axis]
    found = found.take(range(found.shape[axis])[theirs], axis)
    rows = found.shape[axis]
    if rows == 0:
        return StageResult(name, UNJUDGED, note="other tokens were fed: nothing to compare")
    end = "first" if ours.start is None else "last"
    note = f"the {end} {rows} of {total} rows" if rows < total else ""
    if name in golden.sketches and rows < total:
        return StageResult(name, UNJUDGED, note=f"{note}: a compact golden has only all of them together")
    if name in golden.sketches:
        return compare_sketch(name, golden.sketches[name], found, bound, image)
    # Rounding may have put most of the error that all rows are allowed into these.
    bound = replace(bound, rms=bound.rms * sqrt(total / rows))
    wanted = golden.stages[name].take(range(total)[ours], axis)
    result = compare_stage(name, wanted, found, bound, image, first=total - rows if end == "last" else 0)
    return replace(result, note="; ".join(part for part in (result.note, note) if part))


def onset(results: Sequence[StageResult]) -> StageResult | None:
    """The stage with which a candidate begins to depart; None if no stage has failed.

    That is the first one that failed, or one before it that is within its bound, if from there on all lie
    at least `ONSET` times as far off as any before, each in units of its own bound.
    """
    failed = next((i for i, r in enumerate(results) if r.failed), None)
    if failed is None or not results[failed].distance:
        return None if failed is None else results[failed]
    before = [r for r in results[:failed] if r.distance]
    levels = [max(r.distance.rms / r.bound.rms, 1 / MARGIN) for r in before if r.distance and r.bound]
    for i in range(1, len(before)):
        if min(levels[i:]) > ONSET * max(levels[:i]):
            return before[i]
    return results[failed]


def picture_positions(golden: Golden, ids: np.ndarray) -> range | None:
    """Where the picture stands in the decoder's input, if there is one and the length tells its size."""
    at = np.flatnonzero(ids == IMAGE_TOKEN)
    shape = next(
        (
            golden.shape(n)
            for n in golden.names
            if n == "inputs_embeds" or n.startswith("decoder.hidden_states")
        ),
        None,
    )
    if len(at) != 1 or shape is None:
        return None
    size = shape[0] - len(ids) + 1
    return range(int(at[0]), int(at[0]) + size) if size > 0 else None
