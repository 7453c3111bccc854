"""What `mvlm evaluate` makes of answers where it differs from the published scripts, one by one."""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from mvlm_np.errors import EvaluationError
from mvlm_np.evaluation.answers import Answer
from mvlm_np.evaluation.benchmark import Benchmark
from mvlm_np.evaluation.benchmarks import BENCHMARKS, limited, read, score
from mvlm_np.evaluation.scores import Judged, Score
from tests.evaluation.fixtures import answers, benchmarks, folder, without


def ours(key: str, given: str | Sequence[Answer] = "main") -> tuple[Score, list[Judged]]:
    given = answers(key, given) if isinstance(given, str) else given
    return score(BENCHMARKS[key], folder(key), given)


def remark(found: Score, start: str) -> str:
    (one,) = [remark for remark in found.remarks if remark.startswith(start)]
    return one


@benchmarks
def test_sound_answers_get_the_published_score(benchmark: Benchmark) -> None:
    found, judged = ours(benchmark.key)
    theirs, _ = score(benchmark, folder(benchmark.key), answers(benchmark.key), as_published=True)
    assert (found.value, found.parts, found.remarks) == (theirs.value, theirs.parts, ())
    assert len({one.id for one in judged}) == len(judged)


@benchmarks
def test_no_answer_at_all_scores_nothing_and_says_so(benchmark: Benchmark) -> None:
    found, judged = ours(benchmark.key, [])
    asked = len(read(benchmark, folder(benchmark.key)))
    assert found.value == 0 and {one.right for one in judged} == {0.0}
    assert found.counts["answered"] == 0 and found.counts["expected"] == asked
    assert f"{asked} questions have no answer, and count as wrong" in found.remarks


@benchmarks
def test_the_order_of_answers_counts_for_nothing(benchmark: Benchmark) -> None:
    found, judged = ours(benchmark.key, answers(benchmark.key)[::-1])
    assert found.value == ours(benchmark.key)[0].value and judged == ours(benchmark.key)[1]


@pytest.mark.parametrize(
    "key, name, value, published",
    [
        ("gqa", "missing", 100 * 6 / 17, "stops here, without a score: Exception: missing predictions"),
        ("pope", "missing", 100 * (3 / 4 + 2 / 5 + 2 / 3) / 3, "gives 43.89"),
        ("pope", "all_no", 100 * (0 + 2 / 5 + 2 / 3) / 3, "stops here, without a score: ZeroDivisionError"),
        ("pope", "swapped", 100 * (8 / 9 + 2 / 5 + 2 / 3) / 3, "gives 57.78"),
        ("mme", "missing", 1050 - 75, "stops here, without a score: AssertionError"),
        ("mme", "pairs_reordered", 900, "gives 950.00"),
        ("mme", "pairs_two_missing", 1050 - 150, "gives 1050.00"),
        ("mme", "newline", 1050, "stops here, without a score: ValueError"),
        ("mme", "tab", 1050, "stops here, without a score: ValueError"),
        ("sqa", "missing", 100 * 7 / 12, "gives 63.64"),
        ("textvqa", "missing", 67.5, "gives 77.14"),
        ("textvqa", "other_question", 100 * 9.8 / 16, "stops here, without a score: KeyError"),
        ("textvqa", "four_lines", 67.5, "stops here, without a score: AssertionError"),
    ],
)
def test_broken_answers_are_scored_by_id_and_it_is_said(
    key: str, name: str, value: float, published: str
) -> None:
    found, _ = ours(key, name)
    assert found.value == pytest.approx(value, rel=1e-12)
    assert published in remark(found, "the published script")


def test_what_belongs_to_no_question_and_what_comes_twice_is_counted() -> None:
    found, judged = ours("gqa", "duplicates")
    assert found.counts["of no question"] == 1 and found.counts["answered twice"] == 1
    assert found.value == pytest.approx(100 * 8 / 17)  # the last answer counts
    assert len(judged) == 17


def test_a_missing_row_of_mmbench_is_wrong_though_an_empty_one_may_be_right() -> None:
    """An empty cell is read as "nan", which holds the option "a": so the question 77 is right by accident."""
    given = answers("mmbench")
    place = next(i for i, one in enumerate(given) if one.question_id == "77")
    assert given[place].text == ""
    assert ours("mmbench")[0].value == 40
    found, _ = ours("mmbench", without(given, place))
    assert found.value == 30
    assert 'gives 40.00: it takes a missing answer for the text "nan"' in remark(
        found, "the published script"
    )


