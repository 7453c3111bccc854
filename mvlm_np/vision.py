"""The CLIP vision encoder: a picture's pixels become one vector for each of its patches.

    pixels (3, 336, 336)
      -> 576 patches of 14 x 14, each multiplied by the patch embedding     (576, V)
      -> a class token before them, a learned position added to each        (577, V)
      -> LayerNorm, then 24 blocks of attention and MLP                     hidden_states[0..24]

MobileVLM reads `hidden_states[-2]`, one block before the end, and drops the class token.
Source: Radford et al. 2021 (CLIP), Dosovitskiy et al. 2021 (ViT); the sizes are ViT-L/14's.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from mvlm_np.checkpoints.binding import Binder
from mvlm_np.config import VisionConfig
from mvlm_np.linear import Joined, Linear, Norm


@dataclass(frozen=True)
class VisionLayer:
    norm1: Norm
    qkv: Joined
    out: Linear
    norm2: Norm
    fc1: Linear
    fc2: Linear


@dataclass(frozen=True)
class VisionWeights:
    class_embedding: np.ndarray  # (V,)
    patch_embedding: np.ndarray  # (V, 3, 14, 14)
    position_embedding: np.ndarray  # (577, V)
    pre_norm: Norm
    layers: list[VisionLayer]


def bind(config: VisionConfig, get: Binder) -> VisionWeights:
    """Collects the encoder's weights; `post_layernorm` is not among them, since no output depends on it."""
    V, I, p = config.hidden_size, config.intermediate_size, config.patch_size

    def layer(get: Binder) -> VisionLayer:
        return VisionLayer(
            norm1=get.norm("norm1", V),
            qkv=Joined(*(get.linear(f"attention.{name}", V, V) for name in "qkv")),
            out=get.linear("attention.out", V, V),
            norm2=get.norm("norm2", V),
            fc1=get.linear("mlp.fc1", I, V),
            fc2=get.linear("mlp.fc2", V, I),
        )

    return VisionWeights(
        class_embedding=get.array("class_embedding", V),
        patch_embedding=get.array("patch_embedding.weight", V, config.num_channels, p, p),
        position_embedding=get.array("position_embedding.weight", config.grid**2 + 1, V),
        pre_norm=get.norm("pre_norm", V),
        layers=[layer(get.at(f"layers.{i}")) for i in range(config.num_hidden_layers)],
    )


def embed(pixels: np.ndarray, weights: VisionWeights, config: VisionConfig, ops: Any) -> np.ndarray:
    """hidden_states[0]: class token first, positions added, normalised. (3, h, w) -> (1 + patches, V)."""
    patches = ops.patches(pixels, config.patch_size)  # (576, 588)
    patches = patches @ weights.patch_embedding.reshape(config.hidden_size, -1).T  # (576, V)
    x = np.concatenate([weights.class_embedding[None], patches])  # (577, V)
    x += weights.position_embedding
    return ops.layer_norm(x, *weights.pre_norm, config.layer_norm_eps)


def block(x: np.ndarray, layer: VisionLayer, config: VisionConfig, ops: Any) -> np.ndarray:
    """One pre-norm transformer block, (T, V) -> (T, V). Every patch sees every other."""
    T, H, eps = len(x), config.num_attention_heads, config.layer_norm_eps

    def heads(a: np.ndarray) -> np.ndarray:  # (T, V) -> (H, T, d)
        return a.reshape(T, H, -1).transpose(1, 0, 2)

    q, k, v = layer.qkv.after(ops.layer_norm, x, *layer.norm1, eps)
    attended = ops.attention(heads(q), heads(k), heads(v), causal=False)
    x = layer.out(attended.transpose(1, 0, 2).reshape(T, -1), add_to=x)
    h = layer.fc1.after(ops.layer_norm, x, *layer.norm2, eps)
    return layer.fc2.after(getattr(ops, config.hidden_act), h, add_to=x)


def hidden_states(
    pixels: np.ndarray, weights: VisionWeights, config: VisionConfig, ops: Any
) -> Iterator[np.ndarray]:
    """Yields hidden_states[0], [1], ... [L], each (1 + patches, V); no more is computed than is asked for."""
    x = embed(pixels, weights, config, ops)
    yield x
    for layer in weights.layers:
        x = block(x, layer, config, ops)
        yield x
