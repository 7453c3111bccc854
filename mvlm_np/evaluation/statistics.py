"""How sure a score is, and whether two runs differ, for questions that share pictures.

Questions about one picture are often right together and wrong together, and so are MME's two of a picture and
MMBench's four turns of a question. To count them as if each were a witness of its own would promise too much.
So what counts here is the picture with all its questions (a question without one counts for itself): a score
is thought of as one of a sample of pictures, such as the benchmark's authors might have drawn.

Every score is a sum of ratios of totals: TextVQA's is what its questions are worth over how many they are,
POPE's has 2 TP over 2 TP + FP + FN of each category, MME's two such ratios a task. To these totals each
picture adds its part, and all that follows is computed from the parts (`Ratios`).

The variance is that of the sum's linear part (Taylor linearisation, as surveys that draw clusters have it),
where each picture's part is divided by √(1 − its share of the total), which makes up for few pictures and
unequal ones (Bell and McCaffrey's CR2).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from math import sqrt
from statistics import NormalDist

import numpy as np

from mvlm_np.errors import UserError
from mvlm_np.evaluation.scores import Judged

Z = NormalDist().inv_cdf(0.975)  # of 95 %
ALL_SWAPS = 14  # with so few pictures that differ, all ways to swap them are looked at
SWAPS = 20_000  # else so many, drawn at random
AT_ONCE = 1000


@dataclass(frozen=True)
class Estimate:
    """A score and its interval of 95 %, on the score's own scale, and the pictures that it rests on."""

    value: float
    low: float
    high: float
    pictures: int


@dataclass(frozen=True)
class Difference:
    """One run's score less another's on the questions that both were asked.

    questions        that both were asked
    changed          of their answers, how many differ as texts
    gained, lost     answers that are worth more, less than the other run's
    score            the one's score on these questions
    value, low, high what it is more than the other's, and the interval of 95 %
    p                how often so large a difference would come about if the two runs were equally good
    pictures         how many there are, and
    telling          how many of them tell the runs apart, since what they add to the totals differs
    """

    questions: int
    changed: int
    gained: int
    lost: int
    score: float
    value: float
    low: float
    high: float
    p: float
    pictures: int
    telling: int


@dataclass(frozen=True)
class Ratios:
    """A score, weight × Σ above / below over its terms, picture by picture.

    above, below  (pictures, terms), what each picture adds to the totals
    """

    above: np.ndarray
    below: np.ndarray
    weight: float

    @property
    def most(self) -> float:
        """The best score that there can be."""
        return self.weight * self.above.shape[1]

    def value(self) -> float:
        return float(self.of(self.above.sum(0), self.below.sum(0)))

    def of(self, above: np.ndarray, below: np.ndarray) -> np.ndarray:
        """Totals (..., terms) -> scores (...); a term with nothing below counts as 0."""
        return self.weight * np.divide(above, below, out=np.zeros(above.shape), where=below > 0).sum(-1)

    def pulls(self) -> np.ndarray:
        """How far each picture pulls the score up or down: (pictures,). NaN if a term rests on one alone."""
        above, below = self.above.sum(0), self.below.sum(0)
        used = below > 0  # a term of which there is nothing is 0 without doubt
        above, below = above[used], below[used]
        share = self.below[:, used] / below
        rest = self.above[:, used] / below - above / below * share
        with np.errstate(invalid="ignore", divide="ignore"):
            return self.weight * (rest / np.sqrt(1 - share)).sum(1)


def ratios(benchmark: str, judged: Sequence[Judged]) -> Ratios:
    """What each picture adds to the totals of a benchmark's score; see `scores.measure` for what that is.

    A benchmark without rules of its own is 100 × the mean of `right`.
    """
    pictures = _pictures(judged)
    parts: list[tuple[int, str, float, float]] = []  # picture, term, above, below
    groups: dict[str, Judged] = {}  # the worst of each group
    for one in judged:
        if one.group not in groups or one.right < groups[one.group].right:
            groups[one.group] = one
    if benchmark == "mmbench":
        parts = [(pictures[g], "", float(one.right == 1), 1) for g, one in groups.items()]
    elif benchmark == "pope":
        for one in judged:
            right, yes = one.right == 1, one.gold == "yes"
            found = 2 * float(right and yes)
            parts.append((pictures[one.group], one.category, found, found or float(not right)))
    else:
        term = [one.category if benchmark == "mme" else "" for one in judged]
        parts = [(pictures[one.group], t, one.right, 1) for one, t in zip(judged, term, strict=True)]
        if benchmark == "mme":
            parts += [
                (pictures[g], f"{one.category}, both", float(one.right == 1), 1) for g, one in groups.items()
            ]
    terms = {term: i for i, term in enumerate(dict.fromkeys(part[1] for part in parts))}
    above, below = (np.zeros((len(set(pictures.values())), len(terms))) for _ in range(2))
    at = [part[0] for part in parts], [terms[part[1]] for part in parts]
    np.add.at(above, at, [part[2] for part in parts])
    np.add.at(below, at, [part[3] for part in parts])
    return Ratios(above, below, 100 / len(terms) if benchmark == "pope" else 100)


