"""`mvlm bench --speculate`: what drafts gain, by the share of drafted tokens that is accepted.

Real weights are not needed: the answer is known from plain decoding, and a draft model of random weights
computes as a real one would, while what it "says" is right in each place with a given chance.
"""

import json
from collections import Counter
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np

from mvlm_np import decoder
from mvlm_np.backend import Ops
from mvlm_np.binder import Binder
from mvlm_np.config import Config, DecoderConfig
from mvlm_np.demo import PICTURES
from mvlm_np.drafts import DraftModel, Ngrams, draft_for
from mvlm_np.generation import Drafted, Settings
from mvlm_np.kernels.pack import Packed, parts
from mvlm_np.linear import Embedding, Linear, Quantized
from mvlm_np.prompt_limits import within_context
from mvlm_np.speculation import Draft
from mvlm_np.trace import Watch

if TYPE_CHECKING:
    from mvlm_np.model import MobileVLM

RATES = (0.0, 0.2, 0.4, 0.6, 0.8, 0.9, 1.0)
ROWS = (2, 4)


class RandomInt8(Binder):
    """Weights of any shape, in int8: how long they take does not depend on what they are."""

    def __init__(self, ops: Ops):
        super().__init__()
        self.ops, self.rng = ops, np.random.default_rng(0)

    def array(self, name: str, *shape: int) -> np.ndarray:
        return np.ones(shape, np.float32)

    def linear(self, name: str, N: int, K: int, bias: bool = True) -> Linear:
        (_, values), (_, scales) = parts("int8", N, K).values()
        numbers = self.rng.integers(-127, 128, values, np.int8)
        packed = Packed("int8", N, K, numbers, np.full(scales, 1e-3, np.float16))
        return Quantized(packed, None, self.ops)

    def embedding(self, name: str, N: int, D: int) -> Embedding:
        return self.rng.standard_normal((N, D), np.float32).__getitem__


def llama_68m(model: "MobileVLM") -> "MobileVLM":
    """A decoder of the shape of JackFram/llama-68m, with random weights in int8 and `model`'s tokens."""
    context, vocabulary = model.config.decoder.max_position_embeddings, model.config.decoder.vocab_size
    config = DecoderConfig(768, 3072, 2, 12, 12, vocabulary, max_position_embeddings=context)
    weights = decoder.bind(config, RandomInt8(model.ops))
    return type(model)(
        Config(config), None, None, weights, model.ops, lambda: model.tokenizer, cache="float16"
    )


class Controlled(DraftModel):
    """Computes as its model does, but what it drafts is right in each place with the chance `rate`."""

    def __init__(self, model: "MobileVLM", cost: float, answer: list[int], rate: float):
        super().__init__(model, cost)
        self.answer, self.rate, self.luck = answer, rate, np.random.default_rng(0)

    def begin(self, ids: np.ndarray, settings: Settings, known: int) -> None:
        super().begin(ids, settings, known)
        self.prompt = len(ids)

    def propose(self, ids: np.ndarray, n: int) -> list[Drafted]:
        self.coming = self.answer[len(ids) - self.prompt :]
        return super().propose(ids, n)

    def draw(self, logits: np.ndarray) -> Drafted:
        super().draw(logits)  # takes its time
        right, token = self.luck.random() < self.rate, self.coming.pop(0)
        return Drafted(token if right else another(token))


class Wrong(Ngrams):
    """n-grams of which none is accepted."""

    def __init__(self, answer: list[int]):
        self.answer = answer

    def begin(self, ids: np.ndarray, settings: Settings, known: int) -> None:
        super().begin(ids, settings, known)
        self.prompt = len(ids)

    def propose(self, ids: np.ndarray, n: int) -> list[Drafted]:
        at = len(ids) - self.prompt
        coming = self.answer[at : at + len(super().propose(ids, n))]
        return [Drafted(another(token)) for token in coming]


def another(token: int) -> int:
    return token - 1 if token else 1


# ---------------------------------------------------------------- measuring


