"""Choosing tokens: greedy, sampling, beams, and when to stop.

Everything here works on token ids and logits; it knows neither pictures nor text. The rules are those of
transformers 4.33, with which MobileVLM was published, so that the same logits give the same tokens. One is
not: where beams are drawn, 4.33 divides the running total of a beam by the temperature, again with every
token, which overflows float32 after 55 tokens at 0.2. Here, as in later transformers, only the next token's
log-probability is.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from math import inf
from typing import Any, NamedTuple, Protocol

import numpy as np

from mvlm_np.errors import GenerationError

NEW_TOKENS = 512  # that an answer has at most, unless more or fewer are asked for
BEAMS = 128  # at most; each takes memory of its own


@dataclass(frozen=True)
class Settings:
    """How to generate. Checked on construction; a bad value is a GenerationError.

    max_new_tokens  at most this many tokens; 0 gives none
    temperature     0 takes the likeliest token; from 1e-6 to 1e6 logits are divided by it and sampled
    top_p           sample from the likeliest tokens that together reach this probability; None: from all
    top_k           sample from the k likeliest tokens; None or 0: from all
    num_beams       1, or the number of continuations followed side by side, up to 128
    seed            of the sampling; None: a different answer each time

    Against repetition, by what stands in the answer so far (see `penalised`); beams do without:

    frequency_penalty  -2 to 2, taken off a token's logit for each time that it stands there
    presence_penalty   -2 to 2, taken off once for a token that stands there
    repeat_penalty     0.01 to 10: divides a positive logit, and multiplies a negative one, of a
                       token among the last `repeat_last_n`; 1 does nothing
    repeat_last_n      a whole number; -1: the whole answer
    """

    max_new_tokens: int = NEW_TOKENS
    temperature: float = 0.0
    top_p: float | None = None
    top_k: int | None = 50
    num_beams: int = 1
    seed: int | None = None
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repeat_penalty: float = 1.0
    repeat_last_n: int = 64

    def __post_init__(self) -> None:
        def require(ok: bool, name: str, wanted: str) -> None:
            if not ok:
                raise GenerationError(name, f"found {getattr(self, name)!r}", wanted)

        def whole(value: object, least: int, most: float = inf) -> bool:
            is_whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
            return is_whole and bool(least <= value <= most)  # type: ignore[operator]

        def number(value: object, least: float, most: float) -> bool:
            if isinstance(value, np.generic):
                value = value.item()
            return isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= most

        require(whole(self.max_new_tokens, 0), "max_new_tokens", "a whole number from 0")
        # Beyond these limits logits divided by a temperature leave the range of float32.
        warm = number(self.temperature, 0, 0) or number(self.temperature, 1e-6, 1e6)
        require(warm, "temperature", "0, or a number from 1e-6 to 1e6")
        share = self.top_p is None or (number(self.top_p, 0, 1) and self.top_p > 0)
        require(share, "top_p", "a number above 0 and up to 1, or None")
        require(self.top_k is None or whole(self.top_k, 0), "top_k", "a whole number from 0, or None")
        require(whole(self.num_beams, 1, BEAMS), "num_beams", f"a whole number from 1 to {BEAMS}")
        require(self.seed is None or whole(self.seed, 0), "seed", "a whole number from 0, or None")
        require(number(self.frequency_penalty, -2, 2), "frequency_penalty", "a number from -2 to 2")
        require(number(self.presence_penalty, -2, 2), "presence_penalty", "a number from -2 to 2")
        require(number(self.repeat_penalty, 0.01, 10), "repeat_penalty", "a number from 0.01 to 10")
        require(whole(self.repeat_last_n, -1), "repeat_last_n", "a whole number from -1")
        if self.penalises and self.num_beams > 1:
            raise GenerationError("num_beams", f"found {self.num_beams}", "1 where repetition is penalised")

    @property
    def penalises(self) -> bool:
        """Whether a token's logit depends on what stands in the answer already."""
        return bool(self.frequency_penalty or self.presence_penalty or self.repeat_penalty != 1)


