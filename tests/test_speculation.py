"""Speculative decoding, on a toy decoder whose logits are a function of all that stands in its cache."""

from collections.abc import Sequence
from functools import lru_cache
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mvlm_np.errors import GenerationError
from mvlm_np.generation import Choice, Drafted, Settings, Stop, probabilities, warp
from mvlm_np.session import Session
from mvlm_np.speculation import MEMORY, MOST, ROW, Draft, Pace, speculate
from mvlm_np.trace import Watch

seeds = st.integers(0, 2**32 - 1)
PROMPT = np.array([3, -1, -1, 1, 2])  # with a picture


@lru_cache(2000)
def _row(seed: int, vocabulary: int, spread: float, before: tuple[int, ...]) -> np.ndarray:
    rng = np.random.default_rng([seed, *(token + 9 for token in before)])
    return (spread * rng.standard_normal(vocabulary)).astype(np.float32)


class Toy:
    """Has of a session what speculation uses. What its cache should not hold shows in its logits."""

    def __init__(self, seed: int, vocabulary: int, spread: float = 2, bad: Sequence[int] = ()):
        self.seed, self.vocabulary, self.spread, self.bad = seed, vocabulary, spread, bad
        self.config = SimpleNamespace(vocab_size=vocabulary)
        self.cache = SimpleNamespace(length=len(PROMPT))
        self.ids, self.stored = PROMPT, PROMPT.tolist()
        self.steps = self.rows = 0
        self.most = 0  # the last position that was filled

    def row(self, before: Sequence[int]) -> np.ndarray:
        return _row(self.seed, self.vocabulary, self.spread, tuple(before))

    def append(self, tokens: np.ndarray) -> None:
        self.ids = np.append(self.ids[: self.cache.length - len(tokens)], tokens)

    def logits(self, tokens: np.ndarray, cache: Any) -> np.ndarray:
        assert cache is self.cache and tokens.dtype == np.int64
        if {*tokens.tolist()} & {*self.bad}:
            raise GenerationError("activations", "found NaN")
        past = cache.length
        self.stored[past:] = tokens.tolist()
        cache.length += len(tokens)
        self.steps, self.rows, self.most = (
            self.steps + 1,
            self.rows + len(tokens),
            max(self.most, cache.length),
        )
        return np.stack([self.row(self.stored[: past + i + 1]) for i in range(len(tokens))])


class Seer:
    """Knows the plain answer, and drafts it with a chance of being right in each place."""

    def __init__(self, plain: Sequence[int], chance: float, seed: int, cost: float = 0.0):
        self.plain, self.chance, self.cost = plain, chance, cost
        self.rng = np.random.default_rng(seed)
        self.asked: list[int] = []

    def begin(self, ids: np.ndarray, settings: Settings, known: int) -> None:
        assert ids.tolist() == PROMPT.tolist()
        self.known = known

    def propose(self, ids: np.ndarray, n: int) -> list[Drafted]:
        assert ids[: len(PROMPT)].tolist() == PROMPT.tolist() and n >= 1
        self.asked.append(n)
        at = len(ids) - len(PROMPT)
        right = self.rng.random(n) < self.chance
        n = int(self.rng.integers(n + 1)) if self.chance < 1 else n  # it may have less to say
        tokens = self.plain[at : at + n]
        return [
            Drafted(token if ok else (token + 1) % self.known)
            for token, ok in zip(tokens, right, strict=False)
        ]


def never(answer: list[int]) -> bool:
    return False


def run(toy: Toy, draft: Draft | None, settings: Settings, stop: Stop = never, known: int | None = None):
    """The answer, and after each token: the cache's length, what it holds, and the session's ids."""
    watch, states = Watch(), []
    session, logits = cast(Session, toy), toy.row(PROMPT.tolist())
    choice = Choice(settings, stop)
    answer = []
    for token in speculate(session, draft or Silent(), logits, choice, watch, known):
        answer.append(token)
        length = toy.cache.length
        states.append((length, toy.stored[:length], toy.ids.tolist()))
    return answer, states, watch


class Silent:
    """Drafts nothing: plain decoding."""

    cost = 0.0

    def begin(self, ids: np.ndarray, settings: Settings, known: int) -> None:
        pass

    def propose(self, ids: np.ndarray, n: int) -> list[Drafted]:
        return []


def plain(toy: Toy, settings: Settings, stop: Stop = never, known: int | None = None):
    """Plain decoding, stated anew."""
    tokens, states, choice = PROMPT.tolist(), [], Choice(settings, stop)
    while not choice.ended:
        choice.take(toy.row(tokens)[:known])
        states.append((len(tokens), tokens, tokens))
        tokens = [*tokens, choice.tokens[-1]]
    return choice.tokens, states


