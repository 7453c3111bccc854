"""What an answer was worth, what the answers of a benchmark are worth together, and how they are counted."""

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Judged:
    """One question with its answer, and how right that is.

    id           names the question; no other of the benchmark has it
    group        questions that count only together: MMBench's rows of a question, MME's two of a picture;
                 elsewhere the same as `id`
    category     the part of the benchmark that it belongs to: a task of MME, a file of POPE, ...
    picture      names the picture; "" for a question about text alone
    prompt       as the answers file records it: without the system's prompt
    answer       what the model said; None where the answers file has nothing
    gold         the right answer; of several, the one that most people gave
    right        0 to 1; only TextVQA has values between
    probability  that the model gave to the answer as a whole; None where that is not known
    headline     it is part of the score that the papers print: not so for ScienceQA's questions without a
                 picture and for MME's cognition
    """

    id: str
    group: str
    category: str
    picture: str
    prompt: str
    answer: str | None
    gold: str
    right: float
    probability: float | None = None
    headline: bool = True


@dataclass(frozen=True)
class Part:
    """A line of a score's table: `name` within `table`, on the table's own scale.

    of  how many questions it is about; None where that means nothing
    """

    table: str
    name: str
    value: float
    of: int | None = None


@dataclass(frozen=True)
class Score:
    """What a benchmark's answers are worth.

    benchmark  a key of `measure`
    name       what the score is called: "Accuracy", "Perception", ...
    value      on the scale of the papers' tables: per cent, and MME's 0 to 2000
    published  the same of the model that was recognised; None where there is none
    parts      all other figures, in the order in which they are to be shown
    counts     what tells trouble, {what: how many}, always with "answered" and "expected"
    remarks    what a reader must know of the score, each one line: "not comparable: ...", and the like
    """

    benchmark: str
    name: str
    value: float
    published: float | None = None
    parts: tuple[Part, ...] = ()
    counts: dict[str, int] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()


def measure(benchmark: str, judged: Sequence[Judged]) -> float:
    """The score of these questions, whichever they are, on the scale of the papers' tables.

    `Score.value` is this of all questions with `headline`; of one category it is that category's score. So
    intervals can be had by drawing groups (`Judged.group`) anew.

    "gqa", "sqa", "textvqa"  100 × the mean of `right`
    "mmbench"                100 × the share of groups of which every question is right
    "pope"                   100 × the mean over categories of F1, in which "yes" is what is looked for
    "mme"                    the sum over categories of 100 × the mean of `right` + 100 × the share of groups
                             of which every question is right
    No question: 0. No "yes" among the predictions or the labels of a category: its F1 is 0.
    """
    if not judged:
        return 0.0
    if benchmark in ("gqa", "sqa", "textvqa"):
        return 100 * _mean([one.right for one in judged])
    if benchmark == "mmbench":
        return 100 * _mean(whole_groups(judged))
    parts = by_category(judged).values()
    if benchmark == "pope":
        return 100 * _mean([Confusion.of(part).f1 for part in parts])
    assert benchmark == "mme"
    return sum(100 * _mean([one.right for one in part]) + 100 * _mean(whole_groups(part)) for part in parts)


def by_category(judged: Sequence[Judged]) -> dict[str, list[Judged]]:
    """{category: its questions}, in the order of their first."""
    found: dict[str, list[Judged]] = {}
    for one in judged:
        found.setdefault(one.category, []).append(one)
    return found


def whole_groups(judged: Sequence[Judged]) -> list[float]:
    """For each group 1.0 if every question of it is right, else 0.0; in the order of their first."""
    found: dict[str, float] = {}
    for one in judged:
        found[one.group] = min(found.get(one.group, 1.0), float(one.right == 1))
    return list(found.values())


@dataclass(frozen=True)
class Confusion:
    """How often "yes" and "no" were said rightly and wrongly, of questions whose `gold` is "yes" or "no"."""

    tp: int
    fp: int
    tn: int
    fn: int

    @classmethod
    def of(cls, judged: Sequence[Judged]) -> "Confusion":
        count = {(gold, right): 0 for gold in ("yes", "no") for right in (True, False)}
        for one in judged:
            count[one.gold, one.right == 1] += 1
        return cls(count["yes", True], count["no", False], count["no", True], count["yes", False])

    @property
    def precision(self) -> float:
        return _ratio(self.tp, self.tp + self.fp)

    @property
    def recall(self) -> float:
        return _ratio(self.tp, self.tp + self.fn)

    @property
    def f1(self) -> float:
        return _ratio(2 * self.precision * self.recall, self.precision + self.recall)

    @property
    def yes_ratio(self) -> float:
        """The share of questions that were answered with "yes"."""
        return _ratio(self.tp + self.fp, self.tp + self.fp + self.tn + self.fn)

    @property
    def accuracy(self) -> float:
        return _ratio(self.tp + self.tn, self.tp + self.fp + self.tn + self.fn)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
