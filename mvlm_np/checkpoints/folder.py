"""Reads a model folder as Hugging Face and upstream lay it out.

    config.json                                     the decoder, the projector, the vision tower's name
    generation_config.json                          the end of an answer, if it says so
    model.safetensors | pytorch_model.bin           or shards with an `.index.json`
    tokenizer.model, tokenizer_config.json          see tokenizer_files.py
    and the vision tower's own folder               config.json, preprocessor_config.json, weights

Where the CLIP weights come from is upstream's rule, see `Config.vision_in_checkpoint`. Shards must lie
beside their index. The vision tower may lie anywhere, as `mm_vision_tower` says: of the folder that it
names, only the files above are opened, and only if its config.json is a CLIP model's.
"""

import os
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

from mvlm_np.binder import VISION_TOWER
from mvlm_np.checkpoints.checkpoint import Checkpoint
from mvlm_np.checkpoints.config_files import (
    decoder_config,
    end_tokens,
    image_config,
    is_multimodal,
    model_config,
    vision_config,
)
from mvlm_np.checkpoints.hub import find_cached, looks_like_name
from mvlm_np.checkpoints.json_files import Fields, read_json, short
from mvlm_np.checkpoints.pickles import read_pickle
from mvlm_np.checkpoints.safetensors import read_safetensors
from mvlm_np.checkpoints.sniff import show
from mvlm_np.checkpoints.tensors import Tensor
from mvlm_np.checkpoints.tokenizer_files import read_folder
from mvlm_np.config import OPENAI_CLIP, Config, ImageConfig, VisionConfig
from mvlm_np.errors import CheckpointError

# In the order in which transformers looks for them.
WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
READERS = {".safetensors": read_safetensors, ".bin": read_pickle}
DOWNLOAD = "download the folder again"
CLIP_PREFIX = "vision_model."


def open_folder(
    path: Path, vision_tower: Path | None = None, weights: Mapping[str, Tensor] | None = None
) -> Checkpoint:
    """Opens a model folder; `vision_tower` overrides where `mm_vision_tower` points.

    weights  stand in for those of the folder, which then needs none
    ConfigError: a JSON file is missing, broken, or describes a model that this engine does not compute.
    CheckpointError: weights or the vision tower are missing, damaged or contradict their index.
    """
    where = path / "config.json"
    get = Fields(read_json(where), where)
    if not is_multimodal(get.values):
        if vision_tower is not None:
            raise CheckpointError(path, "reads text only", "no vision_tower", "leave vision_tower out")
        config = _with_end_token(path, Config(decoder_config(get.values, where)))
        return Checkpoint(path, config, weights or read_weights(path), partial(read_folder, path))
    tower = _tower_folder(path, get.text("mm_vision_tower"), vision_tower)
    aspect = get.text("image_aspect_ratio", "") or None
    config = model_config(get.values, where, *_tower_settings(tower, aspect))
    config, tensors, notes = _with_end_token(path, config), dict(weights or read_weights(path)), []
    if config.vision_in_checkpoint:
        if vision_tower is not None:
            notes.append(
                f"{config.mm_projector_type} has its own vision weights; those in {tower} are not used"
            )
    elif tower is not None and (vision_tower is not None or has_weights(tower)):
        others = {name: tensor for name, tensor in tensors.items() if not name.startswith(VISION_TOWER)}
        tensors = others | tower_weights(tower)
    elif any(name.startswith(VISION_TOWER) for name in tensors):
        notes.append(
            f"the published code would load {short(config.mm_vision_tower)} anew; it is not here, so the "
            "checkpoint's own copy of it is used (vision_tower= names another folder)"
        )
    else:
        raise CheckpointError(
            f"{where}: mm_vision_tower",
            f"{short(config.mm_vision_tower)} is not here, and the checkpoint holds no copy of it",
            "the folder of that CLIP model",
            "download it and pass it as vision_tower",
        )
    return Checkpoint(path, config, tensors, partial(read_folder, path), notes)


def _with_end_token(path: Path, config: Config) -> Config:
    """`eos_token_id` of generation_config.json overrules that of config.json, as it does for transformers."""
    generation, decoder = path / "generation_config.json", config.decoder
    if not os.path.lexists(generation):
        return config
    get = Fields(read_json(generation), generation)
    end = end_tokens(get, decoder.eos_token_id, decoder.vocab_size)
    return replace(config, decoder=replace(decoder, eos_token_id=end))


