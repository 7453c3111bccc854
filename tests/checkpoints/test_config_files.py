"""preprocessor_config.json is read in every style there is; what we do not compute is refused."""

import json
from typing import Any

import pytest

from mvlm_np.checkpoints.config_files import image_config
from mvlm_np.config import ImageConfig
from mvlm_np.errors import ConfigError
from tests.conftest import shared_path

# openai/clip-vit-large-patch14-336 on the hub, and the same as transformers saves it again.
HUB: dict[str, Any] = {
    "crop_size": 336,
    "do_center_crop": True,
    "do_normalize": True,
    "do_resize": True,
    "feature_extractor_type": "CLIPFeatureExtractor",
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "resample": 3,
    "size": 336,
}
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
