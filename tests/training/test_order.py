"""The order of an epoch: the published code's to the index, and otherwise any data in an order of its own."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mvlm_np.errors import UserError
from tests.conftest import DATA, SHARED
from tests.training.fixtures import load
from tools.training.order import deal, epoch, length, measure
from tools.training.records import Record

TWIN = load(DATA / "training" / "sampler.json")


def records(*lengths: int) -> list[Record]:
    """Records with so many words, negative without a picture."""
    return [
        Record(
            f"record {i}", Path("a") if n > 0 else None, (("human", "word " * (abs(n) - 1)), ("gpt", "so"))
        )
        for i, n in enumerate(lengths, 1)
    ]


def test_the_twin_is_the_reference_material() -> None:
    reference = SHARED / "training" / "fixtures" / "sampler.json"
    if not reference.exists():
        pytest.skip("needs ../shared/training, which is not part of the repository")
    assert load(reference) == TWIN


@pytest.mark.parametrize("case", TWIN["cases"], ids=lambda case: f"seed {case['seed']}")
def test_orders_are_the_published_codes(case: dict) -> None:
    data = records(*case["lengths"])
    for as_published in (True, False):
        lengths = measure(data, as_published=as_published)
        found = epoch(lengths, case["batch_size"], case["world_size"], seed=case["seed"], grouped=True)
        assert found == case["indices"]


@pytest.mark.parametrize("case", TWIN["split_to_even_chunks"], ids=str)
def test_shares_are_the_published_codes(case: dict) -> None:
    assert deal(case["indices"], case["lengths"], case["num_chunks"]) == case["result"]


def test_what_stops_the_published_code_is_one_line_and_has_an_order_here() -> None:
    assert set(TWIN["errors"]) == {"all_with_images", "all_text", "zero_length"}
    empty = Record("record 1", None, (("human", " "), ("gpt", "\n")))
    for data, found in (
        (
            records(3, 4, 5),
            "the data: all 3 records have a picture, wanted some with a picture and some without",
        ),
        (records(-3, -4), "the data: all 2 records have no picture"),
        ([empty, *records(3, -4)], "record 1: has no words, wanted at least one"),
    ):
        with pytest.raises(UserError) as error:
            measure(data, as_published=True)
        assert str(error.value).startswith(found)
        assert str(error.value).endswith("; the published code stops here; leave out --as-published")
        assert sorted(epoch(measure(data), 2, grouped=True)) == [*range(len(data))]


@given(
    lengths=st.lists(st.integers(-9, 9).filter(bool), min_size=1),
    size=st.integers(1, 5),
    processes=st.integers(1, 4),
    grouped=st.booleans(),
)
def test_each_record_comes_once_and_the_seed_decides_when(
    lengths: list[int], size: int, processes: int, grouped: bool
) -> None:
    data = measure(records(*(n + (n > 0) or -1 for n in lengths)))
    orders = [
        epoch(data, size, processes, grouped=grouped, seed=seed, number=number)
        for seed, number in ((1, 0), (1, 0), (0, 1))
    ]
    assert orders[0] == orders[1] == orders[2]
    assert sorted(orders[0]) == [*range(len(data))]


def test_most_steps_have_records_of_one_kind() -> None:
    data = records(*[n if n % 3 else -n for n in range(2, 82)])
    lengths = measure(data)
    order = epoch(lengths, 4, 2, grouped=True, seed=3)
    kinds = [{data[i].image is None for i in order[at : at + 8]} for at in range(0, 80, 8)]
    assert sum(len(kind) == 1 for kind in kinds) >= 8
    assert (
        epoch(lengths, 4, 2, grouped=True, seed=4)
        != order
        != epoch(lengths, 4, 2, grouped=True, seed=3, number=1)
    )
    assert epoch(lengths, 4, 2, grouped=False, seed=3) != order


def test_words_are_counted_over_all_turns() -> None:
    turns = ("human", "<image>\nWhat  is it?"), ("gpt", "A cat.")
    assert length(Record("", Path("a"), turns)) == 6
    assert length(Record("", None, turns)) == -6
