"""What training leaves: a model folder for `mvlm ask`, or an adapter that `mvlm convert --lora` merges.

Both get their names when all is written; what stops before that leaves nothing under them.
"""

import re
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mvlm_np.checkpoints.checkpoint import Checkpoint
from mvlm_np.checkpoints.json_files import read_json
from mvlm_np.checkpoints.record import write_json
from mvlm_np.checkpoints.tensors import PLAIN
from mvlm_np.checkpoints.tensors import Tensor as Stored
from mvlm_np.config import Config
from mvlm_np.converting import convert, new_folder
from tools.training.network import Trainee
from tools.training.stages import Stage


@dataclass(eq=False, repr=False, kw_only=True)
class Trained(Stored):
    """A weight in memory, in place of the one in the file; turned into the file's type when it is asked for.

    raw  only tells shape and type
    """

    parameter: Tensor

    def stored(self) -> np.ndarray:
        values = self.parameter.detach().to("cpu", getattr(torch, self.dtype)).contiguous()
        return (values.view(torch.uint16) if self.dtype == "bfloat16" else values).numpy()

    def float32(self) -> np.ndarray:
        return self.rows(slice(None))


def save(
    trainee: Trainee,
    folder: Path,
    stage: Stage,
    told: Callable[[str], object] = lambda name: None,
) -> None:
    """Writes what has been trained to the new folder `folder`: an adapter if there is one, else the model.

    told  hears the name of each tensor as it is written

    UserError: the folder is there already, or cannot be written.
    """
    clear(folder)
    if trainee.decoder is not trainee.llama:
        save_adapter(trainee, folder, stage)
    else:
        convert(trained(trainee, stage), folder, None, told=lambda name, kind, snr: told(name))


def clear(folder: Path) -> None:
    """Removes what runs that were killed while they wrote `folder` have left; one at a time writes it."""
    for part in folder.parent.glob("*.part-*"):
        if re.fullmatch(rf"{re.escape(folder.name)}\.part-\d+", part.name):
            shutil.rmtree(part, ignore_errors=True)


def trained(trainee: Trainee, stage: Stage) -> Checkpoint:
    """The checkpoint with the weights that the model has now, each in the type that it had in the file.

    A new projector's weights get the type of the embeddings.
    """
    checkpoint, tensors = trainee.checkpoint, dict(trainee.checkpoint.tensors)
    like = tensors["model.embed_tokens.weight"]
    for name, parameter in trainee.named():
        if parameter.requires_grad:
            before, shape = tensors.get(name, like), tuple(parameter.shape)
            raw = np.broadcast_to(np.zeros((), PLAIN[before.dtype]), shape)
            tensors[name] = Trained(
                name, before.dtype, shape, before.file, before.offset, raw, parameter=parameter
            )
    image = replace(checkpoint.config.image, aspect_ratio=stage.aspect)
    return replace(checkpoint, config=replace(checkpoint.config, image=image), tensors=tensors)


def save_adapter(trainee: Trainee, folder: Path, stage: Stage) -> None:
    """Upstream's files, which its own tool and `mvlm convert --lora` merge, or PEFT its part of them."""
    whole = {
        name: parameter.detach().cpu().clone()
        for name, parameter in trainee.named()
        if parameter.requires_grad and "lora_" not in name
    }
    with new_folder(folder) as part:
        trainee.decoder.save_pretrained(part, safe_serialization=False)
        (part / "README.md").unlink(missing_ok=True)  # PEFT's model card, to be filled in
        torch.save(whole, part / "non_lora_trainables.bin")
        write_json(part / "config.json", settings(trainee.checkpoint, stage))


def settings(checkpoint: Checkpoint, stage: Stage) -> dict[str, Any]:
    """config.json after a stage, as upstream writes it."""
    values = dict(read_json(checkpoint.path / "config.json"))
    config: Config = checkpoint.config
    values |= {key: value for key, value in asdict(config).items() if key.startswith("mm_")}
    assert config.vision is not None
    return values | {
        "model_type": "mobilevlm",
        "architectures": ["MobileLlamaForCausalLM"],
        "mm_hidden_size": config.vision.hidden_size,
        "use_mm_proj": True,
        "vision_tower_type": "clip",
        "image_aspect_ratio": stage.aspect,
        "image_grid_pinpoints": None,
        "tune_mm_mlp_adapter": stage.trains == "projector",
        "freeze_mm_mlp_adapter": False,
        "mm_projector_lr": stage.projector_rate,
        "use_cache": True,
    }
