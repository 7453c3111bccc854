"""Dumps that hold other numbers than their names say: another stage's, or rows one step late.

A runtime that computes in place has overwritten a stage before it is written out; a dump counts blocks from
1; the logits of generated ids begin with those that chose the first id. Such a dump says nothing about the
port. It is recognised by comparing stages with each other, and left out.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mvlm_np.golden.compare.excerpts import in_rows
from mvlm_np.golden.compare.verdict import MISPLACED, RIGHT, WRONG, StageResult, close
from mvlm_np.golden.format import Golden
from mvlm_np.golden.measure import relative_error
from mvlm_np.golden.stages import Stages

NEARER = 0.1  # of the distance from its own stage: at most so far a dump lies from another stage's numbers
PROBE = 512  # numbers by which most stages are told apart
BEFORE_DECODING = {"decode.logits": "logits", "decode.hidden_states.1": "decoder.hidden_states.1"}


@dataclass(frozen=True)
class Twins:
    """What wrong dumps really hold.

    names  {stage: the golden's stage whose numbers its dump holds}
    late   {stage of generated ids: by how many rows it is late; negative if it is early}
    """

    names: Mapping[str, str]
    late: Mapping[str, int]


def find_twins(golden: Golden, stages: Stages, results: Sequence[StageResult]) -> Twins:
    """Looks at each stage that is wrong and not compact."""
    names: dict[str, str] = {}
    late: dict[str, int] = {}
    for r in results:
        if r.verdict != WRONG or r.distance is None or r.bound is None or r.name not in golden.stages:
            continue
        own = golden.stages[r.name]
        found = in_rows(r.name, own.shape, np.asarray(stages[r.name]))
        limit = min(close(r.bound), NEARER * r.distance.rms)
        if r.name in BEFORE_DECODING and (rows := _late(golden, r.name, found, limit)):
            late[r.name] = rows
        elif found.size == own.size and (twin := _twin(golden, r.name, found.reshape(own.shape), limit)):
            names[r.name] = twin
    return Twins(names, late)


def _twin(golden: Golden, own: str, found: np.ndarray, limit: float) -> str | None:
    """The golden's stage that these numbers are; none that is the same as the stage itself."""
    step = max(1, found.size // PROBE)
    probe = found.ravel()[::step]
    for name in golden.names:
        array = golden.stages.get(name)
        if name == own or array is None or array.shape != found.shape:
            continue
        if (
            relative_error(probe, array.ravel()[::step]) <= 2 * limit
            and relative_error(found, array) <= limit
        ):
            return name if relative_error(array, golden.stages[own]) > limit else None
    return None


def _late(golden: Golden, name: str, found: np.ndarray, limit: float) -> int:
    """By how many rows generated tokens are late, 1 or -1; 0 if they are not."""
    wanted, before = golden.stages[name], golden.stages.get(BEFORE_DECODING[name])
    if found.ndim != 2 or found.shape[1] != wanted.shape[1] or min(len(found), len(wanted)) < 3:
        return 0
    n = min(len(found), len(wanted) + 1)
    if relative_error(found[1:n], wanted[: n - 1]) <= limit and (
        before is None or relative_error(found[0], before[-1]) <= limit
    ):
        return 1
    n = min(len(found), len(wanted) - 1)
    return -1 if relative_error(found[:n], wanted[1 : n + 1]) <= limit else 0


def left_out(twins: Twins, results: Sequence[StageResult]) -> list[str]:
    """Those of the twins that are the dump's fault for certain.

    The golden's numbers one block further on are a fault of the dump if two stages in a row have them, or if
    the next stage that is computed from it is right. Else the port may have left out a block.
    """
    given = [r for r in results if r.distance is not None]
    found = list(twins.late)
    for i, r in enumerate(given):
        if r.name not in twins.names:
            continue
        neighbours = [g.name for g in (*given[max(i - 1, 0) : i], *given[i + 1 : i + 2])]
        shift = _shift(r.name, twins.names[r.name])
        shifted = shift and any(
            n in twins.names and _family(n) == _family(r.name) and _shift(n, twins.names[n]) == shift
            for n in neighbours
        )
        later = (g for g in given[i + 1 :] if g.name not in twins.names and _follows(r.name, g.name))
        after = next(later, None)
        if shifted or (after is not None and after.verdict == RIGHT):
            found.append(r.name)
    return found


def _follows(name: str, later: str) -> bool:
    """Whether a later stage is computed from this one. Other parts may be fed what the golden holds."""
    siblings = name.startswith("decoder.keys.") and later == name.replace("keys", "values")
    return not siblings and name.partition(".")[0] == later.partition(".")[0]


def _family(name: str) -> str:
    return name.rpartition(".")[0]


def _shift(name: str, twin: str) -> int:
    """How many numbers on the twin's name is, where they differ in that only; else 0."""
    a, b = name.rpartition("."), twin.rpartition(".")
    return int(b[2]) - int(a[2]) if a[0] == b[0] and a[2].isdigit() and b[2].isdigit() else 0


def without(results: Sequence[StageResult], twins: Twins, names: Sequence[str]) -> list[StageResult]:
    """The results with these stages left out."""
    changed = []
    for r in results:
        if r.name in names:
            r = StageResult(r.name, MISPLACED, note=f"{holds(r.name, twins)}: left out")
        changed.append(r)
    return changed


def holds(name: str, twins: Twins) -> str:
    """What a dump really holds, in words."""
    if name in twins.late:
        when = "late: row 0 is what chose the first id" if twins.late[name] > 0 else "early: row 0 is missing"
        return f"its rows are one step {when}"
    return f"it is the golden's {twins.names[name]}"
