"""Sequences that are computed together: each gets to the bit what it gets alone, whatever the others do."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, precondition, rule

import mvlm_np
from mvlm_np import decoder
from mvlm_np.batch import PIECE, Batch, Member
from mvlm_np.errors import GenerationError, UserError
from mvlm_np.generation import Choice, Settings
from mvlm_np.kv_cache import TYPES
from mvlm_np.model import MobileVLM
from mvlm_np.session import CHUNK, Session
from mvlm_np.trace import Watch
from tests.conftest import ROOT
from tests.models import assert_as_close_as_torch
from tests.test_decoder import SMALL, seeds, small, tokens

DEMO = ROOT / "mvlm_np" / "demo" / "model"
VOCABULARY = 640
ids = st.integers(3, VOCABULARY - 1)
prompts = st.lists(ids, min_size=1, max_size=40)
pieces = st.sampled_from([None, 0, 1, 2, 3, 16, 1000])


def ends(tokens: list[int]) -> bool:
    """A stop rule that comes true now and then."""
    return tokens[-1] % 7 == 3


# ---------------------------------------------------------------- the numbers


class Given:
    """Chooses what it is told to, and keeps the logits."""

    def __init__(self, wanted: list[int]):
        self.wanted, self.tokens, self.logits = wanted, list[int](), list[np.ndarray]()

    @property
    def ended(self) -> bool:
        return len(self.tokens) == len(self.wanted)

    def take(self, logits: np.ndarray) -> int:
        self.logits.append(logits.copy())
        self.tokens.append(self.wanted[len(self.tokens)])
        return self.tokens[-1]


@settings(max_examples=30)
@given(st.lists(st.tuples(tokens, tokens, st.integers(0, 4)), min_size=1, max_size=5), st.data(), seeds)
def test_logits_are_those_of_transformers_whoever_joins_when(sequences, data, seed):
    both, batch, started = small(seed % 4), Batch(), list[tuple[list[int], Given]]()
    waiting = sorted(sequences, key=lambda sequence: sequence[2])
    steps = 0
    while waiting or batch.members:
        while waiting and waiting[0][2] <= steps:
            prompt, answer, _ = waiting.pop(0)
            started.append((prompt, Given(answer)))
            at = np.array(prompt)
            batch.join(both.session(), both.embed(prompt), at, started[-1][1], len(answer))
        batch.step(data.draw(st.integers(1, 5)))
        steps += 1
    for prompt, choice in started:
        single, double = both.theirs(both.embed(prompt + choice.wanted[:-1]))
        rows = np.s_[len(prompt) - 1 :]
        assert_as_close_as_torch("logits", np.stack(choice.logits), single[rows], double[rows])


# ---------------------------------------------------------------- to the bit


@lru_cache
def packed(precision: str, cache: str) -> MobileVLM:
    """The model in the box with packed weights and compiled kernels."""
    pytest.importorskip("numba")
    return mvlm_np.load(DEMO, precision=precision, backend="numba", cache=cache)


@lru_cache(4096)
def alone(model: MobileVLM, prompt: tuple[int, ...], how: Settings) -> list[int]:
    """The answer to a prompt that a session of its own gives."""
    one = model.session()
    logits = one.prefill(*model.embed(prompt, []), how.max_new_tokens, Watch())
    return list(one.generate(logits, how, ends, len(prompt), Watch()))


@dataclass
class Asked:
    """A question that was put to a batch."""

    prompt: list[int]
    how: Settings
    member: Member
    pieces: list[int] = field(default_factory=list)  # its tokens, as steps have told of them
    damaged: bool = False
    left: bool = False


class Together(RuleBasedStateMachine):
    """Sequences join, go on, fail and leave as they like."""

    sessions = Bundle("sessions")  # that are free to join

    def __init__(self) -> None:
        super().__init__()
        self.batch, self.asked = Batch(), list[Asked]()

    @property
    def running(self) -> list[Asked]:
        return [each for each in self.asked if each.member in self.batch.members]

    model: MobileVLM

    @rule(target=sessions)
    def new_session(self) -> Session:
        return self.model.session()

    @precondition(lambda self: len(self.batch.members) < 9)
    @rule(
        one=consumes(sessions),
        prompt=prompts,
        new=st.integers(0, 6),
        warm=st.booleans(),
        seed=st.integers(0, 3),
        like=st.integers(0, 30),
        damage=st.sampled_from([None] * 8 + [np.nan, np.inf]),
    )
    def join(self, one, prompt, new, warm, seed, like, damage):
        prompt = [*(i for i in one.ids[:like].tolist()), *prompt]  # begins like what the session has read
        how = Settings(new, temperature=0.7 if warm else 0.0, seed=seed)
        x, at = self.model.embed(prompt, [])
        damaged = damage is not None and new > 0
        if damaged:
            x[-1, seed] = damage
        member = self.batch.join(one, x, at, Choice(how, ends), new)
        assert member.ended == (new == 0)
        self.asked.append(Asked(prompt, how, member, damaged=damaged))

    @rule(piece=pieces)
    def step(self, piece):
        before = self.running
        for member in self.batch.step(piece):
            (each,) = (each for each in before if each.member is member)
            if member.error is None:
                each.pieces.append(member.choice.tokens[-1])
        for each in before:  # those who were in an answer have gone on
            assert len(each.pieces) == len(each.member.choice.tokens)

    @precondition(lambda self: self.running)
    @rule(target=sessions, data=st.data())
    def leave(self, data):
        each = data.draw(st.sampled_from(self.running))
        self.batch.leave(each.member)
        each.left = True
        return each.member.session

    @rule(target=sessions)
    def end(self):
        """Nobody comes any more: the batch does all there is to do, and one of its sessions is free again."""
        for _ in range(2000):
            if not self.batch.members:
                break
            self.step(None)
        assert not self.batch.members
        done = [each for each in self.asked if not each.left]
        for each in self.asked:
            found, member = each.member.choice.tokens, each.member
            assert found == each.pieces
            if each.damaged:
                assert isinstance(member.error, GenerationError) or each.left
                assert not found
                continue
            assert member.error is None
            wanted = alone(self.model, tuple(each.prompt), each.how)
            assert found == (wanted[: len(found)] if each.left else wanted)
        self.asked = []
        return done[0].member.session if done else self.model.session()

    @invariant()
    def no_session_has_two_places(self):
        assert len({id(member.session) for member in self.batch.members}) == len(self.batch.members)

    def teardown(self) -> None:
        self.end()


@pytest.mark.parametrize("precision, cache", [("int4", "float16"), ("int8", "int8"), ("int4", "float32")])
def test_each_answer_is_to_the_bit_what_it_is_alone(precision, cache):
    class Machine(Together):
        model = packed(precision, cache)

    case = Machine.TestCase
    case.settings = settings(max_examples=6, stateful_step_count=25)
    case().runTest()


@given(st.lists(prompts, min_size=1, max_size=20), st.sampled_from(TYPES), pieces.filter(bool))
@settings(max_examples=15)
def test_logits_are_to_the_bit_those_of_a_session_alone(questions, cache, piece):
    model, batch, choices = packed("int4", cache), Batch(), list[Given]()
    for question in questions:
        choices.append(Given(question[::-1][:5]))
        batch.join(model.session(), *model.embed(question, []), choices[-1], len(question))
    while batch.members:
        batch.step(piece)
    for question, choice in zip(questions, choices, strict=True):
        one = model.session()
        rows = [one.prefill(*model.embed(question, []), len(choice.wanted), Watch())]
        rows += [one.logits(np.array([token]), one.cache)[0] for token in choice.wanted[:-1]]
        assert np.array_equal(choice.logits, rows)


def test_batches_in_several_threads_do_not_meet():
    model = packed("int4", "float16")

    def answers(first: int) -> list[list[int]]:
        batch, members = Batch(), list[Member]()
        for i in range(5):
            prompt = list(range(first + i, first + 60 + i))
            how = Settings(8, temperature=0.5, seed=i)
            x, ids = model.embed(prompt, [])
            members.append(batch.join(model.session(), x, ids, Choice(how, ends), 8))
        while batch.members:
            batch.step(16)
        return [member.choice.tokens for member in members]

    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(answers, [10, 20, 30, 10]))
    assert found == [answers(first) for first in (10, 20, 30, 10)]


# ---------------------------------------------------------------- what a step does


class Passes:
    """Counts the rows of each pass through the decoder."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.rows = list[int]()
        forward: Callable[..., Any] = decoder.forward

        def counted(x: np.ndarray, weights: Any, *rest: Any) -> np.ndarray:
            self.rows.append(len(x))
            return forward(x, weights, *rest)

        monkeypatch.setattr(decoder, "forward", counted)

    def taken(self) -> list[int]:
        rows, self.rows = self.rows, []
        return rows


