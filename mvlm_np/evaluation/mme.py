"""MME: 14 tasks with two questions about each of 1,187 pictures, one to be answered yes and one no."""

from collections.abc import Sequence
from pathlib import Path

from mvlm_np.errors import EvaluationError, some
from mvlm_np.evaluation.answers import Answer, join
from mvlm_np.evaluation.asked import PAD, WORD_OR_PHRASE, Asked
from mvlm_np.evaluation.benchmark import Benchmark, ScriptStops, Verdict, judged
from mvlm_np.evaluation.files import json_lines, lines, required
from mvlm_np.evaluation.scores import Judged, Part, by_category, measure

ASKED = "llava_mme.jsonl"
PERCEPTION = (
    "existence",
    "count",
    "position",
    "color",
    "posters",
    "celebrity",
    "scene",
    "landmark",
    "artwork",
    "OCR",
)
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
TASKS = PERCEPTION + COGNITION
ARCHIVE = "it is in the published benchmark_data.zip"
IMAGES = "unpack MME_Benchmark_release_version there, with the texts that lie beside the pictures"
PLEASE = "Please answer yes or no."


def questions(folder: Path) -> list[Asked]:
    """The questions of all tasks, two of each picture."""
    images, found, seen = folder / "images", [], dict[str, int]()
    for line in json_lines(required(folder / ASKED, ARCHIVE)):
        name, image, text, task = (line.text(key) for key in ("question_id", "image", "text", "category"))
        if task not in TASKS:
            raise EvaluationError(line.where, f"found the category {task}", "one of MME's tasks")
        seen[name] = seen.get(name, 0) + 1
        one = f"{name} {seen[name]}"
        found.append(Asked(one, name, name, task, image, images / image, text, prompt=text))
    if odd := [name for name, n in seen.items() if n != 2]:
        raise EvaluationError(folder / ASKED, f"does not have two questions about {some(odd)}", fix=ARCHIVE)
    return found


def judge(folder: Path, asked: Sequence[Asked], answers: Sequence[Answer], as_published: bool) -> Verdict:
    """Two questions belong together by their picture; for the published script, by their place.

    Answers belong to questions by picture and question; what the prompts add to that may differ.
    """
    joined = join(
        asked,
        answers,
        lambda one: (str(one.question_id), _question(one.prompt)),
        lambda one: (one.question_id, _question(one.prompt)),
    )
    verdict = Verdict([], joined.counts)
    verdict.counts['"other", neither yes nor no'] = sum(
        one is not None and said(one.text) == "other" for one in joined.answers
    )
    if as_published:
        verdict.judged = _by_place(folder, asked, answers)
    else:
        for one, answer in zip(asked, joined.answers, strict=True):
            found = _gold(folder, str(one.question_id), one.prompt)
            if found is None:
                path, question = _text(folder, str(one.question_id)), _question(one.prompt)
                raise EvaluationError(path, f"does not have the question {question!r}", fix=IMAGES)
            text = "" if answer is None else answer.text
            verdict.judged.append(_judged(one, answer, found[1].lower(), text, one.group))
    parts = by_category(verdict.judged)
    for title, tasks in (("Perception", PERCEPTION), ("Cognition", COGNITION)):
        its = [one for task in tasks for one in parts.get(task, [])]
        verdict.parts.append(Part(title, "total", measure("mme", its), len(its)))
        for task in tasks:
            if task in parts:
                verdict.parts.append(Part(title, task, measure("mme", parts[task]), len(parts[task])))
    return verdict


def said(answer: str) -> str:
    """ "yes" or "no" if the answer is that, or its first four characters contain it; else "other"."""
    answer = answer.lower()
    if answer in ("yes", "no"):
        return answer
    return next((word for word in ("yes", "no") if word in answer[:4]), "other")


