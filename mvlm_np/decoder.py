"""MobileLLaMA, the decoder: from embeddings of text and image tokens to the next token.

    x (T, D)
      -> L blocks: RMSNorm, attention with rotary positions; RMSNorm, SwiGLU MLP    hidden_states[0..L-1]
      -> RMSNorm                                                                    hidden_states[L]
      -> lm_head                                                                    logits (T, vocabulary)

Keys and values of earlier positions wait in a cache, so each new token costs one row. Several query
heads may share a key-value head (grouped-query attention). Source: Touvron et al. 2023 (LLaMA).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from mvlm_np.cache import BeamCache, KVCache
from mvlm_np.checkpoints.binding import Binder
from mvlm_np.config import DecoderConfig
from mvlm_np.linear import Embedding, Joined, Linear
from mvlm_np.trace import Trace


@dataclass(frozen=True)
class DecoderLayer:
    norm1: np.ndarray  # (D,)
    qkv: Joined  # D -> H*d, K*d, K*d
    out: Linear  # H*d -> D
    norm2: np.ndarray  # (D,)
    gate_up: Joined  # D -> I, I
    down: Linear  # I -> D


@dataclass(frozen=True)
class DecoderWeights:
    embed_tokens: Embedding  # ids (T,) -> (T, D)
    layers: list[DecoderLayer]
    norm: np.ndarray  # (D,)
    lm_head: Linear  # D -> vocabulary


def bind(config: DecoderConfig, get: Binder) -> DecoderWeights:
    """Collects the decoder's weights."""
    D, I, vocabulary = config.hidden_size, config.intermediate_size, config.vocab_size
    Kd = config.num_key_value_heads * config.head_dim

    def layer(get: Binder) -> DecoderLayer:
        return DecoderLayer(
            norm1=get.array("norm1.weight", D),
            qkv=Joined(
                get.linear("attention.q", D, D, bias=False),
                get.linear("attention.k", Kd, D, bias=False),
                get.linear("attention.v", Kd, D, bias=False),
            ),
            out=get.linear("attention.out", D, D, bias=False),
            norm2=get.array("norm2.weight", D),
            gate_up=Joined(
                get.linear("mlp.gate", I, D, bias=False),
                get.linear("mlp.up", I, D, bias=False),
            ),
            down=get.linear("mlp.down", D, I, bias=False),
        )

    head = "embed_tokens" if config.tie_word_embeddings else "lm_head"
    return DecoderWeights(
        embed_tokens=get.embedding("embed_tokens", vocabulary, D),
        layers=[layer(get.at(f"layers.{i}")) for i in range(config.num_hidden_layers)],
        norm=get.array("norm.weight", D),
        lm_head=get.linear(head, vocabulary, D, bias=False),
    )


def forward(
    x: np.ndarray,
    weights: DecoderWeights,
    config: DecoderConfig,
    cache: KVCache | BeamCache,
    ops: Any,
    trace: Trace,
) -> np.ndarray:
    """Hidden states after the final norm for the next T positions, (T, D) -> (T, D); the cache grows by T."""
    T, d, eps = len(x), config.head_dim, config.rms_norm_eps
    cos, sin = ops.rope_angles(cache.positions(T), d, config.rope_theta)

    def heads(a: np.ndarray) -> np.ndarray:  # (T, n*d) -> (n, T, d)
        return a.reshape(T, -1, d).transpose(1, 0, 2)

    for i, layer in enumerate(weights.layers):
        trace(f"hidden_states.{i}", x)
        q, k, v = layer.qkv.after(ops.rms_norm, x, layer.norm1, eps)
        q = ops.rope(heads(q), cos, sin)  # (H, T, d)
        k = ops.rope(heads(k), cos, sin)  # (K, T, d)
        v = heads(v)
        trace(f"keys.{i}", k)
        trace(f"values.{i}", v)
        attended = cache.attend(i, q, k, v, ops)
        x = layer.out(attended.transpose(1, 0, 2).reshape(T, -1), add_to=x)
        gate, up = layer.gate_up.after(ops.rms_norm, x, layer.norm2, eps)
        x = layer.down.after(ops.swiglu, gate, up, add_to=x)
    cache.advance(T)
    x = ops.rms_norm(x, weights.norm, eps)
    trace(f"hidden_states.{len(weights.layers)}", x)
    return x
