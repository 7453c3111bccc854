"""The six benchmarks: their questions, and what answers are worth."""

from collections.abc import Sequence
from pathlib import Path

from mvlm_np.errors import EvaluationError
from mvlm_np.evaluation import gqa, mmbench, mme, pope, sqa, textvqa
from mvlm_np.evaluation.answers import Answer
from mvlm_np.evaluation.asked import Asked
from mvlm_np.evaluation.benchmark import Benchmark, ScriptStops, Verdict
from mvlm_np.evaluation.published import PUBLISHED, by_name
from mvlm_np.evaluation.scores import Judged, Score, measure

BENCHMARKS = {module.BENCHMARK.key: module.BENCHMARK for module in (gqa, mmbench, mme, pope, sqa, textvqa)}


def folder_of(benchmark: Benchmark, data: Path) -> Path:
    """The benchmark's folder: that which was named, or its own within the folder of all six."""
    if not data.is_dir():
        raise EvaluationError(data, "is no folder", f"the folder with {benchmark.title}'s files")
    inner = data / benchmark.key
    return inner if inner.is_dir() else data


def read(benchmark: Benchmark, data: Path) -> list[Asked]:
    """The benchmark's questions. EvaluationError: a file is missing or wrong."""
    asked = benchmark.questions(folder_of(benchmark, data))
    if not asked:
        raise EvaluationError(data, f"has no question of {benchmark.title}")
    seen: set[str] = set()
    for one in asked:
        if one.id in seen:
            raise EvaluationError(data, f"has question {one.id} twice", fix="download it again")
        seen.add(one.id)
    return asked


def limited(asked: Sequence[Asked], limit: int) -> list[Asked]:
    """About so many of the questions: of each category the same share, its first; and groups whole."""
    if limit < 1:
        raise EvaluationError("--limit", f"found {limit}", "at least 1")
    groups: dict[str, dict[str, None]] = {}
    for one in asked:
        groups.setdefault(one.category, {}).setdefault(one.group)
    share = min(1.0, limit / len(asked))
    kept = {
        (category, group)
        for category, its in groups.items()
        for group in list(its)[: max(1, round(share * len(its)))]
    }
    return [one for one in asked if (one.category, one.group) in kept]


def score(
    benchmark: Benchmark,
    data: Path,
    answers: Sequence[Answer],
    *,
    asked: Sequence[Asked] | None = None,
    as_published: bool = False,
    model: str | None = None,
) -> tuple[Score, list[Judged]]:
    """What answers are worth.

    asked         the questions that were asked, where that are not all
    as_published  also join answers and count missing ones as the published scripts do
    model         a key of `PUBLISHED`, of which the published score is given; else it is recognised by name

    EvaluationError: a file is wrong. ScriptStops, as_published only: the published script gives no score.
    """
    folder, everything = folder_of(benchmark, data), read(benchmark, data)
    asked = everything if asked is None else asked
    if len(asked) < len(everything):
        others = {(str(one.question_id), one.prompt) for one in everything}
        others -= {(str(one.question_id), one.prompt) for one in asked}
        answers = [one for one in answers if (one.question_id, one.prompt) not in others]
    verdict = benchmark.judge(folder, asked, answers, as_published)
    remarks = list(verdict.remarks)
    if len(asked) < len(everything):
        remarks.append(f"not comparable: {len(asked)} of {len(everything)} questions were asked")
    value = _value(benchmark, verdict)
    missing = verdict.counts["expected"] - verdict.counts["answered"]
    if missing and not as_published:
        remarks.append(f"{missing} questions have no answer, and count as wrong")
    if not as_published:
        remarks += _otherwise(benchmark, folder, asked, answers, value)
    known = model or by_name(next((one.model for one in answers), ""))
    published = PUBLISHED[known][benchmark.key] if known else None
    parts = tuple(verdict.parts)
    found = Score(benchmark.key, benchmark.headline, value, published, parts, verdict.counts, tuple(remarks))
    return found, verdict.judged


def _value(benchmark: Benchmark, verdict: Verdict) -> float:
    return measure(benchmark.key, [one for one in verdict.judged if one.headline])


def _otherwise(
    benchmark: Benchmark, folder: Path, asked: Sequence[Asked], answers: Sequence[Answer], value: float
) -> list[str]:
    """What the published script makes of the same answers, if that is something else."""
    try:
        theirs = _value(benchmark, benchmark.judge(folder, asked, answers, True))
    except ScriptStops as stop:
        return [f"the published script stops here, without a score: {stop.error}"]
    if round(theirs, 2) == round(value, 2):
        return []
    return [f"the published script gives {theirs:.2f}: {benchmark.otherwise}"]
