"""What a comparison means and what to do about it, a line each. Which mistake it is, `explain` finds out."""

from collections.abc import Iterator
from difflib import get_close_matches
from math import log10

import numpy as np

from mvlm_np.errors import some
from mvlm_np.golden.compare.candidates import Candidate
from mvlm_np.golden.compare.misplaced import Twins, holds
from mvlm_np.golden.compare.tolerance import ADMITTED, CLASSES, PIXELS, bounds, grey_level
from mvlm_np.golden.compare.verdict import (
    FAILED,
    MISPLACED,
    MISSING,
    NOT_FINITE,
    REORDERED,
    RIGHT,
    SHAPE,
    UNJUDGED,
    WRONG,
    StageResult,
)
from mvlm_np.golden.format import Golden
from mvlm_np.golden.measure import distance, on_even_steps
from mvlm_np.golden.precision import STATIC, STEPS, held_in
from mvlm_np.inputs.tokenizer import IMAGE_TOKEN

UNRELATED = 0.5  # cosine below which two stages have nothing to do with each other
EXPECTED = 6  # a class's bounds over the errors that it makes, about
LEVEL = 16  # a run computes in a class if no error of its is so many times smaller than the class's own
LARGEST_FLOAT16 = 65504
MOST_TWINS = 4  # misplaced dumps that are named
FEW = 2  # stages that must speak for a class, at least
SOURCES = (  # metadata, what it tells apart, the metadata that names it, what to do
    ("image_sha256", "picture", "image", "run it on the golden's"),
    ("weights_sha256", "weights", "model", "load the golden's"),
    ("config_sha256", "settings", "model", "load the golden's config.json"),
    ("prompt", "prompt", "prompt", "ask the golden's question in its template"),
)


def notes(
    golden: Golden,
    candidate: Candidate,
    kind: str,
    stages: list[StageResult],
    first: StageResult | None,
    twins: Twins,
) -> tuple[list[str], list[str]]:
    """Lines about a comparison, the most telling first, and guesses at the mistake.

    first  the first stage that is wrong
    """
    lines, guesses = [*_sources(golden, candidate), *_misplaced(stages, twins)], list[str]()
    if first is not None:
        at = [s.name for s in stages].index(first.name)
        before, after = stages[:at], [s for s in stages[at + 1 :] if s.distance or s.failed]
        guesses += _first_stage(golden, candidate, stages, first, after)
        lines += _neighbours(before, first, after)
        guesses += _twin(first, twins)
        lines += _precision(golden, candidate, kind, stages, first)
    return [*lines, *_whole(golden, candidate, kind, stages)], guesses


def _misplaced(stages: list[StageResult], twins: Twins) -> Iterator[str]:
    """What is said of dumps that were left out."""
    for s in [s for s in stages if s.verdict == MISPLACED][:MOST_TWINS]:
        yield f"{s.name}: {holds(s.name, twins)}. That is the dump's fault, not the port's; it was left out."


def _sources(golden: Golden, candidate: Candidate) -> Iterator[str]:
    """What the two files say of themselves, where both do."""
    for key, what, name, todo in SOURCES:
        ours, theirs = golden.metadata.get(key), candidate.metadata.get(key)
        if ours is not None and theirs is not None and ours != theirs:
            named = " and ".join(
                repr(m.get(name, m[key][:12])) for m in (golden.metadata, candidate.metadata)
            )
            yield f"Another {what} than the golden's ({named}): {todo}."


