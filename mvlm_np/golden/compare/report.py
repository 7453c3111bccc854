"""A comparison as text for a terminal, and as JSON for a program."""

from dataclasses import asdict
from math import isfinite
from typing import Any

from mvlm_np.golden.compare.comparison import Comparison
from mvlm_np.golden.compare.verdict import MISPLACED, MISSING, StageResult

HEAD = ("stage", "verdict", "worst", "relative", "cosine", "SNR", "where")


def as_text(result: Comparison, all_stages: bool = False) -> str:
    """The table, the first stage that is wrong, and what it means."""
    shown = [s for s in result.stages if all_stages or s.verdict != MISSING]
    rows = [HEAD, *(row(s) for s in shown)]
    widths = [max(len(cells[i]) for cells in rows) for i in range(len(HEAD))]
    lines = []
    for mark, cells in zip(["", *(s is result.first_wrong for s in shown)], rows, strict=True):
        columns = [
            cell.ljust(width) if i < 2 or i == 6 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        lines.append(f"{'>' if mark else ' '} {'  '.join(columns)}".rstrip())
    return "\n".join([*lines, "", summary(result), *(f"- {note}" for note in result.notes)])


def row(s: StageResult) -> tuple[str, ...]:
    where = "; ".join(part for part in (s.where if s.failed else "", s.note) if part)
    d = s.distance
    if d is None:
        return s.name, s.verdict, "", "", "", "", where
    snr = f"{d.snr:.0f} dB" if isfinite(d.snr) else "exact"
    return s.name, s.verdict, f"{d.worst:.1e}", f"{d.relative:.1e}", f"{d.cosine:.6f}", snr, where


def summary(result: Comparison) -> str:
    given = [s for s in result.stages if s.verdict not in (MISSING, MISPLACED)]
    left_out = sum(s.verdict == MISPLACED for s in result.stages)
    counted = f"{len(given)} of {len(result.stages)} stages compared, class {result.kind}"
    counted += f", {left_out} left out" if left_out else ""
    if result.first_wrong is None and not result.right:
        return f"UNDECIDED: {counted}; none of them could be judged."
    if result.first_wrong is None:
        return f"RIGHT: {counted}; none is wrong."
    return f"WRONG from {result.first_wrong.name} on ({counted})."


def as_json(result: Comparison) -> dict[str, Any]:
    """Everything but the pictures, ready for `json.dump`: numbers that are not finite are null."""

    def stage(s: StageResult) -> dict[str, Any]:
        d = s.distance
        measures = asdict(d) | {"snr": d.snr if isfinite(d.snr) else None} if d else {}
        return {
            "name": s.name,
            "verdict": s.verdict,
            **measures,
            "bound": {"rms": s.bound.rms, "relative": s.bound.relative} if s.bound else None,
            "where": s.where,
            "note": s.note,
        }

    return {
        "right": result.right,
        "class": result.kind,
        "first_wrong": result.first_wrong.name if result.first_wrong else None,
        "last_right": result.last_right.name if result.last_right else None,
        "not_given_between": result.between,
        "notes": result.notes,
        "stages": [stage(s) for s in result.stages],
    }
