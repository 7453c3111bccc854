"""MobileLLaMA, the decoder: from embeddings of text and image tokens to the next token.

    x (T, D)
      -> L blocks: RMSNorm, attention with rotary positions; RMSNorm, SwiGLU MLP    hidden_states[0..L-1]
      -> RMSNorm                                                                    hidden_states[L]
      -> lm_head                                                                    logits (T, vocabulary)

Keys and values of earlier positions wait in a cache, so each new token costs one row. Several query
heads may share a key-value head (grouped-query attention). Source: Touvron et al. 2023 (LLaMA).
"""

from dataclasses import dataclass

import numpy as np

from mvlm_np.backend import Ops, compiled
from mvlm_np.binder import Binder
from mvlm_np.config import DecoderConfig
from mvlm_np.kv_cache import BatchCache, BeamCache, KVCache
from mvlm_np.linear import Embedding, Joined, Linear, Quantized
from mvlm_np.trace import Trace


@dataclass(eq=False, repr=False)
class DecoderLayer:
    """The weights of one block."""

    input_layernorm: np.ndarray  # (D,)
    qkv: Joined  # q_proj, k_proj, v_proj: D -> H*d, KV*d, KV*d
    o_proj: Linear  # H*d -> D
    post_attention_layernorm: np.ndarray  # (D,)
    gate_up: Joined  # gate_proj, up_proj: D -> I each
    down_proj: Linear  # I -> D

    @property
    def linear(self) -> list[Linear]:
        """The linear layers, in the order in which they are computed."""
        return [*self.qkv.layers, self.o_proj, *self.gate_up.layers, self.down_proj]


@dataclass(eq=False, repr=False)
class DecoderWeights:
    """All that the decoder has learnt."""

    embed_tokens: Embedding  # ids (T,) -> (T, D)
    layers: list[DecoderLayer]
    norm: np.ndarray  # (D,)
    lm_head: Linear  # D -> vocabulary

    @property
    def linear(self) -> list[Linear]:
        """All linear layers, in the order in which they are computed."""
        return [*(linear for layer in self.layers for linear in layer.linear), self.lm_head]

    @property
    def nbytes(self) -> int:
        """Bytes that a token reads: all but the table of embeddings."""
        parts = [part for layer in self.layers for part in vars(layer).values()]
        return sum(part.nbytes for part in (*parts, self.norm, self.lm_head))


def bind(config: DecoderConfig, get: Binder) -> DecoderWeights:
    """Collects the decoder's weights."""
    D, I, vocabulary = config.hidden_size, config.intermediate_size, config.vocab_size
    KVd = config.num_key_value_heads * config.head_dim

    def layer(get: Binder) -> DecoderLayer:
        return DecoderLayer(
            input_layernorm=get.array("input_layernorm.weight", D),
            qkv=Joined(
                get.linear("self_attn.q_proj", D, D, bias=False),
                get.linear("self_attn.k_proj", KVd, D, bias=False),
                get.linear("self_attn.v_proj", KVd, D, bias=False),
            ),
            o_proj=get.linear("self_attn.o_proj", D, D, bias=False),
            post_attention_layernorm=get.array("post_attention_layernorm.weight", D),
            gate_up=Joined(
                get.linear("mlp.gate_proj", I, D, bias=False),
                get.linear("mlp.up_proj", I, D, bias=False),
            ),
            down_proj=get.linear("mlp.down_proj", D, I, bias=False),
        )

    head = "model.embed_tokens" if config.tie_word_embeddings else "lm_head"
    return DecoderWeights(
        embed_tokens=get.embedding("model.embed_tokens", vocabulary, D),
        layers=[layer(get.at(f"model.layers.{i}")) for i in range(config.num_hidden_layers)],
        norm=get.array("model.norm.weight", D),
        lm_head=get.linear(head, vocabulary, D, bias=False),
    )


def exact(weights: DecoderWeights, config: DecoderConfig, ops: Ops) -> bool:
    """Whether `forward` and lm_head give a position the same bits, however many are computed with it.

    They do where every product is one of packed weights and kernels compute it. BLAS sums in an order
    that changes with the number of rows.
    """
    packed = all(isinstance(linear, Quantized) for linear in weights.linear)
    # Attention's kernels are made for heads in whole 16s.
    return packed and compiled(ops) and config.head_dim % 16 == 0


def forward(
    x: np.ndarray,
    weights: DecoderWeights,
    config: DecoderConfig,
    cache: KVCache | BatchCache | BeamCache,
    ops: Ops,
    trace: Trace,
) -> np.ndarray:
    """Hidden states after the final norm for the next T positions, (T, D) -> (T, D); the cache grows by T."""
    H, KV, eps = config.num_attention_heads, config.num_key_value_heads, config.rms_norm_eps
    cos, sin = ops.rope_angles(cache.positions(len(x)), config.head_dim, config.rope_theta)  # (T, d/2)

    for i, layer in enumerate(weights.layers):
        trace(f"hidden_states.{i}", x)
        h = ops.rms_norm(x, layer.input_layernorm, eps)  # (T, D)
        q, k, v = layer.qkv(h)  # (T, H*d), (T, KV*d), (T, KV*d)
        q = ops.rope(ops.split_heads(q, H), cos, sin)  # (H, T, d)
        k = ops.rope(ops.split_heads(k, KV), cos, sin)  # (KV, T, d)
        v = ops.split_heads(v, KV)  # (KV, T, d)
        trace(f"keys.{i}", k)
        trace(f"values.{i}", v)
        h = cache.attend(i, q, k, v, ops)  # (H, T, d)
        x = x + layer.o_proj(ops.merge_heads(h))  # (T, D)

        h = ops.rms_norm(x, layer.post_attention_layernorm, eps)  # (T, D)
        gate, up = layer.gate_up(h)  # (T, I)
        x = x + layer.down_proj(ops.swiglu(gate, up))  # (T, D)

    cache.advance(len(x))
    x = ops.rms_norm(x, weights.norm, eps)
    trace(f"hidden_states.{len(weights.layers)}", x)
    return x