def _first_stage(
    golden: Golden,
    candidate: Candidate,
    stages: list[StageResult],
    first: StageResult,
    after: list[StageResult],
) -> Iterator[str]:
    """What it most often is when this stage is the first to be wrong."""
    name, verdict = first.name, {s.name: s.verdict for s in stages}
    unrelated = first.verdict == WRONG and first.distance is not None and first.distance.cosine < UNRELATED
    if first.verdict == NOT_FINITE:
        yield _not_finite(golden, candidate, name)
    elif first.verdict == REORDERED and not _only_the_dump(first, after):
        yield (
            "All its numbers are there, in another order. If the stages after it are right, only the dump "
            "has that order; if not, the port computes with it."
        )
    elif name == "pixel_values" and unrelated:
        yield f"These are not the pixels of the golden's picture{_of(golden, 'image')}."
    elif name == PIXELS and first.distance and (levels := first.distance.worst / grey_level(golden)) > 0.4:
        yield (
            f"The picture is prepared in another way, up to {levels:.3g} grey levels off: look at the "
            "padding and its colour, at bicubic resizing of 8-bit pixels, and at the colours' mean and "
            "deviation. Decoders of JPEG differ by a level here and there: compare with a PNG."
        )
    elif name == "vision.hidden_states.0" and _class_token_alone_is_right(golden, candidate, first):
        if verdict.get("pixel_values") == RIGHT:
            yield "The class token and the pixels are right: look at the patch embedding and the positions."
        else:
            yield (
                f"The class token is right and the patches are not: another picture than the golden's"
                f"{_of(golden, 'image')}, prepared in another way, or the patch embedding. Dump pixel_values."
            )
    elif name == "input_ids":
        yield f"Another prompt, template or tokenizer than the golden's{_of(golden, 'prompt')}."
    elif first.verdict == SHAPE and name.startswith(("inputs_embeds", "decoder.")) and "input_ids" in verdict:
        ids = golden.stages["input_ids"]
        pictures = int((ids == IMAGE_TOKEN).sum())
        yield f"The golden's prompt has {len(ids)} ids, {pictures} of them for a picture. Dump input_ids too."
    elif first.verdict == SHAPE:
        yield "Axes may be in any order and merged, but their product must be the golden's size."
    elif unrelated:
        yield (
            "It has nothing in common with the golden's: tokens and grid without a transpose between them, a "
            "matrix or a rotary embedding in another layout, or other weights. mvlm golden explain tells "
            "them apart."
        )


def _not_finite(golden: Golden, candidate: Candidate, name: str) -> str:
    sketch = golden.sketches.get(name)
    peak = sketch.peak if sketch else float(np.abs(golden.stages[name]).max())
    if peak > LARGEST_FLOAT16:
        return f"The golden reaches {peak:.3g} here, which overflows in float16 ({LARGEST_FLOAT16} at most)."
    if np.isinf(candidate.stages[name]).any():
        return f"Infinity is a number too large for its type: float16 ends at {LARGEST_FLOAT16}."
    return "NaN comes from memory that was never written, from 0/0, or from attention that sees no position."


def _class_token_alone_is_right(golden: Golden, candidate: Candidate, first: StageResult) -> bool:
    if first.name not in golden.stages or first.verdict != WRONG or first.bound is None:
        return False
    stage = golden.stages[first.name]
    found = candidate.stages[first.name]
    return (
        found.size == stage.size
        and distance(first.name, stage[:1], found.reshape(stage.shape)[:1]).rms <= first.bound.rms
        and first.where.startswith("all")
    )


def _neighbours(before: list[StageResult], first: StageResult, after: list[StageResult]) -> Iterator[str]:
    """What the stages around the first wrong one tell."""
    if first.verdict == RIGHT:
        failed = next(s for s in after if s.failed)
        yield (
            f"{first.name} is within its bound, but from there on all lies farther off than before, until "
            f"{failed.name} fails: look at what computes {first.name}."
        )
    if _only_the_dump(first, after):
        yield (
            "All stages given after it are right: the port is, and only this dump is not. It was taken at "
            "another place, or overwritten before it was written out."
        )
    start = max((i for i, s in enumerate(before) if s.verdict == RIGHT), default=-1)
    gap = [s.name for s in before[start + 1 :] if s.verdict == MISSING]
    if gap:
        since = f"After {before[start].name}, which is right," if start >= 0 else "Before it,"
        yield f"{since} {some(gap)} were not given: dump them, and the fault has fewer places to be."


def _only_the_dump(first: StageResult, after: list[StageResult]) -> bool:
    """The logits of the prompt are no such stage: what is given after them is not computed from them."""
    whole_numbers = first.verdict == WRONG and first.distance is None
    right_after = bool(after) and all(s.verdict == RIGHT for s in after)
    return first.failed and not whole_numbers and first.name != "logits" and right_after


def _twin(first: StageResult, twins: Twins) -> Iterator[str]:
    """Another stage of the golden that the candidate's array is."""
    if first.name in twins.names:
        twin = twins.names[first.name]
        yield f"It is the golden's {twin}: a block too many or too few, or a name that is off by one."