def started(length: int, new: int = 9, first: int = 0) -> tuple[Any, ...]:
    """What a sequence of the small model joins with."""
    both, prompt = small(0), [(first + i) % SMALL.vocab_size for i in range(length)]
    choice = Choice(Settings(new), lambda tokens: False)
    return both.session(), both.embed(prompt), np.array(prompt), choice, new


def test_a_step_is_one_pass_with_a_row_for_each_answer_and_a_piece_of_the_prompts(monkeypatch):
    passes, batch = Passes(monkeypatch), Batch()
    first, second = batch.join(*started(CHUNK + 1)), batch.join(*started(3))
    assert batch.step() == []  # nobody waits: a whole chunk, first of whom came first
    assert batch.step() == [first, second]  # the last row of the one is like a token; and the other one's 3
    assert passes.taken() == [CHUNK, 1 + 3]
    third, fourth = batch.join(*started(PIECE + 10)), batch.join(*started(60))
    assert batch.step() == [first, second]
    assert batch.step() == [first, second, third]
    assert passes.taken() == [2 + PIECE, 2 + PIECE]  # the second time 10 of the third's, 54 of the fourth's
    assert batch.step(piece=0) == [first, second, third]
    assert passes.taken() == [3]
    batch.leave(second)
    batch.leave(second)  # a second time does nothing
    assert batch.step() == [first, third, fourth]
    assert passes.taken() == [2 + 6]
    assert batch.members == [first, third, fourth]


