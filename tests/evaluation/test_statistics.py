"""Intervals hold as often as they say, the test alarms as rarely, and both count pictures, not questions."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mvlm_np.errors import UserError
from mvlm_np.evaluation.scores import Judged, measure
from mvlm_np.evaluation.statistics import difference, estimate, in_both, ratios

BENCHMARKS = ("gqa", "textvqa", "sqa", "mmbench", "pope", "mme")


def one(id: object, picture: object, right: float, category: str = "a", **other: object) -> Judged:
    fields = {"group": str(id), "prompt": "?", "answer": str(right), "gold": "yes"} | other
    return Judged(id=str(id), picture=str(picture), category=category, right=float(right), **fields)  # type: ignore[arg-type]


def made_up(benchmark: str, rights: Sequence[Sequence[float]]) -> list[Judged]:
    """Questions about pictures: a row for each picture, with what its questions are worth, in pairs."""
    found = []
    for picture, row in enumerate(rights):
        for i, right in enumerate(row):
            id = f"{picture}/{i}"
            if benchmark == "pope":  # a picture is in every category
                found.append(one(id, picture, right, "ab"[i // 2 % 2], gold=("yes", "no")[i % 2]))
            elif benchmark == "mme":  # a picture is in one
                found.append(one(id, picture, right, "ab"[picture % 2], group=f"{picture}/{i // 2}"))
            elif benchmark == "mmbench":
                found.append(one(id, picture, right, group=f"{picture}/{i // 2}"))
            else:
                found.append(one(id, picture, right))
    return found


RIGHTS = st.lists(st.lists(st.sampled_from((0.0, 1.0)), min_size=1, max_size=6), min_size=2, max_size=8)


@pytest.mark.parametrize("benchmark", BENCHMARKS)
@given(rights=RIGHTS)
def test_the_score_is_the_benchmark_s_and_lies_in_its_interval(
    benchmark: str, rights: list[list[float]]
) -> None:
    judged = made_up(benchmark, rights)
    found = estimate(benchmark, judged)
    assert found.value == pytest.approx(measure(benchmark, judged), rel=1e-9, abs=1e-9)
    assert 0 <= found.low <= found.value + 1e-9 and found.value <= found.high + 1e-9
    assert found.high <= ratios(benchmark, judged).most + 1e-9
    assert found.pictures == len(rights)


def test_with_a_picture_for_each_question_it_is_wilson_s_interval() -> None:
    judged = [one(i, i, i < 90) for i in range(100)]
    found = estimate("gqa", judged)
    assert (found.value, found.low, found.high) == pytest.approx((90, 82.56, 94.48), abs=0.01)
    alone = [replace(question, picture="") for question in judged]  # questions about text
    assert estimate("gqa", alone) == found


def test_all_right_is_as_sure_as_there_are_pictures() -> None:
    found = estimate("gqa", [one(f"{i}/{j}", i, 1) for i in range(20) for j in range(5)])
    assert (found.value, found.high) == pytest.approx((100, 100))
    assert found.low == pytest.approx(100 * 20 / (20 + 1.959964**2), abs=0.01)  # Wilson's for 20 of 20


def test_what_rests_on_one_picture_may_be_anything() -> None:
    found = estimate("gqa", [one(0, 0, 1), one(1, 0, 0)])
    assert (found.value, found.low, found.high, found.pictures) == (50, 0, 100, 1)
    assert estimate("gqa", []).pictures == 0


@pytest.mark.parametrize("benchmark", BENCHMARKS)
@given(rights=RIGHTS)
def test_asking_twice_makes_nothing_surer(benchmark: str, rights: list[list[float]]) -> None:
    judged = made_up(benchmark, rights)
    again = [replace(q, id=f"{q.id} again", group=f"{q.group} again") for q in judged]
    once, twice = estimate(benchmark, judged), estimate(benchmark, judged + again)
    assert (once.low, once.value, once.high) == pytest.approx(
        (twice.low, twice.value, twice.high), rel=1e-9, abs=1e-9
    )


def hard_pictures(random: np.random.Generator, benchmark: str, pictures: int) -> list[Judged]:
    """Questions that are right together: a picture is easy, or it is hard."""
    easy = np.where(random.random(pictures) < 0.5, 0.92, 0.45)
    return made_up(benchmark, (random.random((pictures, 8)) < easy[:, None]).astype(float).tolist())


@pytest.mark.parametrize("benchmark", ["gqa", "pope", "mme", "mmbench"])
def test_the_interval_holds_the_true_score_nineteen_times_in_twenty(benchmark: str) -> None:
    random = np.random.default_rng(0)
    truth = measure(benchmark, hard_pictures(random, benchmark, 20_000))
    samples = [hard_pictures(random, benchmark, 40) for _ in range(150)]
    held = [e.low <= truth <= e.high for e in (estimate(benchmark, s) for s in samples)]
    assert np.mean(held) > 0.90  # by lot the share of 150 is off by 1.8 %
    # As if each question had a picture of its own, it would hold far less often.
    blind = [[replace(q, picture="") for q in sample] for sample in samples]
    if benchmark == "gqa":
        blindly = [e.low <= truth <= e.high for e in (estimate(benchmark, s) for s in blind)]
        assert np.mean(blindly) < 0.87


# ---------------------------------------------------------------- two runs


def two_sided_binomial(few: int, n: int) -> float:
    return min(1.0, 2 * sum(comb(n, k) for k in range(min(few, n - few) + 1)) / 2**n)


@pytest.mark.parametrize(("lost", "gained"), [(0, 0), (1, 0), (0, 6), (3, 9), (40, 70), (8, 8)])
def test_with_a_picture_for_each_question_it_is_mcnemar_s_test(lost: int, gained: int) -> None:
    ours = [one(i, i, i >= lost) for i in range(200)]
    theirs = [one(i, i, not lost <= i < lost + gained) for i in range(200)]
    found = difference("gqa", ours, theirs)
    assert (found.lost, found.gained, found.changed, found.telling) == (lost, gained, *2 * [lost + gained])
    assert found.value == pytest.approx((gained - lost) / 2)
    wanted = two_sided_binomial(lost, lost + gained)
    if lost + gained <= 14:
        assert found.p == pytest.approx(wanted, abs=1e-12)
    else:  # by lot: 20,000 draws, five standard errors
        assert found.p == pytest.approx(wanted, abs=5 * (wanted * (1 - wanted) / 20_000) ** 0.5 + 1e-4)
    # The variance of a mean of differences that are -1, 0 and 1.
    mean = (gained - lost) / 200
    half = 1.959964 * (((gained + lost) / 200 - mean**2) / 199) ** 0.5
    assert (found.low, found.high) == pytest.approx((100 * (mean - half), 100 * (mean + half)), abs=1e-6)


@pytest.mark.parametrize("benchmark", BENCHMARKS)
@given(data=st.data())
def test_the_test_is_a_swap_of_pictures_counted_out(benchmark: str, data: st.DataObject) -> None:
    rights = data.draw(st.lists(st.lists(st.booleans(), min_size=4, max_size=4), min_size=2, max_size=6))
    other = [[data.draw(st.booleans()) for _ in row] for row in rights]
    a, b = (made_up(benchmark, np.array(r, float).tolist()) for r in (rights, other))
    observed = measure(benchmark, a) - measure(benchmark, b)
    as_large = []
    for swaps in product((False, True), repeat=len(rights)):
        pairs = [(y, x) if swaps[int(x.picture)] else (x, y) for x, y in zip(a, b, strict=True)]
        swapped = [measure(benchmark, list(side)) for side in zip(*pairs, strict=True)]
        as_large.append(abs(swapped[0] - swapped[1]) >= abs(observed) - 1e-9)
    found = difference(benchmark, a, b)
    assert found.value == pytest.approx(observed, rel=1e-9, abs=1e-9)
    assert found.p == pytest.approx(np.mean(as_large), abs=1e-12)


@pytest.mark.parametrize("benchmark", ["gqa", "pope", "mme"])
def test_runs_that_are_equally_good_seldom_seem_to_differ(benchmark: str) -> None:
    random = np.random.default_rng(1)
    alarms, held = [], []
    for _ in range(100):
        easy = np.where(random.random(40) < 0.5, 0.92, 0.45)
        # What a run gets wrong about a picture, it gets wrong together: each has its own bad days with one.
        a, b = (
            made_up(benchmark, (random.random((40, 8)) < shift[:, None]).astype(float).tolist())
            for shift in (np.where(random.random(40) < 0.3, 0.3, easy) for _ in range(2))
        )
        found = difference(benchmark, a, b)
        alarms.append(found.p < 0.05)
        held.append(found.low <= 0 <= found.high)
    assert np.mean(alarms) < 0.12 and np.mean(held) > 0.88  # 5 % and 95 %, give or take 2.2 % by lot


def test_a_run_and_itself() -> None:
    judged = made_up("mme", [[1, 0, 1, 1], [0, 0, 1, 0], [1, 1, 1, 1], [1, 0]])
    found = difference("mme", judged, judged)
    assert (found.value, found.low, found.high, found.p) == (0, 0, 0, 1)
    assert (found.questions, found.changed, found.telling, found.pictures) == (14, 0, 0, 4)


def test_only_whole_groups_that_both_were_asked_are_compared() -> None:
    ours = made_up("mmbench", [[1, 1, 0, 0], [1, 1], [1, 1]])
    theirs = [q for q in reversed(ours) if q.id not in ("0/0", "2/1")]
    a, b = in_both(ours, theirs)
    assert [q.id for q in a] == [q.id for q in b] == ["0/2", "0/3", "1/0", "1/1"]


def test_runs_that_have_nothing_in_common_are_an_error() -> None:
    with pytest.raises(UserError, match="none of these questions is in that run"):
        in_both([one(0, 0, 1)], [one(1, 0, 1)])
    with pytest.raises(UserError, match="there 'no' is the right answer to 0, and here 'yes'"):
        in_both([one(0, 0, 1)], [one(0, 0, 1, gold="no")])


def test_a_difference_that_rests_on_one_picture_may_be_anything() -> None:
    found = difference("gqa", [one(0, 0, 1), one(1, 0, 1)], [one(0, 0, 0), one(1, 0, 1)])
    assert (found.value, found.low, found.high, found.p) == (50, -50, 100, 1)