def test_two_questions_in_the_same_words_get_their_answers_in_order() -> None:
    asked = read(BENCHMARKS["textvqa"], folder("textvqa"))
    given = answers("textvqa")
    first, second = given[0], Answer(given[0].question_id, given[0].prompt, "another")
    found, judged = score(
        BENCHMARKS["textvqa"], folder("textvqa"), [first, second], asked=[asked[0], asked[0]]
    )
    assert [one.answer for one in judged] == ["Acme", "another"] and found.counts["answered"] == 2


@benchmarks
def test_a_part_is_scored_as_a_part_and_called_not_comparable(benchmark: Benchmark) -> None:
    asked = read(benchmark, folder(benchmark.key))
    part = limited(asked, 1)
    found, judged = score(benchmark, folder(benchmark.key), answers(benchmark.key), asked=part)
    assert f"not comparable: {len(part)} of {len(asked)} questions were asked" in found.remarks
    assert {one.id for one in judged} <= {one.id for one in part}
    assert found.counts["expected"] == found.counts["answered"] == len(part)


def test_the_published_script_too_scores_a_part_of_complete_answers() -> None:
    for benchmark in BENCHMARKS.values():
        part = limited(read(benchmark, folder(benchmark.key)), 8)
        given = answers(benchmark.key)
        ours, _ = score(benchmark, folder(benchmark.key), given, asked=part)
        if benchmark.key != "pope":  # of which this part has no right "yes"
            theirs, _ = score(benchmark, folder(benchmark.key), given, asked=part, as_published=True)
            assert (theirs.value, theirs.parts) == (ours.value, ours.parts)
        assert "of no question" not in ours.counts


@pytest.mark.parametrize("prompt", ["Is it so?", "Is there a box in this image?\nAnswer with yes or no."])
def test_an_answer_of_mme_to_another_question_is_left_out(prompt: str) -> None:
    """The published converter stops at it."""
    given = answers("mme")
    other = [
        replace(one, prompt=prompt) if one.prompt.startswith("Is there a box in this") else one
        for one in given
    ]
    found, _ = ours("mme", other)
    assert found.counts["of no question"] == 1 and found.counts["answered"] == 29
    assert "without a score: KeyError: ('existence', '000000900004.txt', 'Is " in remark(
        found, "the published"
    )
    ending = [replace(one, prompt=one.prompt.split("\n")[0]) for one in given]  # which the converter cuts off
    for as_published in (True, False):
        assert score(BENCHMARKS["mme"], folder("mme"), ending, as_published=as_published)[0].value == 1050


def test_an_answer_of_mme_may_hold_a_line_of_the_published_file() -> None:
    given = [replace(one, text="Yes\na.txt\tWhat?\tYes\tYes") for one in answers("mme")]
    assert score(BENCHMARKS["mme"], folder("mme"), given, as_published=True)[0].value > 0


def test_labels_of_other_questions_are_refused(tmp_path: Path) -> None:
    """Today's file of POPE's random questions has them in another order, which shifts the published score."""
    shutil.copytree(folder("pope"), tmp_path, dirs_exist_ok=True)
    path = tmp_path / "coco" / "coco_pope_random.json"
    lines = path.read_text().splitlines(keepends=True)
    lines[1], lines[3] = (
        line.replace(f'"question_id": {old}', f'"question_id": {new}')
        for line, old, new in ((lines[3], 4, 2), (lines[1], 2, 4))
    )
    path.write_text("".join(lines))
    said = r"coco_pope_random\.json, line 2: asks 'Is there a tree.*e3e3926"
    with pytest.raises(EvaluationError, match=said):
        score(BENCHMARKS["pope"], tmp_path, answers("pope"))


def test_labels_that_differ_in_an_article_will_do(tmp_path: Path) -> None:
    shutil.copytree(folder("pope"), tmp_path, dirs_exist_ok=True)
    path = tmp_path / "coco" / "coco_pope_popular.json"
    path.write_text(path.read_text().replace("Is there a ", "Is there an "))
    assert score(BENCHMARKS["pope"], tmp_path, answers("pope"))[0].value == ours("pope")[0].value