def settings_of(given: Mapping[str, Any]) -> Settings:
    """Settings by name, as callers pass them on. GenerationError: there is none of such a name."""
    known = [field.name for field in fields(Settings)]
    if unknown := [name for name in given if name not in known]:
        raise GenerationError(unknown[0], "is no option", f"one of {', '.join(known)}")
    return Settings(**given)


class Model(Protocol):
    """What generation needs of a decoder that has read the prompt."""

    def step(self, tokens: np.ndarray) -> np.ndarray:
        """Feeds the next token of each beam, (beams,) -> logits (beams, vocabulary)."""

    def reorder(self, parents: np.ndarray) -> None:
        """Beam b goes on from what was beam parents[b]; only called with more than one beam."""


# Whether the tokens generated so far (the last one included) end the answer.
Stop = Callable[[list[int]], bool]


class Constraint(Protocol):
    """What an answer must fit, token by token: `constrained.vocabulary.State` is one.

    ended  whether the answer is complete
    """

    ended: bool

    def mask(self, remaining: int) -> np.ndarray:
        """Which tokens (vocabulary,) may come next, bool, where so many more may come; at least one."""

    def take(self, token: int) -> None:
        """This one comes next."""


def generate(
    logits: np.ndarray,
    model: Model,
    settings: Settings,
    stop: Stop,
    prompt_length: int,
    constraint: Constraint | None = None,
) -> Iterator[int]:
    """Yields the generated tokens, the one that ends the answer included.

    logits         (vocabulary,) after the prompt
    stop           end of sequence or a stop string
    prompt_length  in tokens, at least 1, an image counting as one: beams are compared by their mean
                   log-probability over prompt and answer, as transformers 4.33 does
    constraint     see `Choice`; beams have none

    Greedy decoding and sampling yield each token as soon as it is chosen. Beam search yields all tokens at
    the end, when the best beam is known.
    """
    if settings.max_new_tokens == 0:
        return
    if settings.num_beams > 1:
        yield from beam_search(logits, model, settings, stop, prompt_length)
        return
    choice = Choice(settings, stop, constraint)
    while True:
        yield choice.take(logits)
        if choice.ended:
            return
        logits = model.step(np.array(choice.tokens[-1:]))[0]


class Drafted(NamedTuple):
    """A token that is tried in some place of an answer; see `speculation`.

    chances  (vocabulary,) float64, with which it was drawn; None: it was not drawn
    """

    token: int
    chances: np.ndarray | None = None


class Choice:
    """One answer's tokens as they are chosen, greedily or by sampling, by whoever computes the logits.

    tokens      those chosen so far, the one that ends the answer included
    ended       whether the answer is complete
    constraint  which tokens are chosen among, and when the answer ends; `stop` is not asked then
    """

    def __init__(self, settings: Settings, stop: Stop, constraint: Constraint | None = None):
        if settings.num_beams > 1:
            raise GenerationError("num_beams", f"found {settings.num_beams}", "1 for one sequence of several")
        self.settings, self.constraint = settings, constraint
        self.stop = stop if constraint is None else lambda tokens: constraint.ended
        self.tokens: list[int] = []
        self.ended = settings.max_new_tokens == 0

    @cached_property
    def _rng(self) -> "np.random.Generator":  # NumPy imports its part for it when it is first asked for
        return np.random.default_rng(self.settings.seed)

    def take(self, logits: np.ndarray, drafted: Drafted | None = None) -> int:
        """The token that comes next, by the logits (vocabulary,) after the one before.

        drafted: what a draft drew for its place; see `_draw`. GenerationError: the logits are damaged.
        """
        assert not self.ended, "the answer is complete"
        refuse_damage(logits)
        logits = penalised(logits, self.tokens, self.settings)
        if self.constraint is not None:
            logits = only(self.constraint.mask(self.settings.max_new_tokens - len(self.tokens)), logits)
        if self.settings.temperature > 0:
            token = self._draw(probabilities(warp(logits[None], self.settings)[0]), drafted)
        else:
            token = int(logits.argmax())
        self.tokens.append(token)
        if self.constraint is not None:
            self.constraint.take(token)
        self.ended = len(self.tokens) == self.settings.max_new_tokens or self.stop(self.tokens)
        return token

    def _draw(self, chances: np.ndarray, drafted: Drafted | None) -> int:
        """A token with these chances p.

        If a draft drew x with chances q, it is x with the chance p(x) / q(x), at most 1; else it is drawn by
        what p has more than q. In all, each token has its chance p (Leviathan et al. 2023, appendix A.1).
        """
        if drafted is not None and drafted.chances is not None:
            x = drafted.token
            if self._rng.random() * drafted.chances[x] < chances[x]:
                return x
            more = np.maximum(chances - drafted.chances, 0)
            chances = more / more.sum()
        return int(self._rng.choice(chances.size, p=chances))


