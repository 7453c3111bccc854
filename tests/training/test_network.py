"""The model that is trained: its loss and gradients are the published code's, its answers the engine's."""

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence
from transformers.models.llama.modeling_llama import LlamaRMSNorm

import mvlm_np
from mvlm_np.checkpoints.folder import open_folder
from mvlm_np.checkpoints.lora import merged
from mvlm_np.converting import convert
from mvlm_np.errors import UserError
from mvlm_np.inputs.conversation import render
from mvlm_np.inputs.tokenizer import IMAGE_TOKEN, tokenize_prompt
from tests.conftest import DATA, shared_path
from tests.training.published import lora_weight, published_loss, v1_batch
from tools.parts.torch_reference import pixel_values, read_json
from tools.training.adapter import add_adapter
from tools.training.batch import Batch
from tools.training.network import Trainee, load
from tools.training.saving import save
from tools.training.stages import STAGES, parameter_groups
from tools.training.wording import IGNORED

OWN = [DATA / "golden" / name for name in ("ldpv2", "ldp", "mlp")]
PUBLISHED = {"dtype": torch.float32, "attention": "eager", "as_published": True}


@contextmanager
def all_in_float64(trainee: Trainee) -> Iterator[Trainee]:
    """transformers computes its norms in float32, whatever the weights are; here they stay in float64."""

    def forward(self: Any, x: Tensor) -> Tensor:
        return self.weight * x * (x.square().mean(-1, keepdim=True) + self.variance_epsilon).rsqrt()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LlamaRMSNorm, "forward", forward)
        yield trainee


def gradients(trainee: Trainee, batch: Batch, count: int | None = None) -> tuple[float, dict[str, Tensor]]:
    loss = trainee(batch, count)
    loss.backward()
    return loss.item(), {name: p.grad for name, p in trainee.named() if p.grad is not None}


def agree(found: dict[str, Tensor], norms: dict[str, float], relative: float) -> None:
    assert found.keys() == norms.keys()
    for name, norm in norms.items():
        assert found[name].norm().item() == pytest.approx(norm, rel=relative), name


# -- As published -------------------------------------------------------------------------------------


def test_loss_and_gradients_are_the_published_ones() -> None:
    numbers, tensors, model = published_loss()
    wanted = numbers["v1_batch"]
    trainee = load(model, **PUBLISHED)
    parameter_groups(trainee, STAGES["v2-finetune"])
    loss, found = gradients(trainee, v1_batch(tensors))
    assert loss == pytest.approx(wanted["loss_float32"], rel=1e-6)
    agree(found, wanted["grad_norms_float32"], 1e-5)
    for key, gradient in tensors.items():
        if name := key.removeprefix("grad.") * key.startswith("grad."):
            difference = (found[name] - gradient).norm() / gradient.norm()
            assert difference < 1e-5, name


@pytest.mark.parametrize("own_tower", [False, True])
def test_in_float64_they_agree_far_better(own_tower: bool) -> None:
    """Then what differs is no rounding. The tower that the checkpoint holds is another one."""
    numbers, tensors, model = published_loss()
    wanted = numbers["v1_batch_checkpoint_vision" if own_tower else "v1_batch"]
    trainee = load(model, dtype=torch.float64, as_published=not own_tower)
    parameter_groups(trainee, STAGES["v2-finetune"])
    with all_in_float64(trainee):
        loss, found = gradients(trainee, v1_batch(tensors))
    assert loss == pytest.approx(wanted["loss_float64"], rel=1e-9)
    agree(found, wanted["grad_norms_float64"], 1e-6)


