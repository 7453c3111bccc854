"""Counts how many mistakes `mvlm golden explain` finds in torch code that makes them.

    python tools/check_explain.py tests/data/golden/ldpv2 tests/data/golden/ldp --pairs 40

Each folder holds a model, a golden and its cases.json. Every mutant of tools/parts/mutants.py runs on it,
each alone, then random pairs; only their outputs reach the tool. A mutant counts if it moves some stage by
more than ten times the stage's rounding, which is torch's own distance from float64. Of those that count, the
first stage that moves must be named for all, the mistake for 95 % alone, both for 80 % of the pairs. For the
others the mistake should be on the list of those that the golden cannot show. Exit code 1: that is not so.
"""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout, when run as a script

import numpy as np
import torch

import mvlm_np
from mvlm_np.checkpoints.opening import open_checkpoint
from mvlm_np.golden.compare.candidates import Candidate
from mvlm_np.golden.explain.explanation import Explanation, explain
from mvlm_np.golden.explain.spare_weights import spare_weights
from mvlm_np.golden.format import read_golden
from tools.parts import mutants

FLOOR = 10  # times the rounding of a stage: there a mutant counts
NEEDED = {"first": 1.0, "alone": 0.95, "pair": 0.8}
# On a model that crops its picture these are one mistake.
CROPPED = {"no-pad", "resize-before-pad", "pad-not-wanted", "pad-colour", "pad-at-corner"}

Stages = dict[str, np.ndarray]


@dataclass
class Case:
    """A model folder with its golden, and what torch computes on it."""

    folder: Path
    faultless: Stages = field(init=False)
    rounding: dict[str, float] = field(init=False)

    def __post_init__(self) -> None:
        self.about = json.loads((self.folder / "cases.json").read_text())[0]
        self.golden = read_golden(self.folder / self.about["golden"])
        self.image = self.folder / self.about["image"]
        self.model = mvlm_np.load(self.folder, precision="float32", backend="numpy")
        self.spare = spare_weights(open_checkpoint(self.folder))
        self.faultless = self.run({})
        wide = self.run({}, torch.float64)
        self.rounding = {n: distance(a, wide[n]) for n, a in self.faultless.items()}

    def run(self, faults: mutants.Faults, dtype: torch.dtype = torch.float32) -> Stages:
        ids = self.golden.stages["generated_ids"].tolist()
        return mutants.run(self.folder, self.image, self.about["prompt"], ids, faults, dtype)

    def moved(self, stages: Stages, times: float = FLOOR) -> list[str]:
        """The stages that are not what they would be, by so many times their rounding, in order."""
        return [
            name
            for name in self.golden.names
            if name in stages
            and distance(stages[name], self.faultless[name]) > times * max(self.rounding[name], 2.0**-24)
        ]

    def explain(self, stages: Stages) -> Explanation:
        candidate = Candidate({n: a for n, a in stages.items() if n in self.golden.names})
        return explain(self.model, self.golden, candidate, image=self.image, spare=self.spare)

    def expected(self, mistake: str) -> str:
        crops = self.model.config.image.aspect_ratio != "pad"
        if mistake in CROPPED:
            return "pad-not-wanted" if crops else mistake.replace("pad-not-wanted", "no-pad")
        return mistake


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """Relative, Euclidean; infinite for other shapes and for what is not a number."""
    if a.shape != b.shape or not np.isfinite(a).all():
        return np.inf
    a, b = a.astype(np.float64), b.astype(np.float64)
    return float(np.linalg.norm(a - b)) / max(float(np.linalg.norm(b)), 1e-30)


def named(e: Explanation) -> set[str]:
    return {c.mistake.id for f in e.findings if f.believed for c in f.causes}


