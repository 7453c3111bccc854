"""What is worth telling of a run: how sure its score is, what was wrong, how it differs from another run."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from mvlm_np.evaluation.scores import Judged, Score, by_category
from mvlm_np.evaluation.statistics import Difference, Estimate, difference, estimate, in_both

SURELY_WRONG = 20
ROUNDED = 0.005  # a score that is printed with two decimals may be off by so much


@dataclass(frozen=True)
class Run:
    """A model's answers to a benchmark.

    name       what answered: a model's name, and in which precision
    benchmark  how papers call it
    score      what the answers are worth
    judged     each of them
    facts      {what: words} that a reader wants beside them: time, speed, machine
    """

    name: str
    benchmark: str
    score: Score
    judged: Sequence[Judged]
    facts: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Change:
    """A question that two runs answered differently."""

    now: Judged
    then: Judged

    @property
    def kind(self) -> str:
        """ "gained" and "lost": the answer is worth more, less than the other run's; else "same"."""
        if self.now.right == self.then.right:
            return "same"
        return "gained" if self.now.right > self.then.right else "lost"


@dataclass(frozen=True)
class Against:
    """What a run is beside another.

    other       the other run
    difference  of the scores
    categories  of each category's
    changes     answers that differ as texts: first those that are worth less or more, the surest first
    reworded    how many questions were put in other words
    """

    other: Run
    difference: Difference
    categories: dict[str, Difference]
    changes: list[Change]
    reworded: int


@dataclass(frozen=True)
class Findings:
    """What is worth telling of a run.

    estimate    its score's interval; None if the score is not that of the questions one by one, as where a
                published script joins answers to other questions
    categories  each category's score with its interval; empty if there is one only
    wrong       the answers that were wrong with the highest probability
    against     the same beside another run
    """

    run: Run
    estimate: Estimate | None
    categories: dict[str, Estimate]
    wrong: list[Judged]
    against: Against | None


def findings(run: Run, other: Run | None = None) -> Findings:
    """What is worth telling. UserError: the other run has nothing to compare, see `statistics.in_both`."""
    benchmark = run.score.benchmark
    found = estimate(benchmark, headline(run.judged))
    parts = by_category(run.judged)
    return Findings(
        run,
        found if abs(found.value - run.score.value) <= ROUNDED else None,
        {name: estimate(benchmark, part) for name, part in parts.items()} if len(parts) > 1 else {},
        surely_wrong(run.judged),
        against(run, other) if other else None,
    )


def headline(judged: Sequence[Judged]) -> list[Judged]:
    """The questions whose score the papers print."""
    return [one for one in judged if one.headline]


def surely_wrong(judged: Sequence[Judged], count: int = SURELY_WRONG) -> list[Judged]:
    """Answers that are less than half right, those with the highest probability first; one of each group."""
    wrong = [one for one in judged if one.right < 0.5 and one.answer is not None]
    surest: dict[str, Judged] = {}
    for one in sorted(wrong, key=_probability, reverse=True):
        surest.setdefault(one.group, one)
    return list(surest.values())[:count]


def against(run: Run, other: Run) -> Against:
    """A run beside another; errors as for `statistics.in_both`."""
    benchmark = run.score.benchmark
    ours, theirs = in_both(run.judged, other.judged)
    named = by_category(theirs)
    parts = {name: (part, named[name]) for name, part in by_category(ours).items()}
    changes = [Change(now, then) for now, then in zip(ours, theirs, strict=True) if now.answer != then.answer]
    order = {"lost": 0, "gained": 1, "same": 2}
    changes.sort(key=lambda change: (order[change.kind], -_probability(change.now)))
    return Against(
        other,
        difference(benchmark, headline(ours), headline(theirs)),
        {name: difference(benchmark, *part) for name, part in parts.items()} if len(parts) > 1 else {},
        changes,
        sum(now.prompt != then.prompt for now, then in zip(ours, theirs, strict=True)),
    )


def numbers(found: Findings) -> dict[str, Any]:
    """The same for a program to read: intervals, differences, and the ids of what changed."""
    given: dict[str, Any] = {
        "interval": asdict(found.estimate) if found.estimate else None,
        "categories": {name: asdict(part) for name, part in found.categories.items()},
        "surely_wrong": [one.id for one in found.wrong],
    }
    if beside := found.against:
        given["against"] = asdict(beside.difference) | {
            "name": beside.other.name,
            "categories": {name: asdict(part) for name, part in beside.categories.items()},
            "changes": [{"id": change.now.id, "kind": change.kind} for change in beside.changes],
            "reworded": beside.reworded,
        }
    return given


def _probability(one: Judged) -> float:
    """Answers of unknown probability come last."""
    return -1.0 if one.probability is None else one.probability
