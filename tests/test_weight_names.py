"""The parts of the model ask for what the five published checkpoints hold, name by name, shape by shape."""

import json
from typing import Any

import pytest
import torch
import transformers

from mvlm_np.binder import VISION_TOWER
from mvlm_np.checkpoints.config_files import model_config, vision_config
from mvlm_np.checkpoints.loader import unused
from mvlm_np.config import Config, ImageConfig
from mvlm_np.loading import manifest
from tests.conftest import shared_path
from tools.parts.family import NAMES, files
from tools.parts.torch_projectors import build_projector

Shapes = dict[str, tuple[int, ...]]
PUBLISHED = [name for name in NAMES if name.startswith("MobileVLM")]


def config_of(name: str, **changes: Any) -> Config:
    model, tower = files(name)
    vision = vision_config(tower["config.json"], name)
    size = vision.image_size
    return model_config(model["config.json"] | changes, name, vision, ImageConfig(size, (size, size)))


def assert_covers(config: Config, theirs: Shapes) -> None:
    """Each tensor wanted is theirs, with its shape; each of theirs is wanted or known to be unused."""
    assert manifest(config).shapes == {name: shape for name, shape in theirs.items() if not unused(name)}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_checkpoints_hold_what_is_wanted(name: str) -> None:
    keys = json.loads(shared_path(f"facts/keys/{name}.json").read_text())["tensors"]
    assert_covers(config_of(name), {key: tuple(shape) for key, shape in keys.items()})


PROJECTORS = ["linear", "mlp1x_gelu", "mlp2x_gelu", "mlp12x_gelu"]


@pytest.mark.parametrize(
    ("name", "projector"), [*((n, None) for n in PUBLISHED), *(("tiny", p) for p in PROJECTORS)]
)
def test_models_of_torch_hold_what_is_wanted(name: str, projector: str | None) -> None:
    """The same without the published lists: modules of torch without memory, at full size."""
    config = config_of(name, **({"mm_projector_type": projector} if projector else {}))
    assert config.vision is not None
    d, V = config.decoder, config.vision
    with torch.device("meta"):
        llama = transformers.LlamaForCausalLM(
            transformers.LlamaConfig(
                hidden_size=d.hidden_size,
                intermediate_size=d.intermediate_size,
                num_hidden_layers=d.num_hidden_layers,
                num_attention_heads=d.num_attention_heads,
                num_key_value_heads=d.num_key_value_heads,
                vocab_size=d.vocab_size,
            )
        )
        clip = transformers.CLIPVisionModel(
            transformers.CLIPVisionConfig(
                hidden_size=V.hidden_size,
                intermediate_size=V.intermediate_size,
                num_hidden_layers=V.num_hidden_layers,
                num_attention_heads=V.num_attention_heads,
                image_size=V.image_size,
                patch_size=V.patch_size,
            )
        )
        projector_module = build_projector(config.mm_projector_type, V.hidden_size, d.hidden_size)
    shapes: Shapes = {key: tuple(value.shape) for key, value in llama.state_dict().items()}
    prefix = (
        VISION_TOWER
        if any(k.startswith("vision_model.") for k in clip.state_dict())
        else f"{VISION_TOWER}vision_model."
    )
    shapes |= {prefix + key: tuple(value.shape) for key, value in clip.state_dict().items()}
    shapes |= {
        f"model.mm_projector.{key}": tuple(value.shape)
        for key, value in projector_module.state_dict().items()
    }
    assert_covers(config, shapes)


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.31.self_attn.rotary_emb.inv_freq",
        f"{VISION_TOWER}vision_model.embeddings.position_ids",
        f"{VISION_TOWER}vision_model.post_layernorm.bias",
    ],
)
def test_leftovers_are_known(name: str) -> None:
    assert unused(name)


@pytest.mark.parametrize(
    "name", ["lm_head.weight", "model.norm.weight", "position_ids_of_another_kind", "x.inv_freq"]
)
def test_nothing_else_is_passed_over(name: str) -> None:
    assert not unused(name)
