"""Model folders in every form that Hugging Face and upstream save, and where CLIP comes from."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import save_file

from mvlm_np.binder import VISION_TOWER
from mvlm_np.checkpoints.checkpoint import Checkpoint
from mvlm_np.checkpoints.folder import WEIGHTS, open_folder, read_weights
from mvlm_np.config import OPENAI_CLIP, DecoderConfig, VisionConfig
from mvlm_np.errors import CheckpointError, ConfigError
from mvlm_np.loading import bound_tensors
from tests.checkpoints.folders import (
    CLIP,
    FORMS,
    TINY,
    Json,
    State,
    config,
    tower_weights,
    weights,
    write_json,
    write_model,
    write_tower,
)
from tests.conftest import shared_path
from tests.models import stored

Save = Callable[[State, Path], None]
V1: dict[str, Any] = {"mm_projector_type": "ldpnet"}
TEXT_ONLY: dict[str, Any] = {"mm_vision_tower": None}


def assert_holds(checkpoint: Checkpoint, expected: State) -> None:
    """The checkpoint binds, and its tensors are these, in float32."""
    bound_tensors(checkpoint)
    for name, value in expected.items():
        found = checkpoint.tensors[name].float32()
        assert found.dtype == np.float32
        assert np.array_equal(found, value.float().numpy()), name


# -- Forms --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_every_form_and_type_holds_the_same_values(tmp_path: Path, form: str, dtype: torch.dtype) -> None:
    state = weights()
    folder = write_model(tmp_path / "m", {k: v.to(dtype) for k, v in state.items()}, FORMS[form])
    write_tower(folder / "clip")
    assert (folder / form).is_file()
    if form.endswith("index.json"):
        assert len(set(json.loads((folder / form).read_text())["weight_map"].values())) > 3
    checkpoint = open_folder(folder)
    assert {f"torch.{tensor.dtype}" for tensor in checkpoint.tensors.values()} == {str(dtype)}
    assert_holds(checkpoint, state)


def test_of_several_forms_the_one_that_transformers_takes_is_read(tmp_path: Path) -> None:
    folder = write_tower(tmp_path / "clip").parent
    for seed, form in reversed(list(enumerate(FORMS))):  # a writer of shards removes what lies there
        write_model(folder, weights(seed), FORMS[form])
    assert list(FORMS) == list(WEIGHTS)
    for seed, form in enumerate(FORMS):
        assert_holds(open_folder(folder), weights(seed))
        (folder / form).unlink()


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("size", ["5GB", "20KB"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_text_only_model_saved_by_transformers_is_read(
    tmp_path: Path, tied: bool, size: str, dtype: str
) -> None:
    settings = transformers.LlamaConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=64,
        rope_theta=12345.0,
        max_position_embeddings=77,
        rms_norm_eps=1e-5,
        tie_word_embeddings=tied,
        bos_token_id=3,
        eos_token_id=4,
    )
    model = transformers.LlamaForCausalLM(settings).to(getattr(torch, dtype))
    model.save_pretrained(tmp_path, max_shard_size=size)
    checkpoint = open_folder(tmp_path)
    assert checkpoint.config.vision is None
    theta = settings.to_dict().get("rope_parameters", {}).get("rope_theta", 12345.0)
    assert checkpoint.config.decoder == DecoderConfig(32, 48, 2, 4, 2, 64, 1e-5, theta, 77, tied, 3, 4)
    saved = {k: v for k, v in model.state_dict().items() if not (tied and k == "lm_head.weight")}
    assert checkpoint.tensors.keys() == saved.keys()
    assert_holds(checkpoint, saved)


def test_a_tied_model_may_hold_its_lm_head_twice(tmp_path: Path) -> None:
    """torch.save writes both names; that transformers' safetensors have one is tested above."""
    changes = TEXT_ONLY | {"tie_word_embeddings": True}
    state = weights(**changes)
    assert "lm_head.weight" not in state
    state["lm_head.weight"] = state["model.embed_tokens.weight"]
    tensors = bound_tensors(open_folder(write_model(tmp_path, state, FORMS["pytorch_model.bin"], **changes)))
    assert "lm_head.weight" not in tensors and "model.embed_tokens.weight" in tensors


