"""Weights in a model's files that the model does not use but a port may."""

from contextlib import suppress
from typing import Any

from mvlm_np import vision
from mvlm_np.checkpoints.binding import Loader, Manifest
from mvlm_np.checkpoints.folder import Checkpoint, find_tower, has_weights, read_weights, tower_weights
from mvlm_np.checkpoints.names import VISION, hugging_face
from mvlm_np.errors import UserError
from mvlm_np.linear import Norm
from mvlm_np.vision import VisionWeights


def spare_weights(checkpoint: Checkpoint) -> dict[str, Any]:
    """Weights in a model's files that the model does not use but a port may: `Scene.spare`."""
    config = checkpoint.config
    if config.vision is None:
        return {}
    norm = [checkpoint.tensors.get(f"{VISION}vision_model.post_layernorm.{p}") for p in ("weight", "bias")]
    found: dict[str, Any] = {}
    if norm[0] is not None and norm[1] is not None:
        found["post_layernorm"] = Norm(norm[0].float32(), norm[1].float32())
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
    wanted, spelling = Manifest(), hugging_face(config.mm_projector_type)
    vision.bind(config.vision, wanted.at("vision"))
    theirs = {name: tensors[spelling(name)] for name in wanted.shapes if spelling(name) in tensors}
    if {name: tensor.shape for name, tensor in theirs.items()} != wanted.shapes:
        return None
    return vision.bind(config.vision, Loader(theirs, "float32").at("vision"))
