"""TextVQA, validation: 5,000 questions about what is written in a picture, each answered by ten people."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from mvlm_np.errors import EvaluationError
from mvlm_np.evaluation.answers import Answer, join
from mvlm_np.evaluation.asked import PAD, Asked
from mvlm_np.evaluation.benchmark import Benchmark, ScriptStops, Verdict, judged
from mvlm_np.evaluation.evalai import accuracy, processed
from mvlm_np.evaluation.files import Record, json_file, json_lines, required
from mvlm_np.evaluation.scores import Judged, Part

ASKED, GOLD = "llava_textvqa_val_v051_ocr.jsonl", "TextVQA_0.5.1_val.json"
ARCHIVE = "it is in the published benchmark_data.zip"
IMAGES = "unpack TextVQA's train_val_images.zip there"

Key = tuple[str, str]  # a picture's id and a question about it in lower case


def questions(folder: Path) -> list[Asked]:
    """The questions, with what an OCR program has read in the picture."""
    images, found, seen = folder / "train_images", [], Counter[str]()
    for line in json_lines(required(folder / ASKED, ARCHIVE)):
        name, image, text = line.text("question_id"), line.text("image"), line.text("text")
        seen[name] += 1
        one = f"{name} {seen[name]}"
        found.append(Asked(one, name, one, "default", image, images / image, text, prompt=text))
    return found


def judge(folder: Path, asked: Sequence[Asked], answers: Sequence[Answer], as_published: bool) -> Verdict:
    """A question without an answer counts 0; the published script leaves it out."""
    golds = _golds(folder)
    joined = join(
        asked,
        answers,
        lambda one: _key(str(one.question_id), one.prompt),
        lambda one: _key(one.question_id, one.prompt),
    )
    found = []
    if as_published:
        places = {_key(str(one.question_id), one.prompt): one for one in asked}
        for answer in answers:
            if len(answer.prompt.split("\n")) not in (2, 3):
                raise ScriptStops("AssertionError")
            key = _key(answer.question_id, answer.prompt)
            if key not in golds or key not in places:
                raise ScriptStops(f"KeyError: {key}")
            found.append(_judged(places[key], answer, golds[key]))
    else:
        for one, its in zip(asked, joined.answers, strict=True):
            key = _key(str(one.question_id), one.prompt)
            if key not in golds:
                found_not = f"does not have the question {key[1]!r} about {key[0]}"
                raise EvaluationError(folder / GOLD, found_not, fix="download it again")
            found.append(_judged(one, its, golds[key]))
    value = 100 * sum(one.right for one in found) / len(found) if found else 0.0
    return Verdict(found, joined.counts, [Part("", "Accuracy", value, len(found))])


def _judged(asked: Asked, answer: Answer | None, ten: Sequence[str]) -> Judged:
    people = [processed(one) for one in ten]
    right = 0.0 if answer is None else accuracy(processed(answer.text), people)
    return judged(asked, answer, Counter(ten).most_common(1)[0][0], right)


def _key(name: str, prompt: str) -> Key:
    return name, prompt.split("\n")[0].lower()


def _golds(folder: Path) -> dict[Key, list[str]]:
    """{picture and question: the ten answers}"""
    path = required(folder / GOLD, "it is on TextVQA's page, as validation data of version 0.5.1")
    found = {}
    for entry in Record(json_file(path), str(path)).records("data"):
        ten = entry.texts("answers")
        if len(ten) != 10:
            raise EvaluationError(entry.where, f"has {len(ten)} answers", "10")
        found[entry.text("image_id"), entry.text("question").lower()] = ten
    return found


BENCHMARK = Benchmark(
    key="textvqa",
    title="TextVQA",
    headline="Accuracy",
    questions=questions,
    judge=judge,
    preparation=PAD,
    max_new_tokens=128,
    images=IMAGES,
    otherwise="it leaves out questions that have no answer",
)