def _precision(
    golden: Golden, candidate: Candidate, kind: str, stages: list[StageResult], first: StageResult
) -> Iterator[str]:
    """Is it the error that a coarser class has everywhere, rather than a fault somewhere?"""
    steps = _even_steps(golden, candidate, stages)
    types = {held_in(candidate.stages[s.name]) for s in stages if s.distance and s.name != PIXELS}
    coarser = _class_of_all(golden, kind, stages, bool(steps), types.pop() if len(types) == 1 else None)
    if steps and kind != STATIC:
        which = some(steps) if len(steps) < 5 else f"{len(steps)} stages, {steps[0]} the first of them,"
        yield (
            f"In {which} all numbers are among {STEPS} even steps: activations that are quantised to 8 bits, "
            "with one fixed range for a whole tensor."
        )
    if coarser:
        yield (
            f"All stages are about as far off as {coarser} puts them. If the port computes in that, "
            f"compare with --class {coarser}; if {kind} is meant, look for a conversion to less."
        )
    if kind != "float32" or not first.distance:
        return
    advice = f", or compare with --class {coarser}" if coarser else ""
    stored = candidate.dtypes.get(first.name)
    if stored in ("float16", "bfloat16"):
        yield f"It is stored as {stored}: dump float32{advice}."
        return
    if (held := held_in(candidate.stages[first.name])) is not None:
        yield f"Each of its numbers is one that {held} can hold: it has been rounded to that."


def _even_steps(golden: Golden, candidate: Candidate, stages: list[StageResult]) -> list[str]:
    """Stages whose numbers lie on an even grid, as those of a statically quantised port do."""
    given = [s.name for s in stages if s.distance and s.name != PIXELS]
    return [n for n in given if on_even_steps(candidate.stages[n])]


def _class_of_all(
    golden: Golden, kind: str, stages: list[StageResult], static: bool, held: str | None
) -> str | None:
    """The coarser class that every stage given speaks for; None if one does not, or there are too few.

    static  whether there are stages on an even grid
    held    the type of 16 bits whose numbers all stages consist of, which tells the class
    """
    errors = {s.name: s.distance for s in stages if s.distance}
    others = [s for s in stages if s.failed and not s.distance and not s.name.startswith("generated_ids")]
    if len(errors.keys() - {PIXELS}) < FEW or others:
        return None
    if any(d.cosine < UNRELATED for d in errors.values()):
        return None
    levels = {}  # how far the errors lie from those that a class makes, as a logarithm, all stages together
    for coarser in (c for c in CLASSES if kind in ADMITTED[c][:-1] and (c == STATIC) == static):
        pairs = {name: (b, errors[name]) for name, b in bounds(golden, coarser).items() if name in errors}
        if not all(d.rms <= b.rms and d.relative <= b.relative for b, d in pairs.values()):
            continue
        computed = [(min(b.rms, b.own_rms) / EXPECTED, d.rms) for n, (b, d) in pairs.items() if n != PIXELS]
        if all(expected / LEVEL <= rms for expected, rms in computed):
            logs = [log10(rms / expected) for expected, rms in computed]
            levels[coarser] = abs(sum(logs) / len(logs))
    if held in levels:
        return held
    return min(levels, key=lambda kind: levels[kind]) if levels else None


def _whole(golden: Golden, candidate: Candidate, kind: str, stages: list[StageResult]) -> Iterator[str]:
    unjudged = [s.name for s in stages if s.verdict == UNJUDGED and s.distance]
    if unjudged:
        yield f"Not judged: {some(unjudged)}. In {kind}, rounding alone may leave nothing of them."
    if not golden.floors and (kind != "float32" or any(s.verdict in FAILED for s in stages)):
        yield (
            "This golden holds no rounding floors, so general bounds were taken. One recorded with --float64 "
            "tells smaller faults from rounding."
        )
    if candidate.unknown:
        close = {name: get_close_matches(name, golden.names, 1, 0.75) for name in candidate.unknown}
        listed = [name + (f" (is it {m[0]}?)" if m else "") for name, m in close.items()]
        yield f"No stage of the golden has these names: {some(listed)}. Say which is which with --names."
    if candidate.absent:
        yield f"The name map has these names, and the candidate has not: {some(candidate.absent)}."


def _of(golden: Golden, key: str) -> str:
    return f" ({golden.metadata[key]!r})" if key in golden.metadata else ""