def test_an_untied_model_needs_its_lm_head(tmp_path: Path) -> None:
    state = weights(**TEXT_ONLY)
    del state["lm_head.weight"]
    with pytest.raises(CheckpointError, match=r"1 missing: lm_head\.weight"):
        bound_tensors(open_folder(write_model(tmp_path, state, **TEXT_ONLY)))


LEFTOVERS = {
    "model.layers.0.self_attn.rotary_emb.inv_freq": (8,),
    "model.layers.1.self_attn.rotary_emb.inv_freq": (8,),
    VISION_TOWER + "vision_model.embeddings.position_ids": (1, 577),
    VISION_TOWER + "vision_model.post_layernorm.weight": (32,),
    VISION_TOWER + "vision_model.post_layernorm.bias": (32,),
}


@pytest.mark.parametrize("name", LEFTOVERS)
def test_tensors_that_no_output_depends_on_may_be_there(tmp_path: Path, name: str) -> None:
    write_tower(tmp_path / "clip")
    state = weights()
    write_model(tmp_path, state | {name: torch.zeros(LEFTOVERS[name])})
    assert_holds(open_folder(tmp_path), state)


def test_leftover_keys_of_the_3b_change_nothing(tmp_path: Path) -> None:
    leftovers: dict[str, Any] = {"n_head": 1, "n_layer": 7, "norm_eps": 1.0, "rope_base": 7, "bias": True}
    write_tower(tmp_path / "clip")
    assert open_folder(write_model(tmp_path, **leftovers)).config == config()


# -- Generation ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("in_config", "in_generation", "expected"),
    [
        (5, None, 5),
        (5, {}, 5),
        (5, {"eos_token_id": None}, 5),
        (5, {"eos_token_id": 7}, 7),
        (None, {"eos_token_id": 7}, 7),
        (None, {"eos_token_id": [7]}, 7),
        ([5], None, 5),
        ([5, 6], None, (5, 6)),
        ([5, 6], {"eos_token_id": 7}, 7),
        (5, {"eos_token_id": [7, 2]}, (7, 2)),
        (None, None, 2),
    ],
)
def test_generation_config_overrules_the_end_token(
    tmp_path: Path, in_config: Any, in_generation: Any, expected: int | tuple[int, ...]
) -> None:
    write_model(tmp_path, **TEXT_ONLY, eos_token_id=in_config)
    (tmp_path / "generation_config.json").unlink()
    if in_generation is not None:
        write_json(tmp_path, {"generation_config.json": in_generation})
    assert open_folder(tmp_path).config.decoder.eos_token_id == expected


# -- Where CLIP comes from ----------------------------------------------------------------------------


def placed(folder: Path, place: str) -> tuple[Path, dict[str, Any]]:
    """Where a tower lies for `mm_vision_tower`, and what that key says."""
    return {
        "inside": (folder / "clip", {"mm_vision_tower": "clip"}),
        "inside, with a dot": (folder / "clip", {"mm_vision_tower": "./clip"}),
        "deep inside": (folder / "towers" / "clip", {"mm_vision_tower": "towers/clip"}),
        "beside": (folder.parent / "clip", {"mm_vision_tower": "clip"}),
        "absolute": (
            folder.parent / "far" / "clip",
            {"mm_vision_tower": str(folder.parent / "far" / "clip")},
        ),
        "moved": (folder / "clip", {"mm_vision_tower": "/elsewhere/clip"}),
        "openai inside": (folder / OPENAI_CLIP.split("/")[1], {"mm_vision_tower": OPENAI_CLIP}),
        "openai beside": (folder.parent / OPENAI_CLIP.split("/")[1], {"mm_vision_tower": OPENAI_CLIP}),
    }[place]


PLACES = [
    "inside",
    "inside, with a dot",
    "deep inside",
    "beside",
    "absolute",
    "moved",
    "openai inside",
    "openai beside",
]


