"""`--as-published` gives what the published scripts give, to the last digit, for broken answers too."""

from typing import Any

import pytest

from mvlm_np.evaluation import gqa, mmbench, mme, pope, sqa
from mvlm_np.evaluation.benchmark import ScriptStops
from mvlm_np.evaluation.benchmarks import BENCHMARKS, read, score
from mvlm_np.evaluation.evalai import accuracy, processed
from mvlm_np.evaluation.scores import Judged, Score
from tests.evaluation.fixtures import answers, expected, folder


def published(key: str, name: str = "main") -> tuple[Score, list[Judged]]:
    return score(BENCHMARKS[key], folder(key), answers(key, name), as_published=True)


def tables(found: Score) -> dict[str, dict[str, float]]:
    shown: dict[str, dict[str, float]] = {}
    for part in found.parts:
        shown.setdefault(part.table, {})[part.name] = part.value
    return shown


def stop(key: str, name: str) -> ScriptStops:
    with pytest.raises(ScriptStops) as raised:
        published(key, name)
    return raised.value


# ---------------------------------------------------------------- GQA


def as_printed(found: Score) -> dict[str, Any]:
    """The published script's figures with two decimals; in its tables each with the number of questions."""
    shown: dict[str, Any] = {}
    for part in found.parts:
        value = float(f"{part.value:.2f}")
        if part.table:
            shown.setdefault(part.table, {})[part.name] = [value, part.of]
        else:
            shown[part.name] = value
    return shown


@pytest.mark.parametrize("name", ["main", "duplicates"])
def test_gqa_prints_the_same(name: str) -> None:
    found, _ = published("gqa", name)
    assert as_printed(found) == expected("gqa")[name]
    assert f"{found.value:.2f}" == f"{expected('gqa')[name]['Accuracy']:.2f}"


def test_gqa_judges_each_question_alike() -> None:
    _, judged = published("gqa")
    per_question = expected("gqa")["per_question_main"]
    wanted = {name: its for name, its in per_question.items() if its.pop("counted")}
    assert wanted == {
        one.id: {"compared": gqa.compared(one.answer or ""), "answer": one.gold, "right": one.right == 1}
        for one in judged
    }


def test_gqa_with_a_file_of_choices(tmp_path: Any) -> None:
    for path in folder("gqa").iterdir():
        (tmp_path / path.name.replace("made_up_choices", "testdev_balanced_choices")).symlink_to(path)
    found, _ = score(BENCHMARKS["gqa"], tmp_path, answers("gqa"), as_published=True)
    assert as_printed(found) == expected("gqa")["main_with_choices_file"]


def test_gqa_stops_where_an_answer_is_missing() -> None:
    stopped = stop("gqa", "missing")
    assert {"error": stopped.error, "printed": [*stopped.printed]} == expected("gqa")["missing"]


# ---------------------------------------------------------------- POPE


@pytest.mark.parametrize("name", ["main", "missing", "swapped"])
def test_pope_prints_the_same(name: str) -> None:
    found, judged = published("pope", name)
    wanted = expected("pope")[name]
    shown = tables(found)
    assert shown.pop("")["mean F1"] == wanted.pop("mean_F1")
    for category, figures in wanted.items():
        samples = figures.pop("samples")
        assert shown[category] == figures
        assert {part.of for part in found.parts if part.table == category} == {samples}
    assert shown.keys() == wanted.keys()
    if name == "main":
        per_question = expected("pope")["per_question_main"]
        assert {one.id: (one.answer, pope.said(one.answer or ""), one.gold) for one in judged} == {
            number: (its["said"], its["parsed"], its["label"]) for number, its in per_question.items()
        }


def test_pope_stops_where_no_yes_is_said() -> None:
    stopped, wanted = stop("pope", "all_no"), expected("pope")["all_no"]
    assert stopped.error == wanted["error"]
    figures = wanted["adversarial"]
    assert stopped.printed == (
        f"# samples: {figures['samples']}",
        "TP\tFP\tTN\tFN",
        "\t".join(str(figures[name]) for name in ("TP", "FP", "TN", "FN")),
    )


def test_pope_stops_at_a_file_that_is_no_label_file(tmp_path: Any) -> None:
    for path in folder("pope").iterdir():
        if path.name != "coco":
            (tmp_path / path.name).symlink_to(path)
    (tmp_path / "coco").mkdir()
    for path in (folder("pope") / "coco").iterdir():
        (tmp_path / "coco" / path.name).symlink_to(path)
    (tmp_path / "coco" / ".DS_Store").touch()
    with pytest.raises(ScriptStops, match="AssertionError"):
        score(BENCHMARKS["pope"], tmp_path, answers("pope"), as_published=True)
    found, _ = score(BENCHMARKS["pope"], tmp_path, answers("pope"))
    assert found.value == score(BENCHMARKS["pope"], folder("pope"), answers("pope"))[0].value


# ---------------------------------------------------------------- MME


@pytest.mark.parametrize("name", ["main", "pairs", "pairs_reordered", "pairs_two_missing"])
def test_mme_prints_the_same(name: str) -> None:
    found, _ = published("mme", name)
    assert tables(found) == expected("mme")[name]
    assert found.value == expected("mme")[name]["Perception"]["total"]


def test_mme_judges_each_question_alike() -> None:
    _, judged = published("mme")
    for task, its in expected("mme")["main_per_task"].items():
        mine = [one for one in judged if one.category == task]
        said = [mme.said(one.answer or "") for one in mine]
        assert said == its["parsed"] and said.count("other") == its["other"]
        assert sum(one.right for one in mine) / len(mine) == its["acc"]