def test_positions_and_masks_of_a_batch_are_the_published_ones() -> None:
    _, tensors, model = published_loss()
    trainee, batch = load(model, **PUBLISHED), v1_batch(tensors)
    with torch.no_grad():
        x, labels, mask = trainee.splice(batch)
    assert torch.equal(labels, tensors["spliced.labels"])
    assert torch.equal(mask, tensors["spliced.attention_mask"].bool())
    assert x.shape[:2] == labels.shape
    tail = tensors["spliced.inputs_embeds.tail"]
    seen = mask[:, -tail.shape[1] :]  # what is not seen is zeros there, and here whatever id 0 stands for
    assert torch.equal(x[:, -tail.shape[1] :][seen], tail[seen])
    for row, image in zip((0, 1, 3), tensors["image_features"], strict=True):
        at = batch.ids[row].tolist().index(IMAGE_TOKEN)
        found = x[row, at : at + len(image)]
        torch.testing.assert_close(found, image, rtol=1e-5, atol=1e-5 * image.abs().max().item())


def test_captions_have_the_published_loss() -> None:
    numbers, _, model = published_loss()
    wanted, trainee = numbers["plain_batch"], load(model, dtype=torch.float64, as_published=True)
    parameter_groups(trainee, STAGES["v2-pretrain"])
    ids, labels = (torch.tensor(wanted[key]) for key in ("input_ids", "labels"))
    settings = read_json(model / "clip" / "preprocessor_config.json")
    files = [shared_path(f"images/{r['image']}") for r in numbers["records"] if "image" in r]
    pixels = torch.from_numpy(np.concatenate([pixel_values(file, settings, pad=False) for file in files]))
    with all_in_float64(trainee):
        loss, found = gradients(trainee, Batch(ids, labels, ids != 0, pixels))
    assert loss == pytest.approx(wanted["loss_float64"], rel=1e-6)
    agree(found, wanted["grad_norms_float64"], 1e-5)


@pytest.mark.filterwarnings("ignore:::peft")
def test_an_adapter_has_the_published_loss_and_gradients() -> None:
    numbers, tensors, model = published_loss()
    wanted, trainee = numbers["lora_batch"], load(model, dtype=torch.float64, as_published=True)
    add_adapter(trainee, STAGES["v2-lora"])
    parameter_groups(trainee, STAGES["v2-lora"])
    trainee.double().eval()
    weights = dict(trainee.named())
    assert [name for name in weights if "lora_" in name] == wanted["order"]
    with torch.no_grad():
        for k, name in enumerate(wanted["order"]):
            weights[name].copy_(lora_weight(tuple(weights[name].shape), k))
    with all_in_float64(trainee):
        loss, found = gradients(trainee, v1_batch(tensors))
    assert loss == pytest.approx(wanted["loss_float64"], rel=1e-6)
    agree(found, wanted["grad_norms_float64"], 1e-5)