@pytest.mark.parametrize("place", PLACES)
def test_v1_takes_clip_from_the_folder_that_it_names(tmp_path: Path, place: str) -> None:
    folder = tmp_path / "model"
    tower, change = placed(folder, place)
    state = weights(**V1)
    write_model(folder, state, **V1, **change)
    write_tower(tower)
    checkpoint = open_folder(folder)
    expected = state | {VISION_TOWER + name: value for name, value in tower_weights().items()}
    assert_holds(checkpoint, expected)
    assert checkpoint.notes == []
    name = "vision_model.embeddings.class_embedding"
    assert not torch.equal(expected[VISION_TOWER + name], state[VISION_TOWER + name])


@pytest.mark.parametrize("place", PLACES)
def test_v2_takes_its_own_clip_and_the_folder_s_settings(tmp_path: Path, place: str) -> None:
    folder = tmp_path / "model"
    tower, change = placed(folder, place)
    state = weights()
    write_model(folder, state, **change)
    write_tower(tower)
    checkpoint = open_folder(folder)
    assert_holds(checkpoint, state)
    assert checkpoint.config.vision == config().vision


@pytest.mark.parametrize("projector", ["ldpnet", "linear", "mlp2x_gelu", "ldpnetv2"])
def test_vision_tower_overrules_the_config(tmp_path: Path, projector: str) -> None:
    change: dict[str, Any] = {"mm_projector_type": projector}
    state = weights(**change)
    folder = write_model(tmp_path / "model", state, **change)
    write_tower(folder / "clip", tower_weights(5))
    given = write_tower(tmp_path / "given", tower_weights(6))
    checkpoint = open_folder(folder, given)
    if projector == "ldpnetv2":
        assert_holds(checkpoint, state)
        assert checkpoint.notes == [f"ldpnetv2 has its own vision weights; those in {given} are not used"]
    else:
        assert_holds(checkpoint, {VISION_TOWER + name: value for name, value in tower_weights(6).items()})
        assert checkpoint.notes == []


def test_v1_without_its_own_copy_takes_the_folder_s(tmp_path: Path) -> None:
    state = {k: v for k, v in weights(**V1).items() if not k.startswith(VISION_TOWER)}
    write_model(tmp_path, state, **V1)
    write_tower(tmp_path / "clip")
    expected = {VISION_TOWER + name: value for name, value in tower_weights().items()}
    assert_holds(open_folder(tmp_path), expected)


def test_v1_with_only_its_own_copy_uses_it_and_says_so(tmp_path: Path) -> None:
    state = weights(**V1)
    write_model(tmp_path, state, **V1)
    write_json(tmp_path / "clip", CLIP)
    checkpoint = open_folder(tmp_path)
    assert_holds(checkpoint, state)
    (note,) = checkpoint.notes
    assert "would load 'clip' anew" in note and "own copy of it is used" in note


def test_v2_needs_no_weights_in_the_tower_s_folder(tmp_path: Path) -> None:
    write_model(tmp_path)
    write_json(tmp_path / "clip", CLIP)
    checkpoint = open_folder(tmp_path)
    assert_holds(checkpoint, weights())
    assert checkpoint.notes == []


@pytest.mark.parametrize("projector", ["ldpnet", "ldpnetv2"])
def test_the_openai_tower_is_known_without_a_folder(tmp_path: Path, projector: str) -> None:
    """A folder of the hub holds no sizes of CLIP. (Here the tensors are not the openai tower's.)"""
    change: dict[str, Any] = {
        "mm_projector_type": projector,
        "mm_vision_tower": OPENAI_CLIP,
        "mm_hidden_size": 1024,
    }
    checkpoint = open_folder(write_model(tmp_path, weights(mm_projector_type=projector), **change))
    assert checkpoint.config.vision == VisionConfig()
    assert len(checkpoint.notes) == (projector == "ldpnet")


@pytest.mark.parametrize("form", FORMS)
def test_a_tower_may_have_any_form_and_a_text_tower(tmp_path: Path, form: str) -> None:
    more = {
        "logit_scale": torch.zeros(()),
        "text_projection.weight": torch.zeros(3, 3),
        "visual_projection.weight": torch.zeros(3, 3),
        "text_model.embeddings.position_ids": torch.zeros(1, 77),
        "text_model.final_layer_norm.weight": torch.zeros(3),
        "vision_model.embeddings.position_ids": torch.zeros(1, 577),
    }
    write_model(tmp_path, **V1)
    write_tower(tmp_path / "clip", tower_weights() | more, FORMS[form])
    checkpoint = open_folder(tmp_path)
    assert_holds(checkpoint, {VISION_TOWER + name: value for name, value in tower_weights().items()})
    assert not any("text" in name or "logit" in name for name in checkpoint.tensors)


