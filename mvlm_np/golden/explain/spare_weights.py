"""Weights in a model's files that the model does not use but a port may."""

from contextlib import suppress
from typing import Any

from mvlm_np import vision
from mvlm_np.binder import VISION_TOWER, Manifest
from mvlm_np.checkpoints.checkpoint import Checkpoint
from mvlm_np.checkpoints.folder import find_tower, has_weights, read_weights, tower_weights
from mvlm_np.checkpoints.loader import Loader
from mvlm_np.errors import UserError
from mvlm_np.vision import VisionWeights


def spare_weights(checkpoint: Checkpoint) -> dict[str, Any]:
    """Weights in a model's files that the model does not use but a port may: `Scene.spare`."""
    config = checkpoint.config
    if config.vision is None:
        return {}
    found: dict[str, Any] = {}
    with suppress(KeyError):
        get = Loader(checkpoint.tensors).at(f"{VISION_TOWER}vision_model")
        found["post_layernorm"] = get.norm("post_layernorm", config.vision.hidden_size)
    with suppress(UserError):
        if (tower := _other_tower(checkpoint)) is not None:
            found["other_tower"] = tower
    return found


def _other_tower(checkpoint: Checkpoint) -> VisionWeights | None:
    """The vision weights that upstream's rule passes over; None where there is only one set."""
    config, path = checkpoint.config, checkpoint.path
    if config.vision is None or not path.is_dir():
        return None
    if config.vision_in_checkpoint:
        folder = find_tower(path, config.mm_vision_tower)
        if folder is None or not has_weights(folder):
            return None
        tensors = tower_weights(folder)
    else:
        tensors = read_weights(path)
    wanted = Manifest()
    vision.bind(config.vision, wanted)
    if any(name not in tensors or tensors[name].shape != shape for name, shape in wanted.shapes.items()):
        return None
    return vision.bind(config.vision, Loader(tensors, "float32"))
