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

from mvlm_np.checkpoints.binding import Binder
from mvlm_np.config import DecoderConfig
from mvlm_np.linear import Embedding, Joined, Linear, join
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
            qkv=join(
                get.linear("attention.q", D, D, bias=False),
                get.linear("attention.k", Kd, D, bias=False),
                get.linear("attention.v", Kd, D, bias=False),
            ),
            out=get.linear("attention.out", D, D, bias=False),
            norm2=get.array("norm2.weight", D),
            gate_up=join(
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


class KVCache:
    """Keys (after RoPE) and values of one sequence, preallocated for `capacity` positions.

    keys, values  float32 (L, K, capacity, d); memory is taken up as positions are filled
    length        positions filled; setting it back forgets the later ones
    """

    def __init__(self, config: DecoderConfig, capacity: int):
        shape = (config.num_hidden_layers, config.num_key_value_heads, capacity, config.head_dim)
        self.keys, self.values = np.empty(shape, np.float32), np.empty(shape, np.float32)
        self.length = 0

    def reserve(self, capacity: int) -> None:
        """Makes room for at least `capacity` positions; those that are filled are kept."""
        if self.keys.shape[2] < capacity:
            for name in ("keys", "values"):
                old = getattr(self, name)
                new = np.empty((*old.shape[:2], capacity, old.shape[3]), np.float32)
                new[:, :, : self.length] = old[:, :, : self.length]
                setattr(self, name, new)

    def positions(self, T: int) -> np.ndarray:
        """Positions of the next T tokens."""
        return np.arange(self.length, self.length + T)

    def attend(self, i: int, q: np.ndarray, k: np.ndarray, v: np.ndarray, ops: Any) -> np.ndarray:
        """Stores layer i's k and v (K, T, d) behind what is there, and attends to all of it: (H, T, d)."""
        end = self.length + q.shape[1]
        self.keys[i, :, self.length : end], self.values[i, :, self.length : end] = k, v
        return ops.attention(q, self.keys[i, :, :end], self.values[i, :, :end], causal=True)

    def advance(self, T: int) -> None:
        """All layers have stored T more positions."""
        self.length += T


class BeamCache:
    """Several continuations of one prompt, one new token each at a time.

    The prompt's cache is shared. A beam's own keys and values are small and follow it when beams are
    re-ordered: `tail` (beams, 2, L, K, capacity, d) holds them.
    """

    def __init__(self, config: DecoderConfig, prompt: KVCache, beams: int, capacity: int):
        self.prompt = prompt
        shape = (beams, 2, config.num_hidden_layers, config.num_key_value_heads, capacity, config.head_dim)
        self.tail = np.empty(shape, np.float32)
        self.length = 0

    def positions(self, T: int) -> np.ndarray:
        assert len(self.tail) == T, "one token a beam"
        return np.full(T, self.prompt.length + self.length)

    def attend(self, i: int, q: np.ndarray, k: np.ndarray, v: np.ndarray, ops: Any) -> np.ndarray:
        """Row b of q (H, beams, d), k and v (K, beams, d) belongs to beam b."""
        self.tail[:, 0, i, :, self.length] = k.swapaxes(0, 1)
        self.tail[:, 1, i, :, self.length] = v.swapaxes(0, 1)
        n, out = self.prompt.length, np.empty_like(q)
        for b, (keys, values) in enumerate(self.tail[:, :, i, :, : self.length + 1]):
            all_keys = np.concatenate([self.prompt.keys[i, :, :n], keys], axis=1)
            all_values = np.concatenate([self.prompt.values[i, :, :n], values], axis=1)
            out[:, b : b + 1] = ops.attention(q[:, b : b + 1], all_keys, all_values, causal=True)
        return out

    def advance(self, T: int) -> None:
        self.length += 1

    def reorder(self, parents: np.ndarray) -> None:
        """Beam b goes on from what was beam parents[b]."""
        n = self.length
        self.tail[..., :n, :] = self.tail[parents, ..., :n, :]


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
