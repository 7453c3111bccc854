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
import re
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
    quantised_by,
    refuse_quantised,
    vision_config,
)
from mvlm_np.checkpoints.hub import find_cached, looks_like_name
from mvlm_np.checkpoints.json_files import Fields, read_json, short
from mvlm_np.checkpoints.packed import PackedTensor
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


def _read_bin(path: Path) -> dict[str, Tensor]:
    from mvlm_np.checkpoints.pickles import read_pickle  # a converted model starts sooner without

    return read_pickle(path)


READERS = {".safetensors": read_safetensors, ".bin": _read_bin}
DOWNLOAD = "download the folder again"
CLIP_TYPES = ("clip", "clip_vision_model")
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
    if get.values.get("model_type") in CLIP_TYPES:
        raise CheckpointError(path, "is a vision tower", "the folder of a model")
    if not is_multimodal(get.values):
        if vision_tower is not None:
            raise CheckpointError(path, "reads text only", "no vision_tower", "leave vision_tower out")
        config = _with_end_token(path, Config(decoder_config(get.values, where)))
        tensors, notes = _plain_weights(path, get) if weights is None else (weights, [])
        return Checkpoint(path, config, tensors, partial(read_folder, path), notes)
    named = get.text("mm_vision_tower")
    tower = _tower_folder(path, named, vision_tower)
    aspect = get.text("image_aspect_ratio", "") or None
    config = model_config(get.values, where, *_tower_settings(tower, aspect))
    config = _with_end_token(path, config)
    tensors, notes = _plain_weights(path, get) if weights is None else (weights, [])
    if tower is None and named != OPENAI_CLIP:
        config = replace(config, mm_vision_tower=OPENAI_CLIP)
        notes.append(f"mm_vision_tower {short(named)} is taken for {OPENAI_CLIP}")
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
            "checkpoint's own copy of it is used (--vision-tower names another folder)"
        )
    else:
        raise CheckpointError(
            f"{where}: mm_vision_tower",
            f"{short(config.mm_vision_tower)} is not here, and the checkpoint holds no copy of it",
            "the folder of that CLIP model",
            "download it and name it with --vision-tower (vision_tower= in Python)",
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
    """The vision tower's folder; None for OPENAI_CLIP, whose settings are known, if it is nowhere here."""
    if given is not None:
        if not os.path.lexists(given / "config.json"):
            raise CheckpointError(
                given, "has no config.json", "the folder of a CLIP model", "mend vision_tower"
            )
        return given
    found = find_tower(path, tower)
    if found is None and is_openai_clip(tower):
        return find_tower(path, OPENAI_CLIP)
    if found is None:
        raise CheckpointError(
            f"{path / 'config.json'}: mm_vision_tower",
            f"there is no CLIP folder {short(tower)}",
            f"it inside {path}, or beside it",
            "name its place with --vision-tower (vision_tower= in Python)",
        )
    return found


def is_openai_clip(tower: str) -> bool:
    """Whether a name or a path means OPENAI_CLIP: its last part is called so, as the hub, its cache or people
    write that. Training leaves the path on its own machine in config.json."""
    parts = [part for part in re.split(r"[/\\]", tower) if part]
    if parts[-2:-1] == ["snapshots"]:
        parts = parts[:-2]
    name = OPENAI_CLIP.rpartition("/")[2]
    return (
        bool(parts) and re.fullmatch(rf"(models--)?(openai[_-]{{1,2}})?{name}", parts[-1], re.I) is not None
    )


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


def _plain_weights(path: Path, get: Fields) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors of a folder, and what is to be said of them; an error that names the tool if they are
    quantised by another one."""
    kind = quantised_by(get.values)
    if kind is None:
        return read_weights(path), []
    try:
        tensors = read_weights(path)
    except CheckpointError:  # of a type that only that tool knows
        refuse_quantised(kind, get.where)
    odd = ("int8", "uint8", "int16", "int32")
    if any(tensor.dtype in odd and not isinstance(tensor, PackedTensor) for tensor in tensors.values()):
        refuse_quantised(kind, get.where)
    return tensors, [f"config.json has a quantization_config ({show(kind)}), but the weights are plain"]


def has_weights(path: Path) -> bool:
    return any(os.path.lexists(path / name) for name in WEIGHTS)


def read_weights(path: Path) -> dict[str, Tensor]:
    """All tensors of a folder, unread, from one file or from shards."""
    for name in WEIGHTS:
        file = path / name
        if os.path.isdir(file) and has_weights(file):  # so DeepSpeed's zero_to_fp32.py leaves them
            return read_weights(file)
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
    # The index says which files belong to the model; what they hold counts, as it does for transformers. A
    # tensor that no file holds is missed by `binding.check`, if the model needs it.
    tensors: dict[str, Tensor] = {}
    for file in sorted(set(weight_map.values())):
        for name, tensor in READERS[suffix](index.parent / file).items():
            other = tensors.setdefault(name, tensor)
            if not _same(other, tensor):
                where = f"{index.parent / file}: {show(name)}"
                raise CheckpointError(
                    where, f"is in {other.file.path.name} with other values", "one", DOWNLOAD
                )
    return tensors


def _same(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors have the same values, which are read only if there are two."""
    if one is other or (one.dtype, one.shape) != (other.dtype, other.shape):
        return one is other
    return one.stored().tobytes() == other.stored().tobytes()