@pytest.mark.parametrize("rate", ["4e-05", "0.001"])
def test_six_steps_are_the_published_ones(rate: str) -> None:
    numbers, tensors, model = published_loss()
    wanted, trainee = numbers[f"six_steps_lr_{rate}"], load(model, **PUBLISHED)
    batch = v1_batch(tensors)
    optimizer = torch.optim.AdamW(parameter_groups(trainee, STAGES["v2-finetune"]))
    before = {name: parameter.detach().clone() for name, parameter in trainee.named()}
    if rate == "4e-05":
        # In that run the gradients of a measurement before it, with the checkpoint's tower, were not cleared.
        trainee.tower.load_state_dict(load(model).tower.state_dict())
        trainee(batch).backward()
        trainee.tower.load_state_dict(load(model, **PUBLISHED).tower.state_dict())
    losses = []
    for rate_now in wanted["learning_rates"]:
        for group in optimizer.param_groups:
            group["lr"] = rate_now
        loss = trainee(batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    # Adam divides a gradient by its size, so one that is nothing but rounding counts as much as any other.
    assert losses == pytest.approx(wanted["losses"], rel=1e-5)
    for name, parameter in trainee.named():
        change = (parameter - before[name]).norm().item()
        assert change == pytest.approx(wanted["change_norm"].get(name, 0.0), rel=1e-5), name


# -- What every clone can check -----------------------------------------------------------------------


def asked(folder: Path, *texts: str) -> tuple[Batch, list[list[int]]]:
    """A batch that teaches to say `texts` about the golden's picture, and its ids with nothing behind."""
    tokenizer = mvlm_np.load(folder, backend="numpy").tokenizer
    settings = read_json(folder / "clip" / "preprocessor_config.json")
    pad = read_json(folder / "config.json")["image_aspect_ratio"] == "pad"
    pixels = pixel_values(DATA / "golden" / "picture.png", settings, pad)
    rows, labels = [], []
    for text in texts:
        ids = tokenize_prompt(render("v1", "What is this?"), tokenizer)
        answer = tokenizer.encode(text)[1:]
        rows.append(torch.tensor(ids + answer))
        labels.append(torch.tensor([IGNORED] * len(ids) + answer))
    ids, learned = (
        pad_sequence(column, batch_first=True, padding_value=value)
        for column, value in ((rows, 0), (labels, IGNORED))
    )
    lengths = torch.tensor([*map(len, rows)])
    mask = torch.arange(ids.shape[1]) < lengths[:, None]
    batch = Batch(ids, learned, mask, torch.from_numpy(pixels).repeat(len(texts), 1, 1, 1))
    return batch, [row.tolist() for row in rows]


@pytest.mark.parametrize("folder", OWN, ids=lambda path: path.name)
def test_the_loss_is_that_of_the_engines_logits(folder: Path) -> None:
    """Of every projector; v1's takes its tower from the folder that it takes it from when it answers."""
    batch, rows = asked(folder, "a", "a red lamp is on")
    model, total, count = mvlm_np.load(folder, backend="numpy"), 0.0, 0
    image = model.encode_image(DATA / "golden" / "picture.png")
    for row, labels in zip(rows, batch.labels.tolist(), strict=True):
        x, _ = model.embed(row, [image])
        session = model.session()
        session.cache.reserve(len(x))
        logits = torch.from_numpy(session.weights.lm_head(session.forward(x)))
        wanted = torch.tensor([label for label in labels if label != IGNORED])
        total += cross_entropy(logits[-len(wanted) - 1 : -1], wanted, reduction="sum").item()
        count += len(wanted)
    with torch.no_grad():
        assert load(folder)(batch).item() == pytest.approx(total / count, rel=1e-5)


@pytest.mark.parametrize("folder", OWN, ids=lambda path: path.name)
def test_answers_are_the_engines(folder: Path) -> None:
    """Of questions of several lengths, answered together."""
    batch, _ = asked(folder, "a")
    model, trainee = mvlm_np.load(folder, backend="numpy"), load(folder)
    picture = DATA / "golden" / "picture.png"
    questions = ["What is it?", "", "Is there a lamp, and is it on?"]
    asking = [tokenize_prompt(render("v1", question), model.tokenizer) for question in questions]
    assert batch.pixels is not None
    pixels = batch.pixels.repeat(len(asking), 1, 1, 1)
    wanted = [list(model.generate(ids, picture, max_new_tokens=8)) for ids in asking]
    ends = set(model.config.decoder.end_tokens)
    wanted = [ids[:-1] if ids[-1] in ends else ids for ids in wanted]
    assert trainee.answer(asking, pixels, 8) == wanted
    assert trainee.answer(asking, trainee.features(pixels), 8) == wanted
    assert trainee.answer(asking, pixels, 8, end=[wanted[0][2]])[0] == wanted[0][:2]
    assert trainee.training  # as before


def test_a_batch_teaches_the_same_however_it_is_cut() -> None:
    """By rows, with `count`; with features that were kept; with activations computed twice."""
    trainee, (batch, _) = load(OWN[0], dtype=torch.float64), asked(OWN[0], "a", "a red lamp is on", "")
    parameter_groups(trainee, STAGES["v2-finetune"])
    loss, wanted = gradients(trainee, batch)
    assert batch.pixels is not None
    rows = [
        Batch(*(t[i : i + 1] for t in (batch.ids, batch.labels, batch.mask, batch.pixels))) for i in range(3)
    ]
    kept = replace(batch, pixels=trainee.features(batch.pixels))
    learned = int((batch.labels != IGNORED).sum())
    for parts, again in ((rows, False), ([kept], False), ([batch], True)):
        if again:
            trainee.checkpoint_activations()
        trainee.zero_grad()
        assert sum(gradients(trainee, part, learned)[0] for part in parts) == pytest.approx(loss, rel=1e-9)
        for name, parameter in trainee.named():
            if name in wanted:
                torch.testing.assert_close(parameter.grad, wanted[name], rtol=1e-4, atol=1e-7, msg=name)


@pytest.mark.parametrize("pixels", [True, False])
def test_without_a_picture_the_projector_has_gradients_of_nought(pixels: bool) -> None:
    trainee, (batch, _) = load(OWN[0]), asked(OWN[0], "a lamp")
    parameter_groups(trainee, STAGES["v2-finetune"])
    ids = batch.ids.where(batch.ids != IMAGE_TOKEN, 5)
    loss, found = gradients(trainee, replace(batch, ids=ids, pixels=batch.pixels if pixels else None))
    assert loss > 0
    for name, gradient in found.items():
        assert (gradient.abs().max() == 0) == ("mm_projector" in name), name


@pytest.mark.parametrize("as_published", [False, True])
def test_a_batch_that_teaches_nothing(as_published: bool) -> None:
    trainee, (batch, _) = load(OWN[0]), asked(OWN[0], "a lamp")
    trainee.as_published = as_published
    parameter_groups(trainee, STAGES["v2-finetune"])
    loss, found = gradients(trainee, replace(batch, labels=torch.full_like(batch.labels, IGNORED)))
    assert np.isnan(loss) if as_published else loss == 0
    assert all((gradient == 0).all() for gradient in found.values())


def test_in_16_bits_the_loss_is_close_and_summed_in_float32() -> None:
    batch, _ = asked(OWN[0], "a red lamp is on")
    with torch.no_grad():
        exact, half = (load(OWN[0], dtype=dtype)(batch) for dtype in (torch.float32, torch.bfloat16))
    assert half.dtype == torch.float32
    assert half.item() == pytest.approx(exact.item(), rel=0.02)  # bfloat16 has 8 bits


# -- Folders ------------------------------------------------------------------------------------------


def test_a_language_model_gets_a_projector_and_a_tower(tmp_path: Path) -> None:
    """So pretraining begins."""
    llama = language_model(tmp_path)
    trainee = load(llama, projector="ldpnetv2", vision_tower=DATA / "golden" / "ldp" / "clip", seed=1)
    again = load(llama, projector="ldpnetv2", vision_tower=DATA / "golden" / "ldp" / "clip", seed=1)
    other = load(llama, projector="ldpnetv2", vision_tower=DATA / "golden" / "ldp" / "clip", seed=2)
    name = "mlp.mlp.0.weight"
    weights = [t.projector.state_dict()[name] for t in (trainee, again, other)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    batch, _ = asked(DATA / "golden" / "ldp", "a lamp")
    parameter_groups(trainee, STAGES["v2-pretrain"])
    _, found = gradients(trainee, batch)
    assert {name for name, p in trainee.named() if p.requires_grad} == found.keys()


@pytest.mark.filterwarnings("ignore:::peft")
@pytest.mark.parametrize("name", ["v2-finetune", "v2-lora"])
@pytest.mark.parametrize("listed", [True, False])
def test_embeddings_that_give_the_logits_too(tmp_path: Path, name: str, listed: bool) -> None:
    """They are trained as one weight, under one name; lm_head.weight, if the file has it, is not used."""
    folder = tied(OWN[2], tmp_path / "tied", listed)
    batch, _ = asked(folder, "a red lamp is on")
    trainee, stage = load(folder), replace(STAGES[name], aspect="square", rank=4)
    asking = [tokenize_prompt(render("v1", "What is it?"), mvlm_np.load(folder).tokenizer)]
    picture = DATA / "golden" / "picture.png"

    def answers(folder: Path) -> list[int]:
        return [*mvlm_np.load(folder, backend="numpy").generate(asking[0], picture, max_new_tokens=6)]

    before = answers(folder)
    assert batch.pixels is not None and trainee.answer(asking, batch.pixels, 6, end=[0]) == [before]
    if stage.trains == "lora":
        add_adapter(trainee, stage)
    optimizer = torch.optim.AdamW(parameter_groups(trainee, stage), lr=0.01)
    assert not any("lm_head" in name for name, _ in trainee.named())
    for group in optimizer.param_groups:
        group["lr"] = 0.01
    for _ in range(3):
        trainee(batch).backward()
        optimizer.step()
        optimizer.zero_grad()
    save(trainee, tmp_path / "result", stage)
    if stage.trains == "lora":
        convert(merged(open_folder(folder), tmp_path / "result"), tmp_path / "model", "float32")
    after = answers(tmp_path / ("result" if stage.trains == "all" else "model"))
    assert trainee.eval().answer(asking, batch.pixels, 6, end=[0]) == [after]
    assert after != before


def tied(source: Path, folder: Path, listed: bool) -> Path:
    """A copy whose logits come from its embeddings; `listed`: with an lm_head.weight all the same."""
    shutil.copytree(source, folder)
    settings = read_json(folder / "config.json") | {"tie_word_embeddings": True}
    (folder / "config.json").write_text(json.dumps(settings))
    tensors = {name: t.float32() for name, t in open_folder(source).tensors.items()}
    for file in folder.glob("*.safetensors*"):
        file.unlink()
    if not listed:
        del tensors["lm_head.weight"]
    save_file(tensors, folder / "model.safetensors")
    return folder


def test_folders_that_cannot_be_trained_are_refused_in_one_line(tmp_path: Path) -> None:
    llama, tower = language_model(tmp_path), DATA / "golden" / "ldp" / "clip"
    convert(open_folder(OWN[0]), tmp_path / "int8", "int8")
    for folder, options, message in (
        (tmp_path / "int8", {}, "is kept in int8, wanted weights as they were trained; train the model from"),
        (llama, {}, "reads text only, wanted a MobileVLM"),
        (llama, {"projector": "ldpnetv2"}, "is a language model, wanted the folder of a CLIP model; name"),
        (llama, {"projector": "ldpnetv9", "vision_tower": tower}, "mm_projector_type: found 'ldpnetv9'"),
        (OWN[0], {"projector": "ldpnetv2", "vision_tower": tower}, "has a projector already"),
        (OWN[0], {"as_published": True}, "clip: holds no weights"),
        (tower, {}, "is a vision tower"),
        (tmp_path / "none", {}, "does not exist"),
    ):
        with pytest.raises(UserError, match=re.escape(message)) as error:
            load(folder, **options)
        assert "\n" not in str(error.value)


def language_model(place: Path) -> Path:
    """The LLaMA of the golden `ldp` alone, and its tower's weights beside its settings."""
    folder = place / "llama"
    folder.mkdir()
    whole = open_folder(DATA / "golden" / "ldp")
    text = {
        k: t.float32() for k, t in whole.tensors.items() if not k.startswith(("model.mm", "model.vision"))
    }
    save_file(text, folder / "model.safetensors")
    settings = (DATA / "golden" / "ldp" / "config.json").read_text()
    (folder / "config.json").write_text(settings.replace('"mm_', '"not_'))
    return folder
