"""An explanation as text for a terminal, and as JSON for a program."""

from math import isfinite
from typing import Any

from mvlm_np.golden.compare import report as comparison_report
from mvlm_np.golden.compare.comparison import Comparison
from mvlm_np.golden.explain.explanation import Explanation
from mvlm_np.golden.explain.findings import Cause, Finding
from mvlm_np.golden.measure import decibels

ROUNDED = 2.0**-9  # the error that a few roundings to float16 leave


def as_text(e: Explanation) -> str:
    """The verdict, each finding with what to mend, and what could not be seen."""
    lines = [comparison_report.summary(e.comparison)]
    if e.comparison.right and e.findings:
        lines.append("But a mistake reproduces to the last bits what lies within the bounds:")
    for finding in e.findings:
        lines += ["", *_finding(finding, e.comparison)]
    if not e.findings and not e.comparison.right:
        lines += ["", "Every stage follows from the one before it. The fault is in what goes in, or in "
                  "stages that were not given."]  # fmt: skip
    if e.invisible:
        lines += ["", "Not distinguishable by this golden, in the stages given:"]
        lines += [f"  {m.id}: {m.what}. It would show in {m.shown}, at {m.stage}." for m in e.invisible]
    return "\n".join([*lines, *(f"- {note}" for note in e.notes)])


def _finding(f: Finding, comparison: Comparison) -> list[str]:
    if not f.causes:
        place = next((s.where for s in comparison.stages if s.name == f.stage and s.where), "")
        where = f", at {place}" if place else ""
        return [
            f"{f.stage}: no known mistake comes closer than the reference ({_reached(f.before, f.cosine)}).",
            f"  What goes into it is not the reason: the fault is made in this step{where}.",
        ]
    how = "reproduced by" if f.exact else "best, but not wholly, explained by"
    if not f.exact and f.error < ROUNDED:
        how = "reproduced, but for what rounding to float16 would leave, by"
    lines = [f"{f.stage}: {how} {' + '.join(c.mistake.id for c in f.causes)}"]
    lines.append(f"  {_reached(f.error, f.cosine)}; without it {decibels(f.before):.1f} dB")
    for c in f.causes:
        detail = f" ({c.variant.detail})" if c.variant.detail else ""
        lines += [f"  {c.mistake.id}: {c.mistake.what}{detail}", f"    to mend it: {c.mistake.mend}"]
    for other in f.alternatives:
        named = " + ".join(c.mistake.id for c in other)
        lines.append(f"  {named} would look the same; it shows in {other[0].mistake.shown}.")
    return lines


def _reached(error: float, cosine: float) -> str:
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
        "not_distinguishable": [{"id": m.id, "shown_by": m.shown, "stage": m.stage} for m in e.invisible],
        "notes": e.notes,
        "comparison": comparison_report.as_json(e.comparison),
    }