@pytest.mark.parametrize("whole", [True, False], ids=["CLIPModel", "CLIPVisionModel"])
def test_a_tower_saved_by_transformers_is_read(tmp_path: Path, whole: bool) -> None:
    vision = transformers.CLIPVisionConfig(**CLIP["config.json"]["vision_config"])
    if whole:
        text = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
        both = transformers.CLIPConfig(text_config=text | {"vocab_size": 9}, vision_config=vision.to_dict())
        model = transformers.CLIPModel(both)
        tower = model.vision_model
    else:
        model = transformers.CLIPVisionModel(vision)
        tower = getattr(model, "vision_model", model)  # transformers 5 has made the two one
    model.save_pretrained(tmp_path / "clip")
    write_json(tmp_path / "clip", {"preprocessor_config.json": CLIP["preprocessor_config.json"]})
    write_model(tmp_path, **V1)
    checkpoint = open_folder(tmp_path)
    assert checkpoint.config.vision == config().vision
    prefix = f"{VISION_TOWER}vision_model."
    assert_holds(
        checkpoint, {prefix + name: value for name, value in tower.state_dict().items() if "ids" not in name}
    )


# -- What can be wrong with it ------------------------------------------------------------------------


def wrong_towers() -> dict[str, tuple[Callable[[Path], object], str]]:
    def v1(folder: Path, **changes: Any) -> Path:
        return write_model(folder, weights(**V1), **V1, **changes)

    def bare(folder: Path, **changes: Any) -> Path:
        state = {k: v for k, v in weights(**V1).items() if not k.startswith(VISION_TOWER)}
        return write_model(folder, state, **V1, **changes)

    def without(folder: Path, name: str) -> None:
        (write_tower(v1(folder) / "clip") / name).unlink()

    def link(folder: Path) -> None:
        without(folder, "model.safetensors")
        (folder / "clip" / "model.safetensors").symlink_to("absent")

    return {
        "no such folder": (v1, r"config\.json: mm_vision_tower: there is no CLIP folder 'clip', wanted"),
        "no such folder on the hub": (
            lambda folder: v1(folder, mm_vision_tower="someone/else"),
            r"mm_vision_tower: there is no CLIP folder 'someone/else'",
        ),
        "no openai folder and no copy": (
            lambda folder: bare(folder, mm_vision_tower=OPENAI_CLIP, mm_hidden_size=1024),
            r"mm_vision_tower: 'openai/clip-vit-large-patch14-336' is not here, and the checkpoint holds",
        ),
        "settings alone and no copy": (
            lambda folder: write_json(bare(folder) / "clip", CLIP),
            r"mm_vision_tower: 'clip' is not here, and the checkpoint holds",
        ),
        "no preprocessor": (
            lambda folder: without(folder, "preprocessor_config.json"),
            r"clip/preprocessor_config\.json: cannot be read \(No such file",
        ),
        "weights that lead nowhere": (link, r"clip/model\.safetensors: is a link to .*, which is not there"),
        "the model itself": (
            lambda folder: v1(folder, mm_vision_tower="."),
            r"config\.json: model_type: found 'mobilevlm', wanted 'clip'",
        ),
        "nothing": (
            lambda folder: v1(folder, mm_vision_tower=""),
            r"model_type: found 'mobilevlm', wanted 'clip'",
        ),
        "a list": (
            lambda folder: v1(folder, mm_vision_tower=["clip"]),
            r"mm_vision_tower: found \['clip'\], wanted",
        ),
        "a name with a NUL": (lambda folder: v1(folder, mm_vision_tower="a\0b"), r"no CLIP folder 'a\\x00b'"),
        "a name of 5,000 characters": (
            lambda folder: v1(folder, mm_vision_tower="a" * 5000),
            r"there is no CLIP folder 'a+\.\.\.a+'",
        ),
        "other sizes than the model's": (
            lambda folder: write_tower(v1(folder, mm_hidden_size=33) / "clip"),
            r"config\.json: mm_hidden_size: found 33, wanted 32",
        ),
        "other sizes than its weights": (
            lambda folder: write_tower(v1(folder) / "clip", num_hidden_layers=4),
            r"16 missing: .*encoder\.layers\.3",
        ),
        "fewer layers than its weights": (
            lambda folder: write_tower(v1(folder) / "clip", num_hidden_layers=2),
            r"16 not known: .*encoder\.layers\.2",
        ),
        "other grid than its weights": (
            lambda folder: write_tower(v1(folder) / "clip", patch_size=28),
            r"2 misshapen: .*patch_embedding.* is \[32, 3, 14, 14\] instead of \[32, 3, 28, 28\]",
        ),
        "another picture than the preprocessor's": (
            lambda folder: write_tower(v1(folder) / "clip", image_size=224),
            r"mm_vision_tower: its preprocessor cuts pictures to \(336, 336\), wanted .* image_size 224",
        ),
    }


