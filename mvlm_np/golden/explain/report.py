"""An explanation as text for a terminal, and as JSON for a program."""

from collections.abc import Sequence
from math import isfinite
from typing import Any

from mvlm_np.errors import some
from mvlm_np.golden.compare import report as comparison_report
from mvlm_np.golden.compare.notes import UNRELATED
from mvlm_np.golden.explain.explanation import Explanation
from mvlm_np.golden.explain.findings import Cause, Finding
from mvlm_np.golden.measure import decibels

MOST = 3  # lines about what else is wrong
DETAILS = 4  # ways to make a mistake that are listed
ROUNDED = 2.0**-9  # the error that a few roundings to float16 leave


def as_text(e: Explanation) -> str:
    """The first wrong stage, what is sound before it, the mistakes that explain it, and what follows."""
    lines = [comparison_report.summary(e.comparison)]
    if e.comparison.right and e.findings:
        lines.append("But a mistake reproduces to the last bits what lies within the bounds:")
    if (main := e.main) is None and not e.comparison.right and e.comparison.first_wrong is not None:
        lines += ["", *_unexplained(e)]
    elif main is not None:
        lines += ["", *_finding(main, e), *_rest(e, main)]
    if e.invisible:
        lines += ["", "Not distinguishable by this golden, in the stages given:"]
        lines += [
            f"  {u.id}: {u.mistake.what}{f' ({_listed(u.details)})' if u.details else ''}. "
            f"It would show in {u.mistake.shown}, at {u.mistake.stage}."
            for u in e.invisible
        ]
    return "\n".join([*lines, *(f"- {note}" for note in _notes(e))])


def _notes(e: Explanation) -> list[str]:
    """What compare noted, but for its guesses where the mistake is known; then what explain did."""
    known = e.main is not None and e.main.believed
    told = [n for n in e.comparison.notes if not (known and n in e.comparison.guesses)]
    return [*told, *e.notes]


def _finding(f: Finding, e: Explanation) -> list[str]:
    lines = [f"{_sound(e)}"] if _sound(e) else []
    if not f.causes:
        return [*lines, *_unexplained(e, f)]
    how = "reproduced by" if f.exact else "best, but not wholly, explained by"
    if f.rounding:
        how = "no farther off than rounding puts it:"
    elif not f.exact and f.error < ROUNDED:
        how = "reproduced, but for what rounding to 16 bits would leave, by"
    lines.append(f"{f.stage}: {how} {' + '.join(c.mistake.id for c in f.causes)}")
    if reached := _reached(f.error, f.cosine, f.blank):
        told = isfinite(decibels(f.before)) and not f.rounding
        without = f"; without it {decibels(f.before):.1f} dB" if told else ""
        lines.append(f"  {reached}{without}")
    for c in f.causes:
        detail = f" ({c.variant.detail})" if c.variant.detail else ""
        lines += [f"  {c.mistake.id}: {c.mistake.what}{detail}", f"    to mend it: {c.mistake.mend}"]
    for other in f.alternatives:
        named = " + ".join(c.mistake.id for c in other)
        lines.append(f"  {named} would look the same; it shows in {other[0].mistake.shown}.")
    return lines


def _sound(e: Explanation) -> str:
    """What is known to be sound before the first wrong stage."""
    last = e.comparison.last_right
    if e.comparison.first_wrong is None:
        return ""
    return f"Sound as far as {last.name}." if last else "No earlier stage is known to be right."


def _unexplained(e: Explanation, f: Finding | None = None) -> list[str]:
    """A wrong stage for which there is no mistake."""
    first = e.comparison.first_wrong
    name = f.stage if f is not None else first.name if first is not None else ""
    result = next((s for s in e.comparison.stages if s.name.removesuffix(".tail") == name), None)
    said = "; ".join(part for part in ((result.where, result.note) if result else ()) if part)
    place = f": {said}" if said else ""
    if f is None:
        why = "the fault is in what goes in, or in stages that were not given."
        return [f"{name} is wrong{place}.", f"  It follows from the stages before it: {why}"]
    reached = _reached(f.before, f.cosine, f.blank)
    closer = f" closer than the reference ({reached})" if reached else ""
    lines = [f"{name} is wrong{place}.", f"  No known mistake comes{closer or ' near'}."]
    between, last = e.comparison.between, e.comparison.last_right
    if first is None or name != first.name:
        return lines
    if last is not None and not between:
        lines.append("  All that goes into it is right: the fault is made in this step.")
    elif last is not None:
        lines.append(f"  The fault is made after {last.name}: {some(between)} are not known.")
    if first.distance and first.distance.cosine < UNRELATED and not f.blank:
        lines.append("  If no layout differs, these are other weights than the golden's.")
    return lines


def _rest(e: Explanation, main: Finding) -> list[str]:
    """What else is wrong, a line each, and what follows from it: at most `MOST` lines."""
    others = [f for f in e.findings if f is not main]
    named = [f for f in others if f.believed]
    lines = [
        f"Then {f.stage}: {' + '.join(c.mistake.id for c in f.causes)}: "
        + "; ".join(
            f"{c.mistake.mend}{f' (here: {c.variant.detail})' if c.variant.detail else ''}" for c in f.causes
        )
        for f in named
    ]
    unnamed = [f.stage for f in others if not f.believed]
    if unnamed and len(lines) < MOST:
        lines.append(
            f"More than follows from it is wrong in {some(unnamed)}: mend the first fault, and look again."
        )
    if len(lines) > MOST:
        lines = [*lines[: MOST - 1], f"and {len(named) - MOST + 1} more: mend these, and run it again."]
    return ["", *lines] if lines else []


def _listed(details: Sequence[str]) -> str:
    shown = list(details[:DETAILS])
    return "; ".join([*shown, f"and {len(details) - DETAILS} more ways"] if len(details) > DETAILS else shown)


def _reached(error: float, cosine: float, blank: bool) -> str:
    """How near a reproduction comes; nothing where numbers would mean nothing."""
    if blank or not isfinite(error):
        return ""
    snr = decibels(error)
    return f"cosine {cosine:.6f}, {f'{snr:.1f} dB' if isfinite(snr) else 'exactly'}"


def as_json(e: Explanation) -> dict[str, Any]:
    """Everything, ready for `json.dump`: numbers that are not finite are null."""

    def cause(c: Cause) -> dict[str, Any]:
        return {
            "id": c.mistake.id,
            "what": c.mistake.what,
            "mend": c.mistake.mend,
            "detail": c.variant.detail,
            "layer": c.variant.layer,
        }

    def finite(x: float) -> float | None:
        return x if isfinite(x) else None

    findings = [
        {
            "stage": f.stage,
            "mistakes": [cause(c) for c in f.causes],
            "reproduced": bool(f.causes) and (f.exact or f.error < ROUNDED),
            "cosine": f.cosine,
            "snr": finite(f.snr),
            "snr_of_the_reference": finite(decibels(f.before)),
            "alternatives": [[c.mistake.id for c in other] for other in f.alternatives],
        }
        for f in e.findings
    ]
    return {
        "right": e.right,
        "first_wrong": e.comparison.first_wrong.name if e.comparison.first_wrong else None,
        "mistakes": list(dict.fromkeys(c.mistake.id for f in e.findings if f.believed for c in f.causes)),
        "findings": findings,
        "not_distinguishable": [
            {"id": u.id, "ways": list(u.details), "shown_by": u.mistake.shown, "stage": u.mistake.stage}
            for u in e.invisible
        ],
        "notes": _notes(e),
        "comparison": comparison_report.as_json(e.comparison),
    }
