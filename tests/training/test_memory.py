"""What training needs is known before a weight is read."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mvlm_np.checkpoints.folder import open_folder
from mvlm_np.errors import MemoryNeeded
from tests.conftest import DATA
from tools.training.adapter import add_adapter
from tools.training.memory import Run, available, require
from tools.training.network import load
from tools.training.stages import STAGES, parameter_groups

OWN = [DATA / "golden" / name for name in ("ldpv2", "ldp", "mlp")]


@pytest.mark.filterwarnings("ignore:::peft")
@pytest.mark.parametrize("folder", OWN, ids=lambda path: path.name)
@pytest.mark.parametrize("name", ["v2-pretrain", "v2-finetune", "v2-lora", "v1-pretrain"])
def test_weights_are_counted_as_they_are(folder: Path, name: str) -> None:
    stage = replace(STAGES[name], rank=3)
    trainee, run = load(folder), Run(open_folder(folder), stage)
    if stage.trains == "lora":
        add_adapter(trainee, stage)
    groups = parameter_groups(trainee, stage)
    learning = sum(p.numel() for group in groups for p in group["params"])
    unread = sum(p.numel() for name, p in trainee.named() if "post_layernorm" in name)
    everything = sum(p.numel() for p in trainee.parameters()) - unread
    assert run.counts() == (learning, everything - learning)
    assert run.parts()["weights"] == 4 * everything
    assert run.parts()["gradients and the optimizer's two averages"] == 12 * learning


def test_too_little_memory_is_one_line_with_what_would_fit() -> None:
    checkpoint = open_folder(OWN[0])
    run = Run(checkpoint, STAGES["v2-finetune"], samples=64)
    assert require(run, run.bytes).startswith("needs ") and require(run, 1 << 50)
    for room, wanted in (
        (replace(run, samples=32).bytes, "with --micro-batch 32 it would take"),
        (replace(run, samples=1).bytes, "with --micro-batch 1 it would take"),
        (
            replace(run, samples=1, checkpointing=True).bytes,
            "with --micro-batch 1 --checkpointing it would take",
        ),
        (1000, "the least that it can do with is"),
    ):
        with pytest.raises(MemoryNeeded, match=wanted) as error:
            require(run, room)
        assert "\n" not in str(error.value) and str(checkpoint.path) in str(error.value)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_more_of_anything_needs_more(checkpointing: bool) -> None:
    run = Run(open_folder(OWN[0]), STAGES["v2-finetune"], checkpointing=checkpointing, ids=64)
    more = (replace(run, samples=2), replace(run, ids=128))
    assert all(other.activations() > run.activations() for other in more)
    assert replace(run, precision="bf16").bytes < run.bytes
    assert replace(run, checkpointing=True).activations() <= run.activations()


def test_nothing_is_read_to_know_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(*args: object) -> torch.Tensor:
        raise AssertionError("a weight was read")

    monkeypatch.setattr("tools.training.network.to_torch", read)
    monkeypatch.setattr("mvlm_np.checkpoints.tensors.Tensor.stored", read)
    assert Run(open_folder(OWN[0]), STAGES["v2-lora"]).bytes > 0


def test_processes_share_the_memory_of_their_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("mvlm_np.memory.available", lambda: 12_000)
    assert available() == 12_000
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert available() == 3_000
    monkeypatch.setattr("mvlm_np.memory.available", lambda: None)
    assert available() is None