def _pictures(judged: Iterable[Judged]) -> dict[str, int]:
    """Each group's picture, by number; what has none counts as one of its own."""
    numbers: dict[tuple[str, str], int] = {}
    found: dict[str, int] = {}
    for one in judged:
        if one.group not in found:
            name = ("picture", one.picture) if one.picture else ("group", one.group)
            found[one.group] = numbers.setdefault(name, len(numbers))
    return found


def estimate(benchmark: str, judged: Sequence[Judged]) -> Estimate:
    """The score of these questions and its interval: Wilson's, for as many questions as they are worth.

    The score's share of the best one, p, is as sure as that of n independent questions would be, where
    p (1 − p) / (n − 1) is the variance that was found. With a picture for each question this is Wilson's
    interval as it is. Where nothing varies (all right, all wrong), n is the number of pictures. Where a term
    rests on one picture alone, the interval is the whole scale.
    """
    if not judged:
        return Estimate(0.0, 0.0, 0.0, 0)
    found = ratios(benchmark, judged)
    value, most, pictures = found.value(), found.most, len(found.above)
    variance = float((found.pulls() ** 2).sum()) / most**2
    if np.isnan(variance):
        return Estimate(value, 0.0, most, pictures)
    p = value / most
    n = p * (1 - p) / variance + 1 if variance else pictures
    middle = (p + Z * Z / (2 * n)) / (1 + Z * Z / n)
    half = Z * sqrt(p * (1 - p) / n + Z * Z / (4 * n * n)) / (1 + Z * Z / n)
    return Estimate(value, most * max(0.0, middle - half), most * min(1.0, middle + half), pictures)


def in_both(judged: Sequence[Judged], against: Sequence[Judged]) -> tuple[list[Judged], list[Judged]]:
    """The questions of two runs that both were asked, in one order, groups whole.

    UserError: there are none, or the two were judged by different right answers.
    """
    others = {one.id: one for one in against}
    torn = {one.group for one in judged if one.id not in others}
    ids = {one.id for one in judged}
    torn |= {one.group for one in against if one.id not in ids}
    ours = [one for one in judged if one.group not in torn]
    theirs = [others[one.id] for one in ours]
    if not ours:
        raise UserError("--against", "none of these questions is in that run", fix="ask the same ones")
    for one, other in zip(ours, theirs, strict=True):
        if one.gold != other.gold:
            found = f"there {other.gold!r} is the right answer to {one.id}, and here {one.gold!r}"
            raise UserError("--against", found, fix="judge both with the same files")
    return ours, theirs


def difference(benchmark: str, judged: Sequence[Judged], against: Sequence[Judged]) -> Difference:
    """What `judged` scores more than `against`, picture by picture; errors as for `in_both`.

    The interval is the normal one. p is that of a randomisation test: if the two were equally good, either's
    answers about a picture might as well be the other's. So for pictures chosen at random the two runs swap
    all of them, and p is the share of such choices after which the scores differ at least as much as they do
    now. All choices are looked at where they are few, else 20,000, the same in every run. Of questions that
    are right or wrong, each with a picture of its own, it is McNemar's exact test.
    """
    ours, theirs = in_both(judged, against)
    a, b = ratios(benchmark, ours), ratios(benchmark, theirs)
    value = a.value() - b.value()
    pulls = a.pulls() - b.pulls()
    half = Z * sqrt(float((pulls**2).sum())) if not np.isnan(pulls).any() else a.most
    telling = int(((a.above != b.above) | (a.below != b.below)).any(1).sum())
    both = list(zip(ours, theirs, strict=True))
    return Difference(
        questions=len(ours),
        changed=sum(one.answer != other.answer for one, other in both),
        gained=sum(one.right > other.right for one, other in both),
        lost=sum(one.right < other.right for one, other in both),
        score=a.value(),
        value=value,
        low=max(-a.most, value - half),
        high=min(a.most, value + half),
        p=_swapped(a, b, value),
        pictures=len(a.above),
        telling=telling,
    )


def _swapped(a: Ratios, b: Ratios, value: float) -> float:
    """See `difference`."""
    more = np.concatenate([a.above - b.above, a.below - b.below], 1)
    more = more[more.any(1)]
    ours, theirs = (np.concatenate([r.above.sum(0), r.below.sum(0)]) for r in (a, b))
    terms, pictures = a.above.shape[1], len(more)

    def as_large(swap: np.ndarray) -> int:
        moved = swap @ more
        x, y = ours - moved, theirs + moved
        found = a.of(x[:, :terms], x[:, terms:]) - a.of(y[:, :terms], y[:, terms:])
        return int((np.abs(found) >= abs(value) - 1e-9).sum())

    if pictures <= ALL_SWAPS:
        swaps = np.array(list(product((0.0, 1.0), repeat=pictures))).reshape(2**pictures, pictures)
        return as_large(swaps) / len(swaps)
    random = np.random.default_rng(0)
    drawn = (random.integers(0, 2, (AT_ONCE, pictures)).astype(float) for _ in range(SWAPS // AT_ONCE))
    return (1 + sum(map(as_large, drawn))) / (1 + SWAPS)  # the runs as they are count as one
