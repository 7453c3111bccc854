"""The verdict on token ids, which are compared exactly: the prompt's, and those that were generated."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from mvlm_np.golden.compare.candidates import Candidate
from mvlm_np.golden.compare.tolerance import Bound
from mvlm_np.golden.compare.verdict import RIGHT, UNJUDGED, WRONG, StageResult
from mvlm_np.golden.format import Golden, choices_of


def compare_ids(name: str, golden: np.ndarray, found: np.ndarray) -> StageResult:
    """The ids of a stage, in any shape; a candidate may have stored them as floating-point numbers."""
    found = found.reshape(-1)
    if found.dtype.kind == "f" and np.isfinite(found).all() and (found == np.rint(found)).all():
        found = found.astype(np.int64)
    if np.array_equal(found, golden.reshape(-1)):
        return StageResult(name, RIGHT)
    k = _first_difference(golden, found)
    theirs = found[k] if k < len(found) else "nothing"
    ours = golden[k] if k < len(golden) else "nothing"
    note = f"{len(found)} ids instead of {len(golden)}; " if len(found) != len(golden) else ""
    return StageResult(
        name, WRONG, where=f"number {k}", note=f"{note}number {k} is {theirs} instead of {ours}"
    )


def _first_difference(golden: np.ndarray, found: np.ndarray) -> int:
    n = min(len(golden), len(found))
    differ = np.flatnonzero(golden[:n] != found[:n])
    return int(differ[0]) if len(differ) else n


def compare_generated(
    golden: Golden, candidate: Candidate, allowed: Mapping[str, Bound], kind: str
) -> tuple[dict[str, StageResult], int | None]:
    """The verdicts on generated tokens, and how many rows of `decode.*` can be compared (None: all).

    Where two tokens are as likely as each other up to rounding, a sound candidate may take either; from
    there on it reads other tokens than the golden's, and nothing can be compared any more.
    """
    results: dict[str, StageResult] = {}
    comparable = None
    for name in golden.names:
        if not name.startswith("generated_ids") or name not in candidate.stages:
            continue
        ids = golden.stages[name]
        found = candidate.stages[name].reshape(-1)
        result = compare_ids(name, ids, found)
        if result.verdict == WRONG and name == "generated_ids":
            k = comparable = _first_difference(ids, found)
            if k == min(len(found), len(ids)):
                result = replace(
                    result, verdict=RIGHT, where="", note=f"{len(found)} of {len(ids)}, all the same"
                )
            elif (gap := _gap(golden, k, int(found[k]))) is not None:
                slack = 2 * allowed["decode.logits" if k else "logits"].relative * gap[1]
                if gap[0] <= slack:
                    note = f"number {k} is {found[k]} instead of {ids[k]}: within rounding both are as likely"
                    result = replace(result, verdict=RIGHT, where="", note=note)
        elif result.verdict == WRONG and kind != "float32":
            result = replace(result, verdict=UNJUDGED)
        results[name] = result
    return results, comparable


def _gap(golden: Golden, step: int, token: int) -> tuple[float, float] | None:
    """How far below the likeliest token this one's logit lies in the golden, and the size of the logits."""
    if (choices := golden.choices) is None:
        if not {"logits", "decode.logits"} <= golden.stages.keys():
            return None
        choices = choices_of(golden.stages, golden.stages["logits"].shape[1])
    ids, logits = choices[0][step], choices[1][step].astype(np.float64)
    at = np.flatnonzero(ids == token)
    return float(logits[0] - logits[at[0] if len(at) else -1]), float(np.abs(logits).max())
