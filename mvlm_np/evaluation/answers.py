"""Answers as JSON lines, in the published format: the published scripts read what is written here."""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

from mvlm_np.evaluation.asked import Asked
from mvlm_np.evaluation.files import json_lines


@dataclass(frozen=True)
class Answer:
    """A line of an answers file.

    probability  of the answer as a whole; None where the file does not say
    model        by which name the model was called
    """

    question_id: str
    prompt: str
    text: str
    probability: float | None = None
    model: str = ""


def read_answers(path: Path) -> list[Answer]:
    """All lines of an answers file. EvaluationError names the line that is wrong."""
    return [
        Answer(
            question_id=str(line.name("question_id")),
            prompt=line.text("prompt"),
            text=line.text("text"),
            probability=_probability(line.values.get("metadata")),
            model=line.text("model_id", ""),
        )
        for line in json_lines(path)
    ]


def _probability(metadata: object) -> float | None:
    found = metadata.get("probability") if isinstance(metadata, dict) else None
    return float(found) if isinstance(found, int | float) and 0 <= found <= 1 else None


def answer_line(asked: Asked, text: str, probability: float, model: str) -> str:
    """The line of a question's answer, with its line break. Equal questions give equal lines."""
    more = dict(asked.more)
    round_id = {"round_id": more.pop("round_id")} if "round_id" in more else {}
    line = {
        "question_id": asked.question_id,
        **round_id,
        "prompt": asked.prompt,
        "text": text,
        **more,
        "answer_id": blake2b(f"{model} {asked.id}".encode(), digest_size=11).hexdigest(),
        "model_id": model,
        "metadata": {"probability": probability},
    }
    return json.dumps(line) + "\n"


@dataclass(frozen=True)
class Joined:
    """Answers beside the questions that they belong to.

    answers  one a question; None where there is none
    counts   "answered", "expected"; "answered twice" and "of no question" where there are such lines
    """

    answers: list[Answer | None]
    counts: dict[str, int]


def join(
    asked: Sequence[Asked],
    answers: Iterable[Answer],
    asked_key: Callable[[Asked], object],
    answer_key: Callable[[Answer], object],
) -> Joined:
    """Finds each question's answer by a key. Of several answers the last counts.

    Where several questions have one key, their answers belong to them in order.
    """
    waiting: dict[object, list[int]] = {}
    for i, one in enumerate(asked):
        waiting.setdefault(asked_key(one), []).append(i)
    found: dict[object, list[Answer]] = {key: [] for key in waiting}
    unknown = 0
    for answer in answers:
        if (key := answer_key(answer)) in found:
            found[key].append(answer)
        else:
            unknown += 1
    placed: list[Answer | None] = [None] * len(asked)
    twice = 0
    for key, places in waiting.items():
        twice += max(0, len(found[key]) - len(places))
        for place, answer in zip(places, found[key][-len(places) :], strict=False):
            placed[place] = answer
    counts = {"answered": sum(one is not None for one in placed), "expected": len(asked)}
    trouble = {"answered twice": twice, "of no question": unknown}
    return Joined(placed, counts | {what: n for what, n in trouble.items() if n})


def by_id(asked: Sequence[Asked], answers: Iterable[Answer]) -> Joined:
    """`join` where `question_id` names a question."""
    return join(asked, answers, lambda one: str(one.question_id), lambda one: one.question_id)