def test_mme_writes_the_converters_files() -> None:
    written = mme.results(folder("mme"), read(BENCHMARKS["mme"], folder("mme")), answers("mme"))
    theirs = {path.stem: path.read_text() for path in (folder("mme") / "results").iterdir()}
    assert {task: text.rstrip("\n") for task, text in written.items()} == {
        task: text.rstrip("\n") for task, text in theirs.items()
    }


@pytest.mark.parametrize("name", ["missing", "newline", "tab"])
def test_mme_stops_as_the_script_does(name: str) -> None:
    assert stop("mme", name).error == expected("mme")[name]["error"]


def test_mme_stops_where_a_task_has_no_answer() -> None:
    given = [one for one in answers("mme") if not one.question_id.startswith("count/")]
    with pytest.raises(ScriptStops, match=r"FileNotFoundError.*count\.txt"):
        score(BENCHMARKS["mme"], folder("mme"), given, as_published=True)


# ---------------------------------------------------------------- ScienceQA


@pytest.mark.parametrize("name", ["main", "missing"])
def test_sqa_prints_the_same(name: str) -> None:
    found, judged = published("sqa", name)
    wanted = expected("sqa")[name]
    shown = {(part.table, part.name): part for part in found.parts}
    every, pictures = shown["Accuracy", "Correct"], shown["IMG-Accuracy", "Correct"]
    assert (every.value, every.of) == (wanted["accuracy"]["right"], wanted["accuracy"]["of"])
    assert (pictures.value, pictures.of) == (wanted["img_accuracy"]["right"], wanted["img_accuracy"]["of"])
    assert wanted["printed"] == (
        f"Total: {every.of}, Correct: {every.value:.0f}, "
        f"Accuracy: {shown['Accuracy', 'per cent'].value:.2f}%, IMG-Accuracy: {found.value:.2f}%"
    )
    assert {
        one.id: (sqa.said("" if one.answer is None else one.answer), one.gold, one.right == 1, one.headline)
        for one in judged
    } == {
        name: (its["parsed"], its["answer"], its["right"], its["with_picture"])
        for name, its in wanted["per_question"].items()
    }


# ---------------------------------------------------------------- TextVQA


@pytest.mark.parametrize("name", ["main", "missing"])
def test_textvqa_prints_the_same(name: str) -> None:
    found, judged = published("textvqa", name)
    wanted = expected("textvqa")[name]
    assert f"{found.value:.2f}" == f"{wanted['accuracy_percent']:.2f}"
    assert len(judged) == wanted["samples"]
    if name == "main":
        assert found.value / 100 == pytest.approx(expected("textvqa")["main_exact_mean"], rel=1e-15)


def test_textvqa_judges_each_question_alike() -> None:
    _, judged = published("textvqa")
    for one, its in zip(judged, expected("textvqa")["per_question_main"], strict=True):
        assert one.answer is not None
        assert one.answer == its["said"]
        assert processed(one.answer) == its["processed"]
        assert one.right == pytest.approx(its["score"], rel=1e-15)


def test_textvqas_ten_answers_weigh_alike() -> None:
    import json

    data = json.loads((folder("textvqa") / "TextVQA_0.5.1_val.json").read_text())["data"]
    for entry, its in zip(data, expected("textvqa")["per_question_main"], strict=True):
        ten = [processed(one) for one in entry["answers"]]
        assert {one: accuracy(one, ten) for one in ten} == pytest.approx(its["answers_processed"])


@pytest.mark.parametrize("name", ["other_question", "four_lines"])
def test_textvqa_stops_as_the_script_does(name: str) -> None:
    assert stop("textvqa", name).error == expected("textvqa")[name]["error"]


# ---------------------------------------------------------------- MMBench


@pytest.mark.parametrize("name", ["main", "missing", "missing_main", "main_with_pandas_3.1.1"])
def test_mmbench_prints_the_same(name: str) -> None:
    found, judged = published("mmbench", name.partition("_with")[0])
    wanted = expected("mmbench")[name]
    shown = tables(found)
    assert found.value == 100 * wanted["overall"]
    assert shown[""]["overall"] == wanted["overall"]
    groups: dict[str, int] = {}
    for one in judged:
        groups[one.group] = min(groups.get(one.group, 1), int(one.right))
    assert groups == wanted["per_question"]
    if "l2" in wanted:
        assert shown["l2-category"] == wanted["l2"]
        assert shown["category"] == wanted["category"]
        asked = wanted["rows_for_which_ChatGPT_would_be_asked"]
        assert found.counts["unmatched, and the published script asks ChatGPT"] == asked
        if name == "main":
            rows = expected("mmbench")["per_row_main"]
            assert found.counts["unmatched"] == sum(not row["inferred"] for row in rows)


def test_mmbench_first_pass() -> None:
    found, _ = published("mmbench")
    wanted = expected("mmbench")["main_first_pass_only"]
    (first,) = [part for part in found.parts if part.name == "first pass only"]
    assert (first.value, first.of) == (wanted["overall"], wanted["of"])


def test_mmbench_reads_each_answer_alike() -> None:
    _, judged = published("mmbench")
    rows = {one.id: one for one in judged}
    options = {one.id: one.more for one in read(BENCHMARKS["mmbench"], folder("mmbench"))}
    for its in expected("mmbench")["per_row_main"]:
        one = rows[str(its["index"])]
        assert one.gold == its["answer"]
        assert (one.answer or "nan") == its["prediction"]
        letters = dict(zip("ABCD", options[one.id]["options"], strict=False))
        assert (mmbench.said(one.answer or "", letters) or False) == its["inferred"]
        assert one.right == (its["inferred"] == its["answer"])
