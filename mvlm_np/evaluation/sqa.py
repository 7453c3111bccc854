"""ScienceQA, test: 4,241 questions with letters to choose from.

The papers' score is that of the 2,017 questions with a picture.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from mvlm_np.errors import EvaluationError
from mvlm_np.evaluation.answers import Answer, by_id
from mvlm_np.evaluation.asked import CROP, LETTER, Asked
from mvlm_np.evaluation.benchmark import Benchmark, Verdict, judged
from mvlm_np.evaluation.files import Record, by_name, json_file, required
from mvlm_np.evaluation.scores import Part

ASKED, GOLD = "llava_test_CQM-A.json", "problems.json"
ARCHIVE = "it is in the published benchmark_data.zip"
IMAGES = "get them with ScienceQA's tools/download.sh"
LETTERS = "ABCDE"
MARK = "<image>"


def questions(folder: Path) -> list[Asked]:
    """The questions, with a picture and without."""
    path = required(folder / ASKED, ARCHIVE)
    entries = json_file(path)
    found = []
    for i, values in enumerate(entries if isinstance(entries, list) else [entries]):
        entry = Record(values, f"{path}, question {i + 1}")
        name, image = entry.text("id"), entry.text("image", "")
        turns = entry.records("conversations")
        if not turns:
            raise EvaluationError(entry.where, "has no conversations", "the question", ARCHIVE)
        text = turns[0].text("value").replace(MARK, "").strip() + LETTER
        source = folder / "images" / "test" / image if image else None
        prompt = f"{MARK}\n{text}" if image else text
        category = "with a picture" if image else "text alone"
        found.append(Asked(name, name, name, category, image, source, text, prompt))
    return found


def judge(folder: Path, asked: Sequence[Asked], answers: Sequence[Answer], as_published: bool) -> Verdict:
    """A question without an answer is wrong; the published script leaves it out of the papers' score."""
    known = _problems(folder)
    joined = by_id(asked, answers)
    verdict = Verdict([], joined.counts)
    failed = 0
    for one, answer in zip(asked, joined.answers, strict=True):
        if one.id not in known:
            raise EvaluationError(folder / GOLD, f"does not have question {one.id}", fix=ARCHIVE)
        problem = known[one.id]
        letters = LETTERS[: len(problem.texts("choices"))]
        number = problem.whole("answer")
        if not 0 <= number < len(letters):
            raise EvaluationError(problem.where, f"found the answer {number}", "one of its choices, from 0")
        gold = letters[number]
        letter = said("" if answer is None else answer.text)
        failed += answer is not None and letter == "FAILED"
        with_picture = bool(one.picture)
        if as_published:  # as the answers file has it
            with_picture = answer is not None and MARK in answer.prompt
        subject = problem.text("subject", "")
        verdict.judged.append(
            judged(one, answer, gold, letter == gold, category=subject, headline=with_picture)
        )
    verdict.counts["FAILED, without a letter"] = failed
    rights = {
        "Accuracy": [one.right for one in verdict.judged],
        "IMG-Accuracy": [one.right for one in verdict.judged if one.headline],
    }
    for name, its in rights.items():
        verdict.parts += [
            Part(name, "Correct", sum(its), len(its)),
            Part(name, "per cent", 100 * sum(its) / len(its) if its else 0.0, len(its)),
        ]
    return verdict


def said(answer: str) -> str:
    """The letter that an answer gives, or "FAILED"."""
    if answer in [*LETTERS]:
        return answer
    if answer[:1] in [*LETTERS] and answer[1:3] == ". ":
        return answer[0]
    found = re.findall(r"The answer is ([A-Z]).", answer)
    return found[0] if len(found) == 1 else "FAILED"


def _problems(folder: Path) -> dict[str, Record]:
    """{id: what ScienceQA says of it}"""
    path = required(folder / GOLD, ARCHIVE + ", and in ScienceQA's repository under data/scienceqa")
    return by_name(path, json_file(path))


BENCHMARK = Benchmark(
    key="sqa",
    title="ScienceQA",
    headline="IMG-Accuracy",
    questions=questions,
    judge=judge,
    preparation=CROP,
    max_new_tokens=1024,
    images=IMAGES,
    otherwise="it leaves out questions with a picture that have no answer",
)
