"""POPE: is there such a thing in the picture? 8,910 questions in three files, of which each has its F1."""

import re
from collections.abc import Sequence
from pathlib import Path

from mvlm_np.errors import EvaluationError
from mvlm_np.evaluation.answers import Answer, by_id
from mvlm_np.evaluation.asked import PAD, WORD_OR_PHRASE, Asked
from mvlm_np.evaluation.benchmark import Benchmark, ScriptStops, Verdict, judged
from mvlm_np.evaluation.files import json_lines, required
from mvlm_np.evaluation.scores import Confusion, Judged, Part, by_category

ASKED = "llava_pope_test.jsonl"
CATEGORIES = ("adversarial", "popular", "random")
ARCHIVE = "it is in the published benchmark_data.zip"
IMAGES = "unpack COCO's val2014.zip there"
LABELS = "take it from POPE's repository at commit e3e3926; the present one has other questions"
BASE = 10_000_000  # question_ids of a category begin at a multiple of it, and the labels' at 1


def questions(folder: Path) -> list[Asked]:
    """The questions of all three files."""
    images, found = folder / "val2014", []
    for line in json_lines(required(folder / ASKED, ARCHIVE)):
        number, image, text = line.whole("question_id"), line.text("image"), line.text("text")
        category = line.text("category")
        if category not in CATEGORIES:
            raise EvaluationError(line.where, f"found the category {category}", " or ".join(CATEGORIES))
        name = str(number)
        found.append(Asked(name, number, name, category, image, images / image, text, prompt=text))
    return found


def judge(folder: Path, asked: Sequence[Asked], answers: Sequence[Answer], as_published: bool) -> Verdict:
    """Labels belong to questions by their id; for the published script, to answers by their place."""
    joined = by_id(asked, answers)
    its = joined.answers
    found = _by_place(folder, asked, answers) if as_published else _by_label_id(folder, asked, its)
    verdict = Verdict(found, joined.counts)
    verdict.counts["neither yes nor no"] = sum(
        one is not None and not re.search(r"\b(yes|no)\b", one.text.lower()) for one in joined.answers
    )
    for category, part in by_category(found).items():
        verdict.parts += _table(category, Confusion.of(part), len(part), as_published)
    scores = [part.value for part in verdict.parts if part.name == "F1 score"]
    if scores:
        verdict.parts.append(Part("", "mean F1", sum(scores) / len(scores)))
    return verdict


def said(answer: str) -> str:
    """ "no" if one of the words No, not, no stands before the first period; everything else is "yes"."""
    words = answer.split(".")[0].replace(",", "").split(" ")
    return "no" if {"No", "not", "no"} & {*words} else "yes"


def _label(text: str) -> str:
    return "no" if text == "no" else "yes"


def _by_label_id(folder: Path, asked: Sequence[Asked], answers: Sequence[Answer | None]) -> list[Judged]:
    labels = {}
    for category in sorted({one.category for one in asked}):
        for line in json_lines(_label_file(folder, category)):
            labels[category, line.whole("question_id")] = line
    found = []
    for one, answer in zip(asked, answers, strict=True):
        assert isinstance(one.question_id, int)
        key = one.category, one.question_id % BASE
        if key not in labels:
            path = _label_file(folder, one.category)
            raise EvaluationError(path, f"has no label for question {one.id}", fix=LABELS)
        line = labels[key]
        question = one.text.removesuffix(WORD_OR_PHRASE)
        if line.text("image") != one.picture or _thing(line.text("text")) != _thing(question):
            labelled = f"asks {line.text('text')!r} of {line.text('image')}"
            raise EvaluationError(line.where, labelled, f"{question!r} of {one.picture}", LABELS)
        gold = _label(line.text("label"))
        found.append(judged(one, answer, gold, answer is not None and said(answer.text) == gold))
    return found


def _thing(question: str) -> str:
    """A question without its article: the files of labels differ in a and an."""
    return re.sub(r" an? ", " ", question).strip()


def _by_place(folder: Path, asked: Sequence[Asked], answers: Sequence[Answer]) -> list[Judged]:
    """As the published script has it: the first answer of a category gets its first label, and so on."""
    for other in sorted(required(folder / "coco", LABELS).iterdir()):
        if not (other.name.startswith("coco_pope_") and other.name.endswith(".json")):
            raise ScriptStops("AssertionError")
    known = {one.id: one for one in asked}
    for answer in answers:
        if answer.question_id not in known:
            raise ScriptStops(f"KeyError: {answer.question_id}")
    found = []
    for category in dict.fromkeys(one.category for one in asked):
        golds = [_label(line.text("label")) for line in json_lines(_label_file(folder, category))]
        its = [answer for answer in answers if known[answer.question_id].category == category]
        if not its:
            raise ScriptStops("ZeroDivisionError: float division by zero")
        if len(its) > len(golds):
            raise ScriptStops("IndexError: list index out of range")
        for answer, gold in zip(its, golds, strict=False):
            found.append(judged(known[answer.question_id], answer, gold, said(answer.text) == gold))
    return found


def _label_file(folder: Path, category: str) -> Path:
    return required(folder / "coco" / f"coco_pope_{category}.json", LABELS)


def _table(category: str, counts: Confusion, samples: int, as_published: bool) -> list[Part]:
    """What the published script prints of a category, as fractions."""
    counted = {"TP": counts.tp, "FP": counts.fp, "TN": counts.tn, "FN": counts.fn}
    if as_published and not counts.tp:
        printed = "\t".join(counted), "\t".join(str(n) for n in counted.values())
        raise ScriptStops("ZeroDivisionError: float division by zero", f"# samples: {samples}", *printed)
    values = counted | {
        "Accuracy": counts.accuracy,
        "Precision": counts.precision,
        "Recall": counts.recall,
        "F1 score": counts.f1,
        "Yes ratio": counts.yes_ratio,
    }
    return [Part(category, name, value, samples) for name, value in values.items()]


BENCHMARK = Benchmark(
    key="pope",
    title="POPE",
    headline="mean F1",
    questions=questions,
    judge=judge,
    preparation=PAD,
    max_new_tokens=128,
    images=IMAGES,
    otherwise="it joins answers and labels by their place",
)
