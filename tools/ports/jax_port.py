"""MobileVLM in JAX: a port as someone who knows JAX would write it from docs/spec.md, right or with faults.

    python tools/ports/jax_port.py FOLDER golden.safetensors -o dump.npz
    python tools/ports/jax_port.py FOLDER golden.safetensors -o dump.npz --fault gelu-default

It starts from the golden's pixel values and embeddings, and feeds its generated ids. The faults are those
that come easily in JAX: defaults of its functions, its layout of pictures, its half precisions. It needs
`pip install jax`.
"""

import argparse
import json
import math
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the checkout, when run as a script

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from PIL import Image
from safetensors.flax import load_file

from mvlm_np.golden.format import Golden, read_golden

Array = jax.Array
Keep = Callable[[str, Array], None]

FAULTS = {
    "gelu-default": "jax.nn.gelu as it stands, which is the tanh form",
    "keras-epsilon": "the tower's LayerNorms with an eps of 1e-3, as Keras has it",
    "nhwc": "tokens (T, D) reshaped to (D, h, w), as if they were planes",
    "grid-transposed": "the grid of tokens is filled column by column",
    "kernel-transposed": "the attention's output kernel is taken as (inputs, outputs)",
    "heads-inside": "heads split as (d, H)",
    "qk-swapped": "q_proj and k_proj are given in the wrong order",
    "resized-in-float": "the picture goes through jax.image.resize, which rounds to no 8 bits",
    "neighbours": "RoPE turns neighbours, as GPT-J's",
    "no-mask": "the decoder's attention has no causal mask",
    "fed-twice": "the last id is fed again in each step",
    "bfloat16": "all weights and numbers in bfloat16",
    "float16": "all weights and numbers in float16",
}