# ---------------------------------------------------------------- the same as plain decoding


@given(
    seeds,
    st.integers(2, 6),
    st.integers(0, 30),
    st.sampled_from([0.0, 0.3, 0.8, 1.0]),
    st.sampled_from([0.0, 1.0]),
    st.sampled_from([None, 0, 1]),
    st.sampled_from([None, 2]),
)
def test_answers_states_and_ends_are_those_of_plain_decoding(
    seed, vocabulary, n, chance, temperature, end, known
):
    """With a temperature too, as long as the draft does not draw."""
    settings = Settings(n, temperature, seed=seed)
    stop: Stop = never if end is None else lambda answer: answer[-1] == end
    expected, states = plain(Toy(seed, vocabulary), settings, stop, known)
    toy = Toy(seed, vocabulary)
    never_ends = plain(toy, Settings(n, temperature, seed=seed), never, known)[0]
    found, found_states, watch = run(toy, Seer(never_ends, chance, seed), settings, stop, known)
    assert found == expected
    assert found_states == states  # whoever stops listening leaves the session as plain decoding would
    assert toy.most <= len(PROMPT) + max(n - 1, 0)  # and no position more is ever needed
    assert watch.counts.get("accepted", 0) <= watch.counts.get("drafted", 0) == toy.rows - toy.steps


def test_a_draft_that_is_always_right_saves_most_steps():
    expected, _ = plain(Toy(0, 50), Settings(81))
    toy = Toy(0, 50)
    found, _, watch = run(toy, Seer(expected, 1, 0), Settings(81))
    assert found == expected
    assert watch.counts == {"drafted": 80 - toy.steps, "accepted": 80 - toy.steps}
    assert toy.steps == 80 / (MOST + 1)


def test_a_drafted_token_that_ends_the_answer_was_accepted():
    expected, _ = plain(Toy(0, 50), Settings(6))
    stop: Stop = lambda answer: answer[-1] == expected[2]  # noqa: E731
    toy = Toy(0, 50)
    found, _, watch = run(toy, Seer(expected, 1, 0), Settings(6), stop)
    assert found == expected[:3]
    assert watch.counts["accepted"] == 2 and toy.steps == 1


def test_damage_that_only_a_drafted_token_would_meet_is_not_met():
    expected, _ = plain(Toy(0, 50), Settings(30))
    bad = next(token for token in range(50) if token not in expected)

    class Misled(Seer):
        def propose(self, ids: np.ndarray, n: int) -> list[Drafted]:
            return [*super().propose(ids, n)[:1], Drafted(bad)][:n]

    found, _, _ = run(Toy(0, 50, bad=[bad]), Misled(expected, 1, 0), Settings(30))
    assert found == expected
    with pytest.raises(GenerationError):
        run(Toy(0, 50, bad=[expected[4]]), Misled(expected, 1, 0), Settings(30))


# ---------------------------------------------------------------- how much is drafted


def test_how_many_tokens_are_drafted_is_what_the_rule_says():
    """1 + a + ... + a^n tokens for 1 + n (ROW + cost) steps' time."""
    for accepted, drafted, cost in [(0, 0, 0), (3, 4, 0.07), (40, 40, 0.07), (0, 9, 0.0), (6, 10, 0.3)]:
        pace = Pace(cost)
        pace.accepted, pace.drafted = accepted, drafted
        a = (accepted + 0.5) / (drafted + 1)
        worth = [(1 - a ** (n + 1)) / (1 - a) / (1 + n * (ROW + cost)) for n in range(MOST + 1)]
        assert pace.tokens() == int(np.argmax(worth))


def test_what_was_seen_counts_less_with_every_token():
    pace = Pace(0)
    for accepted in (True, False, None, True):
        pace.see(accepted)
    assert pace.drafted == pytest.approx(1 + MEMORY**2 + MEMORY**3)
    assert pace.accepted == pytest.approx(1 + MEMORY**3)


@pytest.mark.parametrize("cost, most", [(0.0, 0.03), (0.1, 0.03), (1.0, 0.0)])
def test_a_draft_that_is_always_wrong_costs_little(cost, most):
    expected, _ = plain(Toy(0, 50), Settings(400))
    toy, draft = Toy(0, 50), Seer([token + 1 for token in expected], 1, 0, cost)
    found, _, watch = run(toy, draft, Settings(400))
    assert found == expected and watch.counts["accepted"] == 0
    assert watch.counts["drafted"] * (ROW + cost) <= most * 400
    assert cost == 1.0 or draft.asked[-20:]  # it is tried again