# -- The vision tower ---------------------------------------------------------------------------------


def _tower_folder(path: Path, tower: str, given: Path | None) -> Path | None:
    """The vision tower's folder, or None for the openai tower when it is nowhere to be found."""
    if given is not None:
        if not os.path.lexists(given / "config.json"):
            raise CheckpointError(
                given, "has no config.json", "the folder of a CLIP model", "mend vision_tower"
            )
        return given
    found = find_tower(path, tower)
    if found is None and tower != OPENAI_CLIP:
        raise CheckpointError(
            f"{path / 'config.json'}: mm_vision_tower",
            f"there is no CLIP folder {short(tower)}",
            f"it inside {path}, or beside it",
            "pass its place as vision_tower",
        )
    return found


def find_tower(path: Path, tower: str) -> Path | None:
    """The folder of the tower that a model names: in the model's own, beside it, or in the hub's cache."""
    places = [path / tower, path / Path(tower).name, path.parent / Path(tower).name]
    if looks_like_name(tower) and (cached := find_cached(tower)):
        places.append(cached)
    return next((folder for folder in places if os.path.lexists(folder / "config.json")), None)


def _tower_settings(tower: Path | None, aspect: str | None) -> tuple[VisionConfig, ImageConfig]:
    if tower is None:
        return VisionConfig(), ImageConfig(aspect_ratio=aspect)
    config, preprocessor = tower / "config.json", tower / "preprocessor_config.json"
    vision = vision_config(read_json(config), config)
    return vision, image_config(read_json(preprocessor), aspect, preprocessor)


def tower_weights(tower: Path) -> dict[str, Tensor]:
    """A CLIP folder's vision tensors under the names that they have in a MobileVLM checkpoint."""
    tensors = read_weights(tower)
    if not any(name.startswith(CLIP_PREFIX) for name in tensors):
        # transformers 5 saves a vision tower alone without the prefix
        return {VISION_TOWER + CLIP_PREFIX + name: tensor for name, tensor in tensors.items()}
    return {VISION_TOWER + name: tensor for name, tensor in tensors.items() if name.startswith(CLIP_PREFIX)}


# -- Weights ------------------------------------------------------------------------------------------


def has_weights(path: Path) -> bool:
    return any(os.path.lexists(path / name) for name in WEIGHTS)


def read_weights(path: Path) -> dict[str, Tensor]:
    """All tensors of a folder, unread, from one file or from shards."""
    for name in WEIGHTS:
        file = path / name
        if os.path.lexists(file):
            return _read_shards(file) if file.suffix == ".json" else READERS[file.suffix](file)
    raise CheckpointError(path, "holds no weights", f"one of {', '.join(WEIGHTS)}", DOWNLOAD)


def _read_shards(index: Path) -> dict[str, Tensor]:
    values = read_json(index, CheckpointError)
    weight_map = values.get("weight_map") if isinstance(values, dict) else None
    where = f"{index}: weight_map"
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(where, f"found {short(weight_map)}", "an object of tensor names and files")
    suffix = ".bin" if index.name.endswith(".bin.index.json") else ".safetensors"
    for file in weight_map.values():
        plain = isinstance(file, str) and file == os.path.basename(file) and file.isprintable()
        if not plain or not file.endswith(suffix):
            raise CheckpointError(where, f"names the file {short(file)}", f"a {suffix} file beside it")
    tensors: dict[str, Tensor] = {}
    for file in sorted(set(weight_map.values())):
        for name, tensor in READERS[suffix](index.parent / file).items():
            if weight_map.get(name) != file:
                raise CheckpointError(
                    f"{index.parent / file}: {show(name)}",
                    "is not where the index says",
                    short(weight_map.get(name)),
                    DOWNLOAD,
                )
            tensors[name] = tensor
    lost = [name for name in weight_map if name not in tensors]
    if lost:
        found = f"places {len(lost)} tensors in files that do not hold them, {show(lost[0])} for one"
        raise CheckpointError(index, found, fix=DOWNLOAD)
    return tensors
