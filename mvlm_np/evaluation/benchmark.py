"""What a benchmark is, and what comes of judging its answers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mvlm_np.evaluation.answers import Answer
from mvlm_np.evaluation.asked import Asked
from mvlm_np.evaluation.scores import Judged, Part
from mvlm_np.rows.row import Preparation


class ScriptStops(Exception):
    """The published script ends here without a score.

    error    as Python would print it
    printed  lines that the script prints before
    """

    def __init__(self, error: str, *printed: str):
        super().__init__(error)
        self.error, self.printed = error, printed


@dataclass
class Verdict:
    """The judged questions, and what is told of them beside the score; see `scores.Score`."""

    judged: list[Judged]
    counts: dict[str, int]
    parts: list[Part] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Benchmark:
    """One of the six.

    key             its folder's name in the published layout
    title           how papers call it
    headline        what the papers' score is
    questions       reads its folder
    judge           (folder, questions, answers, as_published) -> verdict; ScriptStops only if as_published
    preparation     how pictures become pixel values
    max_new_tokens  of an answer
    images          where its pictures are to be had
    otherwise       what the published script does where its score differs from ours
    """

    key: str
    title: str
    headline: str
    questions: Callable[[Path], list[Asked]]
    judge: Callable[[Path, Sequence[Asked], Sequence[Answer], bool], Verdict]
    preparation: Preparation
    max_new_tokens: int
    images: str
    otherwise: str


def judged(
    asked: Asked,
    answer: Answer | None,
    gold: str,
    right: float,
    *,
    category: str | None = None,
    group: str | None = None,
    headline: bool = True,
) -> Judged:
    """A question with its answer. category, group: where they are others than the question's."""
    return Judged(
        id=asked.id,
        group=asked.group if group is None else group,
        category=asked.category if category is None else category,
        picture=asked.picture,
        prompt=asked.prompt,
        answer=None if answer is None else answer.text,
        gold=gold,
        right=float(right),
        probability=None if answer is None else answer.probability,
        headline=headline,
    )
