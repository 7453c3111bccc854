"""MobileVLM in plain torch, right or with faults: what `mvlm golden explain` is tested on.

Written from the papers, and from nothing of mvlm_np: a fault here is made in its own way, not in the tool's.
`run(folder, image, prompt, faults)` gives every stage under the goldens' names. A fault is a key of `FAULTS`
with one of its strengths; without any, the stages are the published code's, within rounding.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from safetensors.torch import load_file
from torch import Tensor

VISION, PROJECTOR = "model.vision_tower.vision_tower.vision_model.", "model.mm_projector."
Faults = Mapping[str, Any]

# Mistake -> the faults that make it, in several strengths. A strength is what the code below does with it.
FAULTS: dict[str, list[dict[str, Any]]] = {
    "resize-before-pad": [{"fit": "late"}, {"fit": "late-ceil"}],
    "no-pad": [{"fit": "crop"}, {"fit": "stretch"}],
    "pad-not-wanted": [{"fit": "pad"}, {"fit": "stretch"}],
    "pad-at-corner": [{"corner": True}],
    "pad-colour": [
        {"colour": (0, 0, 0)},
        {"colour": (104, 116, 122)},
        {"colour": (123, 117, 104)},
        {"colour": (55, 200, 9)},
    ],
    "bilinear": [
        {"filter": "bilinear"},
        {"filter": "lanczos"},
        {"filter": "torch-bilinear"},
        {"filter": "torch-bicubic"},
        {"filter": "torch-antialias"},
        {"filter": "torch-antialias-rounded"},
        {"filter": "torch-bicubic-ends"},
        {"filter": "torch-bilinear-ends"},
    ],
    "bgr": [{"bgr": "start"}, {"bgr": "end"}, {"bgr": "middle"}],
    "mean-std": [
        {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)},
        {"mean": (0.5,) * 3, "std": (0.5,) * 3},
        {"mean": (0, 0, 0), "std": (1, 1, 1)},
        {"mean": (0.48, 0.46, 0.41), "std": (0.27, 0.26, 0.28)},
    ],
    "patches-column-order": [{"patches": "columns"}],
    "patch-pixel-order": [{"patch_weight": "swapped"}, {"patch_weight": "hwc"}],
    "nhwc-as-nchw": [{"layout": "given"}, {"layout": "inside"}],
    "patches-moved": [{"moved": True}],
    "class-token-last": [{"class_token": "last"}],
    "positions-shifted": [{"position": 1}, {"position": 2}, {"position": -1}, {"position": "none"}],
    "position-table-resized": [
        {"table": ("bicubic", 0.1)},
        {"table": ("bilinear", 0.1)},
        {"table": ("bicubic", 2 / 3)},
        {"table": ("bilinear", 4 / 3)},
        {"table": ("bicubic antialias", 2 / 3)},
        {"table": ("bicubic", 2 / 3), "another_size": True},
        {"table": ("bilinear", 4 / 3), "another_size": True},
    ],
    "no-pre-layernorm": [{"pre_norm": False}],
    "wrong-tower": [{"tower": "other"}],
    "tanh-gelu": [{"projector_act": "tanh"}, {"vision_act": "tanh"}],
    "quick-gelu": [{"projector_act": "quick"}],
    "exact-gelu": [{"vision_act": "gelu"}, {"vision_act": "gelu", "only_block": 1}],
    "relu": [{"vision_act": "relu"}, {"projector_act": "relu"}],
    "gelu-approximated": [
        {"projector_act": "fourth power"},
        {"projector_act": "erf of three terms"},
        {"projector_act": "erf of five terms"},
        {"projector_act": "parabola"},
        {"projector_act": "hard"},
        {"projector_act": ("lines", 32, 4)},
        {"projector_act": ("nearest", 255, 8)},
        {"projector_act": "half"},
        {"projector_act": 1.7},
        {"vision_act": "hard"},
        {"vision_act": ("lines", 64, 8)},
        {"vision_act": ("lines", 256, 8)},
        {"vision_act": "half quick"},
        {"vision_act": 1.7},
        {"vision_act": 1.65},
        {"vision_act": 1.7, "only_block": 1},
    ],
    "layer-norm-eps": [
        {"vision_eps": 1e-3},
        {"vision_eps": 3e-2},
        {"vision_eps": 1e-6},
        {"ldp_eps": 1e-3},
        {"ldp_eps": 2e-2},
    ],
    "layer-norm-axis": [{"vision_norm": "tokens"}, {"ldp_norm": "space"}, {"ldp_norm": "all"}],
    "one-layer-short": [{"select": -1}, {"select": -2}],
    "last-layer": [{"select": 1}],
    "post-layernorm": [{"post_norm": True}],
    "class-token-kept": [{"drop": "last"}],
    "transposed-matrix": [
        {"transposed": ("q",)},
        {"transposed": ("out",)},
        {"transposed": ("q", "k", "v", "out")},
        {"transposed_fc2": True},
    ],
    "qkv-swapped": [{"swap": "qk"}, {"swap": "kv"}, {"swap": "qv"}],
    "head-split": [
        {"heads": "both"},
        {"heads": "split"},
        {"decoder_heads": "both"},
        {"decoder_heads": "split"},
        {"heads": "split", "decoder_heads": "split"},
    ],
    "per-tensor-int8": [{"int8": 127}, {"int8": 128}],
    "attention-scale": [
        {"vision_scale": "none"},
        {"vision_scale": "d"},
        {"scale": "none"},
        {"scale": "d"},
        {"scale": 1.25},
        {"vision_scale": 0.9},
    ],
    "causal-encoder": [{"vision_causal": True}],
    "missing-bias": [
        {"vision_bias": ("q", "k", "v")},
        {"vision_bias": ("out",)},
        {"vision_bias": ("fc1",)},
        {"vision_bias": ("fc2",)},
        {"vision_bias": ("fc1", "fc2")},
        {"projector_bias": ("fc1",)},
        {"projector_bias": ("fc2",)},
        {"projector_bias": ("peg",)},
        {"projector_bias": ("squeeze",)},
        {"projector_bias": ("excite",)},
        {"vision_bias": ("fc2",), "only_block": 0},
    ],
    "half-precision": [
        {"type": "bfloat16"},
        {"type": "float16"},
        {"type": "bfloat16", "half_part": "vision"},
        {"type": "float16", "half_part": "decoder"},
        {"type": "bfloat16", "half_part": "decoder"},
        {"products": "bfloat16"},
        {"products": "float16"},
        {"products": "tf32"},
    ],
    "repeated-layer": [{"repeat_block": (1, 0)}, {"repeat_layer": (1, 0)}, {"repeat_block": (0, 1)}],
    "peg-no-residual": [{"peg": "no residual"}],
    "peg-before-pooling": [{"peg": "first"}],
    "token-grid-order": [
        {"grid": "before"},
        {"grid": "after"},
        {"grid": "end"},
        {"grid": "columns"},
        {"grid": "columns after"},
        {"grid": "columns at the end"},
    ],
    "pooling": [{"pool": "stride"}, {"pool": "max"}],
    "convolution": [{"flip": True}],
    "hardswish-as-silu": [{"hardswish": "silu"}, {"hardswish": "relu"}],
    "hardsigmoid-as-sigmoid": [{"hardsigmoid": "sigmoid"}],
    "squeeze-width": [{"squeeze": -1}, {"squeeze": "half"}],
    "residual-on-stride-2": [{"residual2": "stride"}, {"residual2": "mean"}],
    "no-residual-on-stride-1": [{"residual1": False}],
    "bos-missing": [{"bos": 0}],
    "bos-doubled": [{"bos": 2}, {"bos": "image"}],
    "no-dummy-prefix": [{"prefix": False}],
    "wrong-template": [
        {"template": "no system"},
        {"template": "bare"},
        {"template": "newlines"},
        {"template": "no newline"},
        {"template": "space"},
    ],
    "rope-interleaved": [{"rope": "interleaved"}, {"rope": "gguf"}],
    "rope-direction": [{"rope": "backwards"}, {"rope": "none"}],
    "rope-base": [{"theta": 5e5}, {"theta": 1e5}, {"theta": 7777.0}, {"theta": 100.0}],
    "rope-positions": [{"first": 1}, {"first": -1}],
    "rms-eps": [{"rms_eps": 1e-5}, {"rms_eps": 1e-3}, {"rms_eps": 2e-2}],
    "rms-as-layer-norm": [{"rms": "centred"}],
    "kv-head-order": [{"kv": "tile"}, {"kv": "reversed"}],
    "no-causal-mask": [{"causal": False}, {"causal": "image"}, {"causal": 1}],
    "gate-up-swapped": [{"gate_up": True}],
    "swiglu-activation": [{"swiglu": "gelu"}, {"swiglu": "tanh"}],
    "float16-overflow": [{"half": "square"}, {"half": "sum"}, {"half": "product"}],
    "no-final-norm": [{"final_norm": False}],
    "tied-lm-head": [{"tied": True}],
    "exif-turned": [{"exif": True}],
    "image-misplaced": [{"place": "first"}, {"place": "last"}],
    "image-tokens-order": [{"tokens": "reversed"}, {"tokens": "scaled"}],
    "missing-gain": [{"gain": "vision"}, {"gain": "decoder"}],
    "squeeze-excitation": [{"squeeze_excitation": False}],
    "decoder-layer-short": [{"decoder_layers": -1}],
    "last-id-twice": [{"again": True}, {"lag": True}],
    "cache-content": [{"forget": 1}, {"forget": "all"}],
    "cache-position": [{"cache": 1}, {"cache": -1}, {"cache": "image"}, {"cache": "stuck"}],
}


@torch.inference_mode()
def run(
    folder: Path,
    image: Path,
    prompt: str,
    generated: Sequence[int],
    faults: Faults | None = None,
    dtype: torch.dtype = torch.float32,
) -> dict[str, np.ndarray]:
    """Every stage of a question; `generated` ids are fed back through the cache."""
    torch.set_num_threads(1)
    model = Model(folder, dict(faults or {}), dtype)
    model.pixels(image)
    model.in_part("vision", model.vision)
    model.project()
    model.tokens(prompt)
    model.in_part("decoder", lambda: model.decode(generated))
    return {
        name: value.contiguous().numpy() if value.dtype == torch.int64 else value.float().contiguous().numpy()
        for name, value in model.stages.items()
    }


@cache
def load(
    folder: Path,
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any], dict[str, Tensor], dict[str, Tensor]]:
    """config.json, the tower's, its preprocessor's, the tensors, and the vision tensors that are not used."""
    config = json.loads((folder / "config.json").read_text())
    tower = folder / Path(config["mm_vision_tower"]).name
    clip = json.loads((tower / "config.json").read_text())
    clip = clip.get("vision_config", clip)
    pre = json.loads((tower / "preprocessor_config.json").read_text())
    tensors = _read(folder)
    other = {}
    if any(tower.glob("*.safetensors")) or any(tower.glob("*.bin")):
        theirs = {f"vision_model.{k.removeprefix('vision_model.')}": v for k, v in _read(tower).items()}
        theirs = {
            f"model.vision_tower.vision_tower.{k}": v for k, v in theirs.items() if "text_model" not in k
        }
        own = {k: v for k, v in tensors.items() if k.startswith("model.vision_tower.")}
        if "v2" not in config["mm_projector_type"]:
            tensors |= theirs
            other = own
        else:
            other = theirs
    return config, clip, pre, tensors, other


def _read(folder: Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for path in sorted(folder.glob("model*.safetensors")):
        found |= load_file(path)
    for path in sorted(folder.glob("pytorch_model*.bin")) if not found else ():
        found |= torch.load(path, weights_only=True)
    return {k: v.float() for k, v in found.items()}


class Model:
    def __init__(self, folder: Path, faults: dict[str, Any], dtype: torch.dtype):
        self.folder, self.f, self.dtype = folder, faults, dtype
        if "type" in faults and "half_part" not in faults:
            self.dtype = dtype = getattr(torch, faults["type"])
        self.config, self.clip, self.pre, tensors, other = load(folder)
        if faults.get("tower") == "other" and other:
            tensors = tensors | other
        self.w = {k: v.to(dtype) for k, v in tensors.items()}
        self.stages: dict[str, Tensor] = {}

    def keep(self, name: str, value: Tensor) -> Tensor:
        self.stages[name] = value[None]
        return value

    def linear(self, x: Tensor, name: str, bias: bool = True) -> Tensor:
        w = self.w[f"{name}.weight"].flatten(1)
        if any(
            name.startswith(VISION) and name.endswith(f"attn.{n}_proj") for n in self.f.get("transposed", ())
        ):
            w = w.T
        if self.f.get("transposed_fc2") and name.startswith(PROJECTOR) and name.endswith(("mlp.2", "mlp.3")):
            w = w.T
        if "int8" in self.f and ".encoder.layers." in name:
            scale = w.abs().max() / self.f["int8"]
            w = (w / scale).round().clamp(-128, 127) * scale
        return self.product(x, w.T) + (self.w[f"{name}.bias"] if bias and f"{name}.bias" in self.w else 0)

    def product(self, a: Tensor, b: Tensor) -> Tensor:
        match self.f.get("products"):
            case None:
                return a @ b
            case "tf32":  # ten bits of mantissa stay
                a, b = (x * (1 + 2**13) - (x * (1 + 2**13) - x) for x in (a, b))
                return a @ b
            case name:
                a, b = (x.to(getattr(torch, name)).to(x.dtype) for x in (a, b))
                return a @ b

    def in_part(self, part: str, run: Callable[[], None]) -> None:
        """Runs a part of the model, in a type of its own where the fault is that."""
        if self.f.get("half_part") != part:
            return run()
        w, dtype, before = self.w, self.dtype, set(self.stages)
        self.dtype = getattr(torch, self.f["type"])
        self.w = {k: v.to(self.dtype) for k, v in w.items()}
        given = dict(self.stages)
        self.stages = {k: v if v.dtype == torch.int64 else v.to(self.dtype) for k, v in given.items()}
        run()
        self.w, self.dtype = w, dtype
        self.stages = {
            k: given[k] if k in before else v if v.dtype == torch.int64 else v.to(dtype)
            for k, v in self.stages.items()
        }

    # ------------------------------------------------------------ the picture

    def pixels(self, path: Path) -> None:
        f, pre = self.f, self.pre
        size = pre["size"] if isinstance(pre["size"], int) else pre["size"]["shortest_edge"]
        if f.get("another_size"):
            p = self.clip["patch_size"]
            size = round(size // p * f["table"][1]) * p
        image = Image.open(path).convert("RGB")
        if f.get("exif"):
            image = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
        array = np.asarray(image)
        if f.get("bgr") == "start":
            array = array[..., ::-1]
        colour = f.get("colour", tuple(int(255 * m) for m in pre["image_mean"]))
        fit = f.get("fit", "pad" if self.config.get("image_aspect_ratio") == "pad" else "crop")
        h, w = array.shape[:2]
        if fit.startswith("late"):
            up = math.ceil if fit == "late-ceil" else math.floor
            scale = size / max(h, w)
            array = resize(array, min(up(w * scale), size), min(up(h * scale), size), f.get("filter"))
            array = self.square(array, size, colour)
        elif fit == "stretch":
            array = resize(array, size, size, f.get("filter"))
        else:
            if fit == "pad":
                array = self.square(array, max(h, w), colour)
            h, w = array.shape[:2]
            array = resize(array, size * w // min(h, w), size * h // min(h, w), f.get("filter"))
            top, left = (array.shape[0] - size) // 2, (array.shape[1] - size) // 2
            array = array[top : top + size, left : left + size]
        if f.get("bgr") == "middle":
            array = array[..., ::-1]
        mean, std = np.float32(f.get("mean", pre["image_mean"])), np.float32(f.get("std", pre["image_std"]))
        values = ((array * (1 / 255)).astype(np.float32) - mean) / std
        if f.get("bgr") == "end":
            values = values[..., ::-1]
        if f.get("moved"):
            values = self.moved(values, (np.array(colour, np.float32) / 255 - mean) / std)
        planes = values.transpose(2, 0, 1)
        if f.get("layout") == "given":
            planes = values.reshape(planes.shape)
        self.keep("pixel_values", torch.tensor(planes.copy()).to(self.dtype))

    def moved(self, values: np.ndarray, colour: np.ndarray) -> np.ndarray:
        p, out = self.clip["patch_size"], values.copy()
        corners = [(y, x) for y in range(0, len(out) - p + 1, p) for x in range(0, len(out) - p + 1, p)]
        out[:p, :p] = colour
        for (y, x), (v, u) in zip(corners[1:], corners, strict=False):
            out[y : y + p, x : x + p] = values[v : v + p, u : u + p]
        return out

    def square(self, array: np.ndarray, side: int, colour: Sequence[int]) -> np.ndarray:
        canvas = np.empty((side, side, 3), array.dtype)
        canvas[:] = colour
        h, w = array.shape[:2]
        top, left = (0, 0) if self.f.get("corner") else ((side - h) // 2, (side - w) // 2)
        canvas[top : top + h, left : left + w] = array
        return canvas

    # ------------------------------------------------------------ the vision encoder

    def norm(self, x: Tensor, name: str, eps: float, how: str | None = None) -> Tensor:
        w, b = self.w[f"{name}.weight"], self.w[f"{name}.bias"]
        if self.f.get("gain") == "vision" and ".encoder.layers." in name:
            w = torch.ones_like(w)
        if how is None:
            return F.layer_norm(x, x.shape[-1:], w, b, eps)
        dims = (0,) if how == "tokens" else tuple(range(x.ndim))
        mean, var = x.mean(dims, keepdim=True), x.var(dims, unbiased=False, keepdim=True)
        return (x - mean) / torch.sqrt(var + eps) * w + b

    def heads(self, x: Tensor, H: int) -> Tensor:
        """(T, V) -> (H, T, d)"""
        if "heads" in self.f:
            return x.unflatten(1, (-1, H)).permute(2, 0, 1)
        return x.unflatten(1, (H, -1)).transpose(0, 1)

    def vision(self) -> None:
        f, clip = self.f, self.clip
        eps, how = f.get("vision_eps", clip.get("layer_norm_eps", 1e-5)), f.get("vision_norm")
        weight = self.w[f"{VISION}embeddings.patch_embedding.weight"]
        V, C, p, _ = weight.shape
        if f.get("patch_weight") == "swapped":
            weight = weight.transpose(2, 3)
        elif f.get("patch_weight") == "hwc":
            weight = weight.permute(0, 2, 3, 1).reshape(V, C, p, p)
        pixels = self.stages["pixel_values"]
        if f.get("layout") == "inside":
            pixels = pixels.movedim(1, 3).reshape(pixels.shape)
        x = F.conv2d(pixels, weight, stride=p)[0]  # (V, h, w)
        x = (x.transpose(1, 2) if f.get("patches") == "columns" else x).flatten(1).T  # (T, V)
        token = self.w[f"{VISION}embeddings.class_embedding"][None]
        x = torch.cat([x, token] if f.get("class_token") == "last" else [token, x])
        position = self.w[f"{VISION}embeddings.position_embedding.weight"]
        match f.get("position", 0):
            case "none":
                position = torch.zeros_like(position)
            case shift:
                position = torch.roll(position, shift, 0)
        if "table" in f:
            position = self.resized(position, len(x) - 1)
        x = x + position
        if f.get("pre_norm", True):
            x = self.norm(x, f"{VISION}pre_layrnorm", eps, how)
        self.keep("vision.hidden_states.0", x)
        H, L = clip["num_attention_heads"], clip["num_hidden_layers"]
        d, only = V // H, f.get("only_block")
        for i in range(L):
            on = only is None or only == i
            from_, to = f.get("repeat_block", (None, None))
            name = f"{VISION}encoder.layers.{to if i == from_ else i}"
            off = f.get("vision_bias", ()) if on else ()
            h = self.norm(x, f"{name}.layer_norm1", eps, how)
            read = {"qk": "kqv", "kv": "qvk", "qv": "vkq"}.get(f.get("swap", ""), "qkv")
            q, k, v = (
                self.heads(self.linear(h, f"{name}.self_attn.{c}_proj", c not in off), H) for c in read
            )
            scores = self.product(q, k.transpose(1, 2)) * scale_of(f.get("vision_scale"), d)
            if f.get("vision_causal"):
                scores = scores + torch.full_like(scores[0], -torch.inf).triu(1)
            a = self.product(scores.softmax(-1), v)
            a = a.permute(1, 2, 0).flatten(1) if f.get("heads") == "both" else a.transpose(0, 1).flatten(1)
            x = x + self.linear(a, f"{name}.self_attn.out_proj", "out" not in off)
            h = self.norm(x, f"{name}.layer_norm2", eps, how)
            act = f.get("vision_act", "quick") if on else "quick"
            x = x + self.linear(
                activation(self.linear(h, f"{name}.mlp.fc1", "fc1" not in off), act),
                f"{name}.mlp.fc2",
                "fc2" not in off,
            )
            self.keep(f"vision.hidden_states.{i + 1}", x)
        at = L + 1 + self.config["mm_vision_select_layer"] + f.get("select", 0)
        x = self.stages[f"vision.hidden_states.{max(at, 0)}"][0]
        if f.get("post_norm"):
            x = self.norm(x, f"{VISION}post_layernorm", eps)
        if self.config["mm_vision_select_feature"] == "patch":
            x = x[:-1] if f.get("drop") == "last" else x[1:]
        self.keep("vision.features", x)

    def resized(self, position: Tensor, patches: int) -> Tensor:
        """The table of positions for as many patches, by functions that are made for pictures."""
        kind, much = self.f["table"]
        mode, *antialias = kind.split()
        old, new = math.isqrt(len(position) - 1), math.isqrt(patches)
        how = {"mode": mode, "align_corners": False, "antialias": bool(antialias)}
        planes = position[1:].T.unflatten(1, (old, old))[None]
        if much < 0.5:
            planes = F.interpolate(planes, scale_factor=(new + much) / old, **how)
        elif self.f.get("another_size"):
            planes = F.interpolate(planes, (new, new), **how)
        else:
            between = round(old * much)
            planes = F.interpolate(F.interpolate(planes, (between, between), **how), (old, old), **how)
        return torch.cat([position[:1], planes[0].flatten(1).T])

    # ------------------------------------------------------------ the projector

    def project(self) -> None:
        kind, x = self.config["mm_projector_type"], self.stages["vision.features"][0]
        off = self.f.get("projector_bias", ())
        if kind == "ldpnetv2":
            self.keep("projector.output", self.ldpv2(x, off))
        elif kind == "ldpnet":
            self.keep("projector.output", self.ldp(x, off))
        else:
            for i in range(int(kind[3:-6])):
                if i:
                    x = self.keep(
                        f"projector.{2 * i - 1}", activation(x, self.f.get("projector_act", "gelu"))
                    )
                x = self.keep(
                    f"projector.{2 * i}", self.linear(x, f"{PROJECTOR}{2 * i}", f"fc{i + 1}" not in off)
                )
            del self.stages[f"projector.{2 * i}"]
            self.keep(f"projector.{2 * i}", x)
            self.keep("projector.output", x)

    def conv(self, x: Tensor, name: str, stride: int = 1, bias: bool = True) -> Tensor:
        w = self.w[f"{name}.weight"]
        w = w.flip(2, 3) if self.f.get("flip") else w
        return F.conv2d(x, w, self.w.get(f"{name}.bias") if bias else None, stride, 1, groups=len(x))

    def ldpv2(self, x: Tensor, off: Sequence[str]) -> Tensor:
        f, P = self.f, PROJECTOR
        x = self.keep("projector.mlp.mlp.0", self.linear(x, f"{P}mlp.mlp.0", "fc1" not in off))
        x = self.keep("projector.mlp.mlp.1", activation(x, f.get("projector_act", "gelu")))
        x = self.keep("projector.mlp", self.linear(x, f"{P}mlp.mlp.2", "fc2" not in off))
        side = math.isqrt(len(x))
        x = self.grid(x, side)
        if f.get("peg") == "first":
            x = x + self.conv(x, f"{P}peg.peg.0", bias="peg" not in off)
            self.keep("projector.peg", x.flatten(1).T)
            x = self.pool(x)
            self.keep("projector.dwn.dwn", x)
            return self.keep("projector.dwn", x.flatten(1).T)
        x = self.keep("projector.dwn.dwn", self.pool(x))
        if f.get("grid") == "after":
            x = x.reshape(-1, len(x)).T.unflatten(1, (12, 12))
        elif f.get("grid") == "columns after":
            x = x.mT
        self.keep("projector.dwn", x.flatten(1).T)
        y = self.keep("projector.peg.peg", self.conv(x, f"{P}peg.peg.0", bias="peg" not in off))
        y = y if f.get("peg") == "no residual" else y + x
        return self.keep("projector.peg", self.tokens_of(y))

    def grid(self, x: Tensor, side: int) -> Tensor:
        """(T, D) -> (D, h, w)"""
        match self.f.get("grid"):
            case "before":
                return x.reshape(-1, side, side)
            case "columns":
                return x.T.unflatten(1, (side, side)).mT
        return x.T.unflatten(1, (side, side))

    def tokens_of(self, y: Tensor) -> Tensor:
        """(D, h, w) -> (T, D)"""
        match self.f.get("grid"):
            case "end":
                return y.reshape(-1, len(y))
            case "columns at the end":
                y = y.mT
        return y.flatten(1).T

    def pool(self, x: Tensor) -> Tensor:
        match self.f.get("pool"):
            case "stride":
                s = x.shape[1] // 12
                return x[:, ::s, ::s][:, :12, :12]
            case "max":
                return F.adaptive_max_pool2d(x, 12)
        return F.adaptive_avg_pool2d(x, 12)

    def ldp(self, x: Tensor, off: Sequence[str]) -> Tensor:
        f, P, N = self.f, PROJECTOR, "projector.model"
        self.keep(f"{N}.mlp.0", x)
        x = self.keep(f"{N}.mlp.1", self.linear(x, f"{P}model.mlp.1", "fc1" not in off))
        x = self.keep(f"{N}.mlp.2", activation(x, f.get("projector_act", "gelu")))
        x = self.keep(f"{N}.mlp", self.linear(x, f"{P}model.mlp.3", "fc2" not in off))
        side = math.isqrt(len(x))
        x = self.keep(f"{N}.mb_block.0", self.grid(x, side))
        y = self.mobile(x, 1, 1, off)
        x = self.keep(f"{N}.mb_block.1", y + x if f.get("residual1", True) else y)
        y = self.mobile(x, 2, 2, off)
        match f.get("residual2"):
            case "stride":
                y = y + x[:, ::2, ::2]
            case "mean":
                y = (
                    y
                    + F.avg_pool2d(F.pad(x[None], (0, x.shape[2] % 2, 0, x.shape[1] % 2), "replicate"), 2)[0]
                )
        y = self.keep(f"{N}.mb_block", y)
        return self.keep(N, self.tokens_of(y))

    def mobile(self, x: Tensor, n: int, stride: int, off: Sequence[str]) -> Tensor:
        f, name, module = (
            self.f,
            f"projector.model.mb_block.{n}.block",
            f"{PROJECTOR}model.mb_block.{n}.block",
        )
        eps, how = f.get("ldp_eps", 1e-5), f.get("ldp_norm")

        def norm(x: Tensor, name: str) -> Tensor:
            if how == "space":
                mean, var = x.mean((1, 2), keepdim=True), x.var((1, 2), unbiased=False, keepdim=True)
                y = ((x - mean) / torch.sqrt(var + eps)).movedim(0, -1)
                return (y * self.w[f"{name}.weight"] + self.w[f"{name}.bias"]).movedim(-1, 0)
            return self.norm(x.movedim(0, -1), name, eps, how).movedim(-1, 0)

        x = self.keep(f"{name}.0.0", self.conv(x, f"{module}.0.0", stride))
        x = self.keep(f"{name}.0.1", norm(x, f"{module}.0.1"))
        x = self.keep(f"{name}.0", activation(x, f.get("hardswish", "hardswish")))
        s = self.keep(f"{name}.1.avgpool", x.mean((1, 2), keepdim=True)).flatten()
        w1, b1, w2, b2 = (
            self.w[f"{module}.1.{part}"] for part in ("fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias")
        )
        width = len(w1)
        match f.get("squeeze"):
            case "half":
                width //= 2
            case int(less):
                width += less
        b1, b2 = (torch.zeros_like(b) if key in off else b for b, key in ((b1, "squeeze"), (b2, "excite")))
        s = self.keep(
            f"{name}.1.fc1", (F.linear(s, w1.flatten(1)[:width], b1[:width]))[:, None, None]
        ).flatten()
        s = self.keep(f"{name}.1.activation", s.relu()[:, None, None]).flatten()
        s = self.keep(f"{name}.1.fc2", F.linear(s, w2.flatten(1)[:, :width], b2)[:, None, None])
        s = s.sigmoid() if f.get("hardsigmoid") == "sigmoid" else F.hardsigmoid(s)
        s = s if f.get("squeeze_excitation", True) else torch.ones_like(s)
        self.keep(f"{name}.1.scale_activation", s)
        x = self.keep(f"{name}.1", x * s)
        x = F.conv2d(x[None], self.w[f"{module}.2.0.weight"])[0]
        x = self.keep(f"{name}.2.0", x)
        x = norm(x, f"{module}.2.1")
        return self.keep(name, x) if n == 1 else x  # the second block's is the whole body's

    # ------------------------------------------------------------ the prompt

    def tokens(self, prompt: str) -> None:
        f = self.f
        sp = tokenizer(self.folder)
        before, after = prompt.split("<image>")
        system, question = before.removesuffix("USER: "), after.removeprefix("\n").removesuffix(" ASSISTANT:")
        match f.get("template"):
            case "no system":
                before = "USER: "
            case "bare":
                before, after = "", f"\n{question}"
            case "newlines":
                before, after = f"{system.rstrip()}\n\nUSER: ", f"\n{question}\nASSISTANT:"
            case "no newline":
                after = after.removeprefix("\n")
            case "space":
                after += " "
        match f.get("place"):
            case "first":
                before, after = "", f"\n{before}{after.removeprefix(chr(10))}"
            case "last":
                before, after = before + after.removeprefix("\n"), ""
        first, second = sp.encode(before), sp.encode(after)
        if not f.get("prefix", True) and sp.id_to_piece(second[0]) == "\u2581":
            second = second[1:]
        bos = {0: [], 1: [1], 2: [1, 1], "image": [1]}[f.get("bos", 1)]
        again = [1] if f.get("bos") == "image" else []
        self.stages["input_ids"] = torch.tensor([bos + first + [-200] + again + second])

    # ------------------------------------------------------------ the decoder

    def decode(self, generated: Sequence[int]) -> None:
        f, c = self.f, self.config
        embed, ids = self.w["model.embed_tokens.weight"], self.stages["input_ids"][0]
        at = int((ids == -200).nonzero()[0, 0])
        image = self.stages["projector.output"][0]
        match f.get("tokens"):
            case "reversed":
                image = image.flip(0)
            case "scaled":
                image = image * math.sqrt(image.shape[1])
        x = torch.cat([embed[ids[:at]], image, embed[ids[at + 1 :]]])
        self.keep("inputs_embeds", x)
        self.image = (at, at + self.stages["projector.output"].shape[1])
        L = c["num_hidden_layers"] + f.get("decoder_layers", 0)
        self.cache: list[tuple[Tensor, Tensor]] = []
        T = len(x)
        for i in range(L):
            self.keep(f"decoder.hidden_states.{i}", x)
            x, k, v = self.layer(x, i, torch.arange(T) + f.get("first", 0), None)
            self.keep(f"decoder.keys.{i}", k)
            self.keep(f"decoder.values.{i}", v)
            self.cache.append((k, v))
        x = self.keep(f"decoder.hidden_states.{L}", self.rms(x, "model.norm", final=True))
        head = embed if f.get("tied") else self.w["lm_head.weight"]
        self.keep("logits", self.product(x, head.T))
        self.stages["generated_ids"] = torch.tensor([list(generated)])
        hidden, logits = [], []
        again = [int(ids[-1])] if f.get("again") else []
        fed = [generated[0], *generated[:-1]] if f.get("lag") else [*again, *generated]
        for n, token in enumerate(fed):
            x = embed[token][None]
            match f.get("cache", 0):
                case "image":
                    position = T + n - (self.stages["projector.output"].shape[1] - 1)
                case "stuck":
                    position = T
                case shift:
                    position = T + n + shift
            for i in range(L):
                x, k, v = self.layer(x, i, torch.tensor([position + f.get("first", 0)]), self.cache[i])
                self.cache[i] = (k, v)
                if i == 0:
                    hidden.append(x if L > 1 else self.rms(x, "model.norm", final=True))
            logits.append(self.product(self.rms(x, "model.norm", final=True), head.T))
        self.keep("decode.hidden_states.1", torch.cat(hidden[len(again) :]))
        self.keep("decode.logits", torch.cat(logits[len(again) :]))

    def rms(self, x: Tensor, name: str, final: bool = False) -> Tensor:
        if final and not self.f.get("final_norm", True):
            return x
        eps = self.f.get("rms_eps", self.config["rms_norm_eps"])
        if self.f.get("rms") == "centred":
            x = x - x.mean(-1, keepdim=True)
        square = x.pow(2)
        if self.f.get("half") == "square":
            square = x.half().pow(2).to(x.dtype)
        mean = square.mean(-1, keepdim=True)
        if self.f.get("half") == "sum":
            total = x.half().pow(2).float().sum(-1, keepdim=True).half()
            mean = total.to(x.dtype) / x.shape[-1]
        x = x * torch.rsqrt(mean + eps)
        return x if self.f.get("gain") == "decoder" and not final else x * self.w[f"{name}.weight"]

    def layer(
        self, x: Tensor, i: int, positions: Tensor, past: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        f, c = self.f, self.config
        from_, to = f.get("repeat_layer", (None, None))
        name = f"model.layers.{to if i == from_ else i}"
        H, KV, D = c["num_attention_heads"], c["num_key_value_heads"], c["hidden_size"]
        d, T = D // H, len(x)
        h = self.rms(x, f"{name}.input_layernorm")
        q, k, v = (self.linear(h, f"{name}.self_attn.{p}_proj") for p in "qkv")
        if "decoder_heads" in f:
            q, k, v = (a.unflatten(1, (d, -1)).permute(2, 0, 1) for a in (q, k, v))
        else:
            q, k, v = (a.view(T, n, d).transpose(0, 1) for a, n in ((q, H), (k, KV), (v, KV)))
        q, k = self.rope(q, positions), self.rope(k, positions)
        if past:
            k, v = torch.cat([past[0], k], 1), torch.cat([past[1], v], 1)
        seen = slice(None)
        if past and "forget" in f:
            seen = slice(-1, None) if f["forget"] == "all" else slice(f["forget"], None)
        order = torch.arange(KV).repeat_interleave(H // KV)
        if f.get("kv") == "tile":
            order = torch.arange(KV).repeat(H // KV)
        elif f.get("kv") == "reversed":
            order = order.flip(0)
        scores = self.product(q, k[order][:, seen].transpose(1, 2)) * scale_of(f.get("scale"), d)
        if T > 1:
            mask = torch.full((T, T), -torch.inf, dtype=x.dtype).triu(1)
            match f.get("causal", True):
                case "image":
                    a, b = self.image
                    mask[a:b, a:b] = 0
                case True:
                    pass
                case False:
                    mask = torch.zeros_like(mask)
                case n:
                    mask = torch.full((T, T), -torch.inf, dtype=x.dtype).triu(1 + n)
            scores = scores + mask
        a = self.product(scores.softmax(-1), v[order][:, seen])
        both = f.get("decoder_heads") == "both"
        a = a.permute(1, 2, 0).flatten(1) if both else a.transpose(0, 1).flatten(1)
        x = x + self.linear(a, f"{name}.self_attn.o_proj")
        h = self.rms(x, f"{name}.post_attention_layernorm")
        gate, up = self.linear(h, f"{name}.mlp.gate_proj"), self.linear(h, f"{name}.mlp.up_proj")
        if f.get("gate_up"):
            gate, up = up, gate
        product = activation(gate, f.get("swiglu", "silu")) * up
        if f.get("half") == "product":
            product = product.half().to(x.dtype)
        return x + self.linear(product, f"{name}.mlp.down_proj"), k, v

    def rope(self, x: Tensor, positions: Tensor) -> Tensor:
        kind, d = self.f.get("rope"), x.shape[-1]
        theta = self.f.get("theta", self.config.get("rope_theta", 10000.0))
        inverse = 1.0 / (theta ** (torch.arange(0, d, 2).float() / d))
        angles = torch.outer(positions.float(), inverse)
        cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
        if kind == "none":
            return x
        if kind == "backwards":
            sin = -sin
        if kind == "interleaved":
            a, b = x[..., 0::2], x[..., 1::2]
            return torch.stack([a * cos - b * sin, b * cos + a * sin], -1).flatten(-2)
        if kind == "gguf":  # rows in llama.cpp's order, but turned as halves
            x = torch.stack(x.chunk(2, -1), -1).flatten(-2)
        a, b = x.chunk(2, -1)
        return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


def scale_of(how: Any, d: int) -> float:
    match how:
        case None:
            return d**-0.5
        case "none":
            return 1.0
        case "d":
            return 1 / d
    return how * d**-0.5


def activation(x: Tensor, name: Any) -> Tensor:
    match name:
        case float(slope):
            return x * torch.sigmoid(slope * x)
        case ("lines", n, reach):
            knots = torch.linspace(-reach, reach, n)
            values = F.gelu(knots) if reach == 4 else knots * torch.sigmoid(1.702 * knots)
            i = (torch.bucketize(x, knots) - 1).clamp(0, n - 2)
            slope = (values[i + 1] - values[i]) / (knots[i + 1] - knots[i])
            inside = values[i] + slope * (x - knots[i])
            return torch.where(x < -reach, torch.zeros_like(x), torch.where(x > reach, x, inside))
        case ("nearest", n, reach):
            step = 2 * reach / (n - 1)
            inside = F.gelu(((x + reach) / step).round() * step - reach)
            return torch.where(x < -reach, torch.zeros_like(x), torch.where(x > reach, x, inside))
        case "hard":
            return x * F.relu6(1.702 * x + 3) / 6
        case "half":
            return F.gelu(x.half().float()).half().to(x.dtype)
        case "half quick":
            h = x.half().float()
            return (h * torch.sigmoid(1.702 * h)).half().to(x.dtype)
        case "erf of three terms" | "erf of five terms" | "fourth power" | "parabola":
            u = x.abs() / math.sqrt(2)
            if name == "fourth power":
                below = 1 + 0.278393 * u + 0.230389 * u**2 + 0.000972 * u**3 + 0.078108 * u**4
                erf = 1 - below**-4
            elif name == "parabola":
                erf = 1 - 0.2888 * (u.clamp(max=1.769) - 1.769) ** 2
            elif name == "erf of three terms":
                t = 1 / (1 + 0.47047 * u)
                erf = 1 - (0.3480242 * t - 0.0958798 * t**2 + 0.7478556 * t**3) * torch.exp(-(u**2))
            else:
                t = 1 / (1 + 0.3275911 * u)
                a = (0.254829592, -0.284496736, 1.421413741, -1.453152027, 1.061405429)
                erf = 1 - sum(c * t ** (i + 1) for i, c in enumerate(a)) * torch.exp(-(u**2))
            return x * (1 + torch.copysign(erf, x)) / 2
        case "quick":
            return x * torch.sigmoid(1.702 * x)
        case "tanh":
            return F.gelu(x, approximate="tanh")
    return getattr(F, name)(x)


def resize(array: np.ndarray, w: int, h: int, kind: str | None) -> np.ndarray:
    if kind is None or not kind.startswith("torch"):
        way = getattr(Image.Resampling, (kind or "bicubic").upper())
        return np.asarray(Image.fromarray(np.ascontiguousarray(array)).resize((w, h), way))
    x = torch.tensor(array.transpose(2, 0, 1).copy())[None].float()
    mode = "bilinear" if kind.startswith("torch-bilinear") else "bicubic"
    antialias = kind.startswith("torch-antialias")
    y = F.interpolate(x, (h, w), mode=mode, align_corners=kind.endswith("ends"), antialias=antialias)
    y = y.clamp(0, 255) if kind == "torch-antialias" else y.round().clamp(0, 255)
    return y[0].numpy().transpose(1, 2, 0)


@cache
def tokenizer(folder: Path) -> Any:
    return sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