def test_logits_are_computed_for_those_who_choose():
    both, seen = small(0), list[int]()

    def head(x: np.ndarray) -> np.ndarray:
        seen.append(len(x))
        return both.ours.lm_head(x)

    batch, weights = Batch(), replace(both.ours, lm_head=head)
    for length in (1, 1, 5, 9):
        one, *rest = started(length)
        one.weights = weights
        batch.join(one, *rest)
    for _ in range(3):
        batch.step(piece=6)
    assert seen == [3, 3, 4]  # of the last one 1, 6 and 2 positions are read


def test_what_a_cancelled_sequence_has_read_is_not_read_again(monkeypatch):
    passes, batch = Passes(monkeypatch), Batch()
    one, x, at, choice, new = started(20)
    batch.join(one, x, at, choice, new)
    batch.step(piece=7)
    batch.leave(batch.members[0])
    assert not batch.step()
    again = batch.join(one, x, at, Choice(Settings(2), lambda tokens: False), new)
    batch.step()
    batch.step()
    assert passes.taken() == [7, 13, 1]
    assert again.ended
    assert not batch.members
    single, _ = small(0).theirs(x)
    assert again.choice.tokens[0] == int(single[-1].argmax())


def test_a_sequence_that_comes_back_goes_on_where_it_was():
    batch = Batch()
    first, second = batch.join(*started(4)), batch.join(*started(4))
    for _ in range(3):
        batch.step()
    batch.leave(first)
    for _ in range(3):
        batch.step()
    assert (len(first.choice.tokens), len(second.choice.tokens)) == (3, 6)
    batch.back(first)
    batch.back(first)  # a second time does nothing
    assert batch.members == [second, first]
    while batch.members:
        batch.step()
    assert first.choice.tokens == second.choice.tokens
    batch.back(first)  # nothing follows
    assert not batch.members


