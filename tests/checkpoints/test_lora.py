"""Adapters that PEFT trained and saved, merged by PEFT and by us."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers

import mvlm_np
from mvlm_np.checkpoints.folder import open_folder
from mvlm_np.checkpoints.lora import VOCABULARY, MergedTensor, merged
from mvlm_np.checkpoints.safetensors import read_safetensors
from mvlm_np.converting import convert
from mvlm_np.errors import CheckpointError, UserError
from mvlm_np.loading import bound_tensors
from tests.arrays import U
from tests.checkpoints.adapters import BASE, HOSTILE, PROJECTOR, merge, sound
from tests.checkpoints.confine import read_confined
from tests.conftest import DATA

pytestmark = pytest.mark.filterwarnings("ignore:::peft", "ignore:::transformers")
ATTENTION = ["q_proj", "v_proj"]


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random LLaMA as transformers saves it."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=40,
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=3,
        num_attention_heads=3,
        num_key_value_heads=1,
    )
    folder = tmp_path_factory.mktemp(request.param)
    transformers.LlamaForCausalLM(config).to(getattr(torch, request.param)).save_pretrained(folder)
    return folder


def load(base: Path) -> transformers.LlamaForCausalLM:
    return transformers.LlamaForCausalLM.from_pretrained(base, dtype="auto")


def trained(
    base: Path, folder: Path, whole_numbers: bool = True, pickle: bool = False, **settings: Any
) -> Path:
    """An adapter with random factors. Of small whole numbers B A is exact, in whatever order it is summed."""
    torch.manual_seed(1)
    model = peft.get_peft_model(load(base), peft.LoraConfig(**settings))
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            weight.data = torch.randn(weight.shape)
            if "lora_" in name and whole_numbers:
                weight.data = (3 * weight.data).round()
    model.save_pretrained(folder, safe_serialization=not pickle)
    return folder


def by_peft(base: Path, adapter: Path) -> dict[str, torch.Tensor]:
    return peft.PeftModel.from_pretrained(load(base), adapter).merge_and_unload().state_dict()


def rounded(values: np.ndarray, like: torch.Tensor) -> np.ndarray:
    return torch.tensor(values).to(like.dtype).float().numpy()


@pytest.mark.parametrize("settings", [
    {"target_modules": ATTENTION},
    {"target_modules": "all-linear"},
    {"target_modules": r".*layers\.[02]\..*(q_proj|up_proj)"},
    {"target_modules": ATTENTION, "r": 6, "use_rslora": True},
    {"target_modules": ATTENTION, "layers_to_transform": [1]},
    {"target_modules": ATTENTION, "exclude_modules": ["model.layers.1.self_attn.q_proj"]},
    {"target_modules": ATTENTION, "rank_pattern": {"layers.1.self_attn.q_proj": 3}, "r": 5, "lora_alpha": 7},
    {"target_modules": ATTENTION, "rank_pattern": {r".*\.[12]\..*q_proj": 4}, "r": 2},
    {"target_modules": ATTENTION, "alpha_pattern": {"1.self_attn.q_proj": 3, "q_proj": 5, "v_proj": 2}},
    {"target_modules": ATTENTION, "alpha_pattern": {"q_proj": 5, "layers.1.self_attn.q_proj": 3}},
    {"target_modules": ATTENTION, "alpha_pattern": {"^model.layers.2.self_attn.v_proj": 3, "f.q_proj": 5}},
    {"target_modules": ["embed_tokens", "q_proj"]},
    {"target_modules": ["lm_head", "down_proj"]},
    {"target_modules": ATTENTION, "modules_to_save": ["lm_head", "norm"]},
    {"target_modules": ATTENTION, "bias": "all"},
    {"target_modules": ATTENTION, "bias": "lora_only", "fan_in_fan_out": True},
    {"target_modules": ATTENTION, "init_lora_weights": "gaussian", "lora_dropout": 0.1},
])  # fmt: skip
def test_an_adapter_is_merged_as_peft_merges_it(base: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    adapter = trained(base, tmp_path / "adapter", **settings)
    theirs, model = by_peft(base, adapter), merged(open_folder(base), adapter)
    assert any(isinstance(tensor, MergedTensor) for tensor in model.tensors.values())
    assert len(bound_tensors(model)) == len(theirs)
    for name, wanted in theirs.items():
        found = model.tensors[name].float32()
        assert found.dtype == np.float32
        # PEFT rounds the sum to the base's type; we do that when it is written as such.
        np.testing.assert_array_equal(rounded(found, wanted), wanted.float().numpy(), err_msg=name)


@pytest.mark.parametrize("settings", [
    {"target_modules": ATTENTION},
    {"target_modules": ATTENTION, "modules_to_save": ["embed_tokens", "lm_head"]},
    {"target_modules": ["embed_tokens", "lm_head", "q_proj"]},
])  # fmt: skip
def test_a_vocabulary_that_training_has_resized_comes_along(
    base: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    model = load(base)
    rows = model.config.vocab_size + 2
    model.resize_token_embeddings(rows, mean_resizing=False)
    tuned = peft.get_peft_model(model, peft.LoraConfig(r=4, lora_alpha=8, **settings))
    rng = torch.Generator().manual_seed(3)
    for name, weight in tuned.named_parameters():
        if "lora_" in name or "modules_to_save" in name:
            weight.data = torch.randint(-3, 4, weight.shape, generator=rng).to(weight.dtype)
    adapter = tmp_path / "adapter"
    tuned.save_pretrained(adapter, save_embedding_layers=True)
    (adapter / "added_tokens.json").write_text("{}")

    again = load(base)
    again.resize_token_embeddings(rows, mean_resizing=False)
    theirs = peft.PeftModel.from_pretrained(again, adapter).merge_and_unload().state_dict()
    ours = merged(open_folder(base), adapter)
    assert ours.config.decoder.vocab_size == rows and len(bound_tensors(ours)) == len(theirs)
    for name, wanted in theirs.items():
        found = rounded(ours.tensors[name].float32(), wanted)
        np.testing.assert_array_equal(found, wanted.float().numpy(), err_msg=name)


def test_tokens_that_training_has_added_are_named_beside_the_adapter(tmp_path: Path) -> None:
    adapter, rng = sound(), np.random.default_rng(5)
    tables = {name: rng.standard_normal((74, 16), np.float32) for name in VOCABULARY}
    adapter.tensors |= {f"base_model.model.{name}": table for name, table in tables.items()}
    folder = adapter.write(tmp_path / "adapter")
    (folder / "added_tokens.json").write_text(json.dumps({"<pad>": 72, "<ans>": 73}))
    convert(merged(open_folder(BASE), folder), tmp_path / "tuned", "float32")
    model = mvlm_np.load(tmp_path / "tuned", backend="numpy")
    assert model.config.decoder.vocab_size == model.tokenizer.vocab_size == 74
    assert model.tokenizer.encode("<ans>")[1:] == [73]
    assert model.tokenizer.encode("a word") == mvlm_np.load(BASE, backend="numpy").tokenizer.encode("a word")
    for name, table in tables.items():
        np.testing.assert_array_equal(open_folder(tmp_path / "tuned").tensors[name].float32(), table)


@pytest.mark.parametrize("pickle", [False, True])
def test_any_factors_in_either_format_agree_to_rounding(base: Path, tmp_path: Path, pickle: bool) -> None:
    r = 8
    adapter = trained(base, tmp_path / "adapter", False, pickle, r=r, target_modules=ATTENTION, lora_alpha=3)
    assert (adapter / "adapter_model.bin").exists() == pickle
    ours = merged(open_folder(base), adapter).tensors
    changed = 0
    for name, theirs in by_peft(base, adapter).items():
        tensor = ours[name]
        if not isinstance(tensor, MergedTensor):
            continue
        # Any order of r products and sums errs by r U |B||A| at most, then scaling and adding by U each.
        terms = np.abs(tensor.B.float32()) @ np.abs(tensor.A.float32()) * tensor.scaling
        allowed = 2 * U * (r * terms + terms + np.abs(tensor.float32()))
        if theirs.dtype == torch.bfloat16:
            allowed += 2.0**-8 * np.abs(theirs.float().numpy())  # PEFT's own rounding
        assert (np.abs(tensor.float32() - theirs.float().numpy()) <= allowed).all(), name
        changed += 1
    assert changed == 6


def test_an_adapter_in_bfloat16_is_the_same(base: Path, tmp_path: Path) -> None:
    model = peft.get_peft_model(load(base), peft.LoraConfig(target_modules=ATTENTION))
    for name, weight in model.named_parameters():
        if "lora_" in name:
            weight.data = torch.randint(-9, 9, weight.shape).bfloat16()
    model.save_pretrained(tmp_path)
    ours = merged(open_folder(base), tmp_path).tensors
    for name, theirs in by_peft(base, tmp_path).items():
        np.testing.assert_array_equal(rounded(ours[name].float32(), theirs), theirs.float().numpy())


def test_rows_are_those_of_the_whole(tmp_path: Path) -> None:
    for tensor in merge(sound().write(tmp_path / "a")).tensors.values():
        if isinstance(tensor, MergedTensor):
            whole = tensor.float32()
            # BLAS may sum fewer rows in another order: two terms, scaled and added.
            close = {"rtol": 8 * U, "atol": 8 * U * np.abs(whole).max()}
            np.testing.assert_allclose(tensor.rows(slice(3, 9)), whole[3:9], **close)
            np.testing.assert_allclose(tensor.rows(np.array([5, 0, 5])), whole[[5, 0, 5]], **close)


# -- Upstream's folders -------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["base_model.model.", "base_model.", ""])
def test_tensors_trained_whole_replace_the_bases(tmp_path: Path, prefix: str) -> None:
    adapter = sound()
    [projector] = adapter.whole.values()
    adapter.whole = {prefix + PROJECTOR: projector}
    found = merge(adapter.write(tmp_path / "a")).tensors[PROJECTOR].float32()
    np.testing.assert_array_equal(found, projector)


def test_tensors_trained_whole_may_lie_in_a_pickle(tmp_path: Path) -> None:
    adapter = sound()
    [projector], adapter.whole = adapter.whole.values(), None
    folder = adapter.write(tmp_path / "a")
    torch.save(
        {f"base_model.model.{PROJECTOR}": torch.from_numpy(projector).half()},
        folder / "non_lora_trainables.bin",
    )
    found = merge(folder).tensors[PROJECTOR].float32()
    np.testing.assert_array_equal(found, projector.astype(np.float16).astype(np.float32))


def test_vision_weights_beside_the_adapter_follow_the_rule_for_vision_weights(tmp_path: Path) -> None:
    name = "model.vision_tower.vision_tower.vision_model.pre_layrnorm.bias"
    for kind, used in (("ldpv2", True), ("mlp", False)):
        base = open_folder(DATA / "golden" / kind)
        adapter = sound()
        adapter.tensors = {
            key: np.zeros(shape, np.float32)
            for key, shape in {
                "base_model.model.lm_head.lora_A.weight": (2, base.config.decoder.hidden_size),
                "base_model.model.lm_head.lora_B.weight": (base.config.decoder.vocab_size, 2),
            }.items()
        }
        adapter.settings["target_modules"] = ["lm_head"]
        adapter.whole = {name: np.full(base.tensors[name].shape, 7, np.float32)}
        model = merged(base, adapter.write(tmp_path / kind))
        assert (model.tensors[name].float32() == 7).all() == used
        assert any("are not used" in note for note in model.notes) == (not used)


def test_a_text_only_base_gets_its_vision_from_the_adapters_settings(tmp_path: Path) -> None:
    """So upstream tunes its first generation: MobileLLaMA, a projector trained whole, CLIP elsewhere."""
    whole_model = open_folder(DATA / "golden" / "ldp")
    text = {
        k: t.float32()
        for k, t in whole_model.tensors.items()
        if not k.startswith(("model.mm", "model.vision"))
    }
    projector = {
        f"base_model.model.{k}": t.float32() for k, t in whole_model.tensors.items() if "mm_projector" in k
    }
    from safetensors.numpy import save_file

    llama = tmp_path / "llama"
    llama.mkdir()
    save_file(text, llama / "model.safetensors")
    settings = (DATA / "golden" / "ldp" / "config.json").read_text()
    (llama / "config.json").write_text(
        settings.replace('"mm_vision_tower"', '"not_this"').replace('"eos_token_id": 2', '"eos_token_id": 5')
    )
    D = whole_model.config.decoder.hidden_size
    adapter = sound()
    adapter.settings |= {"target_modules": ["o_proj"], "r": 1}
    adapter.tensors = {
        f"base_model.model.model.layers.{layer}.self_attn.o_proj.lora_{side}.weight": np.ones(
            shape, np.float32
        )
        for layer in (0, 1)
        for side, shape in (("A", (1, D)), ("B", (D, 1)))
    }
    adapter.whole = projector
    folder = adapter.write(tmp_path / "adapter")
    (folder / "config.json").write_text(settings)
    base = open_folder(llama)
    assert base.config.vision is None
    model = merged(base, folder, DATA / "golden" / "ldp" / "clip")
    decoder = replace(whole_model.config.decoder, eos_token_id=5)
    assert model.config == replace(whole_model.config, decoder=decoder)
    assert model.path == llama
    ours, theirs = bound_tensors(model), bound_tensors(whole_model)
    for name, tensor in ours.items():
        change = 3.0 if name.endswith("o_proj.weight") else 0.0
        expected = theirs[name].float32() + np.float32(change)
        np.testing.assert_array_equal(tensor.float32(), expected, err_msg=name)


def test_the_adapters_settings_decide_how_pictures_are_cut(tmp_path: Path) -> None:
    folder = sound().write(tmp_path / "a")
    settings = (BASE / "config.json").read_text()
    assert '"pad"' in settings
    (folder / "config.json").write_text(settings.replace('"pad"', '"square"'))
    base = open_folder(BASE)
    assert merged(base, folder).config == replace(
        base.config, image=replace(base.config.image, aspect_ratio="square")
    )


# -- Converting ---------------------------------------------------------------------------------------


def test_a_merged_model_is_written_like_any_other(tmp_path: Path) -> None:
    model = merge(sound().write(tmp_path / "tuned"))
    convert(model, tmp_path / "out", "float32")
    written = read_safetensors(tmp_path / "out" / "model.safetensors")
    changed = 0
    for name, tensor in model.tensors.items():
        if name in written:
            np.testing.assert_array_equal(written[name].float32(), tensor.float32(), err_msg=name)
            changed += isinstance(tensor, MergedTensor)
    assert changed == 4
    assert "merged with tuned" in (tmp_path / "out" / "mvlm.json").read_text()


def test_merging_does_not_round_a_rounded_base_again(tmp_path: Path) -> None:
    convert(open_folder(BASE), tmp_path / "base", "int8")
    model = merged(open_folder(tmp_path / "base"), sound().write(tmp_path / "a"))
    with pytest.raises(UserError, match=r"q_proj\.weight: is kept in int8.*a base in floating point"):
        convert(model, tmp_path / "out", "int8")
    assert not (tmp_path / "out").exists()
    convert(model, tmp_path / "out", "bf16")


def test_what_is_not_finite_is_noticed_when_it_is_computed(tmp_path: Path) -> None:
    adapter = sound()
    adapter.tensors[next(iter(adapter.tensors))][0, 0] = np.nan
    model = merged(open_folder(BASE), adapter.write(tmp_path / "a"))
    with pytest.raises(CheckpointError, match="holds NaN or infinity"):
        convert(model, tmp_path / "out", "float32")
    assert not (tmp_path / "out").exists()


# -- Hostile adapters ---------------------------------------------------------------------------------


def test_hostile_adapters_are_refused_by_name_and_cost_nothing(tmp_path: Path) -> None:
    folders = {}
    for i, (name, (change, _)) in enumerate(HOSTILE.items()):
        adapter = sound()
        change(adapter)
        folders[name] = adapter.write(tmp_path / str(i))
    outcomes = read_confined("tests.checkpoints.adapters:merge", list(folders.values()))
    for name, outcome in zip(folders, outcomes, strict=True):
        assert outcome.user_error, f"{name}: {outcome}"
        assert re.search(HOSTILE[name][1], outcome.message), f"{name}: {outcome.message}"
        assert "\n" not in outcome.message and outcome.message.isprintable()


def test_the_sound_adapter_of_the_hostile_ones_is_merged(tmp_path: Path) -> None:
    model = merge(sound().write(tmp_path / "a"))
    assert "4 matrices changed, 1 tensors replaced" in model.notes[-1]
