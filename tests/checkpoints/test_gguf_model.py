"""A GGUF pair presents itself as the Hugging Face checkpoint that it was made from."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from mvlm_np.checkpoints import gguf_blocks
from mvlm_np.checkpoints.checkpoint import Checkpoint
from mvlm_np.checkpoints.gguf_model import find_mmproj, open_gguf
from mvlm_np.checkpoints.gguf_names import decoder_name, decoder_names, mmproj_name, mmproj_names
from mvlm_np.checkpoints.safetensors import read_safetensors
from mvlm_np.errors import CheckpointError, ConfigError, TokenizerError
from tests.checkpoints.gguf_models import (
    TYPES,
    assert_stored,
    package_decoder,
    pair,
    random_weights,
    small_config,
    tokenizer_model,
)
from tests.conftest import shared_path

TOWER = "model.vision_tower.vision_tower."
VISION = f"{TOWER}vision_model."
PROJECTORS = ["ldpnetv2", "ldpnet", "mlp2x_gelu"]


# -- Weights ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("projector", PROJECTORS)
def test_every_weight_is_there_under_hugging_faces_name_and_shape(tmp_path: Path, projector: str) -> None:
    path, weights = pair(tmp_path, small_config(projector))
    tensors = open_gguf(path).tensors
    dropped = {name for name in weights if ".encoder.layers.2." in name or "post_layernorm" in name}
    assert set(tensors) == set(weights) - dropped
    assert_stored(tensors, weights)


@pytest.mark.parametrize("kv_heads", [1, 2])
@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q5_0"])
def test_rotary_rows_are_put_back_in_every_storage_type(tmp_path: Path, kind: str, kv_heads: int) -> None:
    config = small_config(vision=False, kv_heads=kv_heads)
    weights = random_weights(config)
    tensors = open_gguf(package_decoder(tmp_path / "m.gguf", config, weights, kind)).tensors
    assert set(tensors) == set(weights)
    assert_stored(tensors, weights)


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0"])
def test_blocks_of_rotary_rows_move_and_stay_as_they_are(tmp_path: Path, kind: str) -> None:
    config = small_config(vision=False)
    weights = random_weights(config)
    tensors = open_gguf(package_decoder(tmp_path / "m.gguf", config, weights, kind)).tensors
    for name, tensor in tensors.items():
        if tensor.decode:
            expected = gguf.quants.quantize(weights[name], TYPES[kind])
            np.testing.assert_array_equal(tensor.stored(), expected.reshape(tensor.stored().shape))
            assert tensor.nbytes == expected.nbytes


def test_rotary_rows_cost_no_memory_until_they_are_read(tmp_path: Path) -> None:
    config = small_config(vision=False)
    path = package_decoder(tmp_path / "m.gguf", config, random_weights(config))
    q = open_gguf(path).tensors["model.layers.0.self_attn.q_proj.weight"]
    assert not q.raw.flags.owndata and not q.raw.flags.writeable
    assert q.raw.strides != q.stored().strides


@pytest.mark.parametrize("swapped", [True, False])
def test_both_ways_of_naming_the_vision_mlp_are_told_apart(tmp_path: Path, swapped: bool) -> None:
    path, weights = pair(tmp_path, small_config(), swapped=swapped)
    tensors = open_gguf(path).tensors
    for half in ("fc1", "fc2"):
        name = f"{VISION}encoder.layers.1.mlp.{half}"
        assert_stored({n: tensors[n] for n in (f"{name}.weight", f"{name}.bias")}, weights)


def test_tied_embeddings_are_known_by_the_missing_output(tmp_path: Path) -> None:
    config = small_config(vision=False, tied=True)
    model = open_gguf(package_decoder(tmp_path / "m.gguf", config, random_weights(config)))
    assert model.config.decoder.tie_word_embeddings and "lm_head.weight" not in model.tensors


def test_rotary_factors_of_one_and_stored_frequencies_are_passed_over(tmp_path: Path) -> None:
    config = small_config(vision=False)
    weights = random_weights(config)
    path = package_decoder(
        tmp_path / "m.gguf", config, weights | {"model.layers.0.attn_rot_embd.weight": np.ones(16)}
    )
    assert set(open_gguf(path).tensors) - set(weights) == {"model.layers.0.self_attn.rotary_emb.inv_freq"}


# -- Names ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name, projector", [
    ("MobileVLM-1.7B", "ldp"), ("MobileVLM_V2-1.7B", "ldpv2"), ("MobileVLM_V2-3B", "ldpv2")
])  # fmt: skip
def test_names_and_shapes_are_those_of_the_published_conversions(name: str, projector: str) -> None:
    tables = json.loads(shared_path(f"facts/gguf/{name}.gguf_map.json").read_text())
    shapes = json.loads(shared_path(f"facts/keys/{name}.json").read_text())["tensors"]
    tower = "<clip-vit-large-patch14-336>/"
    llm = {entry["gguf"]: entry["hf"] for entry in tables["llm_tensors"]}
    mmproj = {
        e["gguf"]: e["hf"].replace(tower, "model.vision_tower.vision_tower.")
        for e in tables["mmproj_tensors"]
    }
    assert decoder_names(32 if "3B" in name else 24, tied=False) == llm
    assert mmproj_names(23, projector) == mmproj
    for entry in tables["llm_tensors"] + tables["mmproj_tensors"]:
        assert entry["np_shape"] == [n for n in shapes[(llm | mmproj)[entry["gguf"]]] if n > 1]


@pytest.mark.parametrize("projector", PROJECTORS)
def test_the_list_of_names_is_what_the_package_was_given(tmp_path: Path, projector: str) -> None:
    path, _ = pair(tmp_path, small_config(projector))
    kind = {"ldpnetv2": "ldpv2", "ldpnet": "ldp", "mlp2x_gelu": "mlp"}[projector]
    assert set(decoder_names(2, False)) == {t.name for t in gguf.GGUFReader(path).tensors}
    assert set(mmproj_names(2, kind)) == {
        t.name for t in gguf.GGUFReader(path.parent / "mmproj-model-f16.gguf").tensors
    }


@pytest.mark.parametrize("name", [
    "blk.0.attn_q.bias", "blk.0.attn_q", "blk.x.attn_q.weight", "token_embd.weight.1", "output", "v.ln", ""
])  # fmt: skip
def test_other_names_in_a_decoder_have_no_place(name: str) -> None:
    assert decoder_name(name) is None


@pytest.mark.parametrize(
    "name", ["v.patch_embd.weight.1", "v.blk.0.attn_qkv.weight", "a.blk.0.ln1.weight", "t.ln"]
)
def test_other_names_in_an_mmproj_have_no_place(name: str) -> None:
    assert mmproj_name(name, "ldpv2", True) is None


# -- Settings ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("projector", PROJECTORS)
def test_the_config_is_the_models_one_layer_shorter(tmp_path: Path, projector: str) -> None:
    config = small_config(projector)
    assert config.vision and config.mm_vision_select_layer == -2
    found = open_gguf(pair(tmp_path, config)[0]).config
    shorter = replace(config.vision, num_hidden_layers=2)
    assert found == replace(config, vision=shorter, mm_vision_select_layer=-1)
    assert found.vision_layers == config.vision_layers == 2  # what is computed is the same


def test_a_whole_tower_keeps_its_last_layer_and_its_select_layer(tmp_path: Path) -> None:
    path, weights = pair(tmp_path, small_config(), whole=True)
    model = open_gguf(path)
    assert model.config == small_config()
    assert set(model.tensors) == set(weights)


@pytest.mark.parametrize("layer, select", [(0, -3), (1, -2), (2, -1)])
def test_feature_layer_counts_hidden_states(tmp_path: Path, layer: int, select: int) -> None:
    path, _ = pair(tmp_path, small_config(), clip__vision__feature_layer=[layer])
    config = open_gguf(path).config
    assert (config.mm_vision_select_layer, config.vision_layers) == (select, layer)


def test_other_settings_of_the_picture_are_read(tmp_path: Path) -> None:
    path, _ = pair(tmp_path, small_config(), clip__use_gelu=True, clip__vision__image_aspect_ratio="square")
    config = open_gguf(path).config
    assert config.vision and (config.vision.hidden_act, config.image.aspect_ratio) == ("gelu", "square")


@pytest.mark.parametrize("key, value, message", [
    ("general__architecture", "llava", "has the architecture 'llava', wanted an mmproj"),
    ("clip__has_vision_encoder", False, "wanted an mmproj with a vision tower"),
    ("clip__projector_type", "resampler", "projector_type: found 'resampler', wanted 'ldpv2' or"),
    ("clip__projector_type", None, "projector_type: is missing"),
    ("clip__projector_type", 3, "projector_type: found 3, wanted a text"),
    ("clip__use_silu", True, "use_silu: found True"),
    ("clip__vision__mm_patch_merge_type", "spatial_unpad", "mm_patch_merge_type: found 'spatial_unpad'"),
    ("clip__vision__image_grid_pinpoints", [336, 672], "image_grid_pinpoints: found"),
    ("clip__vision__feature_layer", [1, 2], "feature_layer: found"),
    ("clip__vision__feature_layer", [3], "feature_layer: found"),
    ("clip__vision__feature_layer", 2, "feature_layer: found 2"),
    ("clip__vision__block_count", 0, "block_count: found 0"),
    ("clip__vision__block_count", 4_000_000_000, "block_count: found 4000000000, wanted .* to 256"),
    ("clip__vision__embedding_length", 33, "a divisor of hidden_size 33"),
    ("clip__vision__attention__head_count", 0, "head_count: found 0"),
    ("clip__vision__patch_size", 0, "patch_size: found 0"),
    ("clip__vision__patch_size", 100, "patch_size: found 100 for image_size 56"),
    ("clip__vision__image_size", 1 << 31, "image_size: found 2147483648"),
    ("clip__vision__image_mean", [0.5, 0.5], "image_mean: found .*, wanted three numbers"),
    ("clip__vision__image_std", [0.5, 0.0, 0.5], "image_std: found"),
    ("clip__vision__image_std", [0.5, float("nan"), 0.5], "image_std: found"),
    ("clip__vision__image_mean", None, "image_mean: is missing"),
    ("clip__vision__attention__layer_norm_epsilon", -1.0, "layer_norm_epsilon: found -1.0"),
])  # fmt: skip
def test_settings_of_another_mmproj_are_refused_by_name(
    tmp_path: Path, key: str, value: Any, message: str
) -> None:
    path, _ = pair(tmp_path, small_config(), **{key: value})
    with pytest.raises((ConfigError, CheckpointError), match=message) as error:
        open_gguf(path)
    assert "mmproj-model-f16.gguf" in str(error.value)


# -- Which files, and what comes with them ----------------------------------------------------------------


def test_a_model_without_mmproj_answers_text_only(tmp_path: Path) -> None:
    config = small_config(vision=False)
    model = open_gguf(package_decoder(tmp_path / "m.gguf", config, random_weights(config)))
    assert model.config.vision is None
    assert model.config.decoder == config.decoder


def vision_file(model: Checkpoint) -> Path:
    return model.tensors["model.mm_projector.mlp.mlp.0.weight"].file.path


def test_the_mmproj_beside_the_model_is_found_and_a_named_one_wins(tmp_path: Path) -> None:
    path, _ = pair(tmp_path, small_config())
    assert vision_file(open_gguf(path)) == tmp_path / "mmproj-model-f16.gguf"
    other = tmp_path / "elsewhere" / "vision.gguf"
    other.parent.mkdir()
    shutil.copy(tmp_path / "mmproj-model-f16.gguf", other)
    assert vision_file(open_gguf(path, other)) == other


def test_several_mmproj_are_listed(tmp_path: Path) -> None:
    path, _ = pair(tmp_path, small_config())
    shutil.copy(tmp_path / "mmproj-model-f16.gguf", tmp_path / "mmproj-b.gguf")
    with pytest.raises(CheckpointError, match=r"several .*: mmproj-b.gguf, mmproj-model-f16.gguf.*mmproj="):
        find_mmproj(path)


def test_an_mmproj_in_the_models_place_is_told_so(tmp_path: Path) -> None:
    path, _ = pair(tmp_path, small_config())
    with pytest.raises(CheckpointError, match=r"is an mmproj: .*; give the language model's file"):
        open_gguf(tmp_path / "mmproj-model-f16.gguf")
    with pytest.raises(CheckpointError, match="has the architecture 'llama', wanted an mmproj"):
        open_gguf(path, path)


def test_the_tokenizer_comes_out_unless_a_tokenizer_model_lies_beside(tmp_path: Path) -> None:
    config = small_config(vision=False)
    path = package_decoder(tmp_path / "m.gguf", config, random_weights(config), tokenizer__ggml__scores=None)
    with pytest.raises(
        TokenizerError, match=r"scores: is missing, .*; put the model's tokenizer\.model beside"
    ):
        open_gguf(path)
    (tmp_path / "tokenizer.model").write_bytes(tokenizer_model())
    assert open_gguf(path).read_tokenizer().where == tmp_path / "tokenizer.model"


def test_types_that_need_the_package_are_refused_early_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small_config(vision=False)
    path = package_decoder(tmp_path / "m.gguf", config, random_weights(config), "Q5_0")
    monkeypatch.setattr(gguf_blocks.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(CheckpointError, match=r"q5_0: .*pip install gguf"):
        open_gguf(path)


# -- llama.cpp's own files --------------------------------------------------------------------------------


def test_the_goldens_f16_pair_holds_the_checkpoints_weights_exactly() -> None:
    model = open_gguf(shared_path("goldens/v2-256/gguf/llm-F16.gguf"))
    source = read_safetensors(shared_path("goldens/v2-256/model.safetensors"))
    missing = set(source) - set(model.tensors)
    assert missing == {n for n in source if "encoder.layers.2." in n or "post_layernorm" in n}
    assert_stored(model.tensors, {name: tensor.float32() for name, tensor in source.items()})


@pytest.mark.parametrize("name", ["Q8_0", "Q4_0", "Q4_0-pure", "Q4_K_S", "Q6_K"])
def test_the_goldens_quantised_files_equal_the_packages_reading(name: str) -> None:
    path = shared_path(f"goldens/v2-256/gguf/llm-{name}.gguf")
    theirs = {t.name: gguf.quants.dequantize(t.data, t.tensor_type) for t in gguf.GGUFReader(path).tensors}
    tensors = open_gguf(path).tensors
    for their_name, our_name in decoder_names(2, tied=False).items():
        expected = theirs[their_name]
        if "attn_q" in their_name or "attn_k" in their_name:
            expected = np.concatenate(
                [head[[*range(0, 128, 2), *range(1, 128, 2)]] for head in expected.reshape(2, 128, -1)]
            )
        np.testing.assert_array_equal(tensors[our_name].float32().ravel(), expected.ravel())


def test_stories_holds_the_checkpoints_weights_exactly() -> None:
    model = open_gguf(shared_path("weights/stories260K_f16.gguf"))
    source = read_safetensors(shared_path("weights/stories260K/model.safetensors"))
    assert set(model.tensors) == set(source)
    assert_stored(model.tensors, {name: tensor.float32() for name, tensor in source.items()})
    assert (model.config.decoder.num_key_value_heads, model.config.decoder.rms_norm_eps) == (4, 1e-5)