# ---------------------------------------------------------------- what goes wrong


def test_damage_ends_the_sequence_that_has_it():
    """In float32 NaN reaches the logits; with packed weights a product refuses it."""
    batch = Batch()
    for damaged in (False, True, False):
        one, x, at, choice, new = started(6)
        x = x.copy()
        x[2, 3] = np.nan if damaged else 0
        batch.join(one, x, at, choice, new)
    good, bad, other = batch.members
    assert batch.step() == [good, bad, other]
    assert str(bad.error).startswith("logits: the model computed NaN")
    assert batch.members == [good, other]
    batch.step()
    assert len(good.choice.tokens) == len(other.choice.tokens) == 2
    assert good.choice.tokens == other.choice.tokens


def test_a_bug_in_a_pass_ends_the_sequence_whose_rows_meet_it(monkeypatch):
    forward: Callable[..., Any] = decoder.forward

    def odd(x: np.ndarray, *rest: Any) -> np.ndarray:
        if 7 in x[:, 3]:
            raise ZeroDivisionError
        return forward(x, *rest)

    monkeypatch.setattr(decoder, "forward", odd)
    batch = Batch()
    for number in (0, 7, 0):
        one, x, at, choice, new = started(6)
        x = x.copy()
        x[2, 3] = number
        batch.join(one, x, at, choice, new)
    good, bad, other = batch.members
    assert batch.step() == [good, bad, other]
    assert isinstance(bad.error, ZeroDivisionError)
    assert batch.members == [good, other]
    assert good.choice.tokens == other.choice.tokens


def test_a_rule_that_raises_ends_its_own_sequence():
    def broken(tokens: list[int]) -> bool:
        raise KeyError("stop")

    batch = Batch()
    one, x, at, _, new = started(4)
    bad, good = batch.join(one, x, at, Choice(Settings(new), broken), new), batch.join(*started(4))
    batch.step()
    assert isinstance(bad.error, KeyError)
    assert batch.members == [good]
    assert good.choice.tokens == bad.choice.tokens


def test_logits_that_prefer_nothing_are_an_error_as_alone():
    both, batch = small(0), Batch()
    one, *rest = started(4)
    one.weights = replace(both.ours, lm_head=lambda x: np.zeros((len(x), SMALL.vocab_size), np.float32))
    member = batch.join(one, *rest)
    batch.step()
    assert str(member.error).startswith("logits: the model computed the same number for every token")


def test_ids_that_the_tokenizer_has_not_are_not_chosen():
    batch, members = Batch(), list[Member]()
    for known in (None, 3):
        members.append(batch.join(*started(4, first=2), known))
    while batch.members:
        batch.step()
    free, limited = (member.choice.tokens for member in members)
    assert max(free) >= 3 > max(limited)


def test_who_may_not_join():
    batch, member = Batch(), started(3)
    batch.join(*member)
    with pytest.raises(UserError, match=r"^batch: found a session that is in it already"):
        batch.join(*member)
    with pytest.raises(UserError, match=r"^batch: found a session of another model"):
        batch.join(small(1).session(), *member[1:])
    assert len(batch.members) == 1
    with pytest.raises(GenerationError, match=r"^num_beams: found 3, wanted 1"):
        Choice(Settings(num_beams=3), ends)


def test_a_sequence_for_which_there_is_no_memory_does_not_join():
    batch, (one, x, at, choice, _) = Batch(), started(3)
    batch.join(*started(3))
    with pytest.raises((MemoryError, ValueError)):
        batch.join(one, x, at, choice, 1 << 56)
    assert len(batch.step()) == len(batch.members) == 1
