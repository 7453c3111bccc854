"""A small whole model folder, and what it takes to put something else in the place of its files.

A hostile folder is described by a `Case`: changes of the good folder, and a pattern that the error must
match. Changes are path -> what stands there instead: bytes, None for nothing, or a function that puts
something at the path.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from mvlm_np.binder import VISION_TOWER

# What readers import only when a file asks for it: the test that watches them allows no import.
from mvlm_np.checkpoints import gguf_model, pickles, tokenizer_json  # noqa: F401
from mvlm_np.checkpoints.config_files import model_config, vision_config
from mvlm_np.checkpoints.opening import open_checkpoint
from mvlm_np.config import ImageConfig
from mvlm_np.inputs import byte_pairs  # noqa: F401
from mvlm_np.loading import bound_tensors, manifest, open_tokenizer
from tests.conftest import DATA

Content = bytes | None | Callable[[Path], object]
Changes = dict[str, Content]
Case = tuple[Changes, str]


def open_all(path: Path) -> None:
    """Everything that loading does before it reads weights, and the tokenizer."""
    checkpoint = open_checkpoint(path)
    bound_tensors(checkpoint)
    open_tokenizer(checkpoint)


# -- A good folder ------------------------------------------------------------------------------------

CONFIG: dict[str, Any] = {
    "model_type": "mobilevlm",
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 640,
    "mm_projector_type": "linear",
    "mm_vision_tower": "clip",
    "mm_hidden_size": 6,
    "image_aspect_ratio": "pad",
}
CLIP: dict[str, Any] = {
    "model_type": "clip_vision_model",
    "hidden_size": 6,
    "intermediate_size": 10,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
PREPROCESSOR: dict[str, Any] = {"size": 28, "crop_size": 28}


def as_json(values: object) -> bytes:
    return json.dumps(values).encode()


def good_folder() -> dict[str, bytes]:
    """A whole model whose tower lies in clip/: path -> content."""
    vision = vision_config(CLIP, "clip")
    config = model_config(CONFIG, "config", vision, ImageConfig(28, (28, 28)))
    arrays = {name: np.ones(shape, np.float16) for name, shape in manifest(config).shapes.items()}
    tower = {
        name.removeprefix(VISION_TOWER): array
        for name, array in arrays.items()
        if name.startswith(VISION_TOWER)
    }
    return {
        "config.json": as_json(CONFIG),
        "generation_config.json": as_json({"eos_token_id": 2}),
        "model.safetensors": save(
            {name: array for name, array in arrays.items() if not name.startswith(VISION_TOWER)}
        ),
        "clip/config.json": as_json(CLIP),
        "clip/preprocessor_config.json": as_json(PREPROCESSOR),
        "clip/model.safetensors": save(tower),
        "tokenizer.model": (DATA / "tokenizer" / "tokenizer.model").read_bytes(),
        "tokenizer_config.json": as_json({"legacy": True, "tokenizer_class": "LlamaTokenizer"}),
    }


GOOD = good_folder()


def write(folder: Path, changes: Changes) -> Path:
    """The good folder with these changes."""
    everything: dict[str, Content] = {**GOOD, **changes}
    for name, content in everything.items():
        path = folder / name
        if content is None:
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            content(path)
    return folder


def link(target: str) -> Content:
    return lambda path: path.symlink_to(target)


def sparse(size: int) -> Content:
    def put(path: Path) -> None:
        path.write_bytes(b"{")
        os.truncate(path, size)

    return put
