"""A small base model, a LoRA adapter that fits it, and adapters that must be refused."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from mvlm_np.checkpoints.checkpoint import Checkpoint
from mvlm_np.checkpoints.folder import open_folder
from mvlm_np.checkpoints.lora import merged
from tests.conftest import DATA

BASE = DATA / "golden" / "ldpv2"  # D 16, 2 layers, intermediate size 24
LAYER = "base_model.model.model.layers.0."
PROJECTOR = "model.mm_projector.mlp.mlp.0.weight"


@dataclass
class Adapter:
    """What lies in an adapter's folder; a text in place of tensors or settings is written as it is."""

    settings: Any
    tensors: Any
    whole: Any = None
    config: Any = None

    def write(self, folder: Path) -> Path:
        folder.mkdir(parents=True)
        for name, content in (("adapter_config.json", self.settings), ("config.json", self.config)):
            if content is not None:
                text = content if isinstance(content, str) else json.dumps(content)
                (folder / name).write_text(text)
        for stem, content in (("adapter_model", self.tensors), ("non_lora_trainables", self.whole)):
            if isinstance(content, str):
                (folder / f"{stem}.safetensors").write_text(content)
            elif content is not None:
                save_file(content, folder / f"{stem}.safetensors")
        return folder


def sound() -> Adapter:
    """Rank 2 on q and down of both layers, and a projector's matrix trained whole."""
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, np.float32)

    tensors = {}
    for layer in (0, 1):
        for module, K in (("self_attn.q_proj", 16), ("mlp.down_proj", 24)):
            name = f"base_model.model.model.layers.{layer}.{module}"
            tensors[f"{name}.lora_A.weight"], tensors[f"{name}.lora_B.weight"] = normal(2, K), normal(16, 2)
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 3, "target_modules": ["q_proj", "down_proj"]}
    return Adapter(settings, tensors, {f"base_model.model.{PROJECTOR}": normal(16, 12)})


def merge(folder: Path) -> Checkpoint:
    """Merges the adapter onto the base and computes every weight."""
    model = merged(open_folder(BASE), folder)
    for tensor in model.tensors.values():
        tensor.float32()
    return model


# -- What must be refused -----------------------------------------------------------------------------

Change = Callable[[Adapter], object]
Q = LAYER + "self_attn.q_proj"


def _settings(**values: Any) -> Change:
    return lambda adapter: adapter.settings.update(values)


def _A(values: np.ndarray) -> Change:
    """Another lora_A of layer 0's q_proj."""
    return lambda adapter: adapter.tensors.update({f"{Q}.lora_A.weight": values})


def _B(values: np.ndarray) -> Change:
    return lambda adapter: adapter.tensors.update({f"{Q}.lora_B.weight": values})


def zeros(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.float32)


def _named(name: str, *shape: int) -> Change:
    return lambda adapter: adapter.tensors.update({name: zeros(*shape)})


def _pair(module: str) -> Change:
    """Factors for a module of width 16."""
    name = f"base_model.model.{module}"
    return _all(_named(f"{name}.lora_A.weight", 2, 16), _named(f"{name}.lora_B.weight", 16, 2))


def _all(*changes: Change) -> Change:
    return lambda adapter: [change(adapter) for change in changes]


def _filled(value: float) -> np.ndarray:
    return np.full((2, 16), value, np.float32)


_BACKTRACKING = "(([a-z_]+)+\\.)+!"  # takes for ever where it is evaluated

