"""What the published code trains in each stage, how fast, and in which groups: its recipes by name.

Every number is a field of a `Stage`, so any recipe is another one with some numbers replaced
(`dataclasses.replace`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from mvlm_np.config import Config
from mvlm_np.errors import UserError
from tools.training.network import CLIP, Trainee


@dataclass(frozen=True)
class Stage:
    """A recipe.

    version         the wording of samples: "plain" (captions) or "v1" (conversations)
    aspect          how a picture becomes square: "square" (cropped) or "pad"
    trains          "projector"; "all": language model and projector; "lora": an adapter and the projector
    rate            the highest learning rate; `projector_rate`, if it is another
    batch           samples of a step, over all processes and accumulated parts
    micro           of those, samples that a GPU computes at once
    grouped         whether samples of about one length, with or without pictures, make a batch
    warmup          the share of all steps in which the rate rises; then it falls as half a cosine, to nought
    limit           ids of a sample, its picture counted as one
    """

    name: str
    version: Literal["plain", "v1"]
    aspect: Literal["square", "pad"]
    trains: Literal["projector", "all", "lora"]
    rate: float
    projector_rate: float | None = None
    batch: int = 128
    micro: int = 16
    epochs: float = 1.0
    grouped: bool = True
    warmup: float = 0.03
    decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = 1e-8
    clip: float | None = None  # of the gradients' norm; published: none
    limit: int = 2048
    seed: int = 42
    rank: int = 128
    alpha: float = 256
    dropout: float = 0.05


def _pretrain(name: str, **more: Any) -> Stage:
    return Stage(name, "plain", "square", batch=256, micro=32, grouped=False, **more)


STAGES: Mapping[str, Stage] = {
    stage.name: stage
    for stage in (
        _pretrain("v1-pretrain", trains="projector", rate=1e-3),
        Stage("v1-finetune", "v1", "pad", "all", 2e-5),
        Stage("v1-finetune-3b", "v1", "pad", "all", 4e-5),
        Stage("v1-lora", "v1", "pad", "lora", 1e-4),
        Stage("v1-lora-3b", "v1", "pad", "lora", 2e-4),
        _pretrain("v2-pretrain", trains="all", rate=2e-5, projector_rate=1e-3),
        Stage("v2-finetune", "v1", "pad", "all", 4e-5),
        Stage("v2-lora", "v1", "pad", "lora", 2e-4),
    )
}
KINDS = ("pretrain", "finetune", "lora")
WIDTH_OF_3B = 2560


def stage_for(kind: str, config: Config) -> Stage:
    """The published recipe of one of `KINDS` for a model of this generation and size."""
    if config.vision_in_checkpoint:
        return STAGES[f"v2-{kind}"]
    large = config.decoder.hidden_size >= WIDTH_OF_3B and kind != "pretrain"
    return STAGES[f"v1-{kind}{'-3b' * large}"]


def parameter_groups(trainee: Trainee, stage: Stage) -> list[dict[str, Any]]:
    """The optimizer's groups as published, for torch.optim.AdamW; also sets what requires a gradient.

    Weight decay is for what is no bias and not in a LayerNorm; so for the gains of RMSNorm, too. The tower is
    frozen. As published it is in the groups all the same, where it does nothing: without LoRA and if not
    only the projector is trained. A projector with a rate of 0 is frozen, too.

    UserError: then nothing is left to train.
    """
    for name, parameter in trainee.named():
        in_adapter, in_projector = "lora_" in name, "mm_projector" in name
        learns = {"projector": in_projector, "all": True, "lora": in_adapter or in_projector}[stage.trains]
        if in_projector and stage.projector_rate == 0:
            learns = False
        parameter.requires_grad_(learns and CLIP not in name)
    if not any(parameter.requires_grad for parameter in trainee.parameters()):
        raise UserError("--projector-rate", "0", "more, as nothing else is trained in this stage")
    listed = trainee.as_published and stage.trains == "all"
    undecayed = {id(p) for m in trainee.modules() if isinstance(m, nn.LayerNorm) for p in m.parameters()}
    apart = stage.projector_rate is not None
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for own in (False, True) if apart else (False,):
        for decayed in (True, False):
            groups[own, decayed] = []
    for name, parameter in trainee.named():
        if not parameter.requires_grad and not (listed and CLIP in name):
            continue
        if apart and CLIP in name and "layers" not in name:
            continue  # the published code leaves these out of all groups
        decayed = "bias" not in name and id(parameter) not in undecayed
        groups[apart and "mm_projector" in name, decayed].append(parameter)
    return [
        {
            "params": parameters,
            "lr": stage.projector_rate if own else stage.rate,
            "weight_decay": stage.decay if decayed else 0.0,
            "betas": stage.betas,
            "eps": stage.epsilon,
        }
        for (own, decayed), parameters in groups.items()
    ]
