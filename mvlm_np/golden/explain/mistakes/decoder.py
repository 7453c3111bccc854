"""Mistakes in the decoder and its cache."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from mvlm_np.golden.explain.changes import (
    ACTIVATIONS,
    EPS,
    both,
    decoder_config,
    edit_stage,
    function,
    instead,
    layers,
    weights,
    with_fields,
)
from mvlm_np.golden.explain.mistake import Variant, dial, mistake
from mvlm_np.golden.explain.parts import Change, Parts
from mvlm_np.golden.explain.scene import Scene
from mvlm_np.golden.precision import to_float16
from mvlm_np.inputs.tokenizer import IMAGE_TOKEN
from mvlm_np.linear import Dense, Joined
from mvlm_np.projector import image_tokens


def _order(perm: np.ndarray) -> Callable[[Any], Any]:
    inverse = np.argsort(perm)
    return lambda base: lambda x, cos, sin: base(x[..., perm], cos, sin)[..., inverse]


def _pairs(d: int) -> np.ndarray:
    """0, 2, 4, ..., 1, 3, 5, ...: neighbours become halves."""
    return np.arange(d).reshape(-1, 2).T.ravel()


@mistake(
    stage="decoder.keys.0",
    what="RoPE turns neighbours (2i, 2i + 1), or halves with weights in llama.cpp's order",
    mend="turn element i with i + d/2; neighbours only with rows of q and k reordered as in GGUF",
    shown="a prompt of more than one position",
)
def rope_interleaved(scene: Scene) -> Iterator[Variant]:
    d = scene.parts.config.decoder.head_dim
    yield Variant("layer", function("decoder", "rope", _order(_pairs(d))), "neighbours are turned")

    def reordered(linear: Dense) -> Dense:
        w = linear.weight.reshape(-1, 2, d // 2, linear.weight.shape[1])
        return replace(linear, weight=w.swapaxes(1, 2).reshape(linear.weight.shape))

    yield Variant(
        "layer",
        layers("decoder", with_fields(["q_proj", "k_proj"], reordered)),
        "halves are turned, of weights in GGUF's order",
    )


@mistake(
    stage="decoder.keys.0",
    what="RoPE turns the other way, not at all, or only queries or keys",
    mend="(a cos - b sin, b cos + a sin), for queries and keys",
)
def rope_direction(scene: Scene) -> Iterator[Variant]:
    other = function("decoder", "rope", lambda base: lambda x, cos, sin: base(x, cos, -sin))
    yield Variant("layer", other, "the other way")
    yield Variant("layer", instead("decoder", "rope", lambda x, cos, sin: x), "not at all")


@mistake(
    stage="decoder.keys.0",
    what="RoPE has another base",
    mend="rope_theta, 10000 for all MobileVLMs",
    shown="a prompt of more than one position",
)
def rope_base(scene: Scene) -> Iterator[Variant]:
    right = scene.parts.config.decoder.rope_theta

    def base(theta: float) -> Change:
        return decoder_config(rope_theta=theta)

    values = (1e2, 5e2, 1e3, 2e3, 5e3, 8e3, 1e4, 12e3, 2e4, 5e4, 1e5, 2e5, 5e5, 1e6, 2e6, 1e7)
    yield from dial("layer", "found {:.6g}", base, values, right)


@mistake(
    stage="decoder.keys.0",
    what="the prompt's positions are not 0, 1, 2, ...",
    mend="count every position from 0, each image token as one",
)
def rope_positions(scene: Scene) -> Iterator[Variant]:
    for shift in (1, -1, 2, 3):
        yield Variant("layer", _shifted(shift, shift), f"they begin at {shift}")
    d = scene.parts.config.decoder.head_dim

    def scaled(factor: float) -> Change:
        def change(p: Parts) -> Parts:
            base = p.decoder_ops.rope_angles
            way = lambda positions, d, theta: base(positions * factor, d, theta)  # noqa: E731
            return instead("decoder", "rope_angles", way)(p)

        return change

    for factor in (0.5, 0.25, 2.0, 1 / d):
        yield Variant("layer", scaled(factor), f"multiplied by {factor:.4g}")


def _shifted(prompt: int, new: int) -> Change:
    """Other positions for the prompt, and for what is generated."""

    def change(p: Parts) -> Parts:
        base = p.positions

        def positions(first: int, T: int, length: int) -> np.ndarray:
            return base(first, T, length) + (new if first >= length else prompt)

        return replace(p, positions=positions)

    return change


@mistake(
    stage="decoder.hidden_states.1",
    what="RMSNorm has another eps",
    mend="rms_norm_eps: 1e-6 for the 1.7B and 3B, 1e-5 for the 7B",
    shown="embeddings that are small, as those of trained models are",
)
def rms_eps(scene: Scene) -> Iterator[Variant]:
    right = scene.parts.config.decoder.rms_norm_eps

    def eps(value: float) -> Change:
        return decoder_config(rms_norm_eps=value)

    yield from dial("layer", "found {:.3g}", eps, EPS, right)


@mistake(
    stage="decoder.hidden_states.1",
    what="RMSNorm subtracts the mean, or is computed over the wrong axis",
    mend="x / sqrt(mean(x^2) + eps) * weight, over the channels",
)
def rms_as_layer_norm(scene: Scene) -> Iterator[Variant]:
    def centred(base: Any) -> Any:
        return lambda x, w, eps: base(x - x.mean(axis=-1, keepdims=True), w, eps)

    def tokenwise(base: Any) -> Any:
        return lambda x, w, eps: x / np.sqrt(np.square(x).mean(axis=0, keepdims=True) + eps) * w

    def summed(base: Any) -> Any:
        return lambda x, w, eps: x / np.sqrt(np.square(x).sum(axis=-1, keepdims=True) + eps) * w

    def beside(base: Any) -> Any:
        return lambda x, w, eps: x / (np.sqrt(np.square(x).mean(axis=-1, keepdims=True)) + eps) * w

    ways = {"the mean is subtracted": centred, "over the tokens": tokenwise, "a sum, not a mean": summed,
            "eps outside the root": beside}  # fmt: skip
    for name, way in ways.items():
        yield Variant("layer", function("decoder", "rms_norm", way), name)


@mistake(
    stage="decoder.hidden_states.1",
    what="query heads read the wrong key-value heads",
    mend="query head h reads key-value head h // (heads / kv_heads): repeat each one, do not tile them",
    shown="a model with fewer key-value heads than heads, but more than one",
)
def kv_head_order(scene: Scene) -> Iterator[Variant]:
    c = scene.parts.config.decoder
    H, KV = c.num_attention_heads, c.num_key_value_heads
    if 1 < KV < H:
        heads = np.arange(H)
        yield Variant("layer", _heads(np.lexsort((heads, heads % KV))), "head h reads h mod kv_heads")
    if KV > 1:
        yield Variant("layer", _heads_of_kv(np.arange(KV)[::-1]), "in reverse order")
        yield Variant("layer", _heads_of_kv(np.zeros(KV, int)), "all read the first")


def _heads(order: np.ndarray) -> Change:
    inverse = np.argsort(order)
    return function("decoder", "attention",
                    lambda base: lambda q, k, v, causal: base(q[order], k, v, causal)[inverse])  # fmt: skip


def _heads_of_kv(order: np.ndarray) -> Change:
    return function(
        "decoder", "attention", lambda base: lambda q, k, v, causal: base(q, k[order], v[order], causal)
    )


@mistake(
    stage="decoder.hidden_states.1",
    what="the decoder's attention is not causal, or looks one position too far",
    mend="a position sees itself and those before it",
)
def no_causal_mask(scene: Scene) -> Iterator[Variant]:
    def off(base: Any) -> Any:
        return lambda q, k, v, causal: base(q, k, v, False)

    yield Variant("layer", function("decoder", "attention", off), "no mask")

    def shifted(offset: int) -> Callable[[Any], Any]:
        def wrap(base: Any) -> Any:
            def attend(q: np.ndarray, k: np.ndarray, v: np.ndarray, causal: bool) -> np.ndarray:
                T, S = q.shape[1], k.shape[1]
                out = np.empty_like(q)
                for t in range(T):  # a position at a time: as if it were the last one
                    end = min(max(S - T + t + 1 + offset, 1), S)
                    out[:, t : t + 1] = base(q[:, t : t + 1], k[:, :end], v[:, :end], False)
                return out

            return attend

        return wrap

    yield Variant("layer", function("decoder", "attention", shifted(1)), "one position of the future is seen")
    yield Variant("layer", function("decoder", "attention", shifted(-1)), "a position does not see itself")

    def image_block(p: Parts) -> Parts:
        ids = scene.stages.get("input_ids")
        if ids is None or IMAGE_TOKEN not in ids:
            return p
        first = list(ids).index(IMAGE_TOKEN)

        def wrap(base: Any) -> Any:
            def attend(q: np.ndarray, k: np.ndarray, v: np.ndarray, causal: bool) -> np.ndarray:
                T, end = q.shape[1], first + image_tokens(p.config)
                out = base(q, k, v, causal)
                if end <= T:
                    out = out.copy()
                    out[:, first:end] = base(q[:, first:end], k[:, :end], v[:, :end], False)
                return out

            return attend

        return function("decoder", "attention", wrap)(p)

    yield Variant("layer", image_block, "image tokens see each other")


@mistake(
    stage="decoder.hidden_states.1",
    what="gate and up are swapped in the MLP",
    mend="down(silu(gate(x)) * up(x))",
)
def gate_up_swapped(scene: Scene) -> Iterator[Variant]:
    yield Variant("layer", layers("decoder", lambda x: replace(x, gate_up=Joined(*x.gate_up.layers[::-1]))))


@mistake(
    stage="decoder.hidden_states.1",
    what="the decoder's MLP has another activation than SiLU",
    mend="silu(gate) * up with silu(x) = x * sigmoid(x)",
)
def swiglu_activation(scene: Scene) -> Iterator[Variant]:
    for name in ("gelu", "tanh_gelu", "quick_gelu", "relu", "sigmoid"):
        act = ACTIVATIONS[name]
        way = partial(lambda act, gate, up: act(gate) * up, act)
        yield Variant("layer", instead("decoder", "swiglu", way), name.replace("_", " "))


@mistake(
    stage="decoder.hidden_states.1",
    what="a value is computed in float16: it leaves the range, 65504, or loses digits",
    mend="compute squares of RMSNorm, attention scores and the product of SwiGLU in float32, or use bfloat16",
    shown="a model whose activations leave the range of float16, as those of the 7B do",
)
def float16_overflow(scene: Scene) -> Iterator[Variant]:
    def clipped(x: np.ndarray) -> np.ndarray:
        return np.clip(x, -65504, 65504)

    def squares(cut: Callable[[np.ndarray], np.ndarray], whole: bool = False) -> Callable[[Any], Any]:
        """whole: their sum is cut, too."""

        def wrap(base: Any) -> Any:
            def norm(x: np.ndarray, w: np.ndarray, eps: float) -> np.ndarray:
                with np.errstate(all="ignore"):
                    mean = cut(np.square(cut(x))).astype(x.dtype).mean(axis=-1, keepdims=True)
                    if whole:
                        total = cut(cut(np.square(cut(x))).astype(x.dtype).sum(axis=-1, keepdims=True))
                        mean = (total / x.shape[-1]).astype(x.dtype)
                    return (x * (1 / np.sqrt(mean + eps)) * w).astype(x.dtype)

            return norm

        return wrap

    def product(cut: Callable[[np.ndarray], np.ndarray]) -> Callable[[Any], Any]:
        def wrap(base: Any) -> Any:
            def swiglu(gate: np.ndarray, up: np.ndarray) -> np.ndarray:
                with np.errstate(all="ignore"):
                    return cut(base(gate, up)).astype(gate.dtype)

            return swiglu

        return wrap

    def infinite(x: np.ndarray) -> np.ndarray:
        return np.where(np.abs(x) >= 65520, np.copysign(np.inf, x), x).astype(x.dtype)

    for name, cut in (
        ("becomes infinite", infinite),
        ("is cut off", clipped),
        ("is rounded to float16", to_float16),
    ):
        for way, what in (
            (function("decoder", "rms_norm", squares(cut)), "a square in RMSNorm"),
            (function("decoder", "rms_norm", squares(cut, True)), "the sum of the squares in RMSNorm"),
            (function("decoder", "swiglu", product(cut)), "SwiGLU's product"),
        ):
            yield Variant("layer", way, f"{what} {name}", rounds=cut is to_float16)

    def added(cut: Callable[[np.ndarray], np.ndarray]) -> Change:
        """What attention and MLP add to the residual stream, changed."""
        change = with_fields(["o_proj", "down_proj"], lambda linear: lambda x: cut(linear(x)))
        return layers("decoder", change)

    for name, cut in (("becomes infinite", infinite), ("is cut off", clipped)):
        yield Variant("layer", added(cut), f"what a block adds {name}")
        yield Variant("layer", _residual(cut), f"the residual stream {name}")


def _residual(cut: Callable[[np.ndarray], np.ndarray]) -> Change:
    def change(p: Parts) -> Parts:
        for i in range(1, p.config.decoder.num_hidden_layers):
            p = edit_stage(f"decoder.hidden_states.{i}", lambda x, _: cut(x))(p)
        return p

    return change


@mistake(
    stage="logits",
    what="the last RMSNorm is left out",
    mend="apply model.norm after the last layer, before lm_head",
)
def no_final_norm(scene: Scene) -> Iterator[Variant]:
    final = scene.parts.decoder.norm

    def wrap(base: Any) -> Any:
        return lambda x, w, eps: x if w is final else base(x, w, eps)

    yield Variant("layer", function("decoder", "rms_norm", wrap))


@mistake(
    stage="logits",
    what="the decoder runs without its last layer",
    mend="run all num_hidden_layers layers",
)
def decoder_layer_short(scene: Scene) -> Iterator[Variant]:
    n = scene.parts.config.decoder.num_hidden_layers
    if n > 1:
        shorter = weights("decoder", lambda w: replace(w, layers=w.layers[:-1]))
        yield Variant("layer", both(shorter, decoder_config(num_hidden_layers=n - 1)))


@mistake(
    stage="logits",
    what="the table of embeddings serves as lm_head",
    mend="lm_head has weights of its own: tie_word_embeddings is false",
)
def tied_lm_head(scene: Scene) -> Iterator[Variant]:
    c = scene.parts.config.decoder
    if not c.tie_word_embeddings:

        def tied(w: Any) -> Any:
            return replace(w, lm_head=Dense(w.embed_tokens(np.arange(c.vocab_size))))

        yield Variant("logits", weights("decoder", tied))


@mistake(
    stage="decode.hidden_states.1",
    what="a generated token gets the wrong position",
    mend="the first one stands at the prompt's length, image tokens counted, "
    "and each later one a position on",
    shown="a golden with decode steps",
)
def cache_position(scene: Scene) -> Iterator[Variant]:
    for shift in (1, -1, 2, -2):
        yield Variant("decode", _shifted(0, shift), f"{shift:+d}")
    if scene.parts.vision:
        n = image_tokens(scene.parts.config) - 1
        yield Variant("decode", _shifted(0, -n), "a picture counts as one position")

    def stuck(p: Parts) -> Parts:
        base = p.positions
        return replace(
            p, positions=lambda first, T, n: base(min(first, n), T, n) if first >= n else base(first, T, n)
        )

    yield Variant("decode", stuck, "each gets the same")

    def own(p: Parts) -> Parts:
        base = p.positions
        return replace(
            p, positions=lambda first, T, n: base(first - n, T, n) if first >= n else base(first, T, n)
        )

    yield Variant("decode", own, "counted from 0 again")


@mistake(
    stage="decode.hidden_states.1",
    what="the cache holds something else than what the prompt left there",
    mend="keep keys after RoPE and values of every position, the prompt's and each generated one",
    shown="a golden with decode steps",
)
def cache_content(scene: Scene) -> Iterator[Variant]:
    def drop(part: slice) -> Change:
        def wrap(base: Any) -> Any:
            def attend(q: np.ndarray, k: np.ndarray, v: np.ndarray, causal: bool) -> np.ndarray:
                return base(q, k[:, part], v[:, part], causal) if q.shape[1] == 1 else base(q, k, v, causal)

            return attend

        return function("decoder", "attention", wrap)

    ways = {"the first position is lost": slice(1, None), "only the newest is seen": slice(-1, None),
            "a token does not see itself": slice(None, -1)}  # fmt: skip
    for name, part in ways.items():
        yield Variant("decode", drop(part), name)


@mistake(
    stage="decode.hidden_states.1",
    what="an id is fed a second time, and the answer lags a step behind",
    mend="the prompt's pass has read its last id: the first generated one comes next, at the prompt's "
    "length, and each once",
    shown="a golden with decode steps",
)
def last_id_twice(scene: Scene) -> Iterator[Variant]:
    def prompt(stages: Any) -> np.ndarray:
        return np.concatenate([stages["input_ids"][-1:], stages["generated_ids"]])

    def generated(stages: Any) -> np.ndarray:
        ids = stages["generated_ids"]
        return np.concatenate([ids[:1], ids[:-1]])

    yield Variant("decode", lambda p: replace(p, feed=prompt), "the prompt's last")
    yield Variant("decode", lambda p: replace(p, feed=generated), "the first generated one")
