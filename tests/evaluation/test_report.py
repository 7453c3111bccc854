"""The report of a run: whole by itself and small, with the figures and the answers that belong there."""

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from html import unescape
from pathlib import Path
from time import perf_counter
from typing import Any

import pytest
from PIL import Image

from mvlm_np.errors import ImageError, UserError
from mvlm_np.evaluation.report.findings import findings, numbers, surely_wrong
from mvlm_np.evaluation.report.page import CHANGES, PICTURED, page, write_page
from mvlm_np.evaluation.scores import Judged
from mvlm_np.evaluation.statistics import difference, estimate
from tests.evaluation.runs import CATEGORIES, picture, questions, run
from tests.look.test_page import Reader

BENCHMARKS = pytest.mark.parametrize("benchmark", CATEGORIES)
HOSTILE = """</section><script>alert("1")</script> $name ${x} 'quoted' & <img src=x onerror=y> \u202e"""


def changed(judged: list[Judged], each: int = 5) -> list[Judged]:
    """Another run's answers: every so many are others, of which some are worth the same."""
    return [
        replace(one, answer=f"{one.answer}!", right=(one.right, 0.0, 1.0)[i // each % 3])
        if i % each == 0
        else one
        for i, one in enumerate(judged)
    ]


def words(text: str) -> str:
    """What one reads of a page."""
    without = re.sub(r"<style>.*?</style>", "", text, flags=re.DOTALL)
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", without)).split())


@BENCHMARKS
def test_the_page_needs_nothing_but_itself(benchmark: str) -> None:
    judged = questions(benchmark, 30, 0)
    text = page(findings(run(benchmark, judged), run(benchmark, changed(judged), "float32")), picture)
    read = Reader(text)
    sources = [value for _, key, value in read.attributes if key in ("src", "href", "action", "data")]
    assert sources and all(source.startswith("data:image/jpeg;base64,") for source in sources)
    assert not re.search(r"url\(|@import|https?:|<script", text)
    assert not [key for _, key, _ in read.attributes if key.startswith("on") or key == "style"]
    (policy,) = [v for _, key, v in read.attributes if key == "content" and v.startswith("default-src")]
    assert "script-src 'none'" in policy and "default-src 'none'" in policy


@BENCHMARKS
def test_figures_are_those_of_the_statistics(benchmark: str) -> None:
    judged = questions(benchmark, 30, 0)
    other = changed(judged)
    text = words(page(findings(run(benchmark, judged), run(benchmark, other, "float32"))))
    count = [one for one in judged if one.headline]
    there = [one for one in other if one.headline]
    whole, beside = estimate(benchmark, count), difference(benchmark, count, there)
    unit = "" if benchmark == "mme" else " %"
    assert f"{whole.value:.1f}{unit} 95 %: {whole.low:.1f} to {whole.high:.1f}{unit}" in text
    low, high = (f"{value:+.2f}".replace("-", "−") for value in (beside.low, beside.high))
    assert f"95 %: {low} to {high}" in text
    assert f"Of the answers {beside.changed} differ: {beside.lost} are worth less" in text
    names = {one.category for one in judged}
    for name in names if len(names) > 1 else ():
        part = estimate(benchmark, [one for one in judged if one.category == name])
        assert f"{name} {part.pictures} pictures {part.value:.1f}{unit} {part.low:.1f} to" in text


def test_words_of_users_and_models_stay_words() -> None:
    judged = [
        replace(one, prompt=HOSTILE, answer=HOSTILE, gold=HOSTILE, category=HOSTILE + one.category)
        for one in questions("gqa", 4, 0)
    ]
    ours = replace(
        run("gqa", judged, HOSTILE, name=HOSTILE, remarks=(HOSTILE,), counts={HOSTILE: 1}),
        facts={"a": HOSTILE},
    )
    other = run("gqa", [replace(one, answer=HOSTILE * 2, right=0.0) for one in judged], HOSTILE)
    text = page(findings(ours, other))
    read = Reader(text)
    assert not {"script", "img"} & {tag for tag, _, _ in read.attributes} and "<script" not in text
    assert text.count("$name ${x}") > 10


def test_the_surest_of_the_wrong_answers_are_shown_one_of_a_group() -> None:
    judged = questions("mmbench", 60, 0)
    found = surely_wrong(judged)
    wrong = [one for one in judged if one.right == 0]
    assert len(found) == len({one.group for one in found}) == 20
    for group in {one.group for one in wrong}:
        surest = max((one for one in wrong if one.group == group), key=lambda one: one.probability or 0)
        assert (surest in found) == ((surest.probability or 0) >= (found[-1].probability or 0))
    chances = [one.probability or 0 for one in found]
    assert chances == sorted(chances, reverse=True)
    assert surely_wrong([replace(wrong[0], answer=None), replace(wrong[1], right=0.6)]) == []


def test_the_wrong_answers_have_their_pictures() -> None:
    judged = questions("gqa", 30, 0)
    read = Reader(page(findings(run("gqa", judged)), picture))
    assert len([1 for tag, key, _ in read.attributes if (tag, key) == ("img", "src")]) == 20
    without = [replace(one, picture="") for one in judged]  # questions about text
    assert "<img" not in page(findings(run("gqa", without)), picture)


def test_a_picture_that_cannot_be_read_is_said_and_left_out() -> None:
    def broken(one: Judged) -> Image.Image:
        raise ImageError(one.picture, "there is no such file")

    text = page(findings(run("gqa", questions("gqa", 9, 0))), broken)
    assert "Its picture cannot be shown. " in text and "there is no such file" in text and "<img" not in text


def test_answers_of_unknown_probability_are_shown_as_such() -> None:
    judged = [replace(one, probability=None) for one in questions("gqa", 9, 0)]
    text = words(page(findings(run("gqa", judged))))
    assert "does not say how probable they were" in text and "None" not in text


def test_a_published_score_that_is_not_that_of_its_questions_has_no_interval() -> None:
    found = findings(run("pope", questions("pope", 9, 0), value=43.89))
    assert found.estimate is None and numbers(found)["interval"] is None
    text = words(page(found))
    assert "43.9 % no interval: as published, answers count for other questions than their own" in text


def test_changes_are_told_by_what_they_are_worth() -> None:
    judged = questions("textvqa", 40, 0)
    other = changed(judged)
    beside = findings(run("textvqa", judged), run("textvqa", other)).against
    assert beside is not None
    by_id = {one.id: one for one in other}
    differing = [one for one in judged if by_id[one.id].answer != one.answer]
    assert {change.now.id for change in beside.changes} == {one.id for one in differing}
    kinds = [change.kind for change in beside.changes]
    assert kinds == sorted(kinds, key=["lost", "gained", "same"].index) and len(set(kinds)) == 3
    for change in beside.changes:
        gain = change.now.right - change.then.right
        assert change.kind == ("same" if gain == 0 else "gained" if gain > 0 else "lost")


def test_the_same_answers_are_said_to_be_the_same() -> None:
    judged = questions("gqa", 59, 0)
    text = words(page(findings(run("gqa", judged), run("gqa", judged, "float32"))))
    # Of 59 pictures none differs: 1 - 0.05^(1/59) = 0.0495.
    assert "Not one picture tells the two apart." in text and "fewer than 5 %" in text
    assert "Answers that changed" not in text


def test_only_what_both_were_asked_is_compared() -> None:
    judged = questions("gqa", 30, 0)
    half = [replace(one, prompt="?") for one in changed(judged)[:60]]
    beside = findings(run("gqa", judged), run("gqa", half)).against
    assert beside is not None and beside.difference.questions == beside.reworded == 60
    assert beside.difference.score == pytest.approx(estimate("gqa", judged[:60]).value)
    with pytest.raises(UserError, match="none of these questions is in that run"):
        findings(run("gqa", judged[:60]), run("gqa", judged[60:]))


@BENCHMARKS
def test_numbers_are_for_programs(benchmark: str) -> None:
    judged = questions(benchmark, 30, 0)
    found = findings(run(benchmark, judged), run(benchmark, changed(judged), "float32"))
    given = json.loads(json.dumps(numbers(found)))
    assert found.estimate and found.against
    assert given["interval"]["low"] == found.estimate.low
    assert given["against"]["p"] == found.against.difference.p
    assert given["against"]["name"] == "float32" and len(given["against"]["changes"]) == len(judged) / 5
    assert ("all" if len(CATEGORIES[benchmark]) == 1 else {*given["categories"]}) in (
        "all",
        {*CATEGORIES[benchmark]},
    )
    assert numbers(findings(run(benchmark, judged))).keys() == {"interval", "categories", "surely_wrong"}


def test_a_page_of_all_of_gqa_is_small_and_made_at_once(tmp_path: Path) -> None:
    judged = [
        replace(one, prompt=one.prompt * 60, answer=f"{one.answer} " * 300)
        for one in questions("gqa", 2097, 0)
    ]
    other = [replace(one, answer=f"{one.answer} or so") for one in judged]
    start = perf_counter()
    write_page(tmp_path / "page.html", findings(run("gqa", judged), run("gqa", other)), picture)
    assert (tmp_path / "page.html").stat().st_size < 2_000_000
    assert perf_counter() - start < 120  # seconds, on any machine; it takes 2
    text = (tmp_path / "page.html").read_text("utf-8")
    assert f"{len(judged) - CHANGES:,} more are not shown." in text
    assert text.count("<img") == 20 + PICTURED


# ---------------------------------------------------------------- in a browser


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    from tests import browser

    with browser.browser(tmp_path_factory.mktemp("profile")) as driver:
        yield driver


@pytest.mark.xdist_group("browser")
@BENCHMARKS
def test_it_fits_a_phone_is_legible_and_asks_for_nothing(driver: Any, tmp_path: Path, benchmark: str) -> None:
    from tests import browser

    judged = questions(benchmark, 30, 0)
    ours = run(benchmark, judged, remarks=("not comparable: 180 of 12,578 questions were asked",))
    path = tmp_path / "page.html"
    write_page(path, findings(ours, run(benchmark, changed(judged), "MobileVLM V2 1.7B, float32")), picture)
    for size in (browser.DESK, browser.PHONE, browser.SMALLEST_PHONE):
        for scheme in ("light", "dark"):
            opened = browser.Opened(driver, path.as_uri(), size, scheme)
            assert opened.wider_than_the_screen(".scroll") == []
            texts, low = opened.contrast()
            assert texts > 100 and low == []
            assert opened.requested() == {path.as_uri()}
            assert driver.get_log("browser") == []


@pytest.mark.xdist_group("browser")
def test_changes_can_be_picked_by_what_they_are_worth(driver: Any, tmp_path: Path) -> None:
    from tests import browser

    judged = questions("gqa", 30, 0)
    found = findings(run("gqa", judged), run("gqa", changed(judged)))
    write_page(tmp_path / "page.html", found, picture)
    opened = browser.Opened(driver, (tmp_path / "page.html").as_uri(), browser.PHONE)
    assert found.against
    kinds = [change.kind for change in found.against.changes]
    seen = "return [...document.querySelectorAll('.rows > li')].filter((e) => e.checkVisibility()).length"
    for kind in ("lost", "gained", "same"):
        opened.by_id(f"only-{kind}").click()
        assert opened.run(seen) == kinds.count(kind) > 0
    opened.press("only-same", browser.Keys.ARROW_LEFT, browser.Keys.ARROW_LEFT, browser.Keys.ARROW_LEFT)
    assert opened.run(seen) == len(kinds)