WRONG_TOWERS = wrong_towers()


@pytest.mark.parametrize("name", WRONG_TOWERS)
def test_a_tower_that_is_wrong_is_refused_by_what_is_wrong(tmp_path: Path, name: str) -> None:
    write, rule = WRONG_TOWERS[name]
    write(folder := tmp_path / "model")
    with pytest.raises((ConfigError, CheckpointError), match=rule):
        bound_tensors(open_folder(folder))


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_given_tower_must_be_whole(tmp_path: Path, name: str) -> None:
    write_tower(write_model(tmp_path / "model", **V1) / "clip")
    given = write_tower(tmp_path / "given")
    (given / name).unlink()
    with pytest.raises(CheckpointError, match=f"^{given}: (has no config.json|holds no weights)"):
        open_folder(tmp_path / "model", given)


def test_a_text_only_model_takes_no_tower(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="reads text only, wanted no vision_tower"):
        open_folder(write_model(tmp_path, **TEXT_ONLY), write_tower(tmp_path / "clip"))


def test_v2_without_its_own_clip_is_incomplete_even_beside_a_tower(tmp_path: Path) -> None:
    state = {k: v for k, v in weights().items() if not k.startswith(VISION_TOWER)}
    write_tower(write_model(tmp_path, state) / "clip")
    with pytest.raises(CheckpointError, match=r"53 missing: model\.vision_tower"):
        bound_tensors(open_folder(tmp_path))


# -- The published files ------------------------------------------------------------------------------


@pytest.mark.parametrize("golden", ["v2-gqa", "v2-256", "v1-ldp", "mlp-cls"])
def test_published_folders_bind_without_a_note(golden: str) -> None:
    checkpoint = open_folder(shared_path(f"goldens/{golden}"))
    bound_tensors(checkpoint)
    assert checkpoint.notes == []
    taken = {tensor.file.path.parent.name for tensor in checkpoint.tensors.values()}
    assert taken == ({golden} if golden.startswith("v2") else {golden, "clip"})


def test_the_real_text_model_binds() -> None:
    checkpoint = open_folder(shared_path("weights/stories260K"))
    bound_tensors(checkpoint)
    assert checkpoint.config.vision is None and checkpoint.config.decoder.num_key_value_heads == 4


def test_a_folder_may_be_read_only_and_linked(tmp_path: Path) -> None:
    """As the hub's cache has it: a snapshot of links into a folder of blobs."""
    write_tower(write_model(tmp_path / "blobs") / "clip")
    shutil.copytree(
        tmp_path / "blobs", tmp_path / "snapshot", copy_function=lambda a, b: Path(b).symlink_to(a)
    )
    assert (tmp_path / "snapshot" / "model.safetensors").is_symlink()
    assert_holds(open_folder(tmp_path / "snapshot"), weights())


# -- What transformers loads --------------------------------------------------------------------------


