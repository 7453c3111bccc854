"""Config files are read in every style there is, with transformers' own defaults for what they leave out.

What is out of range or means another model is refused; `hostile_configs` has the list.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import transformers

from mvlm_np.checkpoints.config_files import decoder_config, image_config, model_config, vision_config
from mvlm_np.checkpoints.json_files import read_json
from mvlm_np.config import Config, DecoderConfig, ImageConfig, VisionConfig
from mvlm_np.errors import ConfigError
from mvlm_np.projector import image_tokens
from tests.conftest import shared_path
from tools.parts.family import files, preprocessor

# -- The decoder and the whole model ------------------------------------------------------------------

PUBLISHED = {
    "MobileVLM-1.7B": DecoderConfig(2048, 5632, 24, 16, 16),
    "MobileVLM-3B": DecoderConfig(2560, 6912, 32, 32, 32),
    "MobileVLM_V2-1.7B": DecoderConfig(2048, 5632, 24, 16, 16),
    "MobileVLM_V2-3B": DecoderConfig(2560, 6912, 32, 32, 32),
    "MobileVLM_V2-7B": DecoderConfig(
        4096, 11008, 32, 32, 32, rms_norm_eps=1e-5, max_position_embeddings=4096
    ),
}


def assert_is_published(name: str, values: object) -> None:
    projector = "ldpnetv2" if "V2" in name else "ldpnet"
    found = model_config(values, name, VisionConfig(), ImageConfig())
    assert found == Config(PUBLISHED[name], VisionConfig(), mm_projector_type=projector)
    assert (found.vision_in_checkpoint, found.vision_layers, image_tokens(found)) == ("V2" in name, 23, 144)


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_family_s_configs_mean_the_published_models(name: str) -> None:
    """The 3B's leftovers (n_head is half of its heads) are among them."""
    assert_is_published(name, files(name).model["config.json"])


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_configs_mean_the_published_models(name: str) -> None:
    assert_is_published(name, read_json(shared_path(f"facts/configs/{name}/config.json")))


def saved(config: transformers.PretrainedConfig, folder: Path) -> dict[str, Any]:
    config.save_pretrained(folder)
    return read_json(folder / "config.json")


def test_defaults_of_the_decoder_are_those_of_transformers(tmp_path: Path) -> None:
    """But for the sizes, which every published file has: a file without them is refused."""
    values = saved(transformers.LlamaConfig(num_key_value_heads=8), tmp_path)
    sizes = {key: values[key] for key in ("hidden_size", "intermediate_size")}
    sizes |= {key: values[key] for key in ("num_hidden_layers", "num_attention_heads")}
    assert decoder_config(sizes | {"num_key_value_heads": 8}, "c") == decoder_config(values, "c")
    assert decoder_config(sizes, "c").num_key_value_heads == sizes["num_attention_heads"]
    for missing in sizes:
        with pytest.raises(ConfigError, match=f"^c: {missing}: is missing"):
            decoder_config({key: value for key, value in sizes.items() if key != missing}, "c")


@pytest.mark.parametrize("theta", [10000.0, 500000.0])
def test_rope_theta_is_found_where_any_release_of_transformers_puts_it(tmp_path: Path, theta: float) -> None:
    new = saved(
        transformers.LlamaConfig(rope_parameters={"rope_type": "default", "rope_theta": theta}), tmp_path
    )
    old = {key: value for key, value in new.items() if not key.startswith("rope")}
    old |= {"rope_theta": theta, "rope_scaling": None}
    assert "rope_theta" not in new
    assert decoder_config(new, "c") == decoder_config(old, "c")
    assert decoder_config(new, "c").rope_theta == theta


# -- The vision tower ---------------------------------------------------------------------------------


def test_defaults_of_the_tower_are_those_of_transformers(tmp_path: Path) -> None:
    """They are the sizes of CLIP B/32, not those of the openai tower that MobileVLM has."""
    values = saved(transformers.CLIPVisionConfig(), tmp_path)
    assert vision_config({}, "c") == vision_config(values, "c")
    assert vision_config({}, "c").patch_size == 32
    large = saved(
        transformers.CLIPVisionConfig(**files("MobileVLM-3B").tower["config.json"]["vision_config"]), tmp_path
    )
    assert vision_config(large, "c") == VisionConfig()
    for key in values:
        assert vision_config({k: v for k, v in values.items() if k != key}, "c") == vision_config(values, "c")


def test_both_styles_of_the_openai_tower_are_read() -> None:
    hub, expanded = (
        read_json(shared_path(f"facts/configs/clip-vit-large-patch14-336/{name}.json"))
        for name in ("config.hub-style", "vision_config.expanded")
    )
    assert "hidden_act" not in hub["vision_config"]
    assert vision_config(hub, "c") == vision_config(expanded, "c") == VisionConfig()


def test_the_hub_s_style_of_the_openai_tower_is_read() -> None:
    assert vision_config(files("MobileVLM-1.7B").tower["config.json"], "c") == VisionConfig()


