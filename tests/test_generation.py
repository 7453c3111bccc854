"""Choosing tokens, on toy models whose logits are a function of all the tokens before."""

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from transformers import (
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from mvlm_np import generation
from mvlm_np.errors import GenerationError
from mvlm_np.generation import (
    Choice,
    Settings,
    beam_search,
    draw,
    generate,
    log_probabilities,
    log_softmax,
    penalised,
    probabilities,
    warp,
)
from tests.arrays import U

seeds = st.integers(0, 2**32 - 1)
Answer = tuple[int, ...]


class Toy:
    """Follows its own histories, so that a token fed to the wrong beam changes what comes after."""

    def __init__(self, seed: int, vocabulary: int, beams: int = 1, spread: float = 2, bonus: float = 0):
        self.seed, self.vocabulary, self.spread, self.bonus = seed, vocabulary, spread, bonus
        self.histories: list[Answer] = [()] * beams
        self.steps = 0

    def logits(self, history: Answer = ()) -> np.ndarray:
        rng = np.random.default_rng([self.seed, *history])
        logits = self.spread * rng.standard_normal(self.vocabulary)
        logits[0] += self.bonus
        return logits.astype(np.float32)

    def step(self, tokens: np.ndarray) -> np.ndarray:
        assert tokens.shape == (len(self.histories),)
        self.histories = [(*h, int(token)) for h, token in zip(self.histories, tokens, strict=True)]
        self.steps += 1
        return np.stack([self.logits(h) for h in self.histories])

    def reorder(self, parents: np.ndarray) -> None:
        self.histories = [self.histories[parent] for parent in parents]


def never(answer: list[int]) -> bool:
    return False


def ends_with(*last: int) -> generation.Stop:
    return lambda answer: tuple(answer[-len(last) :]) == last


def answer(toy: Toy, settings: Settings, stop: generation.Stop = never, prompt_length: int = 5) -> list[int]:
    return list(generate(toy.logits(), toy, settings, stop, prompt_length))


# ---------------------------------------------------------------- settings


@pytest.mark.parametrize(
    "name, values",
    {
        "max_new_tokens": [-1, 1.0, "8", None, True, np.nan],
        "temperature": [-0.1, -1e-9, 1e-7, 1e-300, 1e7, 10**400, np.nan, np.inf, "1", None, True, 1j, [1]],
        "top_p": [0, -0.5, 1.0001, np.nan, -np.inf, "0.9", False, 1j],
        "top_k": [-1, 5.0, "50", True],
        "num_beams": [0, -3, 129, 10**20, 2.0, None, True],
        "seed": [-1, 0.5, "0", False],
        "frequency_penalty": [-2.1, 3, np.nan, "0", None, True],
        "presence_penalty": [-2.1, 3, np.inf, "0", None, True],
        "repeat_penalty": [0, -1, 0.009, 10.5, np.nan, "1", None, True],
        "repeat_last_n": [-2, 1.5, "64", None, True],
    }.items(),
)
def test_a_bad_setting_is_refused_by_name(name, values):
    for value in values:
        with pytest.raises(GenerationError) as error:
            Settings(**{name: value})
        assert str(error.value).startswith(f"{name}: found {value!r}, wanted ")


def test_settings_at_their_limits_are_accepted():
    Settings(0, 0, None, None, 1, None)
    Settings(np.int64(1), 1e-6, 1, 0, np.int32(2), 2**200)
    Settings(10**9, np.float32(1e6), 1e-12, 10**9, 1, 0)
    Settings(frequency_penalty=-2, presence_penalty=2, repeat_penalty=10, repeat_last_n=-1)


# ---------------------------------------------------------------- one continuation


@given(seeds, st.integers(1, 9), st.integers(1, 8))
def test_greedy_takes_the_likeliest_token_each_time(seed, vocabulary, n):
    toy, tokens = Toy(seed, vocabulary), answer(Toy(seed, vocabulary), Settings(n))
    assert len(tokens) == n
    for i, token in enumerate(tokens):
        assert token == toy.logits(tuple(tokens[:i])).argmax()


def test_of_equally_likely_tokens_greedy_takes_the_first():
    toy = Toy(0, 4, spread=0)
    assert answer(toy, Settings(3)) == [0, 0, 0]


@given(seeds, st.integers(1, 20), st.sampled_from([0.0, 1.0]))
def test_the_token_that_ends_the_answer_is_its_last_and_is_not_fed_back(seed, n, temperature):
    toy, stop = Toy(seed, 4), ends_with(3)
    tokens = answer(toy, Settings(n, temperature, seed=1), stop)
    assert [i for i in range(len(tokens)) if stop(tokens[: i + 1])] in ([], [len(tokens) - 1])
    assert len(tokens) == n or stop(tokens)
    assert toy.steps == len(tokens) - 1


@pytest.mark.parametrize("beams", [1, 3])
def test_no_new_tokens_are_none_and_nothing_runs(beams):
    toy = Toy(0, 4, beams)
    assert answer(toy, Settings(0, num_beams=beams)) == []
    assert toy.steps == 0


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("temperature", [0, 1])
@pytest.mark.parametrize("when", [0, 2])
@pytest.mark.parametrize("damage", [[np.nan], [np.inf], [-np.inf] * 4])
def test_logits_that_are_not_numbers_are_an_error(beams, temperature, when, damage):
    class Damaged(Toy):
        def logits(self, history: Answer = ()) -> np.ndarray:
            logits = super().logits(history)
            if len(history) == when:
                logits[: len(damage)] = damage
            return logits

    with pytest.raises(GenerationError, match=r"^logits: .*; "):
        answer(Damaged(0, 4, beams), Settings(5, temperature, num_beams=beams, seed=0))


@given(st.lists(seeds, min_size=1, max_size=4), st.sampled_from([0.0, 1.0]), st.integers(0, 6))
def test_choices_that_take_turns_are_those_made_one_after_another(models, temperature, n):
    toys = [Toy(seed, 5) for seed in models]
    settings = [Settings(n, temperature, seed=seed) for seed in models]
    choices = [Choice(each, ends_with(3)) for each in settings]
    while any(not choice.ended for choice in choices):
        for toy, choice in zip(toys, choices, strict=True):
            if not choice.ended:
                choice.take(toy.logits(tuple(choice.tokens)))
    for seed, each, choice in zip(models, settings, choices, strict=True):
        assert choice.tokens == answer(Toy(seed, 5), each, ends_with(3))


@given(seeds, st.integers(2, 6))
def test_tokens_that_are_ruled_out_are_never_chosen(seed, vocabulary):
    class Ruled(Toy):
        def logits(self, history: Answer = ()) -> np.ndarray:
            logits = super().logits(history)
            logits[1:] = -np.inf
            return logits

    for temperature, beams in product((0.0, 1.0), (1, 2)):
        toy = Ruled(seed, vocabulary, beams)
        assert answer(toy, Settings(3, temperature, num_beams=beams, seed=0)) == [0, 0, 0]


# ---------------------------------------------------------------- sampling

temperatures = st.floats(0.01, 10)
shares = st.none() | st.floats(0.01, 1)
ranks = st.sampled_from([None, 0, 1, 2, 3, 5, 50])


def their_warp(scores: np.ndarray, temperature: float, top_k: int | None, top_p: float | None, keep: int):
    """What transformers makes of these scores, in the order that its `generate` has."""
    x = torch.from_numpy(scores.copy())
    warpers: list[Any] = [TemperatureLogitsWarper(temperature)]
    if top_k:
        warpers.append(TopKLogitsWarper(top_k, min_tokens_to_keep=keep))
    if top_p is not None and top_p < 1:
        warpers.append(TopPLogitsWarper(top_p, min_tokens_to_keep=keep))
    for warper in warpers:
        x = warper(None, x)
    return x.numpy()


@given(
    st.integers(2, 12).flatmap(
        lambda n: arrays(np.float64, (2, n), elements=st.integers(-4000, 4000).map(lambda v: v / 100))
    ),
    temperatures,
    ranks,
    shares,
    st.sampled_from([1, 2]),
)
def test_what_is_left_of_the_scores_is_what_transformers_leaves(scores, temperature, top_k, top_p, keep):
    kept = np.sort(their_warp(scores, temperature, top_k, None, keep), axis=-1)
    if top_p is not None:
        # Which of equals goes first, or whether a sum reaches 1 - top_p in its last bit, rounding decides.
        assume(all(len(set(row)) == row.size for row in scores))
        assume((np.abs(np.cumsum(probabilities(kept), axis=-1) - (1 - top_p)) > 1e-12).all())
    ours = warp(scores, Settings(temperature=temperature, top_k=top_k, top_p=top_p), keep)
    assert np.array_equal(ours, their_warp(scores, temperature, top_k, top_p, keep))


def test_tokens_that_reach_the_share_exactly_are_enough():
    for n in (2, 4):
        scores = np.zeros((1, n))
        for keep, left in ((1, n // 2), (n, n)):
            assert np.isfinite(their_warp(scores, 1.0, None, 0.5, keep)).sum() == left
            assert np.isfinite(warp(scores, Settings(temperature=1, top_p=0.5), keep)).sum() == left


@given(seeds, st.integers(1, 40), temperatures, ranks, shares)
def test_a_token_is_drawn_with_the_chances_that_transformers_gives_it(seed, vocabulary, T, top_k, top_p):
    toy = Toy(seed, vocabulary)
    logits = toy.logits().astype(np.float64)
    chances = torch.softmax(torch.from_numpy(their_warp(logits[None], T, top_k, top_p, 1)[0]), -1).numpy()
    # One uniform number picks the token on whose stretch of [0, 1) it falls.
    at, ends = np.random.default_rng(seed).random(), np.cumsum(chances)
    assume(np.abs(ends - at).min() > 1e-12)
    drawn = list(generate(logits, toy, Settings(1, T, top_p, top_k, seed=seed), never, 5))
    assert drawn == [np.searchsorted(ends, at)]


@given(seeds, st.sampled_from([1, 3]))
def test_a_seed_gives_the_same_answer_again(seed, beams):
    chosen = Settings(8, 1.0, seed=seed, num_beams=beams)
    assert answer(Toy(0, 50, beams), chosen) == answer(Toy(0, 50, beams), chosen)


def test_without_a_seed_answers_differ():
    toy = Toy(0, 1000, spread=0)  # two answers are equal once in 1000^8 times
    assert answer(toy, Settings(8, 1.0)) != answer(toy, Settings(8, 1.0))


@given(seeds, st.integers(1, 30))
def test_the_coldest_temperature_is_greedy(seed, vocabulary):
    greedy = answer(Toy(seed, vocabulary), Settings(5))
    assert answer(Toy(seed, vocabulary), Settings(5, 1e-6, seed=0)) == greedy


@given(arrays(np.float32, (3, 7), elements=st.floats(-(2.0**100), 2.0**100, width=32)))
def test_chances_and_log_chances_are_torchs(logits):
    x = torch.from_numpy(logits).double()
    # float64: a difference, an exp, a sum of 7 and a quotient, a few roundings of 2^-53 each; x - max is
    # off by the 2^-53rd part of up to 745 (exp of less is 0)
    np.testing.assert_allclose(probabilities(logits), torch.softmax(x, -1).numpy(), atol=1e-13)
    # float64: x - max is exact to the 2^-53rd part, the log of a sum between 1 and 7 to some 12 of them
    wanted = torch.log_softmax(x, -1).numpy()
    assert (np.abs(log_probabilities(logits) - wanted) <= 2.0**-50 * (np.abs(wanted) + 8)).all()
    theirs, ours = torch.log_softmax(x, -1).numpy(), log_softmax(logits)
    assert ours.dtype == np.float32
    # float32: x - max and the result are rounded; the log of a sum between 1 and 7 is off by some 12 U
    assert (np.abs(ours - theirs) <= 2 * U * np.abs(theirs) + 16 * U).all()


# ---------------------------------------------------------------- penalties


rows = arrays(np.float32, 11, elements=st.floats(-50, 50, width=32))
answers = st.lists(st.integers(0, 10), max_size=12)


@given(rows, answers, st.floats(-2, 2), st.floats(-2, 2))
def test_what_stands_in_the_answer_is_penalised_as_openai_says(logits, tokens, frequency, presence):
    how = Settings(frequency_penalty=frequency, presence_penalty=presence)
    found = penalised(logits, tokens, how)
    counts = np.bincount(np.array(tokens, int), minlength=11)
    wanted = logits.astype(np.float64) - counts * frequency - (counts > 0) * presence
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, wanted.astype(np.float32))


@given(rows, answers.filter(bool), st.sampled_from([0.01, 0.5, 1.0, 1.05, 1.3, 10.0]), st.integers(-1, 12))
def test_repetition_is_penalised_as_in_transformers(logits, tokens, penalty, last):
    found = penalised(logits, tokens, Settings(repeat_penalty=penalty, repeat_last_n=last))
    seen = tokens if last < 0 else tokens[max(0, len(tokens) - last) :]
    theirs = RepetitionPenaltyLogitsProcessor(penalty)
    scores = torch.from_numpy(logits.copy())[None]
    wanted = theirs(torch.tensor([seen]), scores)[0].numpy() if seen else logits
    np.testing.assert_array_equal(found, wanted)


@given(seeds, st.integers(2, 9))
def test_without_a_penalty_the_logits_are_not_touched(seed, vocabulary):
    logits = Toy(seed, vocabulary).logits()
    assert penalised(logits, [0, 1, 1], Settings()) is logits
    assert penalised(logits, [], Settings(frequency_penalty=1)) is logits


def test_answers_repeat_less():
    """A constant model says the same token for ever."""
    toy = Toy(0, 4, spread=0, bonus=1)
    assert answer(toy, Settings(6)) == [0] * 6
    assert answer(toy, Settings(6, frequency_penalty=0.6)) == [0, 0, 1, 2, 3, 0]
    assert answer(toy, Settings(6, presence_penalty=2)) == [0, 1, 2, 3, 0, 0]
    drawn = answer(toy, Settings(4, 1.0, seed=0, presence_penalty=2, frequency_penalty=2, top_k=1))
    assert sorted(drawn) == [0, 1, 2, 3]


def test_beams_do_without_penalties():
    with pytest.raises(GenerationError, match=r"^num_beams: found 2, wanted 1 where repetition is penalised"):
        Settings(num_beams=2, presence_penalty=0.5)


# ---------------------------------------------------------------- beams


def score_433(total: float, tokens: Answer, ended: bool, prompt_length: int) -> float:
    """transformers 4.33: the mean over prompt and answer, without the token that ends it."""
    return total / (prompt_length + len(tokens) - ended)


def total_of(toy: Toy, tokens: Answer) -> float:
    """The log-probability of an answer, in float64."""
    return sum(
        float(torch.log_softmax(torch.from_numpy(toy.logits(tokens[:i])).double(), -1)[token])
        for i, token in enumerate(tokens)
    )


def search_433(toy: Toy, beams: int, n: int, end: int, prompt_length: int) -> tuple[list[Answer], int]:
    """transformers 4.33's beam search, stated anew, in float64: its answers, best first, and its steps.

    4.33.1 itself, run on 3,000 toys like those below, gave the same answers each time.
    """
    running: list[tuple[float, Answer]] = [(0.0, ()), *[(-1e9, ())] * (beams - 1)]
    finished: list[tuple[float, Answer]] = []

    def finish(these: list[tuple[float, Answer]], ended: bool) -> None:
        scores = [(score_433(total, tokens, ended, prompt_length), tokens) for total, tokens in these]
        finished[:] = sorted(finished + scores, key=lambda f: -f[0])[:beams]

    for length in range(1, n + 1):
        candidates = []
        for total, tokens in running:
            for token, more in enumerate(
                torch.log_softmax(torch.from_numpy(toy.logits(tokens)).double(), -1)
            ):
                candidates.append((total + float(more), (*tokens, token)))
        candidates = sorted(candidates, key=lambda c: -c[0])[: 2 * beams]
        running = [c for c in candidates if c[1][-1] != end][:beams]
        until_full = candidates[: candidates.index(running[-1])]
        finish([c for c in until_full[:beams] if c[1][-1] == end], True)
        if len(finished) == beams and finished[-1][0] >= candidates[0][0] / (prompt_length + length):
            break
    else:
        finish(running, False)
    return live(finished), length - 1


def live(finished: list[tuple[float, Any]]) -> list[Answer]:
    """The answers without those that only fill up the number of beams, which start from a total of -1e9."""
    return [tuple(tokens) for score, tokens in finished if score > -1e6]


@settings(max_examples=100)
@given(
    seeds,
    st.integers(2, 7),
    st.integers(2, 5),
    st.integers(1, 7),
    st.sampled_from([1, 2, 30]),
    st.sampled_from([1, 3]),
    st.sampled_from([0, 1, 3]),
)
def test_beams_are_those_of_transformers_4_33(seed, vocabulary, beams, n, prompt_length, spread, likely_end):
    toy, searches = Toy(seed, vocabulary, beams, spread, likely_end), list[generation.Finished]()

    class Kept(generation.Finished):
        def __init__(self, size: int):
            super().__init__(size)
            searches.append(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generation, "Finished", Kept)
        found = answer(toy, Settings(n, num_beams=beams), ends_with(0), prompt_length)
    answers, steps = search_433(toy, beams, n, 0, prompt_length)
    assert tuple(found) == answers[0]
    assert live(searches[0].answers) == answers
    assert toy.steps == steps


@settings(max_examples=30)
@given(
    seeds,
    st.integers(1, 3),
    st.integers(1, 4),
    st.integers(1, 9),
    st.sampled_from([(), (0,), (1, 0), (0, 0)]),
)
def test_with_beams_enough_for_all_the_best_answer_of_all_is_found(seed, vocabulary, n, prompt_length, last):
    """Whatever ends an answer: a token, or a stop string of two."""
    stop = ends_with(*last) if last else never
    beams = max(2, vocabulary**n)
    toy = Toy(seed, vocabulary, beams)
    all_answers = {
        next((tokens[:i] for i in range(1, n + 1) if stop(list(tokens[:i]))), tokens)
        for tokens in product(range(vocabulary), repeat=n)
    }
    scores = {
        tokens: score_433(total_of(toy, tokens), tokens, stop(list(tokens)), prompt_length)
        for tokens in all_answers
    }
    found = answer(toy, Settings(n, num_beams=beams), stop, prompt_length)
    assert tuple(found) == max(scores, key=lambda tokens: scores[tokens])


@given(seeds, st.integers(1, 6), st.integers(1, 6))
def test_one_beam_is_greedy(seed, vocabulary, n):
    greedy = answer(Toy(seed, vocabulary), Settings(n))
    assert answer(Toy(seed, vocabulary), Settings(n, num_beams=1)) == greedy
    toy = Toy(seed, vocabulary)
    assert beam_search(toy.logits(), toy, Settings(n), never, 5) == greedy


@given(seeds, st.integers(1, 3), st.integers(2, 6), st.integers(1, 5), st.sampled_from([0.0, 0.2, 2.0]))
def test_tiny_vocabularies_and_many_beams_give_an_answer(seed, vocabulary, beams, n, temperature):
    toy, stop = Toy(seed, vocabulary, beams), ends_with(0)
    tokens = answer(toy, Settings(n, temperature, num_beams=beams, seed=0), stop)
    assert len(tokens) == n or stop(tokens)
    assert not any(stop(tokens[:i]) for i in range(1, len(tokens)))
    assert toy.steps <= n - 1


def test_beams_that_all_end_at_once_give_the_best_of_them():
    toy = Toy(1, 5, 2)
    tokens = answer(toy, Settings(4, num_beams=2), lambda answer: True)
    assert tokens == [toy.logits().argmax()]
    assert toy.steps == 0


@pytest.mark.parametrize("temperature", [1e-6, 0.2, 1e6])
def test_drawn_beams_last_as_long_as_any_answer(temperature):
    """4.33 divides totals by the temperature again with every token, and overflows after 55 tokens at 0.2."""
    tokens = answer(Toy(0, 30, 3), Settings(120, temperature, num_beams=3, seed=0))
    assert len(tokens) == 120


def test_the_coldest_drawn_beams_are_greedy_as_long_as_nothing_ends():
    greedy = answer(Toy(3, 30), Settings(6))
    assert answer(Toy(3, 30, 3), Settings(6, 1e-6, num_beams=3, seed=0)) == greedy


@given(arrays(np.float64, (3, 5), elements=st.floats(-50, 50) | st.just(-np.inf)), st.integers(1, 20), seeds)
def test_draws_are_different_possible_and_in_order(totals, n, seed):
    assume(np.isfinite(totals).any())
    chances = probabilities(totals.reshape(-1))
    drawn = draw(totals, n, np.random.default_rng(seed))
    assert len(set(drawn)) == len(drawn) == min(n, np.count_nonzero(chances))
    assert (chances[drawn] > 0).all()
    assert (np.diff(chances[drawn]) <= 0).all()
