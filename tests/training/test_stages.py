"""The published recipes: what trains, how fast, in which groups."""

import json
from dataclasses import replace
from typing import Any

import pytest

from mvlm_np.config import FAMILY
from mvlm_np.errors import UserError
from tests.conftest import DATA
from tools.training.adapter import TARGETS, add_adapter
from tools.training.network import Trainee, load
from tools.training.stages import STAGES, parameter_groups, stage_for

GROUPS = json.loads((DATA / "training" / "groups.json").read_text())["settings"]
NAMES = {"v2.pretrain": "v2-pretrain", "v2.finetune": "v2-finetune", "v2.finetune.lora": "v2-lora",
         "v1.pretrain": "v1-pretrain"}  # fmt: skip


@pytest.fixture
def trainee() -> Trainee:
    """A model with as many layers as the one that the published groups are of."""
    trainee = load(DATA / "golden" / "ldpv2")
    trainee.as_published = True
    return trainee


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.filterwarnings("ignore:::peft")
def test_groups_are_the_published_ones(trainee: Trainee, name: str) -> None:
    published, stage = GROUPS[name], STAGES[NAMES[name]]
    if stage.trains == "lora":
        add_adapter(trainee, stage)
    groups = parameter_groups(trainee, stage)
    names = {id(parameter): name for name, parameter in trainee.named()}
    listed = [{**group, "params": [names[id(p)] for p in group["params"]]} for group in groups]
    wanted = [{key: value for key, value in group.items() if key != "count"} for group in published["groups"]]
    assert listed == [{**group, "betas": tuple(group["betas"])} for group in wanted]
    learning = [name for name, parameter in trainee.named() if parameter.requires_grad]
    assert learning == published["gets_gradient"]
    kept_out = set(published["requires_grad_but_in_no_group"]) | set(published["frozen"])
    assert set(names.values()) - kept_out == {name for group in listed for name in group["params"]}


def test_an_adapter_is_the_published_one() -> None:
    published, stage = GROUPS["v2.finetune.lora"], STAGES["v2-lora"]
    assert sorted(TARGETS) == published["lora_target_names"]
    settings: dict[str, Any] = published["lora_config"]
    assert (stage.rank, stage.alpha, stage.dropout) == (
        settings["r"], settings["lora_alpha"], settings["lora_dropout"]
    )  # fmt: skip
    trainee = load(DATA / "golden" / "ldpv2")
    add_adapter(trainee, stage)
    parts = dict(trainee.decoder.named_modules())
    assert [name for name, part in parts.items() if hasattr(part, "lora_A")] == [
        name for name in published["wrapped_after_vision_init"]
    ]
    found = trainee.decoder.peft_config["default"]
    assert (found.r, found.lora_alpha, found.lora_dropout) == (128, 256, 0.05)
    assert {key: str(getattr(found, key)).rpartition(".")[2] for key in ("bias", "task_type")} == {
        key: settings[key] for key in ("bias", "task_type")
    }


def test_numbers_are_the_published_ones() -> None:
    """Rate, projector's rate, samples a step; for all: on 8 GPUs, one pass, no decay, nothing clipped."""
    table = {
        "v1-pretrain": ("projector", 1e-3, None, 256), "v2-pretrain": ("all", 2e-5, 1e-3, 256),
        "v1-finetune": ("all", 2e-5, None, 128), "v1-finetune-3b": ("all", 4e-5, None, 128),
        "v1-lora": ("lora", 1e-4, None, 128), "v1-lora-3b": ("lora", 2e-4, None, 128),
        "v2-finetune": ("all", 4e-5, None, 128), "v2-lora": ("lora", 2e-4, None, 128),
    }  # fmt: skip
    assert {s.name: (s.trains, s.rate, s.projector_rate, s.batch) for s in STAGES.values()} == table
    for name, stage in STAGES.items():
        captions = name.endswith("pretrain")
        assert (stage.version, stage.aspect) == (("plain", "square") if captions else ("v1", "pad"))
        assert stage.grouped != captions
        assert stage.micro == stage.batch // 8
        assert (stage.epochs, stage.warmup, stage.decay, stage.clip, stage.limit) == (1, 0.03, 0, None, 2048)
        assert (stage.betas, stage.epsilon, stage.seed) == ((0.9, 0.999), 1e-8, 42)


def test_a_model_finds_its_recipe() -> None:
    kinds = ("pretrain", "finetune", "lora")
    found = {name: [stage_for(kind, config).name for kind in kinds] for name, config in FAMILY.items()}
    v2 = ["v2-pretrain", "v2-finetune", "v2-lora"]
    assert found == {
        "MobileVLM-1.7B": ["v1-pretrain", "v1-finetune", "v1-lora"],
        "MobileVLM-3B": ["v1-pretrain", "v1-finetune-3b", "v1-lora-3b"],
        "MobileVLM_V2-1.7B": v2, "MobileVLM_V2-3B": v2, "MobileVLM_V2-7B": v2,
    }  # fmt: skip


def test_by_default_what_is_frozen_is_in_no_group(trainee: Trainee) -> None:
    trainee.as_published = False
    for stage in STAGES.values():
        groups = parameter_groups(trainee, replace(stage, trains="all"))
        listed = {id(parameter) for group in groups for parameter in group["params"]}
        assert listed == {id(parameter) for _, parameter in trainee.named() if parameter.requires_grad}
        assert not any(parameter.requires_grad for parameter in trainee.tower.parameters())


@pytest.mark.parametrize("name", STAGES)
def test_a_projector_with_a_rate_of_nought_is_frozen(trainee: Trainee, name: str) -> None:
    """So it has no part in the gradients' norm; where nothing else is trained, that is refused."""
    stage = replace(STAGES[name], projector_rate=0.0)
    if stage.trains == "projector":
        with pytest.raises(UserError, match=r"^--projector-rate: 0, wanted more, as nothing else is trained"):
            parameter_groups(trainee, stage)
        return
    if stage.trains == "lora":
        add_adapter(trainee, stage)
    groups = parameter_groups(trainee, stage)
    learning = [name for name, parameter in trainee.named() if parameter.requires_grad]
    assert learning and not any("mm_projector" in name for name in learning)
    projector = {id(parameter) for parameter in trainee.projector.parameters()}
    assert not any(id(parameter) in projector for group in groups for parameter in group["params"])