# -- The preprocessor ---------------------------------------------------------------------------------

# openai/clip-vit-large-patch14-336 on the hub, and the same as transformers saves it again.
HUB: dict[str, Any] = preprocessor(336)
SAVED: dict[str, Any] = {
    "crop_size": {"height": 336, "width": 336},
    "do_center_crop": True,
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_processor_type": "CLIPImageProcessor",
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "resample": 3,
    "rescale_factor": 0.00392156862745098,
    "size": {"shortest_edge": 336},
}


@pytest.mark.parametrize("values", [HUB, SAVED], ids=["hub", "saved again"])
@pytest.mark.parametrize("aspect", ["pad", "square", None])
def test_both_styles_of_the_file_are_the_openai_tower(values: dict[str, Any], aspect: str | None) -> None:
    assert image_config(values, aspect, "p.json") == ImageConfig(aspect_ratio=aspect)


@pytest.mark.parametrize(
    "name",
    [
        "facts/configs/clip-vit-large-patch14-336",
        *(f"goldens/{g}/clip" for g in ("v1-ldp", "v2-gqa", "mlp-cls")),
    ],
)
def test_real_files_are_the_openai_tower(name: str) -> None:
    path = shared_path(f"{name}/preprocessor_config.json")
    assert image_config(json.loads(path.read_text()), "pad", path) == ImageConfig()


def test_values_are_those_of_the_file() -> None:
    values = {
        "size": {"shortest_edge": 70},
        "crop_size": {"width": 64, "height": 48},
        "image_mean": [0, 0.5, 1],
        "image_std": [1, 0.5, 0.25],
    }
    assert image_config(values, None, "p.json") == ImageConfig(
        70, (48, 64), (0, 0.5, 1), (1, 0.5, 0.25), None
    )
    assert image_config({"size": 80, "crop_size": 40}, None, "p.json").crop == (40, 40)


def test_what_the_file_leaves_out_is_the_default_of_transformers() -> None:
    module = pytest.importorskip("transformers.models.clip.image_processing_pil_clip")
    saved = json.loads(module.CLIPImageProcessorPil().to_json_string())
    assert image_config({}, None, "p.json") == image_config(saved, None, "p.json")
    assert image_config({}, None, "p.json").resize == 224


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("size", 0),
        ("size", 4097),
        ("size", 336.0),
        ("size", "336"),
        ("size", True),
        ("size", [336, 336]),
        ("size", {}),
        ("size", {"shortest_edge": 0}),
        ("size", {"shortest_edge": None}),
        ("size", {"height": 336, "width": 336}),
        ("size", {"shortest_edge": 336, "longest_edge": 672}),
        ("crop_size", -1),
        ("crop_size", {"height": 336}),
        ("crop_size", {"shortest_edge": 336}),
        ("crop_size", {"height": 336, "width": 10**9}),
        ("image_mean", 0.5),
        ("image_mean", [0.5, 0.5]),
        ("image_mean", [0.5, 0.5, 1.1]),
        ("image_mean", [0.5, 0.5, float("nan")]),
        ("image_mean", [0.5, 0.5, True]),
        ("image_mean", "0.5"),
        ("image_std", [0, 1, 1]),
        ("image_std", [-1, 1, 1]),
        ("image_std", [1, 1, 10**400]),
        ("image_std", [1, 1, float("inf")]),
        ("image_std", [1, 1, "1"]),
        ("image_std", list(range(1, 100_000))),
        ("do_resize", False),
        ("do_center_crop", False),
        ("do_rescale", None),
        ("do_normalize", 0),
        ("do_pad", True),
        ("do_something_new", True),
        ("resample", 2),
        ("resample", "bicubic"),
        ("rescale_factor", 1 / 127.5),
        ("rescale_factor", "1/255"),
        ("image_processor_type", "SiglipImageProcessor"),
        ("feature_extractor_type", "ViTFeatureExtractor"),
    ],
)
def test_a_setting_that_is_not_computed_is_refused_by_name(key: str, value: object) -> None:
    with pytest.raises(ConfigError) as caught:
        image_config(SAVED | {key: value}, "pad", "clip/preprocessor_config.json")
    message = str(caught.value)
    assert message.startswith(f"clip/preprocessor_config.json: {key}: ")
    assert "found" in message or "is missing" in message
    assert len(message) < 250


@pytest.mark.parametrize("values", [None, [], "pad", 336])
def test_a_file_that_holds_no_object_is_refused(values: object) -> None:
    with pytest.raises(ConfigError, match=r"^p\.json: found .*, wanted a JSON object$"):
        image_config(values, "pad", "p.json")


@pytest.mark.parametrize(("key", "value"), [("do_convert_rgb", False), ("do_pad", False), ("do_pad", None)])
def test_flags_without_effect_are_accepted(key: str, value: object) -> None:
    assert image_config(SAVED | {key: value}, "pad", "p.json") == ImageConfig()
