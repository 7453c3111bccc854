"""What a model answers about scenes that the demo model's training has not seen, and how right that is.

An answer counts if it is exactly right; of a description or a list, the share of its facts does. A scene has
several questions, and counts once in intervals and tests; see `mvlm_np.evaluation.statistics`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from random import Random
from typing import Any

from PIL import Image

from mvlm_np.errors import UserError
from mvlm_np.evaluation.report.findings import Run
from mvlm_np.evaluation.scores import Judged, Score
from mvlm_np.evaluation.statistics import Difference, estimate
from mvlm_np.model import MobileVLM
from mvlm_np.rows.row import Row
from tools.demo.questions import TASKS, Question, questions, score
from tools.demo.scenes import render, scene

NEW_TOKENS = 128


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
    probable: bool = False,
    progress: Callable[[int], object] = lambda n: None,
) -> list[Judged]:
    """The model's answers, each with what it is worth; categories are the tasks.

    model     ours, or what has our `chat`, such as `TorchModel`
    grey      every picture is replaced by an even grey of its size
    probable  find out how probable our model's answers are, too. With NumPy, which a model so small takes,
              it takes four times as long: each question is read from the start, as `model.batch` does
    """

    put: dict[str, tuple[str, Question]] = {}

    def rows() -> Iterator[Row]:
        for number, found in asked(split, count, tasks):
            name = f"{split}/{number}"
            shown = picture(name)
            if grey:
                shown = Image.new("RGB", shown.size, (128, 128, 128))
            for question in found:
                put[f"{name}/{question.text}"] = name, question
                yield Row(f"{name}/{question.text}", shown, question.text, NEW_TOKENS)

    judged = []
    for key, answer, probability in _answers(model, rows(), probable):
        name, question = put[key]
        right = score(question, answer)
        fields = (key, key, question.task, name, question.text, answer, question.answer, right, probability)
        judged.append(Judged(*fields))
        progress(1)
    return judged


def picture(name: str) -> Image.Image:
    """A scene's picture, by split and number: "test/17"."""
    split, number = name.split("/")
    return render(scene(split, int(number)))


def _answers(model: Any, rows: Iterator[Row], probable: bool) -> Iterator[tuple[str, str, float | None]]:
    """Key, answer and, if it is known, probability of each row."""
    if probable and isinstance(model, MobileVLM):
        for answered in model.batch(rows):
            if answered.answer is None:
                raise UserError(answered.row.key, answered.error)
            yield answered.row.key, answered.answer, answered.probability
        return
    chat: Any = None
    about = None
    for row in rows:
        if row.picture is not about:
            chat, about = model.chat(row.picture), row.picture
        chat.history.clear()
        yield row.key, chat.ask(row.question, max_new_tokens=row.max_new_tokens), None


def run(name: str, judged: Sequence[Judged], facts: Mapping[str, str] | None = None) -> Run:
    """The same as a report takes it."""
    answered = sum(one.answer is not None for one in judged)
    counts = {"answered": answered, "expected": len(judged)}
    found = Score("demo", "Score", estimate("demo", judged).value, counts=counts)
    return Run(name, "Drawn scenes", found, judged, facts or {})


def compared(found: Difference) -> str:
    """A difference in words."""
    return (
        f"{found.questions} questions, {found.changed} answers differ, score {found.value:+.2f} points "
        f"({found.low:+.2f} to {found.high:+.2f}, p = {found.p:.2g})"
    )


def with_answers(judged: Sequence[Judged], answers: Mapping[str, str]) -> list[Judged]:
    """The same questions with other answers, where there are such. {id: answer}"""
    return [
        replace(
            one,
            answer=answers[one.id],
            right=score(Question(one.category, one.prompt, one.gold), answers[one.id]),
            probability=None,
        )
        for one in judged
        if one.id in answers
    ]
