"""What training leaves is a model like any other, and computes what the trained one computes."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import mvlm_np
from mvlm_np.checkpoints.folder import open_folder
from mvlm_np.checkpoints.lora import merged
from mvlm_np.checkpoints.opening import open_checkpoint
from mvlm_np.converting import convert
from mvlm_np.errors import UserError
from tests.conftest import DATA
from tests.training.test_network import OWN, asked, language_model
from tools.training import saving
from tools.training.adapter import add_adapter
from tools.training.network import Trainee, load
from tools.training.saving import save
from tools.training.stages import STAGES, Stage, parameter_groups

pytestmark = pytest.mark.filterwarnings("ignore:::peft")
PICTURE = DATA / "golden" / "picture.png"
LORA = replace(STAGES["v2-lora"], rank=4, alpha=8, dropout=0.0, aspect="pad")
WHOLE = replace(STAGES["v2-finetune"], aspect="pad")


def trained(folder: Path, stage: Stage, data: Path | None = None, **options: Any) -> Trainee:
    """A model after three steps that change what it computes a good deal."""
    trainee, (batch, _) = load(folder, **options), asked(data or folder, "a red lamp", "b")
    if stage.trains == "lora":
        add_adapter(trainee, stage)
    optimizer = torch.optim.AdamW(parameter_groups(trainee, stage), lr=0.01)
    for group in optimizer.param_groups:
        group["lr"] = 0.01
    for _ in range(3):
        trainee(batch).backward()
        optimizer.step()
        optimizer.zero_grad()
    return trainee.eval()


def logits_of(folder: Path, ids: list[int]) -> np.ndarray:
    model = mvlm_np.load(folder, backend="numpy")
    x, _ = model.embed(ids, [model.encode_image(PICTURE)])
    session = model.session()
    session.cache.reserve(len(x))
    return session.weights.lm_head(session.forward(x))


@torch.no_grad()
def torch_logits(trainee: Trainee, data: Path) -> tuple[np.ndarray, list[int]]:
    batch, [ids] = asked(data, "a red lamp")
    x, _, mask = trainee.splice(batch)
    return trainee.llama(inputs_embeds=x, attention_mask=mask).logits[0].float().numpy(), ids


def round_as_stored(trainee: Trainee) -> None:
    """Rounds what was trained as it is rounded when it is written: to the type that it had in its file."""
    tensors = trainee.checkpoint.tensors
    like = tensors["model.embed_tokens.weight"]
    with torch.no_grad():
        for name, parameter in trainee.named():
            if parameter.requires_grad:
                kind = getattr(torch, tensors.get(name, like).dtype)
                parameter.copy_(parameter.to(kind).to(parameter.dtype))


def close(found: np.ndarray, wanted: np.ndarray, relative: float) -> bool:
    return bool(np.abs(found - wanted).max() <= relative * np.abs(wanted).max())


@pytest.fixture(params=["safetensors", "bin", "sharded"])
def layout(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A model folder whose weights lie in files of one kind or another."""
    folder = tmp_path / "base"
    shutil.copytree(OWN[0], folder)
    file = folder / "model.safetensors"
    tensors = load_file(file)
    if request.param == "bin":
        torch.save(tensors, folder / "pytorch_model.bin")
        file.unlink()
    if request.param == "sharded":
        halves = [dict(list(tensors.items())[part::2]) for part in (0, 1)]
        for i, half in enumerate(halves):
            save_file(half, folder / f"model-{i}.safetensors", {"format": "pt"})
        index = {name: f"model-{i}.safetensors" for i, half in enumerate(halves) for name in half}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
        file.unlink()
    return folder


def test_a_model_from_any_layout_computes_what_it_computed_in_training(layout: Path, tmp_path: Path) -> None:
    trainee = trained(layout, WHOLE)
    save(trainee, tmp_path / "out", WHOLE)
    round_as_stored(trainee)
    wanted, ids = torch_logits(trainee, OWN[0])
    found = logits_of(tmp_path / "out", ids)
    assert close(found, wanted, 1e-5)
    assert not close(logits_of(layout, ids), wanted, 0.01)
    base, new = mvlm_np.load(layout, backend="numpy"), mvlm_np.load(tmp_path / "out", backend="numpy")
    assert new.config == base.config
    for name in (
        "tokenizer.model",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "generation_config.json",
    ):
        assert (tmp_path / "out" / name).read_bytes() == (OWN[0] / name).read_bytes()


