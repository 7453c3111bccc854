"""GQA, testdev balanced: 12,578 short questions about 398 pictures; right is the same text."""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from mvlm_np.errors import EvaluationError, some
from mvlm_np.evaluation import parquet
from mvlm_np.evaluation.answers import Answer, by_id
from mvlm_np.evaluation.asked import PAD, WORD_OR_PHRASE, Asked
from mvlm_np.evaluation.benchmark import Benchmark, ScriptStops, Verdict, judged
from mvlm_np.evaluation.files import Record, by_name, json_file, json_lines, required
from mvlm_np.evaluation.scores import Judged, Part

ASKED, GOLD, CHOICES = (
    "llava_gqa_testdev_balanced.jsonl",
    "testdev_balanced_questions.json",
    "testdev_balanced_choices.json",
)
ARCHIVE = "it is in the published benchmark_data.zip"
IMAGES = "unpack GQA's images.zip there"
NO_STEP = ("exist", "query: name", "choose name")  # operations that are not counted as steps


def questions(folder: Path) -> list[Asked]:
    """The questions, of the published layout or of the parquet copy."""
    if not (folder / ASKED).exists() and parquet.is_gqa(folder):
        return [
            _asked(name, f"{image}.jpg", parquet_picture, record.text("question") + WORD_OR_PHRASE)
            for name, image, parquet_picture, record in parquet.gqa_questions(folder)
        ]
    images, found = folder / "images", []
    for line in json_lines(required(folder / ASKED, ARCHIVE)):
        image = line.text("image")
        found.append(_asked(line.text("question_id"), image, images / image, line.text("text")))
    return found


def _asked(name: str, image: str, source: Path | bytes, text: str) -> Asked:
    return Asked(name, name, name, "default", image, source, text, prompt=text)


def gold(folder: Path) -> dict[str, Record]:
    """{question_id: what GQA says of it}"""
    if not (folder / GOLD).exists() and parquet.is_gqa(folder):
        return parquet.gqa_gold(folder)
    path = required(folder / GOLD, ARCHIVE + ", and in GQA's archive of questions")
    return by_name(path, json_file(path))


def judge(folder: Path, asked: Sequence[Asked], answers: Sequence[Answer], as_published: bool) -> Verdict:
    """Only balanced questions count."""
    known = gold(folder)
    joined = by_id(asked, answers)
    if missing := [one.id for one in asked if one.id not in known]:
        raise EvaluationError(folder / GOLD, f"does not have {some(missing)}", "every question that is asked")
    counted = [(one, known[one.id], answer) for one, answer in zip(asked, joined.answers, strict=True)]
    counted = [(one, says, answer) for one, says, answer in counted if says.flag("isBalanced")]
    if as_published:
        for one, _, answer in counted:
            if answer is None:
                said = f"no prediction for question {one.id}. Please add prediction for all questions."
                raise ScriptStops("Exception: missing predictions", said)
        if not any(_group(says) for _, says, _ in counted):
            raise ScriptStops("ZeroDivisionError: division by zero")
    found = [
        judged(
            one,
            answer,
            says.text("answer"),
            answer is not None and compared(answer.text) == says.text("answer"),
            category=says.record("types").text("structural"),
        )
        for one, says, answer in counted
    ]
    verdict = Verdict(found, joined.counts, _tables(found, [says for _, says, _ in counted], folder))
    if len(counted) < len(asked):
        verdict.counts["not balanced, not counted"] = len(asked) - len(counted)
    return verdict


def compared(answer: str) -> str:
    """An answer as it is compared: without the periods at its end, in lower case."""
    return answer.rstrip(".").lower()


def _group(says: Record) -> str | None:
    return says.record("groups").text("global", "") or None


def _steps(says: Record) -> int:
    """How many steps of reasoning a question takes."""
    steps = [f"{step.text('operation')}: {step.text('argument')}" for step in says.records("semantic")]
    return sum(not any(word in step for word in NO_STEP) for step in steps)


def _tables(found: Sequence[Judged], known: Sequence[Record], folder: Path) -> list[Part]:
    """Everything else that the published script prints, in per cent but for Distribution."""
    pairs = list(zip(found, known, strict=True))
    is_open = [one.category == "query" for one, _ in pairs]
    parts = [
        _share("Binary", [one.right for one, is_query in zip(found, is_open, strict=True) if not is_query]),
        _share("Open", [one.right for one, is_query in zip(found, is_open, strict=True) if is_query]),
        _share("Accuracy", [one.right for one in found]),
        *_choices(pairs, folder),
        Part("", "Distribution", distribution((_group(says), one) for one, says in pairs)),
    ]
    tables: dict[str, Sequence[Any]] = {
        "structural type": [one.category for one in found],
        "semantic type": [says.record("types").text("semantic") for says in known],
        "steps number": [_steps(says) for says in known],
        "words number": [len(says.text("question").split()) for says in known],
    }
    for table, keys in tables.items():
        for key in sorted({*keys}):
            rights = [one.right for one, its in zip(found, keys, strict=True) if its == key]
            parts.append(_share(str(key), rights, f"Accuracy / {table}"))
    return parts


def _share(name: str, values: Sequence[float], table: str = "") -> Part:
    return Part(table, name, 100 * sum(values) / len(values) if values else 0.0, len(values))


def _choices(pairs: Sequence[tuple[Judged, Record]], folder: Path) -> list[Part]:
    """How many answers are among those that GQA takes for possible. Its testdev comes without: then 0."""
    path = folder / CHOICES
    if not path.exists():
        return [Part("", name, 0.0) for name in ("Validity", "Plausibility")]
    choices = by_name(path, json_file(path))
    if missing := [one.id for one, _ in pairs if one.id not in choices]:
        raise EvaluationError(path, f"does not have {some(missing)}", "every question that is asked")

    def share(name: str, key: str) -> Part:
        return _share(
            name,
            [
                one.answer is not None and compared(one.answer) in choices[one.id].texts(key)
                for one, _ in pairs
            ],
        )

    return [share("Validity", "valid"), share("Plausibility", "plausible")]


def distribution(answers: Iterable[tuple[str | None, Judged]]) -> float:
    """How far the answers are from the right ones as a whole, within GQA's groups of like questions.

    Chi-square of the right answers' counts against the given answers', weighted by the groups' sizes, / 100.
    """
    right: dict[str, Counter[str]] = {}
    given: dict[str, Counter[str]] = {}
    for group, one in answers:
        if group is not None:
            right.setdefault(group, Counter())[one.gold] += 1
            if one.answer is not None:
                given.setdefault(group, Counter())[compared(one.answer)] += 1
    size = sum(counts.total() for counts in right.values())
    chi = sum(
        counts.total() * sum((given.get(group, Counter())[text] - n) ** 2 / n for text, n in counts.items())
        for group, counts in right.items()
    )
    return chi / size / 100 if size else 0.0


BENCHMARK = Benchmark(
    key="gqa",
    title="GQA",
    headline="Accuracy",
    questions=questions,
    judge=judge,
    preparation=PAD,
    max_new_tokens=128,
    images=IMAGES,
    otherwise="it stops",
)
