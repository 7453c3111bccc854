"""The decoder, its caches and sessions against transformers' LlamaForCausalLM, with the same weights."""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import lru_cache
from itertools import takewhile
from mmap import PAGESIZE
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from mvlm_np import backend, decoder
from mvlm_np.config import DecoderConfig
from mvlm_np.decoder import DecoderWeights
from mvlm_np.generation import Settings
from mvlm_np.kv_cache import TYPES, BeamCache, KVCache
from mvlm_np.session import Session
from mvlm_np.trace import Recorder, Watch, ignore
from tests.models import assert_as_close_as_torch, bound, normal, randomise, state

OPS = backend.choose("numpy")

seeds = st.integers(0, 2**32 - 1)
SMALL = DecoderConfig(16, 24, 2, 4, 2, vocab_size=13)
tokens = st.lists(st.integers(0, SMALL.vocab_size - 1), min_size=1, max_size=7)


@st.composite
def configs(draw: Any) -> DecoderConfig:
    KV, G, d = draw(st.integers(1, 3)), draw(st.integers(1, 4)), draw(st.sampled_from([2, 4, 8, 16, 32]))
    return DecoderConfig(
        hidden_size=KV * G * d,
        intermediate_size=draw(st.integers(1, 60)),
        num_hidden_layers=draw(st.integers(1, 3)),
        num_attention_heads=KV * G,
        num_key_value_heads=KV,
        vocab_size=draw(st.integers(2, 40)),
        rms_norm_eps=draw(st.sampled_from([1e-6, 1e-5, 1e-2, 1.0])),
        rope_theta=draw(st.sampled_from([100.0, 10000.0, 500000.0])),
        tie_word_embeddings=draw(st.booleans()),
    )


