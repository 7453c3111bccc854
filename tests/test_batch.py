"""Sequences that are computed together: each gets what it gets alone, whatever the others do."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mvlm_np import decoder, session
from mvlm_np.errors import GenerationError, UserError
from mvlm_np.generation import Choice, Settings
from mvlm_np.session import CHUNK, PIECE, Batch, Member
from tests.models import assert_as_close_as_torch
from tests.test_decoder import SMALL, seeds, small, tokens


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


# ---------------------------------------------------------------- what a step does


class Passes:
    """Counts the rows of each pass through the decoder."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.rows = list[int]()
        forward: Callable[..., Any] = decoder.forward

        def counted(x: np.ndarray, weights: Any, *rest: Any) -> np.ndarray:
            self.rows.append(len(x))
            return forward(x, weights, *rest)

        monkeypatch.setattr(session.decoder, "forward", counted)

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