# What is done to a sound adapter, and what the error says, the file and the item in it included.
HOSTILE: dict[str, tuple[Change, str]] = {
    "another method": (
        _settings(peft_type="LOHA"),
        "adapter_config.json: peft_type: found 'LOHA', wanted LORA",
    ),
    "no method": (lambda a: a.settings.pop("peft_type"), "peft_type: is missing"),
    "a method that is a list": (_settings(peft_type=["LORA"]), r"peft_type: found \['LORA'\]"),
    "DoRA": (_settings(use_dora=True), "use_dora: found True, wanted plain LoRA; merge it with PEFT"),
    "a bias of its own": (_settings(lora_bias=True), "lora_bias: found True"),
    "repeated layers": (_settings(layer_replication=[[0, 2], [1, 2]]), "layer_replication"),
    "PiSSA": (
        _settings(init_lora_weights="pissa_niter_4"),
        "init_lora_weights: found 'pissa_niter_4'.*initial_model",
    ),
    "an unknown initialisation": (_settings(init_lora_weights={"a": 1}), "init_lora_weights: found {'a': 1}"),
    "alpha NaN": (_settings(lora_alpha=float("nan")), "lora_alpha: found nan, wanted a number"),
    "alpha infinite": (_settings(lora_alpha=float("inf")), "lora_alpha: found inf"),
    "alpha a text": (_settings(lora_alpha="16"), "lora_alpha: found '16'"),
    "no alpha": (lambda a: a.settings.pop("lora_alpha"), "lora_alpha: is missing"),
    "rank 0": (_settings(r=0), "r: found 0, wanted a whole number from 1"),
    "a rank of billions": (_settings(r=10**10), "r: found 10000000000"),
    "another rank than the matrices'": (_settings(r=4), r"has rank 2, wanted 4, as adapter_config\.json"),
    "a rank pattern that is no number": (
        _settings(rank_pattern={"q_proj": "9"}),
        "rank_pattern: q_proj: found '9'",
    ),
    "a rank pattern that is no object": (_settings(rank_pattern=[2]), r"rank_pattern: found \[2\]"),
    "an alpha pattern that backtracks": (
        _settings(alpha_pattern={_BACKTRACKING: 1}),
        "is a regular expression",
    ),
    "an alpha pattern NaN": (
        _settings(alpha_pattern={"q_proj": float("nan")}),
        "alpha_pattern: q_proj: found nan",
    ),
    "a root that is a number": (_settings(use_rslora=1), "use_rslora: found 1, wanted true or false"),
    "settings that are a list": (lambda a: setattr(a, "settings", [1]), r"found \[1\], wanted a JSON object"),
    "settings that are not JSON": (lambda a: setattr(a, "settings", "{'r': 2}"), "cannot be read as JSON"),
    "no settings": (
        lambda a: setattr(a, "settings", None),
        "is no LoRA adapter, wanted a folder with",
    ),
    "no tensors": (
        lambda a: setattr(a, "tensors", None),
        "holds no adapter, wanted adapter_model.safetensors or",
    ),
    "tensors that are none": (
        lambda a: setattr(a, "tensors", "<html>"),
        "adapter_model.safetensors: is a web page",
    ),
    "an empty adapter": (lambda a: a.tensors.clear(), "holds no matrices, wanted MODULE.lora_A.weight and"),
    "A too wide": (_A(zeros(2, 17)), r"lora_A.*\[2, 17\], wanted \[2, 16\]"),
    "A flat": (_A(zeros(32)), "has rank 32"),
    "A a scalar": (_A(zeros()), "has rank 0"),
    "B too long": (_B(zeros(99, 2)), r"lora_B.*\[99, 2\], wanted \[16, 2\]"),
    "B of another rank": (_B(zeros(16, 3)), r"\[16, 3\], wanted \[16, 2\]"),
    "A of integers": (_A(np.zeros((2, 16), np.int8)), "lora_A.*is of type int8"),
    "A without B": (lambda a: a.tensors.pop(f"{Q}.lora_B.weight"), "q_proj.lora_A.weight': is one of a pair"),
    "a pair of two kinds": (
        lambda a: a.tensors.update({f"{Q}.lora_embedding_B": a.tensors.pop(f"{Q}.lora_B.weight")}),
        "one of a pair",
    ),
    "three factors": (_named(Q + ".lora_embedding_A", 2, 16), "one of a pair"),
    "A with NaN": (_A(_filled(np.nan)), "lora_A.weight': holds NaN or infinity"),
    "B infinite": (_B(_filled(np.inf).T.copy()), "lora_B.weight': holds NaN or infinity"),
    "an unknown module": (
        _pair("lm_foot"),
        "changes 'lm_foot', wanted a matrix of the base; merge onto the base that",
    ),
    "a layer too many": (
        lambda a: a.tensors.update({k.replace("layers.1", "layers.2"): v for k, v in a.tensors.items()}),
        r"changes 'model\.layers\.2\.",
    ),
    "a norm": (
        _pair("model.layers.0.input_layernorm"),
        "changes 'model.layers.0.input_layernorm'",
    ),
    "a name that climbs": (
        _named("base_model.model.../../../etc/passwd", 2),
        "has no counterpart in the base",
    ),
    "a name with control characters": (_named("base_model.model.\x1b[2J", 2), r"'base_model\.model\.\\x1b"),
    "no prefix": (_named("model.norm.weight", 16), "'model.norm.weight': is of no known kind"),
    "DoRA's magnitudes": (
        _named(Q + ".lora_magnitude_vector", 16),
        "lora_magnitude_vector': is of no known kind",
    ),
    "an adapter within an adapter": (_named(Q + ".lora_A.default.weight", 2, 16), "is of no known kind"),
    "a module lost": (
        lambda a: [a.tensors.pop(k) for k in list(a.tensors) if "layers.1.mlp" in k],
        "target_modules: lists 1 modules that have no matrices, model.layers.1.mlp.down_proj",
    ),
    "a vocabulary that has grown on one side": (
        _named("base_model.model.lm_head.weight", 80, 16),
        r"lm_head.*has 80 rows, wanted 72, or the other table as well",
    ),
    "a vocabulary that has grown twice": (
        _all(
            _named("base_model.model.lm_head.weight", 80, 16),
            _named("base_model.model.model.embed_tokens.weight", 81, 16),
        ),
        r"lm_head.*is \[80, 16\], wanted \[81, 16\]",
    ),
    "a vocabulary without rows": (_named("base_model.model.lm_head.weight"), "has 0 rows"),
    "a vocabulary of another width": (
        _all(
            _named("base_model.model.lm_head.weight", 80, 17),
            _named("base_model.model.model.embed_tokens.weight", 80, 16),
        ),
        r"lm_head.*is \[80, 17\], wanted \[80, 16\]",
    ),
    "trained whole, of another shape": (
        lambda a: a.whole.update({f"base_model.model.{PROJECTOR}": zeros(2, 2)}),
        r"\[2, 2\], wanted \[16, 12\]",
    ),
    "trained whole, of integers": (
        lambda a: a.whole.update({f"base_model.model.{PROJECTOR}": np.zeros((16, 12), np.int64)}),
        "is of type int64",
    ),
    "trained whole, unknown": (
        lambda a: a.whole.update({"model.mm_lens": _filled(0)}),
        "mm_lens': has no counterpart",
    ),
    "settings of another projector": (
        lambda a: setattr(a, "config", {**_config(), "mm_projector_type": "ldpnet"}),
        "config.json: mm_projector_type: found ldpnet, wanted the base's ldpnetv2",
    ),
    "settings of another layer": (
        lambda a: setattr(a, "config", {**_config(), "mm_vision_select_layer": -1}),
        "mm_vision_select_layer: found -1",
    ),
    "settings without sizes": (
        lambda a: setattr(a, "config", {"mm_vision_tower": "clip"}),
        "config.json: hidden_size",
    ),
}


def _config() -> dict[str, Any]:
    return json.loads((BASE / "config.json").read_text())
