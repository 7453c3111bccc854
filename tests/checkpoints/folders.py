"""Small model folders in every form that there is, written by the tools that write the real ones."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import save_torch_state_dict
from safetensors.torch import save_file

from mvlm_np.binder import VISION_TOWER
from mvlm_np.checkpoints.config_files import decoder_config, is_multimodal, model_config, vision_config
from mvlm_np.config import Config, ImageConfig
from mvlm_np.loading import manifest
from tools.parts.family import files

State = dict[str, torch.Tensor]
Json = dict[str, Any]
TINY, CLIP = files("tiny")  # JSON files of a V2 model and of its tower


def exact(shape: tuple[int, ...], rng: np.random.Generator) -> torch.Tensor:
    """float32 values that bfloat16 and float16 hold exactly: multiples of 1/64 below 2."""
    return torch.from_numpy(rng.integers(-127, 128, shape).astype(np.float32) / 64)


def config(**changes: Any) -> Config:
    """The tiny model's settings; `changes` are those of its config.json."""
    values = TINY["config.json"] | changes
    if not is_multimodal(values):
        return Config(decoder_config(values, "config.json"))
    tower = vision_config(CLIP["config.json"], "clip/config.json")
    return model_config(values, "config.json", tower, ImageConfig(aspect_ratio="pad"))


def weights(seed: int = 0, **changes: Any) -> State:
    """The tensors of a tiny checkpoint under Hugging Face's names, CLIP included."""
    rng, settings = np.random.default_rng(seed), config(**changes)
    return {name: exact(shape, rng) for name, shape in manifest(settings).shapes.items()}


def tower_weights(seed: int = 1) -> State:
    """The tensors of a CLIP folder."""
    return {k.removeprefix(VISION_TOWER): v for k, v in weights(seed).items() if k.startswith(VISION_TOWER)}


Save = Callable[[State, Path], None]


def save_safetensors(state: State, folder: Path) -> None:
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def save_safetensors_shards(state: State, folder: Path) -> None:
    save_torch_state_dict(state, folder, max_shard_size="100KB")


def save_pickle(state: State, folder: Path) -> None:
    torch.save(state, folder / "pytorch_model.bin")


def save_pickle_shards(state: State, folder: Path) -> None:
    pattern = "pytorch_model{suffix}.bin"
    save_torch_state_dict(
        state, folder, max_shard_size="100KB", filename_pattern=pattern, safe_serialization=False
    )


FORMS: dict[str, Save] = {
    "model.safetensors": save_safetensors,
    "model.safetensors.index.json": save_safetensors_shards,
    "pytorch_model.bin": save_pickle,
    "pytorch_model.bin.index.json": save_pickle_shards,
}


def write_json(folder: Path, named: Mapping[str, Json]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, values in named.items():
        (folder / name).write_text(json.dumps(values, indent=2), encoding="utf-8")


def write_model(
    folder: Path,
    state: State | None = None,
    save: Save = save_safetensors,
    **changes: Any,
) -> Path:
    """A model folder without its tower; `changes` are those of config.json."""
    write_json(folder, TINY | {"config.json": TINY["config.json"] | changes})
    save(weights(**changes) if state is None else state, folder)
    return folder


def write_tower(
    folder: Path,
    state: State | None = None,
    save: Save = save_safetensors,
    **changes: Any,
) -> Path:
    """A CLIP folder, in the hub's style; `changes` are those of its vision_config."""
    vision = CLIP["config.json"]["vision_config"] | changes
    write_json(folder, CLIP | {"config.json": CLIP["config.json"] | {"vision_config": vision}})
    save(tower_weights() if state is None else state, folder)
    return folder