class Port:
    """The model in one folder. Stages go to `keep`."""

    def __init__(self, folder: Path, keep: Keep, fault: str = ""):
        self.keep, self.fault = keep, fault
        self.config = json.loads((folder / "config.json").read_text())
        tower = folder / self.config["mm_vision_tower"]
        about = json.loads((tower / "config.json").read_text())
        self.vision = about.get("vision_config", about)
        self.processor = json.loads((tower / "preprocessor_config.json").read_text())
        self.dtype = jnp.dtype(fault if fault in ("bfloat16", "float16") else "float32")
        weights = load_file(folder / "model.safetensors")
        if "v2" not in self.config["mm_projector_type"]:  # the tower's own folder counts
            prefix = "model.vision_tower.vision_tower."
            weights |= {prefix + name: w for name, w in load_file(tower / "model.safetensors").items()}
        self.weights = {name: w.astype(self.dtype) for name, w in weights.items()}

    # ------------------------------------------------------------ parts

    def linear(self, x: Array, name: str, bias: bool = True) -> Array:
        kernel = self.weights[f"{name}.weight"]
        kernel = kernel.reshape(len(kernel), -1).T
        if self.fault == "kernel-transposed" and name.endswith("layers.0.self_attn.out_proj"):
            kernel = kernel.T
        y = jnp.dot(x, kernel, precision="highest")
        return y + self.weights[f"{name}.bias"] if bias else y

    def norm(self, x: Array, name: str, eps: float) -> Array:
        mean = x.mean(-1, keepdims=True)
        variance = jnp.square(x - mean).mean(-1, keepdims=True)
        gain, bias = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        return (x - mean) * lax.rsqrt(variance + eps) * gain + bias

    def rms(self, x: Array, name: str) -> Array:
        square = jnp.square(x).mean(-1, keepdims=True)
        return x * lax.rsqrt(square + self.config["rms_norm_eps"]) * self.weights[f"{name}.weight"]

    def gelu(self, x: Array) -> Array:
        return jax.nn.gelu(x) if self.fault == "gelu-default" else jax.nn.gelu(x, approximate=False)

    def heads(self, x: Array, count: int) -> Array:
        if self.fault == "heads-inside":
            return x.reshape(len(x), -1, count).transpose(2, 0, 1)
        return x.reshape(len(x), count, -1).transpose(1, 0, 2)

    def attention(self, q: Array, k: Array, v: Array, mask: Array | None = None) -> Array:
        """q (H, T, d), k and v (KV, S, d), mask (T, S) -> (T, H*d)"""
        k, v = (jnp.repeat(a, len(q) // len(a), axis=0) for a in (k, v))
        scores = jnp.einsum("htd,hsd->hts", q, k, precision="highest") / math.sqrt(q.shape[-1])
        if mask is not None:
            scores = jnp.where(mask, scores, -jnp.inf)
        out = jnp.einsum("hts,hsd->thd", jax.nn.softmax(scores, axis=-1), v, precision="highest")
        return out.reshape(len(out), -1)

    # ------------------------------------------------------------ the picture

    def pixels(self, path: Path) -> Array:
        """A picture in JAX's own way: padded, but resized in floating point."""
        picture = np.asarray(Image.open(path).convert("RGB"), np.float32)
        mean, std = (jnp.asarray(self.processor[f"image_{name}"]) for name in ("mean", "std"))
        (h, w, _), side = picture.shape, max(picture.shape)
        square = np.tile(np.floor(255 * np.asarray(mean, np.float64)), (side, side, 1)).astype(np.float32)
        square[(side - h) // 2 :][:h, (side - w) // 2 :][:, :w] = picture
        size = self.vision["image_size"]
        resized = jax.image.resize(square, (size, size, 3), "cubic")
        return ((jnp.clip(resized, 0, 255) / 255 - mean) / std).transpose(2, 0, 1)

    def see(self, pixels: Array) -> None:
        """pixels (3, s, s) -> vision.*, projector.*"""
        keep, get, at = self.keep, self.weights, "model.vision_tower.vision_tower.vision_model."
        p, H, eps = self.vision["patch_size"], self.vision["num_attention_heads"], 1e-5
        if self.fault == "keras-epsilon":
            eps = 1e-3
        kernel = get[f"{at}embeddings.patch_embedding.weight"]
        patches = lax.conv(pixels[None].astype(self.dtype), kernel, (p, p), "VALID", precision="highest")
        x = patches[0].reshape(len(kernel), -1).T
        x = jnp.concatenate([get[f"{at}embeddings.class_embedding"][None], x])
        x = self.norm(x + get[f"{at}embeddings.position_embedding.weight"], f"{at}pre_layrnorm", eps)
        states = [x]
        for i in range(self.vision["num_hidden_layers"]):
            block = f"{at}encoder.layers.{i}."
            h = self.norm(x, f"{block}layer_norm1", eps)
            names = "kqv" if self.fault == "qk-swapped" and i == 0 else "qkv"
            q, k, v = (self.heads(self.linear(h, f"{block}self_attn.{n}_proj"), H) for n in names)
            x = x + self.linear(self.attention(q, k, v), f"{block}self_attn.out_proj")
            h = self.linear(self.norm(x, f"{block}layer_norm2", eps), f"{block}mlp.fc1")
            x = x + self.linear(h * jax.nn.sigmoid(1.702 * h), f"{block}mlp.fc2")
            states.append(x)
        for i, state in enumerate(states):
            keep(f"vision.hidden_states.{i}", state)
        x = states[self.config["mm_vision_select_layer"]]
        x = x[1:] if self.config["mm_vision_select_feature"] == "patch" else x
        keep("vision.features", x)
        keep("projector.output", self.project(x))

    # ------------------------------------------------------------ the projector

    def project(self, x: Array) -> Array:
        kind = self.config["mm_projector_type"]
        if kind == "ldpnetv2":
            return self.ldpv2(x)
        return self.ldp(x) if kind == "ldpnet" else self.mlp(x, int(kind[3]))

    def two_layers(self, x: Array, names: tuple[str, str], stages: tuple[str, str, str]) -> Array:
        x = self.linear(x, names[0])
        self.keep(stages[0], x)
        x = self.gelu(x)
        self.keep(stages[1], x)
        x = self.linear(x, names[1])
        self.keep(stages[2], x)
        return x

    def planes(self, x: Array) -> Array:
        """(T, D) -> (D, g, g)"""
        g = math.isqrt(len(x))
        if self.fault == "nhwc":
            return x.reshape(-1, g, g)
        planes = x.T.reshape(-1, g, g)
        return planes.transpose(0, 2, 1) if self.fault == "grid-transposed" else planes

    def tokens(self, x: Array) -> Array:
        return x.reshape(len(x), -1).T

    def depthwise(self, x: Array, name: str, stride: int) -> Array:
        weight, pad = self.weights[f"{name}.weight"], ((1, 1), (1, 1))
        conv = partial(lax.conv_general_dilated, feature_group_count=len(weight), precision="highest")
        return conv(x[None], weight, (stride, stride), pad)[0]

    def ldpv2(self, x: Array) -> Array:
        keep, at = self.keep, "model.mm_projector."
        x = self.two_layers(
            x,
            (f"{at}mlp.mlp.0", f"{at}mlp.mlp.2"),
            ("projector.mlp.mlp.0", "projector.mlp.mlp.1", "projector.mlp"),
        )
        x = self.planes(x)
        g = x.shape[1]
        spans = [slice(i * g // 12, -(-(i + 1) * g // 12)) for i in range(12)]
        x = jnp.stack([jnp.stack([x[:, r, c].mean((1, 2)) for c in spans], -1) for r in spans], -2)
        keep("projector.dwn.dwn", x)
        keep("projector.dwn", self.tokens(x))
        peg = self.depthwise(x, f"{at}peg.peg.0", 1) + self.weights[f"{at}peg.peg.0.bias"][:, None, None]
        keep("projector.peg.peg", peg)
        x = self.tokens(x + peg)
        keep("projector.peg", x)
        return x

    def ldp(self, x: Array) -> Array:
        keep, at = self.keep, "projector.model."
        keep(f"{at}mlp.0", x)
        weights = "model.mm_projector.model."
        x = self.two_layers(
            x, (f"{weights}mlp.1", f"{weights}mlp.3"), (f"{at}mlp.1", f"{at}mlp.2", f"{at}mlp")
        )
        x = self.planes(x)
        keep(f"{at}mb_block.0", x)
        y = self.mobile(x, f"{weights}mb_block.1.block.", f"{at}mb_block.1.block", 1)
        keep(f"{at}mb_block.1.block", y)
        x = x + y
        keep(f"{at}mb_block.1", x)
        x = self.mobile(x, f"{weights}mb_block.2.block.", f"{at}mb_block.2.block", 2)
        keep(f"{at}mb_block", x)
        x = self.tokens(x)
        keep("projector.model", x)
        return x

    def mobile(self, x: Array, weights: str, stage: str, stride: int) -> Array:
        def kept(name: str, x: Array) -> Array:
            self.keep(f"{stage}.{name}", x)
            return x

        def last(x: Array, function: Callable[[Array], Array]) -> Array:
            """A function of the channels, on (D, h, w)."""
            return function(x.transpose(1, 2, 0)).transpose(2, 0, 1)

        x = kept("0.0", self.depthwise(x, f"{weights}0.0", stride))
        x = kept("0.1", last(x, lambda x: self.norm(x, f"{weights}0.1", 1e-5)))
        x = kept("0", jax.nn.hard_swish(x))
        s = kept("1.avgpool", x.mean((1, 2), keepdims=True))
        s = kept("1.fc1", last(s, lambda s: self.linear(s, f"{weights}1.fc1")))
        s = kept("1.activation", jax.nn.relu(s))
        s = kept("1.fc2", last(s, lambda s: self.linear(s, f"{weights}1.fc2")))
        s = kept("1.scale_activation", jax.nn.hard_sigmoid(s))
        x = kept("1", x * s)
        x = kept("2.0", last(x, lambda x: self.linear(x, f"{weights}2.0", bias=False)))
        return last(x, lambda x: self.norm(x, f"{weights}2.1", 1e-5))

    def mlp(self, x: Array, depth: int) -> Array:
        for i in range(2 * depth - 1):
            x = self.gelu(x) if i % 2 else self.linear(x, f"model.mm_projector.{i}")
            self.keep(f"projector.{i}", x)
        return x

    # ------------------------------------------------------------ the decoder

    def rope(self, x: Array, positions: Array) -> Array:
        d = x.shape[-1]
        theta = self.config.get("rope_theta", 10000.0)
        f = 1 / jnp.asarray([theta ** (2 * i / d) for i in range(d // 2)], jnp.float32)
        angles = positions.astype(jnp.float32)[:, None] * f
        cos, sin = jnp.cos(angles).astype(self.dtype), jnp.sin(angles).astype(self.dtype)
        if self.fault == "neighbours":
            a, b = x[..., 0::2], x[..., 1::2]
            return jnp.stack([a * cos - b * sin, b * cos + a * sin], -1).reshape(x.shape)
        a, b = jnp.split(x, 2, axis=-1)
        return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1)

    def decode(self, x: Array, past: int, cache: dict[str, Array], keep: Keep) -> None:
        """T more positions behind `past` earlier ones; the cache, (KV, S, d) each, takes theirs."""
        H = self.config["num_attention_heads"]
        KV = self.config.get("num_key_value_heads") or H
        positions, places = past + jnp.arange(len(x)), jnp.arange(cache["keys.0"].shape[1])
        seen = past + len(x) - 1 if self.fault == "no-mask" else positions[:, None]
        mask = jnp.broadcast_to(places <= seen, (len(x), len(places)))
        for i in range(self.config["num_hidden_layers"]):
            at = f"model.layers.{i}."
            keep(f"decoder.hidden_states.{i}", x)
            h = self.rms(x, f"{at}input_layernorm")
            q, k, v = (self.linear(h, f"{at}self_attn.{name}_proj", bias=False) for name in "qkv")
            q = self.rope(self.heads(q, H), positions)
            k, v = self.rope(self.heads(k, KV), positions), self.heads(v, KV)
            keep(f"decoder.keys.{i}", k)
            keep(f"decoder.values.{i}", v)
            for name, new in ((f"keys.{i}", k), (f"values.{i}", v)):
                cache[name] = lax.dynamic_update_slice_in_dim(cache[name], new, past, 1)
            k, v = cache[f"keys.{i}"], cache[f"values.{i}"]
            x = x + self.linear(self.attention(q, k, v, mask), f"{at}self_attn.o_proj", bias=False)
            h = self.rms(x, f"{at}post_attention_layernorm")
            gate, up = (self.linear(h, f"{at}mlp.{name}_proj", bias=False) for name in ("gate", "up"))
            x = x + self.linear(jax.nn.silu(gate) * up, f"{at}mlp.down_proj", bias=False)
        x = self.rms(x, "model.norm")
        keep(f"decoder.hidden_states.{i + 1}", x)
        head = "model.embed_tokens" if self.config.get("tie_word_embeddings") else "lm_head"
        keep("logits", self.linear(x, head, bias=False))

    def read(self, x: Array, ids: list[int]) -> None:
        """The prompt's positions (T, D), then the ids of the answer one by one."""
        H, layers = self.config["num_attention_heads"], range(self.config["num_hidden_layers"])
        shape = (self.config.get("num_key_value_heads") or H, len(x) + len(ids), x.shape[1] // H)
        cache = {f"{what}.{i}": jnp.zeros(shape, self.dtype) for i in layers for what in ("keys", "values")}
        self.decode(x.astype(self.dtype), 0, cache, self.keep)
        rows: dict[str, list[Array]] = {"logits": [], "decoder.hidden_states.1": []}
        fed = [ids[0], *ids[:-1]] if self.fault == "fed-twice" else ids
        for k, token in enumerate(fed):
            step: dict[str, Array] = {}
            embedded = self.weights["model.embed_tokens.weight"][token][None]
            self.decode(embedded, len(x) + k, cache, step.__setitem__)
            for name, kept in rows.items():
                kept.append(step[name])
        self.keep("decode.logits", jnp.concatenate(rows["logits"]))
        self.keep("decode.hidden_states.1", jnp.concatenate(rows["decoder.hidden_states.1"]))


def dump(folder: Path, golden: Golden, fault: str = "", image: Path | None = None) -> dict[str, np.ndarray]:
    """Every stage, float32, without batch axis."""
    stages: dict[str, np.ndarray] = {}

    def keep(name: str, x: Array) -> None:
        stages[name] = np.asarray(x.astype(jnp.float32))

    port = Port(folder, keep, fault)
    pixels = jnp.asarray(golden.stages["pixel_values"])
    if fault == "resized-in-float":
        assert image is not None, "the picture is needed"
        keep("pixel_values", pixels := port.pixels(image))
    port.see(pixels)
    port.read(jnp.asarray(golden.stages["inputs_embeds"]), golden.stages["generated_ids"].tolist())
    return stages


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("golden", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True, help="npz file to write")
    parser.add_argument("--fault", choices=FAULTS, default="")
    parser.add_argument("--image", type=Path)
    args = parser.parse_args()
    stages: Any = dump(args.model, read_golden(args.golden), args.fault, args.image)
    np.savez(args.output, **stages)


if __name__ == "__main__":
    main()