def refuse_damage(logits: np.ndarray) -> None:
    """GenerationError for logits (..., vocabulary) with NaN or infinity, or without any that is finite."""
    if not np.isfinite(logits.max(axis=-1)).all():
        raise GenerationError(
            "logits",
            "the model computed NaN or infinity",
            fix="the checkpoint is damaged, or its precision too low: mvlm inspect it",
        )


def only(allowed: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """The logits (vocabulary,) with -inf for tokens that are not allowed, (vocabulary,) bool.

    If the model gives none of the others any chance, all of them have the same.
    """
    allowed = allowed[: logits.size]
    masked = np.where(allowed, logits, -np.inf)
    return masked if masked.max() > -np.inf else np.where(allowed, logits.dtype.type(0), -np.inf)


def penalised(logits: np.ndarray, tokens: Sequence[int], settings: Settings) -> np.ndarray:
    """The logits (vocabulary,) of an answer that has these tokens already, by the settings' penalties.

    First the repeat penalty (Keskar et al. 2019, CTRL, section 4.1; for a negative logit as transformers has
    it), then frequency and presence penalty (OpenAI's API reference). Without any, the logits themselves.
    """
    if not tokens or not settings.penalises:
        return logits
    logits = logits.copy()
    if settings.repeat_last_n:
        last = np.unique(tokens[-settings.repeat_last_n :] if settings.repeat_last_n > 0 else tokens)
        penalty = logits.dtype.type(settings.repeat_penalty)
        logits[last] = np.where(logits[last] > 0, logits[last] / penalty, logits[last] * penalty)
    seen, counts = np.unique(tokens, return_counts=True)
    logits[seen] -= counts * settings.frequency_penalty + settings.presence_penalty
    return logits


def warp(scores: np.ndarray, settings: Settings, keep: int = 1) -> np.ndarray:
    """Temperature, then top-k, then top-p: (n, vocabulary) -> the same with -inf for what is out of the draw.

    At least `keep` tokens stay. Tokens as good as the k-th stay too.
    """
    scores = scores / settings.temperature
    if settings.top_k:
        k = min(max(settings.top_k, keep), scores.shape[-1])
        kth = np.partition(scores, -k, axis=-1)[:, -k, None]
        scores = np.where(scores < kth, -np.inf, scores)
    if settings.top_p is not None and settings.top_p < 1:
        order = np.argsort(scores, axis=-1, kind="stable")  # unlikeliest first
        below = np.cumsum(probabilities(np.take_along_axis(scores, order, axis=-1)), axis=-1)
        drop = below <= 1 - settings.top_p
        drop[:, -keep:] = False
        np.put_along_axis(scores, order, np.where(drop, -np.inf, np.take_along_axis(scores, order, -1)), -1)
    return scores


def probabilities(scores: np.ndarray) -> np.ndarray:
    """Softmax in float64 over the last axis."""
    e = np.exp(scores.astype(np.float64) - scores.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def log_probabilities(logits: np.ndarray) -> np.ndarray:
    """Log-softmax in float64 over the last axis; -inf for a logit of -inf."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """(n, vocabulary) -> log-probabilities, float32 like the scores that beams add up."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


# ---------------------------------------------------------------- beams


DEAD = -1e9  # the total of a beam that must not be continued


class Finished:
    """The best complete answers so far, at most `size`: (mean log-probability, tokens), best first."""

    def __init__(self, size: int):
        self.size = size
        self.answers: list[tuple[float, list[int]]] = []

    def add(self, score: float, tokens: list[int]) -> None:
        self.answers.append((score, tokens))
        self.answers.sort(key=lambda answer: answer[0], reverse=True)
        del self.answers[self.size :]

    def beats(self, attainable: float) -> bool:
        """Whether the set is full and no running beam can still enter it."""
        return len(self.answers) == self.size and self.answers[-1][0] >= attainable

    def best(self) -> list[int]:
        return self.answers[0][1]


def beam_search(
    logits: np.ndarray, model: Model, settings: Settings, stop: Stop, prompt_length: int
) -> list[int]:
    """The tokens of the best of `num_beams` continuations; with a temperature, they are drawn."""
    n, sampling, rng = settings.num_beams, settings.temperature > 0, np.random.default_rng(settings.seed)
    finished = Finished(n)
    beams: list[list[int]] = [[]] * n
    scores = np.zeros(n, np.float32)
    if not sampling:  # equal beams would all take the same token: only the first one counts at the start
        scores[1:] = DEAD
    rows = np.repeat(logits[None], n, axis=0)
    for length in range(prompt_length + 1, prompt_length + settings.max_new_tokens + 1):
        refuse_damage(rows)
        next_scores = log_softmax(rows)  # (beams, vocabulary)
        if sampling:
            next_scores = warp(next_scores, settings, keep=2)
        totals = next_scores + scores[:, None]
        # Twice as many candidates as beams, so that n go on even if n end here.
        candidates = draw(totals, 2 * n, rng) if sampling else top(totals, 2 * n)
        running: list[tuple[float, int, list[int]]] = []  # total, parent, tokens
        for rank, candidate in enumerate(candidates):
            parent, token = divmod(int(candidate), totals.shape[1])
            total, answer = float(totals[parent, token]), [*beams[parent], token]
            if not stop(answer):
                running.append((total, parent, answer))
            elif rank < n:  # an ending below the n best is not taken; its last token does not count as length
                finished.add(total / (length - 1), answer)
            if len(running) == n:
                break
        if not running or finished.beats(totals.flat[candidates[0]] / length):
            return finished.best()
        running += [(DEAD, *running[-1][1:])] * (n - len(running))
        beams = [answer for _, _, answer in running]
        scores = np.array([total for total, _, _ in running], np.float32)
        if length < prompt_length + settings.max_new_tokens:
            model.reorder(np.array([parent for _, parent, _ in running]))
            rows = model.step(np.array([answer[-1] for answer in beams]))
    for total, _, answer in running:
        finished.add(total / length, answer)
    return finished.best()


def top(totals: np.ndarray, n: int) -> np.ndarray:
    """Flat indices of the n largest, largest first."""
    flat = totals.reshape(-1)
    best = np.argpartition(flat, -n)[-n:] if n < flat.size else np.arange(flat.size)
    return best[np.argsort(-flat[best], kind="stable")]


def draw(totals: np.ndarray, n: int, rng: "np.random.Generator") -> np.ndarray:
    """Flat indices of n different draws (fewer, if fewer are possible), likeliest first."""
    chances = probabilities(totals.reshape(-1))
    drawn = rng.choice(chances.size, min(n, int(np.count_nonzero(chances))), replace=False, p=chances)
    return drawn[np.argsort(-chances[drawn], kind="stable")]
