"""Reads a model folder as Hugging Face and upstream lay it out.

    config.json                                     the decoder, the projector, the vision tower's name
    model.safetensors | pytorch_model.bin           or shards with an `.index.json`
    tokenizer.model, tokenizer_config.json          see inputs/tokenizer.py
    and the vision tower's own folder               config.json, preprocessor_config.json, weights

Where the CLIP weights come from is upstream's rule, see `Config.vision_in_checkpoint`.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mvlm_np.checkpoints import names
from mvlm_np.checkpoints.gguf_tokenizer import GGUFTokenizer
from mvlm_np.checkpoints.hub import find_cached, looks_like_name
from mvlm_np.checkpoints.pickles import read_pickle
from mvlm_np.checkpoints.safetensors import read_safetensors
from mvlm_np.checkpoints.tensors import Tensor
from mvlm_np.config import (
    OPENAI_CLIP,
    Config,
    ImageConfig,
    VisionConfig,
    decoder_config,
    is_multimodal,
    model_config,
    vision_config,
)
from mvlm_np.errors import CheckpointError, ConfigError
from mvlm_np.inputs.preprocessor import image_config

MAX_JSON = 64 << 20  # bytes; the largest real index is under 1 MB
READERS = {".safetensors": read_safetensors, ".bin": read_pickle}


@dataclass(frozen=True)
class Checkpoint:
    """A model on disk, whatever its format: settings, unread tensors under Hugging Face's names, and remarks.

    path       a model folder or a GGUF file; a tokenizer.model lies in it or beside it, but for:
    tokenizer  that of a GGUF
    notes      what a user should be told, a line each
    """

    path: Path
    config: Config
    tensors: Mapping[str, Tensor]
    tokenizer: GGUFTokenizer | None = None
    notes: list[str] = field(default_factory=list)


def open_folder(path: Path, vision_tower: Path | None = None) -> Checkpoint:
    """Opens a model folder; `vision_tower` overrides where `mm_vision_tower` points."""
    where = path / "config.json"
    values = read_json(where)
    if not isinstance(values, dict):
        raise ConfigError(where, "is not a JSON object", fix="use the config.json of the checkpoint")
    tensors = read_weights(path)
    if not is_multimodal(values):
        return Checkpoint(path, Config(decoder_config(values, where)), tensors)
    tower = _tower_folder(path, str(values["mm_vision_tower"]), vision_tower)
    vision, image = _tower_settings(tower, values, where)
    config = model_config(values, where, vision, image)
    notes = []
    if not config.vision_in_checkpoint:
        if tower is not None and has_weights(tower):
            tensors = {k: v for k, v in tensors.items() if not k.startswith(names.VISION)} | {
                names.VISION + k: v for k, v in read_weights(tower).items() if k.startswith("vision_model.")
            }
        elif any(k.startswith(names.VISION) for k in tensors):
            notes.append(
                f"the published code would load {config.mm_vision_tower} anew; it is not here, "
                "so the checkpoint's own copy of it is used (vision_tower= names another folder)"
            )
        else:
            raise CheckpointError(
                f"{where}: mm_vision_tower",
                f"{config.mm_vision_tower} is not here, and the checkpoint holds no copy of it",
                "the folder of that CLIP model",
                "download it and pass it as vision_tower",
            )
    return Checkpoint(path, config, tensors, notes=notes)


def _tower_folder(path: Path, tower: str, given: Path | None) -> Path | None:
    """The vision tower's folder, or None for the openai tower when it is nowhere to be found."""
    if given is not None:
        if not (given / "config.json").is_file():
            raise CheckpointError(
                given, "has no config.json", "the folder of a CLIP model", "mend vision_tower"
            )
        return given
    candidates = [path / tower, path / Path(tower).name, path.parent / Path(tower).name]
    if looks_like_name(tower) and (cached := find_cached(tower)):
        candidates.append(cached)
    found = next((folder for folder in candidates if (folder / "config.json").is_file()), None)
    if found is None and tower != OPENAI_CLIP:
        raise CheckpointError(
            f"{path / 'config.json'}: mm_vision_tower",
            f"there is no CLIP folder {tower}",
            f"it inside {path}, or beside it",
            "pass its place as vision_tower",
        )
    return found


def _tower_settings(
    tower: Path | None, values: Mapping[str, Any], where: Path
) -> tuple[VisionConfig, ImageConfig]:
    aspect = values.get("image_aspect_ratio")
    if tower is None:
        return VisionConfig(), ImageConfig(aspect_ratio=aspect)
    vision = vision_config(read_json(tower / "config.json"), tower / "config.json")
    preprocessor = tower / "preprocessor_config.json"
    return vision, image_config(read_json(preprocessor), aspect, preprocessor)


def read_json(path: Path) -> Any:
    """The content of a JSON file, of bounded size."""
    try:
        if path.stat().st_size > MAX_JSON:
            raise ConfigError(path, f"has {path.stat().st_size} bytes", f"at most {MAX_JSON}")
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            path, f"cannot be read ({error.strerror})", fix="download the model folder again"
        ) from None
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise ConfigError(path, f"is not valid JSON ({reason[:80]})", fix="download it again") from None


def has_weights(path: Path) -> bool:
    return any((path / name).is_file() for name in _CANDIDATES)


# In order of preference: safetensors before pickles.
_CANDIDATES = (
    "model.safetensors.index.json",
    "model.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
)


def read_weights(path: Path) -> dict[str, Tensor]:
    """All tensors of a folder, unread, from one file or from shards."""
    for name in _CANDIDATES:
        if (path / name).is_file():
            return _read_shards(path / name) if name.endswith(".json") else read_file(path / name)
    raise CheckpointError(
        path, "holds no weights", f"one of {', '.join(_CANDIDATES)}", "download the model folder again"
    )


def read_file(path: Path) -> dict[str, Tensor]:
    """The tensors of one weight file, by its ending."""
    if not path.is_file():
        raise CheckpointError(path, "is not a file", "a weight file", "download the model folder again")
    return READERS[path.suffix](path)


def _read_shards(index: Path) -> dict[str, Tensor]:
    weight_map = read_json(index)
    weight_map = weight_map.get("weight_map") if isinstance(weight_map, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index}: weight_map", "is missing", "a JSON object of tensor names to files")
    tensors: dict[str, Tensor] = {}
    suffix = ".bin" if index.name.endswith(".bin.index.json") else ".safetensors"
    for shard in sorted(set(map(str, weight_map.values()))):
        if Path(shard).name != shard or not shard.endswith(suffix):
            raise CheckpointError(
                f"{index}: weight_map", f"names the file {shard[:80]!r}", f"a {suffix} file beside it"
            )
        for name, tensor in read_file(index.parent / shard).items():
            if weight_map.get(name) != shard:
                raise CheckpointError(
                    f"{index.parent / shard}: {name}", f"the index places it in {weight_map.get(name)}"
                )
            tensors[name] = tensor
    lost = [name for name in weight_map if name not in tensors]
    if lost:
        raise CheckpointError(index, f"{len(lost)} tensors are not in their shards, {lost[0]} for one")
    return tensors
