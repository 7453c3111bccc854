"""The caches: what is found in them is what was put there, and they stay within their bytes."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mvlm_np.serve import caches
from mvlm_np.serve.caches import WORTH, Pictures, Prefixes, digest, in_common
from mvlm_np.session import Session
from tests.serve.fakes import FakeModel

MODEL = FakeModel()
POSITION = MODEL.session().cache.bytes_per_position
TEMPLATE = list(range(10))


def read(ids: list[int], room: int = 5) -> Session:
    """A session that has read a prompt; its keys and values tell at which position they are, after what."""
    session = MODEL.session()
    session.cache.reserve(len(ids) + room)
    for i in range(len(ids)):
        session.cache.keys.numbers[0, 0, i] = hash(tuple(ids[: i + 1])) % 2**40
        session.cache.values.numbers[0, 0, i] = hash((1, *ids[: i + 1])) % 2**40
    session.cache.length, session.ids = len(ids), np.array(ids)
    return session


def assert_begins(session: Session, ids: list[int], length: int) -> None:
    wanted = read(ids)
    assert session.cache.length == length
    assert session.ids.tolist() == ids[:length]
    for one, other in ((session.cache.keys, wanted.cache.keys), (session.cache.values, wanted.cache.values)):
        np.testing.assert_array_equal(one.numbers[:, :, :length], other.numbers[:, :, :length])


def begun(prefixes: Prefixes, ids: list[int]) -> tuple[int, bool]:
    session = MODEL.session()
    length, again = prefixes.begin(session, np.array(ids))
    if length:
        assert_begins(session, ids, length)
    return length, again


sequences = st.lists(st.integers(0, 1), min_size=1, max_size=30).map(lambda ids: [*TEMPLATE, *ids])


@given(
    st.lists(st.tuples(sequences, st.booleans(), st.booleans()), max_size=12),
    st.integers(0, 60),
)
@settings(max_examples=200)
def test_prompts_begin_like_what_was_read_and_bytes_stay_within_the_budget(uses: Any, most: int) -> None:
    prefixes = Prefixes(most * POSITION)
    prefixes.pin(read(TEMPLATE))
    kept = [TEMPLATE]
    for ids, put, once in uses:
        length, again = begun(prefixes, ids)
        possible = [in_common(np.array(one), np.array(ids[:-1])) for one in kept]
        assert len(TEMPLATE) <= length <= max(possible)
        assert again == (length >= len(TEMPLATE) + WORTH)
        if put:
            prefixes.keep(read(ids), once)
            kept.append(ids)
            if len(ids) <= most and not once:
                assert begun(prefixes, [*ids, 0])[0] == len(ids)
        status = prefixes.status
        assert status.bytes <= status.budget
        assert status.bytes % POSITION == 0
        assert bool(status.bytes) == bool(status.entries)


def test_what_is_asked_about_once_stays_until_the_next_such_comes() -> None:
    prefixes = Prefixes(1000 * POSITION)
    pictures = [[*TEMPLATE, *[-i] * 20, 7] for i in range(1, 5)]
    for ids in pictures:
        assert begun(prefixes, ids) == (0 if ids is pictures[0] else 10, False)
        prefixes.keep(read(ids), once=True)
    assert prefixes.status.entries == 1
    assert begun(prefixes, [*pictures[3], 8]) == (31, True)
    prefixes.keep(read([*pictures[3], 8]), once=False)
    prefixes.keep(read(pictures[0]), once=True)
    assert prefixes.status.entries == 2
    assert begun(prefixes, [*pictures[3], 8, 9]) == (32, True)
    assert (prefixes.status.hits, prefixes.status.misses) == (2, 4)


def test_those_not_used_for_longest_go_first_and_what_is_pinned_never() -> None:
    prefixes = Prefixes(70 * POSITION)
    prefixes.pin(read(TEMPLATE))
    one, two, three = ([*TEMPLATE, *[i] * 20] for i in (1, 2, 3))
    prefixes.keep(read(one), once=False)
    prefixes.keep(read(two), once=False)
    begun(prefixes, [*one, 5])
    prefixes.keep(read(three), once=False)
    assert [begun(prefixes, [*ids, 5])[0] for ids in (one, two, three)] == [30, 10, 30]
    prefixes.keep(read([*TEMPLATE, *[4] * 100]), once=False)  # larger than all there is
    assert prefixes.status.entries == 2
    prefixes.shrink(0)
    assert (prefixes.status.bytes, prefixes.status.entries) == (0, 0)
    assert begun(prefixes, [*one, 5]) == (10, False)


def test_owners_have_nothing_in_common_but_what_is_pinned() -> None:
    prefixes = Prefixes(1000 * POSITION)
    prefixes.pin(read(TEMPLATE))
    chat = [*TEMPLATE, *[5] * 30]

    def common(owner: str) -> tuple[int, bool]:
        return prefixes.begin(MODEL.session(), np.array([*chat, 6]), owner)

    prefixes.keep(read(chat), False, "anna")
    assert (common("anna"), common("ben"), common("")) == ((40, True), (10, False), (10, False))
    prefixes.keep(read([*chat, 7]), False, "ben")  # which neither is there already, nor takes hers away
    assert prefixes.status.entries == 2
    assert (common("anna"), common("ben"), common("")) == ((40, True), (40, True), (10, False))
    one = Image.new("RGB", (4, 4))
    assert len({digest(one), digest(one, "anna"), digest(one, "ben")}) == 3


def test_a_longer_sequence_takes_the_place_of_its_beginning() -> None:
    prefixes = Prefixes(1000 * POSITION)
    ids = [*range(40)]
    prefixes.keep(read(ids), once=False)
    prefixes.keep(read([*ids, 50, 51]), once=False)
    prefixes.keep(read(ids), once=False)
    assert (prefixes.status.entries, prefixes.status.bytes) == (1, 42 * POSITION)
    assert begun(prefixes, [*ids, 60]) == (40, True)
    assert begun(prefixes, [*ids, 50, 51]) == (41, True)  # the last one is computed, for its logits


def test_of_several_questions_about_a_picture_the_last_is_kept() -> None:
    prefixes = Prefixes(1000 * POSITION)
    picture = [*TEMPLATE, *[-5] * 30]
    for question in ([6, 7, 8], [8, 8, 8, 8], [9]):
        prefixes.keep(read([*picture, *question]), once=False)
    assert (prefixes.status.entries, prefixes.status.bytes) == (1, 41 * POSITION)
    assert begun(prefixes, [*picture, 6, 7, 8]) == (40, True)
    prefixes.keep(read([*picture, *range(100, 130)]), once=False)  # a long chat
    prefixes.keep(read([*picture, 7]), once=False)
    assert prefixes.status.entries == 2


def test_what_is_kept_takes_no_more_than_it_holds_and_nothing_where_memory_is_short(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    prefixes, session = Prefixes(1000 * POSITION), read([*range(30)], room=500)
    prefixes.keep(session, once=False)
    (kept,) = prefixes._kept
    assert kept.session.cache.keys.numbers.shape[2] == 30
    assert not np.shares_memory(kept.session.cache.keys.numbers, session.cache.keys.numbers)
    monkeypatch.setattr(caches.memory, "available", lambda: caches.RESERVE)
    prefixes.keep(read([*range(100, 140)]), once=False)
    assert prefixes.status.entries == 1
    assert Prefixes().status.budget == caches.RESERVE // 10
    monkeypatch.setattr(caches.memory, "available", lambda: None)
    assert Prefixes().status.budget == caches.PREFIXES


# ---------------------------------------------------------------- pictures


def test_a_picture_is_told_by_every_pixel_and_its_size() -> None:
    base = Image.effect_noise((8, 6), 50).convert("RGB")
    changed = base.copy()
    changed.putpixel((7, 5), tuple(255 - value for value in base.getpixel((7, 5))))  # type: ignore[union-attr]
    turned = Image.frombytes("RGB", (6, 8), base.tobytes())
    assert digest(base) == digest(base.copy())
    assert len({digest(one) for one in (base, changed, turned)}) == 3


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(1, 5)), max_size=30), st.integers(0, 12))
def test_pictures_are_what_was_put_and_stay_within_their_bytes(
    uses: list[tuple[int, int]], most: int
) -> None:
    pictures, last = Pictures(most * 40), dict[bytes, np.ndarray]()
    for i, rows in uses:
        name = bytes([i])
        found = pictures.get(name)
        assert found is None or found is last[name]
        last[name] = np.full((rows, 10), i, np.float32)
        pictures.put(name, last[name])
        assert (pictures.peek(name) is last[name]) == (rows <= most)
        assert pictures.status.bytes <= pictures.status.budget
        assert pictures.status.bytes == sum(kept.nbytes for kept in pictures._kept.values())
    assert pictures.status.hits + pictures.status.misses == len(uses)


def test_the_picture_not_used_for_longest_goes_first() -> None:
    pictures = Pictures(3 * 40)
    for name in (b"a", b"b", b"c"):
        pictures.put(name, np.zeros((1, 10), np.float32))
    pictures.get(b"a")
    pictures.put(b"d", np.zeros((1, 10), np.float32))
    assert [pictures.peek(name) is not None for name in (b"a", b"b", b"c", b"d")] == [True, False, True, True]


def test_no_two_pictures_ever_share_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caches, "NAMES", 3)
    pictures = Pictures()
    names = [pictures.name(bytes([i])) for i in range(5)]
    assert len({*names}) == 5
    assert min(names) > 0
    assert pictures.name(bytes([4])) == names[4]
    assert pictures.name(bytes([0])) not in names  # forgotten, and known by another one from now on


def used(prefixes: Prefixes, ids: list[int]) -> Session:
    """A session that has begun like a prompt, as far as that is there, and counts."""
    session = MODEL.session()
    prefixes.begin(session, np.array(ids))
    prefixes.use(session, len(ids))
    return session


def complete(session: Session, ids: list[int]) -> None:
    whole = read(ids)
    session.ids, session.cache = whole.ids, whole.cache


def test_what_is_in_use_takes_its_part_of_the_budget() -> None:
    prefixes = Prefixes(100 * POSITION)
    pictures = [[*TEMPLATE, *[-i] * 20] for i in range(1, 4)]
    for ids in pictures:
        prefixes.keep(read(ids), once=False)
    assert prefixes.status.bytes == 90 * POSITION
    first = used(
        prefixes, [*pictures[0], 7]
    )  # 31 positions, which stand for the 30 that they were begun from
    assert (first.cache.length, prefixes.status.bytes) == (30, 60 * POSITION)
    used(prefixes, [*pictures[1], 7])
    used(prefixes, [*pictures[1], 8])  # 93 in all, and 30 that are kept
    assert prefixes.status.bytes == 0
    prefixes.free(first)
    prefixes.keep(read(pictures[2]), once=False)
    assert prefixes.status.bytes == 30 * POSITION
    prefixes.keep(read([*pictures[0], 9]), once=False)  # to be kept comes before the rest of the budget
    assert prefixes.status.bytes == 31 * POSITION


def test_prompts_begin_like_one_in_use_when_that_has_been_read() -> None:
    prefixes = Prefixes(100 * POSITION)
    ids = [*TEMPLATE, *[-1] * 20, 7]
    session = used(prefixes, ids)
    assert begun(prefixes, [*ids, 8]) == (0, False)
    complete(session, ids)
    assert begun(prefixes, [*ids, 8]) == (31, True)
    prefixes.free(session)
    assert begun(prefixes, [*ids, 8]) == (0, False)
    nothing = Prefixes(0)
    complete(used(nothing, ids), ids)
    assert begun(nothing, [*ids, 8]) == (0, False)
