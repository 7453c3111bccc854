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

import numpy as np

from mvlm_np.backend import Ops
from mvlm_np.binder import VISION_TOWER, Binder
from mvlm_np.config import VisionConfig
from mvlm_np.linear import Joined, Linear, Norm


@dataclass(eq=False, repr=False)
class VisionLayer:
    """The weights of one block."""

    layer_norm1: Norm
    qkv: Joined  # q_proj, k_proj, v_proj: V -> V each
    out_proj: Linear  # V -> V
    layer_norm2: Norm
    fc1: Linear  # V -> I
    fc2: Linear  # I -> V


@dataclass(eq=False, repr=False)
class VisionWeights:
    """All that the encoder has learnt; sizes are those of ViT-L/14-336."""

    class_embedding: np.ndarray  # (V,)
    patch_embedding: np.ndarray  # (V, 3, 14, 14)
    position_embedding: np.ndarray  # (577, V)
    pre_layrnorm: Norm  # the misspelling is CLIP's
    layers: list[VisionLayer]


def bind(config: VisionConfig, get: Binder) -> VisionWeights:
    """Collects the encoder's weights; `post_layernorm` is not among them, since no output depends on it."""
    V, I, p = config.hidden_size, config.intermediate_size, config.patch_size

    def layer(get: Binder) -> VisionLayer:
        return VisionLayer(
            layer_norm1=get.norm("layer_norm1", V),
            qkv=Joined(*(get.linear(f"self_attn.{name}_proj", V, V) for name in "qkv")),
            out_proj=get.linear("self_attn.out_proj", V, V),
            layer_norm2=get.norm("layer_norm2", V),
            fc1=get.linear("mlp.fc1", I, V),
            fc2=get.linear("mlp.fc2", V, I),
        )

    get = get.at(f"{VISION_TOWER}vision_model")
    return VisionWeights(
        class_embedding=get.array("embeddings.class_embedding", V),
        patch_embedding=get.array("embeddings.patch_embedding.weight", V, config.num_channels, p, p),
        position_embedding=get.array("embeddings.position_embedding.weight", config.grid**2 + 1, V),
        pre_layrnorm=get.norm("pre_layrnorm", V),
        layers=[layer(get.at(f"encoder.layers.{i}")) for i in range(config.num_hidden_layers)],
    )


def embed(pixels: np.ndarray, weights: VisionWeights, config: VisionConfig, ops: Ops) -> np.ndarray:
    """hidden_states[0]: class token first, positions added, normalised. (3, h, w) -> (1 + patches, V)."""
    patches = ops.patches(pixels, config.patch_size)  # (576, 588)
    patches = ops.matmul(patches, weights.patch_embedding.reshape(config.hidden_size, -1))  # (576, V)
    x = np.concatenate([weights.class_embedding[None], patches])  # (577, V)
    x = x + weights.position_embedding
    return ops.layer_norm(x, *weights.pre_layrnorm, config.layer_norm_eps)


def block(x: np.ndarray, layer: VisionLayer, config: VisionConfig, ops: Ops) -> np.ndarray:
    """One pre-norm transformer block, (T, V) -> (T, V). Every patch sees every other."""
    H, eps = config.num_attention_heads, config.layer_norm_eps
    activation = getattr(ops, config.hidden_act)  # quick_gelu in CLIP

    h = ops.layer_norm(x, *layer.layer_norm1, eps)  # (T, V)
    q, k, v = (ops.split_heads(a, H) for a in layer.qkv(h))  # (H, T, d) each
    h = ops.attention(q, k, v, causal=False)  # (H, T, d)
    x = x + layer.out_proj(ops.merge_heads(h))  # (T, V)

    h = ops.layer_norm(x, *layer.layer_norm2, eps)  # (T, V)
    h = activation(layer.fc1(h))  # (T, I)
    return x + layer.fc2(h)  # (T, V)


def hidden_states(
    pixels: np.ndarray, weights: VisionWeights, config: VisionConfig, ops: Ops
) -> Iterator[np.ndarray]:
    """Yields hidden_states[0], [1], ... [L], each (1 + patches, V); no more is computed than is asked for."""
    x = embed(pixels, weights, config, ops)
    yield x
    for layer in weights.layers:
        x = block(x, layer, config, ops)
        yield x