def test_an_index_and_shards_may_differ_where_it_changes_nothing(tmp_path: Path) -> None:
    """A buffer that only the index or only a shard has, a tensor twice, a tensor in another shard."""
    state = weights()
    names = sorted(state)
    buffer = "model.layers.0.self_attn.rotary_emb.inv_freq"
    write_json(tmp_path, TINY)
    parts = {
        "model-00001-of-00002.safetensors": {name: state[name] for name in names[:10]},
        "model-00002-of-00002.safetensors": {name: state[name] for name in names[9:]}
        | {buffer: torch.ones(4)},
    }
    for file, part in parts.items():
        save_file({name: tensor.clone() for name, tensor in part.items()}, tmp_path / file)
    weight_map = dict.fromkeys(names, "model-00001-of-00002.safetensors")
    weight_map[names[0]] = "model-00002-of-00002.safetensors"  # is in the other
    weight_map["model.layers.1.self_attn.rotary_emb.inv_freq"] = "model-00002-of-00002.safetensors"
    write_json(tmp_path, {"model.safetensors.index.json": {"weight_map": weight_map}})
    write_tower(tmp_path / "clip")
    bound = bound_tensors(open_folder(tmp_path))
    plain = bound_tensors(open_folder(write_model(tmp_path / "plain")))
    assert bound.keys() == plain.keys()
    for name, tensor in plain.items():
        np.testing.assert_array_equal(bound[name].float32(), tensor.float32())


@pytest.mark.parametrize("form", FORMS)
def test_weights_may_lie_in_a_folder_called_like_the_file(tmp_path: Path, form: str) -> None:
    """As DeepSpeed's zero_to_fp32.py leaves them when it is given the file's name."""
    folder = write_model(tmp_path / "model", save=lambda state, folder: None)
    (folder / "pytorch_model.bin").mkdir()
    FORMS[form](weights(), folder / "pytorch_model.bin")
    assert read_weights(folder).keys() == weights().keys()


def test_a_quantization_config_that_was_left_behind_is_a_note(tmp_path: Path) -> None:
    kind = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    write_tower(tmp_path / "clip")
    model = open_folder(write_model(tmp_path / "model", quantization_config=kind))
    assert model.notes == [
        "config.json has a quantization_config ('bitsandbytes'), but the weights are plain"
    ]


@pytest.mark.parametrize("scaling", [None, {"type": "default"}, {"rope_type": "default"},
                                     {"type": "linear", "factor": 1.0}])  # fmt: skip
def test_rotary_scaling_that_scales_nothing_is_taken(tmp_path: Path, scaling: Json | None) -> None:
    write_tower(tmp_path / "clip")
    assert open_folder(write_model(tmp_path / "model", rope_scaling=scaling)).config == config()


@pytest.mark.parametrize("named", [
    "/mnt/data/ckpts/clip-vit-large-patch14-336", "/mnt/openai_clip-vit-large-patch14-336/",
    "mtgv/clip-vit-large-patch14-336", r"C:\models\CLIP-ViT-Large-patch14-336",
    "openai--clip-vit-large-patch14-336",
    "/root/.cache/hub/models--openai--clip-vit-large-patch14-336/snapshots/ce19dc912ca5cd21c8a653c79e251e80",
])  # fmt: skip
def test_a_tower_on_the_trainers_machine_is_known_by_its_name(tmp_path: Path, named: str) -> None:
    vision = VisionConfig()
    settings = {"mm_vision_tower": named, "mm_hidden_size": vision.hidden_size}
    write_json(tmp_path, TINY | {"config.json": TINY["config.json"] | settings})
    stand_in = {"x": stored({"x": np.ones(1, np.float32)})["x"]}
    model = open_folder(tmp_path, weights=stand_in)
    assert model.config.vision == vision and model.config.mm_vision_tower == OPENAI_CLIP
    assert len(model.notes) == 1 and "is taken for openai/clip-vit-large-patch14-336" in model.notes[0]


@pytest.mark.parametrize("named", ["/mnt/clip-vit-large-patch14", "clip-vit-large-patch14-336-tuned"])
def test_another_tower_is_not_taken_for_the_known_one(tmp_path: Path, named: str) -> None:
    write_json(tmp_path, TINY | {"config.json": TINY["config.json"] | {"mm_vision_tower": named}})
    with pytest.raises(CheckpointError, match=r"there is no CLIP folder .*name its place with --vision"):
        open_folder(tmp_path, weights={})