@pytest.mark.parametrize("folder", OWN, ids=lambda path: path.name)
@pytest.mark.parametrize("trains", ["projector", "all"])
def test_every_generation_is_saved_whole(folder: Path, trains: Any, tmp_path: Path) -> None:
    aspect = json.loads((folder / "config.json").read_text())["image_aspect_ratio"]
    stage = replace(WHOLE, trains=trains, aspect=aspect)
    trainee = trained(folder, stage)
    save(trainee, tmp_path / "out", stage)
    round_as_stored(trainee)
    wanted, ids = torch_logits(trainee, folder)
    assert close(logits_of(tmp_path / "out", ids), wanted, 1e-5)
    before, after = (open_checkpoint(place).tensors for place in (folder, tmp_path / "out"))
    changed = {name for name, t in after.items() if not np.array_equal(t.float32(), before[name].float32())}
    assert changed == {name for name, p in trainee.named() if p.requires_grad}
    assert any("mm_projector" in name for name in changed)


@pytest.mark.parametrize("folder", OWN, ids=lambda path: path.name)
def test_an_adapter_merged_computes_what_it_computed_in_training(folder: Path, tmp_path: Path) -> None:
    aspect = json.loads((folder / "config.json").read_text())["image_aspect_ratio"]
    stage = replace(LORA, aspect=aspect)
    trainee = trained(folder, stage)
    save(trainee, tmp_path / "adapter", stage)
    names = {path.name for path in (tmp_path / "adapter").iterdir()}
    assert names == {"adapter_config.json", "adapter_model.bin", "config.json", "non_lora_trainables.bin"}
    whole = torch.load(tmp_path / "adapter" / "non_lora_trainables.bin", weights_only=True)
    assert all(name.startswith("base_model.model.model.mm_projector.") for name in whole)
    convert(merged(open_folder(folder), tmp_path / "adapter"), tmp_path / "out", None)
    wanted, ids = torch_logits(trainee, folder)
    assert close(logits_of(tmp_path / "out", ids), wanted, 1e-5)
    assert not close(logits_of(folder, ids), wanted, 0.01)


def test_weights_in_bfloat16_stay_so(tmp_path: Path) -> None:
    """Trained in float32, they are rounded once, when they are written."""
    convert(open_folder(OWN[0]), tmp_path / "base", "bf16")
    trainee = trained(tmp_path / "base", WHOLE)
    save(trainee, tmp_path / "out", WHOLE)
    tensors = open_checkpoint(tmp_path / "out").tensors
    assert {tensor.dtype for tensor in tensors.values()} == {"bfloat16"}
    for name, parameter in trainee.named():
        if parameter.requires_grad:
            wanted = parameter.detach().bfloat16().float().numpy()
            np.testing.assert_array_equal(tensors[name].float32(), wanted, err_msg=name)


def test_a_language_model_with_a_new_projector_becomes_a_whole_model(tmp_path: Path) -> None:
    llama, data = language_model(tmp_path), DATA / "golden" / "ldp"
    stage = replace(STAGES["v1-pretrain"], aspect="pad")
    trainee = trained(llama, stage, data, projector="ldpnetv2", vision_tower=data / "clip")
    for name in ("tokenizer.model", "tokenizer_config.json"):
        shutil.copyfile(data / name, llama / name)
    save(trainee, tmp_path / "out", stage)
    round_as_stored(trainee)
    wanted, ids = torch_logits(trainee, data)
    assert close(logits_of(tmp_path / "out", ids), wanted, 1e-5)


def test_settings_say_what_the_published_ones_say(tmp_path: Path) -> None:
    groups = json.loads((DATA / "training" / "groups.json").read_text())["settings"]
    for name, stage in (
        ("v2.pretrain", "v2-pretrain"),
        ("v2.finetune.lora", "v2-lora"),
        ("v1.pretrain",) * 2,
    ):
        stage = stage.replace(".", "-")
        found = saving.settings(open_folder(OWN[0]), STAGES[stage])
        wanted = groups[name]["config_after"]
        # Of another model; not used by anyone; and off only while training.
        others = {"mm_hidden_size", "use_bfloat16", "use_cache"}
        assert {k: found.get(k) for k in wanted if k not in others} == {
            k: v for k, v in wanted.items() if k not in others
        }
        assert found["use_cache"] and found["mm_hidden_size"] == 12


@pytest.mark.parametrize("stage", [LORA, WHOLE], ids=lambda stage: stage.trains)
def test_nothing_is_overwritten_and_nothing_half_written(
    stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    trainee = trained(OWN[0], stage)
    save(trainee, tmp_path / "out", stage)
    with pytest.raises(UserError, match="exists already"):
        save(trainee, tmp_path / "out", stage)
    monkeypatch.setattr(saving, "write_json", full)
    monkeypatch.setattr("mvlm_np.converting.write_json", full)
    with pytest.raises(UserError, match=r"cannot be written \(No space left"):
        save(trainee, tmp_path / "other", stage)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