class Measured:
    """A prompt, and its plain answer of `new` tokens. Later answers to it must be the same."""

    def __init__(self, model: "MobileVLM", ids: list[int], new: int):
        self.x, self.ids = model.embed(ids, [])
        self.session, self.new, self.answer = model.session(), new, list[int]()
        self.decode()

    def decode(self, draft: Draft | None = None) -> tuple[float, dict[str, int]]:
        """Seconds that a token takes after the first, and what the watch has counted."""
        watch, settings = Watch(), Settings(self.new)
        logits = self.session.prefill(self.x, self.ids, self.new, watch)
        start = perf_counter()
        answer = list(
            self.session.generate(logits, settings, lambda _: False, len(self.ids), watch, draft=draft)
        )
        seconds = perf_counter() - start
        self.answer = self.answer or answer
        assert answer == self.answer, "a draft changed the answer"
        return seconds / (self.new - 1), watch.counts

    def step(self, rows: int) -> float:
        """Seconds that a step of so many rows takes behind the prompt."""
        self.session.cache.length = len(self.ids)
        self.session.cache.reserve(len(self.ids) + rows)
        start = perf_counter()
        self.session.logits(np.resize(np.array(self.answer), rows), self.session.cache)
        seconds = perf_counter() - start
        self.session.cache.length = len(self.ids)
        return seconds


def measure(model: "MobileVLM", prompt: int, new: int, rounds: int) -> dict[str, Any]:
    """The figures: plain decoding, steps of several rows, and decoding with drafts that are often right.

    In each round everything takes turns. UserError: this model takes no drafts.
    """
    draft_for(model, "ngrams")
    within_context(prompt + new, Settings(0), model.config)
    ids = np.random.default_rng(0).integers(3, model.config.decoder.vocab_size, prompt).tolist()
    measured, small = Measured(model, ids, new), llama_68m(model)
    cost = small.decoder.nbytes / model.decoder.nbytes
    drafts = {rate: Controlled(small, cost, measured.answer, rate) for rate in RATES}
    counts = {rate: Counter[str]() for rate in RATES}
    seconds: dict[Any, list[float]] = {}
    for turn in range(rounds + 1):
        if turn == 1:
            seconds.clear()  # the first one was a warm-up
        seconds.setdefault("plain", []).append(measured.decode()[0])
        for rate, draft in drafts.items():
            time, found = measured.decode(draft)
            counts[rate].update(found)
            seconds.setdefault(rate, []).append(time)
        for rows in (1, *ROWS):
            seconds.setdefault(f"{rows} rows", []).append(median(measured.step(rows) for _ in range(3)))
    taken = {name: median(values) for name, values in seconds.items()}
    return {
        "decode_tokens_per_second": 1 / taken["plain"],
        "draft_bytes_share": cost,
        "step_times": {str(rows): taken[f"{rows} rows"] / taken["1 rows"] for rows in ROWS},
        "speculation": [
            {
                "rate": rate,
                "tokens_per_second": 1 / taken[rate],
                "times_plain": taken["plain"] / taken[rate],
                **counts[rate],
            }
            for rate in RATES
        ],
        "ngrams_none_accepted": ngrams_cost(model, new),
    }


def ngrams_cost(model: "MobileVLM", new: int) -> float:
    """What n-grams add to decoding's time where none is accepted: over ten of `mvlm demo`'s questions."""
    added = []
    for entry in json.loads((PICTURES / "questions.json").read_text("utf-8")):
        chat = model.chat()
        list(chat.stream(next(iter(entry["questions"])), max_new_tokens=0))
        measured = Measured(model, chat.prompt_ids, new)
        draft = Wrong(measured.answer)
        before, with_ngrams, after = (measured.decode(d)[0] for d in (None, draft, None))
        added.append(2 * with_ngrams / (before + after) - 1)
    return median(added)


def show(figures: dict[str, Any]) -> None:
    plain = figures["decode_tokens_per_second"]
    print(f"plain decoding   {plain:6.1f} tokens/s")
    for rows, times in figures["step_times"].items():
        print(f"a step of {rows} rows  {times:5.2f} x one of 1")
    for line in figures["speculation"]:
        print(
            f"right {line['rate']:4.0%}        {line['tokens_per_second']:6.1f} tokens/s"
            f"  {line['times_plain']:5.2f} x plain, {line['accepted']} of {line['drafted']} accepted"
        )
    print(f"n-grams, none accepted: {figures['ngrams_none_accepted']:+.1%} time")