def results(folder: Path, asked: Sequence[Asked], answers: Sequence[Answer]) -> dict[str, str]:
    """{task: its file}, as the published converter writes them for the published script."""
    tasks = {str(one.question_id): one.category for one in asked}
    found: dict[str, list[str]] = {}
    for answer in answers:
        if answer.question_id not in tasks:
            raise ScriptStops(f"KeyError: {answer.question_id!r}")
        task, name = tasks[answer.question_id], _text(folder, answer.question_id).name
        gold = _gold(folder, answer.question_id, answer.prompt)
        if gold is None:
            raise ScriptStops(f"KeyError: {(task, name, f'{_question(answer.prompt)}  {PLEASE}')}")
        found.setdefault(task, []).append("\t".join((name, *gold, answer.text)) + "\n")
    return {task: "".join(its) for task, its in found.items()}


def _judged(asked: Asked, answer: Answer | None, gold: str, text: str, group: str) -> Judged:
    right = answer is not None and said(text) == gold
    return judged(asked, answer, gold, right, group=group, headline=asked.category in PERCEPTION)


def _by_place(folder: Path, asked: Sequence[Asked], answers: Sequence[Answer]) -> list[Judged]:
    """As the published script has it: each two lines of a task's file are taken for one picture."""
    files = results(folder, asked, answers)
    known = {(str(one.question_id), _question(one.prompt)): one for one in asked}
    its: dict[str, list[tuple[Asked, Answer]]] = {}
    for answer in answers:
        one = known[answer.question_id, _question(answer.prompt)]
        its.setdefault(one.category, []).append((one, answer))
    found = []
    for task in TASKS if {one.category for one in asked} == {*TASKS} else files:
        if task not in files:
            raise ScriptStops(f"FileNotFoundError: [Errno 2] No such file or directory: '{task}.txt'")
        # Python reads every kind of line break as one.
        written = files[task].replace("\r\n", "\n").replace("\r", "\n").removesuffix("\n").split("\n")
        for i, line in enumerate(written):
            if i % 2 == 0 and i + 1 == len(written):
                raise ScriptStops("AssertionError")
            fields = line.split("\t")
            if len(fields) < 4:
                found_few = f"(expected 4, got {len(fields)})"
                raise ScriptStops(f"ValueError: not enough values to unpack {found_few}")
            if len(fields) > 4:
                raise ScriptStops("ValueError: too many values to unpack (expected 4)")
            one, answer = its[task][min(i, len(its[task]) - 1)]  # one a line, if none holds a line itself
            found.append(_judged(one, answer, fields[2].lower(), fields[3], f"{task} {i // 2}"))
    return found


def _text(folder: Path, name: str) -> Path:
    """The file with a picture's questions and their answers."""
    picture = folder / "images" / name
    texts = picture.parent
    if texts.name == "images":
        texts = texts.parent / "questions_answers_YN"
    return texts / f"{picture.name.split('.')[0]}.txt"


def _question(prompt: str) -> str:
    return prompt.replace(WORD_OR_PHRASE, "").strip()


def _gold(folder: Path, name: str, prompt: str) -> tuple[str, str] | None:
    """A question as MME's own text has it, and its answer, Yes or No; None if it is not there."""
    path = required(_text(folder, name), IMAGES)
    golds = {}
    for number, line in lines(path):
        if not line.strip():
            continue
        fields = line.strip().split("\t")
        if len(fields) != 2 or fields[1].lower() not in ("yes", "no"):
            where = f"{path}, line {number}"
            raise EvaluationError(where, "is no question", "QUESTION<TAB>Yes or No", IMAGES)
        golds[fields[0]] = fields[1]
    written = (_question(prompt) + gap + PLEASE for gap in (" ", "  "))
    return next(((text, golds[text]) for text in written if text in golds), None)


BENCHMARK = Benchmark(
    key="mme",
    title="MME",
    headline="Perception",
    questions=questions,
    judge=judge,
    preparation=PAD,
    max_new_tokens=128,
    images=IMAGES,
    otherwise="it takes each two lines for the two of one picture",
)