@dataclass(frozen=True)
class Verdict:
    """What was made of a mutant.

    moved      the first stage that moves; None if none does
    hints      stages before it that differ too, by more than their rounding: to see more is no error
    untouched  whether every number is the same
    """

    mistakes: tuple[str, ...]
    moved: str | None
    hints: list[str]
    first: str | None
    named: set[str]
    invisible: set[str]
    untouched: bool

    @property
    def found(self) -> bool:
        return set(self.mistakes) <= self.named

    @property
    def first_found(self) -> bool:
        return self.first == self.moved or self.first in self.hints

    @property
    def seen_to_be_invisible(self) -> bool:
        return self.named <= set(self.mistakes) and set(self.mistakes) <= self.named | self.invisible


def judge(case: Case, mistakes: Sequence[str], faults: Mapping[str, Any]) -> Verdict:
    stages = case.run(faults)
    moved, e = case.moved(stages), case.explain(stages)
    first = e.comparison.first_wrong.name if e.comparison.first_wrong else None
    if first is None and e.findings:
        first = e.findings[0].stage  # within the bounds, and certain all the same
    untouched = all(n in case.faultless and np.array_equal(a, case.faultless[n]) for n, a in stages.items())
    wanted = tuple(case.expected(m) for m in mistakes)
    differ = case.moved(stages, 1)
    hints = differ[: differ.index(moved[0])] if moved else []
    return Verdict(
        wanted, moved[0] if moved else None, hints, first, named(e), {m.id for m in e.invisible}, untouched
    )


def singles() -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    for mistake, strengths in mutants.FAULTS.items():
        for faults in strengths:
            yield (mistake,), faults


def pairs(case: Case, count: int, seed: int = 0) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    """Random pairs of mutants that each move a stage on their own, and of which neither undoes the other."""
    rng = np.random.default_rng(seed)
    visible = [(m, f) for m, f in singles() if case.moved(case.run(f))]
    while count > 0:
        (a, f), (b, g) = (visible[i] for i in rng.choice(len(visible), 2, replace=False))
        if a != b and not f.keys() & g.keys():
            both = case.run({**f, **g})
            if all(distance(both[n], one[n]) > 0 for one in (case.run(f), case.run(g)) for n in ["logits"]):
                yield a + b, {**f, **g}
                count -= 1


def main(argv: Sequence[str] | None = None) -> int:
    top = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    top.add_argument("folders", type=Path, nargs="+", metavar="FOLDER")
    top.add_argument("--pairs", type=int, default=20, metavar="N", help="of each folder (20)")
    top.add_argument("--all", action="store_true", help="list the mutants that are found, too")
    args = top.parse_args(argv)
    total: Counter[str] = Counter()
    for folder in args.folders:
        case, count = Case(folder), Counter[str]()
        work = [("alone", *m) for m in singles()] + [("pair", *m) for m in pairs(case, args.pairs)]
        for kind, mistakes, faults in work:
            start = perf_counter()
            v = judge(case, mistakes, faults)
            if v.moved is None and v.untouched and not v.seen_to_be_invisible:
                continue  # the fault is in a part that this model has not
            if v.moved is None:
                count["invisible"] += 1
                count["invisible, said so"] += v.seen_to_be_invisible
                fine = v.seen_to_be_invisible
            else:
                count[kind] += 1
                count[f"{kind} named"] += v.found
                count["first"] += 1
                count["first named"] += v.first_found
                count[f"{kind}, nothing else named"] += v.named == set(v.mistakes)
                fine = v.found and v.first_found
            if args.all or not fine:
                mark = "ok " if fine else "NOT"
                print(
                    mark, folder.name, " + ".join(mistakes), faults, "| moved:", v.moved, "| first:", v.first,
                    "| named:", ", ".join(sorted(v.named)), f"| {perf_counter() - start:.1f} s", flush=True,
                )  # fmt: skip
        print(folder.name, dict(count), flush=True)
        total += count
    rates = {kind: total[f"{kind} named"] / max(total[kind], 1) for kind in NEEDED}
    print("named:", ", ".join(f"{kind} {rate:.1%} of {total[kind]}" for kind, rate in rates.items()))
    print(f"invisible: {total['invisible, said so']} of {total['invisible']} said to be so")
    return int(any(rates[kind] < needed for kind, needed in NEEDED.items() if total[kind]))


if __name__ == "__main__":
    sys.exit(main())