@dataclass(frozen=True)
class Pair:
    """A LLaMA twice: transformers' in float32 and in float64, and our weights."""

    config: DecoderConfig
    single: LlamaForCausalLM
    double: LlamaForCausalLM
    ours: DecoderWeights

    def theirs(self, x: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """transformers' logits (T, vocabulary) for embeddings x (T, D), in float32 and float64."""
        with torch.no_grad():
            return (
                self.single(inputs_embeds=torch.from_numpy(x.copy())[None]).logits[0],
                self.double(inputs_embeds=torch.from_numpy(x.astype(np.float64))[None]).logits[0],
            )

    def session(self) -> Session:
        return Session(self.ours, self.config, OPS)

    def embed(self, ids: Sequence[int]) -> np.ndarray:
        return self.ours.embed_tokens(np.array(ids))


class Rotary(torch.nn.Module):
    """The float64 model's rotation: by float32 angles, as they are defined, and with no further rounding."""

    def __init__(self, inverse: torch.Tensor):
        super().__init__()
        self.inverse = inverse

    def forward(self, x: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        angles = (position_ids[..., None].float() * self.inverse).double().tile(2)
        return angles.cos(), angles.sin()


def pair(config: DecoderConfig, seed: int, scale: float = 1) -> Pair:
    settings = vars(config) | {"rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta}}
    del settings["rope_theta"]
    # scaled_dot_product_attention, since the eager one takes its softmax in float32 even in float64
    single = LlamaForCausalLM(LlamaConfig(**settings, attn_implementation="sdpa")).eval()
    randomise(single, seed, scale)
    double = deepcopy(single).double()
    for module in list(double.modules()):  # LLaMA's norm computes in float32 whatever it is given
        for name, part in module.named_children():
            if isinstance(part, LlamaRMSNorm):
                norm = torch.nn.RMSNorm(config.hidden_size, config.rms_norm_eps, dtype=torch.float64)
                norm.weight = part.weight
                setattr(module, name, norm)
    double.model.rotary_emb = Rotary(single.model.rotary_emb.inv_freq)
    tensors = state(single)
    if config.tie_word_embeddings:
        del tensors["lm_head.weight"]  # not stored twice
    ours = bound(lambda get: decoder.bind(config, get), tensors)
    return Pair(config, single, double, ours)


@lru_cache
def small(seed: int) -> Pair:
    """One of a few models of a fixed size: making one takes longer than running it."""
    return pair(SMALL, seed)


# ---------------------------------------------------------------- the forward pass


@settings(max_examples=40)
@given(configs(), st.integers(1, 40), seeds, st.sampled_from([0.3, 1, 3]), st.sampled_from([1e-6, 1, 1e6]))
def test_every_stage_is_that_of_transformers(config, T, seed, scale, size):
    both = pair(config, seed, scale)
    x = normal(np.random.default_rng(seed), T, config.hidden_size, scale=size)
    with torch.no_grad():
        single, double = (
            model(inputs_embeds=torch.from_numpy(x.copy()).to(model.dtype)[None], output_hidden_states=True)
            for model in (both.single, both.double)
        )
    seen, cache = Recorder(), KVCache(config, T)
    h = decoder.forward(x, both.ours, config, cache, OPS, seen)
    seen("logits", both.ours.lm_head(h))
    L = config.num_hidden_layers
    stages = {"logits": [out.logits for out in (single, double)]}
    stages |= {f"hidden_states.{i}": [out.hidden_states[i] for out in (single, double)] for i in range(L + 1)}
    stages |= {
        f"keys.{i}": [out.past_key_values.layers[i].keys for out in (single, double)] for i in range(L)
    }
    stages |= {
        f"values.{i}": [out.past_key_values.layers[i].values for out in (single, double)] for i in range(L)
    }
    assert seen.arrays.keys() == stages.keys()
    for name, (s, d) in stages.items():
        assert_as_close_as_torch(name, seen.arrays[name], s[0], d[0])
    for i in range(L):
        assert np.array_equal(cache.keys.numbers[i], seen.arrays[f"keys.{i}"])
        assert np.array_equal(cache.values.numbers[i], seen.arrays[f"values.{i}"])


# ---------------------------------------------------------------- caches


@given(st.lists(st.integers(1, 6), min_size=1, max_size=6), seeds)
def test_cached_equals_uncached_for_every_split_of_the_prompt(parts, seed):
    both, T = small(seed % 4), sum(parts)
    x = normal(np.random.default_rng(seed), T, SMALL.hidden_size)
    cache = KVCache(SMALL, T)
    rows, start = [], 0
    for n in parts:
        rows.append(decoder.forward(x[start : start + n], both.ours, SMALL, cache, OPS, ignore))
        start += n
    assert cache.length == T
    assert_as_close_as_torch("logits", both.ours.lm_head(np.concatenate(rows)), *both.theirs(x))


@given(st.integers(1, 12), st.integers(1, 14), seeds)
def test_a_prompt_read_in_chunks_equals_one_read_whole(T, chunk, seed):
    both = small(seed % 4)
    x = normal(np.random.default_rng(seed), T, SMALL.hidden_size)
    logits = both.session().prefill(x, np.arange(T), 0, Watch(), chunk)
    single, double = both.theirs(x)
    assert_as_close_as_torch("logits", logits, single[-1], double[-1])


@given(st.integers(0, 9), st.integers(0, 9), st.integers(0, 20), st.sampled_from(TYPES), seeds)
def test_reserving_keeps_what_is_filled_and_never_shrinks(length, spare, capacity, dtype, seed):
    rng, cache = np.random.default_rng(seed), KVCache(SMALL, length + spare, dtype)
    for array in (*cache.keys, *cache.values):
        array[:] = rng.uniform(-99, 99, array.shape)
    cache.length = length
    before = [array[:, :, :length].copy() for array in (*cache.keys, *cache.values)]
    cache.reserve(capacity)
    assert cache.length == length
    for old, new in zip(before, (*cache.keys, *cache.values), strict=True):
        assert new.dtype == old.dtype
        assert new.shape[2] == max(capacity, length + spare)
        assert np.array_equal(new[:, :, :length], old)


def test_a_cache_takes_memory_only_as_it_is_filled():
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * PAGESIZE

    before = resident()
    cache = KVCache(DecoderConfig(4096, 11008, 32, 32, 32), 1024)
    assert cache.keys.numbers.nbytes + cache.values.numbers.nbytes == 1 << 30
    assert resident() - before < 1 << 26


@settings(max_examples=25)
@given(st.data(), st.integers(1, 4), st.integers(1, 6), st.integers(1, 5), seeds)
def test_beams_that_part_and_are_reordered_equal_separate_sequences(data, beams, T, steps, seed):
    both, choose = small(seed % 4), st.integers(0, SMALL.vocab_size - 1)
    prompt = data.draw(st.lists(choose, min_size=T, max_size=T))
    session = both.session()
    session.prefill(both.embed(prompt), np.array(prompt), 0, Watch())
    keys = session.cache.keys.numbers.copy()
    cache, histories = BeamCache(SMALL, session.cache, beams, steps), [prompt] * beams
    for _ in range(steps):
        parents = data.draw(st.lists(st.integers(0, beams - 1), min_size=beams, max_size=beams))
        tokens = data.draw(st.lists(choose, min_size=beams, max_size=beams))
        cache.reorder(np.array(parents))
        histories = [[*histories[parent], token] for parent, token in zip(parents, tokens, strict=True)]
        logits = session.logits(np.array(tokens), cache)
        for row, history in zip(logits, histories, strict=True):
            single, double = both.theirs(both.embed(history))
            assert_as_close_as_torch(str(history), row, single[-1], double[-1])
    assert np.array_equal(session.cache.keys.numbers, keys)
    assert session.cache.length == T


# ---------------------------------------------------------------- sessions


class CountPositions(Watch):
    """Counts the positions that go through the decoder."""

    def __init__(self) -> None:
        super().__init__()
        self.positions = 0

    def __call__(self, name: str, array: np.ndarray) -> None:
        if name == "decoder.hidden_states.0":
            self.positions += len(array)


PICTURES = {-1: 3, -2: 1, -3: 2}  # key -> positions it takes up
segments = st.lists(st.integers(-len(PICTURES), 3), max_size=6)  # token ids and pictures


@st.composite
def prompts(draw: Any) -> list[list[int]]:
    """Three prompts, each begun like the one before: longer, shorter, equal, or soon another one."""
    result = [draw(segments.filter(bool))]
    while len(result) < 3:
        tail = draw(segments)
        kept = result[-1][: draw(st.integers(0 if tail else 1, len(result[-1])))]
        result.append(kept + tail)
    return result


@settings(max_examples=30)
@given(prompts(), st.integers(0, 3), st.sampled_from([1, 2]), seeds)
def test_a_session_reads_only_what_is_new_and_answers_like_a_fresh_one(prompts, new_tokens, beams, seed):
    both, read = small(seed % 4), list[int]()
    session, rng = both.session(), np.random.default_rng(seed)
    pictures = {key: normal(rng, n, SMALL.hidden_size) for key, n in PICTURES.items()}
    for prompt in prompts:
        keys = [key for segment in prompt for key in [segment] * PICTURES.get(segment, 1)]
        x = np.concatenate([pictures[key] if key < 0 else both.embed([key]) for key in prompt])
        watch = CountPositions()
        logits = session.prefill(x, np.array(keys), new_tokens, watch, chunk=4)
        single, double = both.theirs(x)
        assert_as_close_as_torch("logits", logits, single[-1], double[-1])

        shared = len(list(takewhile(lambda pair: pair[0] == pair[1], zip(read, keys, strict=False))))
        assert watch.positions == len(keys) - min(shared, len(keys) - 1)  # the last one gives the logits

        settings = Settings(new_tokens, num_beams=beams)
        answer = list(session.generate(logits, settings, lambda _: False, len(prompt), Watch()))
        # The last token has not been fed back, and beams leave no trace.
        read = keys + (answer[:-1] if beams == 1 else [])
        assert session.cache.length == len(read)


@given(tokens, tokens, tokens, seeds)
def test_a_fork_goes_its_own_way(prompt, left, right, seed):
    both = small(seed % 4)
    session = both.session()
    session.prefill(both.embed(prompt), np.array(prompt), 0, Watch())
    fork = session.fork()
    assert fork.cache.length == session.cache.length == len(prompt)
    for one, more in ((session, left), (fork, right), (session, left)):
        whole = prompt + more
        logits = one.prefill(both.embed(whole), np.array(whole), 0, Watch())
        single, double = both.theirs(both.embed(whole))
        assert_as_close_as_torch("logits", logits, single[-1], double[-1])


@settings(max_examples=20)
@given(
    st.lists(st.integers(0, 12), min_size=1, max_size=6), st.integers(1, 8), st.sampled_from([1, 2, 5]), seeds
)
def test_answers_are_those_of_transformers_while_nothing_ends_them(prompt, n, beams, seed):
    """An end counts differently in 4.33 and in newer releases; see test_generation for it."""
    both, session = small(seed % 4), small(seed % 4).session()
    logits = session.prefill(both.embed(prompt), np.array(prompt), n, Watch())
    ours = list(session.generate(logits, Settings(n, num_beams=beams), lambda _: False, len(prompt), Watch()))
    how = GenerationConfig(max_new_tokens=n, num_beams=beams, do_sample=False, pad_token_id=0)
    both.single.generation_config.eos_token_id = None
    ids = torch.tensor([prompt])
    theirs = both.single.generate(ids, how, attention_mask=torch.ones_like(ids))
    assert ours == theirs[0, len(prompt) :].tolist()
