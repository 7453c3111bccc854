"""What a model answers about scenes that the demo model's training has not seen, and how right that is.

An answer counts if it is exactly right; of a description or a list, the share of its facts does. The
intervals hold 95 %: Wilson's for right and wrong, the normal one for shares and for paired differences.
"""

from collections.abc import Iterator, Sequence
from math import sqrt
from random import Random
from typing import Any

import numpy as np
from PIL import Image

from mvlm_np.errors import UserError
from tools.demo.questions import TASKS, Question, questions, score
from tools.demo.scenes import render, scene

Answered = list[tuple[str, Question, str]]  # an identifier, the question, the answer


def asked(split: str, count: int, tasks: Sequence[str]) -> Iterator[tuple[int, list[Question]]]:
    """Scenes of a split and questions about them, until there are `count`."""
    number = 0
    while count > 0:
        picture = scene(split, number)
        found = list(questions(picture, Random(f"{picture.seed}/questions"), tasks))[:count]
        yield number, found
        number, count = number + 1, count - len(found)


def evaluate(
    model: Any,
    split: str = "test",
    count: int = 4000,
    *,
    tasks: Sequence[str] = TASKS,
    grey: bool = False,
    progress: Any = lambda n: None,
) -> Answered:
    """The model's answers. grey: every picture is replaced by an even grey of its size."""
    answered: Answered = []
    for number, found in asked(split, count, tasks):
        picture = render(scene(split, number))
        if grey:
            picture = Image.new("RGB", picture.size, (128, 128, 128))
        chat = model.chat(picture)
        for question in found:
            chat.history.clear()
            answer = chat.ask(question.text, max_new_tokens=128)
            answered.append((f"{split}/{number}/{question.text}", question, answer))
        progress(len(found))
    return answered


def interval(scores: Sequence[float]) -> tuple[float, float, float]:
    """Mean and its 95 % interval."""
    n, z = len(scores), 1.96
    mean = sum(scores) / n
    if set(scores) <= {0.0, 1.0}:
        middle = (mean + z * z / (2 * n)) / (1 + z * z / n)
        half = z * sqrt(mean * (1 - mean) / n + z * z / (4 * n * n)) / (1 + z * z / n)
        return mean, max(0.0, middle - half), middle + half
    half = z * float(np.std(scores)) / sqrt(n)
    return mean, max(0.0, mean - half), min(1.0, mean + half)


def table(answered: Answered) -> list[tuple[str, int, float, float, float]]:
    """Task, number of questions, score and its interval; the last row is all of them."""
    scores: dict[str, list[float]] = {}
    for _, question, answer in answered:
        scores.setdefault(question.task, []).append(score(question, answer))
    rows = [(task, len(values), *interval(values)) for task, values in scores.items()]
    everything = [value for values in scores.values() for value in values]
    return [*rows, ("all", len(everything), *interval(everything))]


def paired(answered: Answered, earlier: dict[str, str]) -> tuple[int, int, tuple[float, float, float]]:
    """Questions in common, answers that differ, and the difference of the scores with its interval."""
    common = [(q, answer, earlier[name]) for name, q, answer in answered if name in earlier]
    if not common:
        raise UserError("--against", "none of these questions is in that file", fix="ask the same ones")
    differences = [score(q, now) - score(q, then) for q, now, then in common]
    mean, half = float(np.mean(differences)), 1.96 * float(np.std(differences)) / sqrt(len(differences))
    return len(common), sum(now != then for _, now, then in common), (mean, mean - half, mean + half)