def test_work_repeats():
    expected, _ = plain(Toy(0, 9), Settings(60))
    asked = []
    for _ in range(2):
        draft = Seer(expected, 0.4, 1, cost=0.1)
        run(Toy(0, 9), draft, Settings(60))
        asked.append(draft.asked)
    assert asked[0] == asked[1] and len({*asked[0]}) > 1


# ---------------------------------------------------------------- draws keep their chances


class Drawing:
    """Draws its tokens with chances of its own, which are not the toy's."""

    cost = 0.0

    def __init__(self, toy: Toy, seed: int):
        self.toy, self.rng = toy, np.random.default_rng([seed, 1])

    def begin(self, ids: np.ndarray, settings: Settings, known: int) -> None:
        self.settings = settings

    def propose(self, ids: np.ndarray, n: int) -> list[Drafted]:
        text, drafted = ids.tolist(), list[Drafted]()
        for _ in range(n):
            q = probabilities(warp(self.toy.row(text)[None], self.settings)[0])
            drafted.append(Drafted(int(self.rng.choice(q.size, p=q)), q))
            text.append(drafted[-1].token)
        return drafted


def exact_chances(toy: Toy, settings: Settings) -> dict[tuple[int, ...], float]:
    """Of every answer of max_new_tokens tokens."""
    chances: dict[tuple[int, ...], float] = {(): 1.0}
    for _ in range(settings.max_new_tokens):
        chances = {
            (*answer, token): chance * p
            for answer, chance in chances.items()
            for token, p in enumerate(probabilities(warp(toy.row([*PROMPT, *answer])[None], settings)[0]))
            if p > 0
        }
    return chances


def p_value(settings: dict[str, Any], draws: int = 3000) -> float:
    """How likely answers are to differ from the exact chances as much as these do, by chance alone."""
    target, other = Toy(5, 4, spread=1), Toy(6, 4, spread=1)
    chances = exact_chances(target, Settings(3, **settings))
    counts = dict.fromkeys(chances, 0)
    for seed in range(draws):
        chosen = Settings(3, seed=seed, **settings)
        answer, _, _ = run(Toy(5, 4, spread=1), Drawing(other, seed), chosen)
        counts[tuple(answer)] += 1  # KeyError: one that cannot be
    # Answers that are expected fewer than 5 times are counted together, as the test wants it.
    likely = [answer for answer, chance in chances.items() if chance * draws >= 5]
    observed = [counts[answer] for answer in likely]
    wanted = [chances[answer] * draws for answer in likely]
    if (rest := draws - sum(wanted)) > 5:
        observed, wanted = [*observed, draws - sum(observed)], [*wanted, rest]
    else:
        wanted = [value * sum(observed) / sum(wanted) for value in wanted]
    chi_squared = sum((o - w) ** 2 / w for o, w in zip(observed, wanted, strict=True))
    freedom = torch.tensor(len(wanted) - 1.0, dtype=torch.float64)
    return float(torch.special.gammaincc(freedom / 2, torch.tensor(chi_squared / 2, dtype=torch.float64)))


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 1.0},
        {"temperature": 0.6, "top_k": 3},
        {"temperature": 1.5, "top_p": 0.8},
    ],
    ids=["all", "top-k", "top-p"],
)
def test_tokens_that_a_draft_draws_keep_their_chances(settings):
    assert p_value(settings) > 0.001


@pytest.mark.parametrize("wrong", ["takes all", "draws anew"])
def test_a_wrong_rule_would_show(wrong, monkeypatch):
    def draw(self: Choice, chances: np.ndarray, drafted: Drafted | None) -> int:
        if drafted is not None and drafted.chances is not None:
            x = drafted.token
            if wrong == "takes all" or self._rng.random() * drafted.chances[x] < chances[x]:
                return x
        return int(self._rng.choice(chances.size, p=chances))

    monkeypatch.setattr(Choice, "_draw", draw)
    assert p_value({"temperature": 1.0}, 1500) < 1e-6


def test_the_same_seed_and_draft_repeat_an_answer():
    answers = [run(Toy(5, 40), Drawing(Toy(6, 40), 1), Settings(30, 1.0, seed=seed))[0] for seed in (1, 1, 2)]
    assert answers[0] == answers[1] != answers[2]


def test_a_draft_equal_to_the_model_is_accepted_always():
    _, _, watch = run(Toy(5, 40), Drawing(Toy(5, 40), 1), Settings(60, 1.0, seed=0))
    assert watch.counts["accepted"] == watch.counts["drafted"] > 40
