"""The class token in a GGUF: right before the patches, as in the model, and behind them, as in llama.cpp."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mvlm_np import ops
from mvlm_np.checkpoints.gguf_class_token import CLASS, PATCH, POSITIONS, shares
from mvlm_np.checkpoints.opening import open_checkpoint
from mvlm_np.checkpoints.tensors import Tensor
from mvlm_np.converting import convert_to_gguf
from mvlm_np.inputs.image import one_patch_on, padding, preprocess, scaled
from mvlm_np.loading import load
from tests.conftest import DATA
from tools.check_explain import Case, named


def values(tensors: Mapping[str, Tensor]) -> tuple[np.ndarray, np.ndarray]:
    """The class embedding and the positions."""
    return tensors[CLASS].float32(), tensors[POSITIONS].float32()


def test_a_class_token_beyond_float16_stays_what_it_is() -> None:
    token = np.array([70000, -90000, 1], np.float32)
    held, position = shares(token, np.zeros((3, 3, 2, 2), np.float32), np.zeros(3))
    np.testing.assert_array_equal(held + position, token)
    np.testing.assert_array_equal(position, [65504, -65504, 1])


def test_a_gguf_of_a_gguf_shares_it_out_alike(tmp_path: Path) -> None:
    convert_to_gguf(open_checkpoint(DATA / "golden/ldpv2"), tmp_path / "first", "float16")
    first = open_checkpoint(tmp_path / "first/model-F16.gguf")
    convert_to_gguf(first, tmp_path / "second", "float16")
    second = open_checkpoint(tmp_path / "second/model-F16.gguf")
    for ours, theirs in zip(values(first.tensors), values(second.tensors), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("name", ["ldpv2", "ldp"])
def test_tokens_are_the_models_with_the_class_token_in_either_place(tmp_path: Path, name: str) -> None:
    source = open_checkpoint(DATA / "golden" / name)
    convert_to_gguf(source, tmp_path / "pair", "float16")
    written = open_checkpoint(tmp_path / "pair" / "model-F16.gguf")
    (token, positions), (held, shared) = values(source.tensors), values(written.tensors)
    assert np.abs(held - token).max() > 0.1  # shared out otherwise
    np.testing.assert_allclose(held + shared[0], token + positions[0], rtol=0, atol=1e-6)
    np.testing.assert_array_equal(shared[1:], positions[1:].astype(np.float16))

    assert source.config.vision
    image, p = source.config.image, source.config.vision.patch_size
    kernel = written.tensors[PATCH].float32().reshape(len(held), -1)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 95, 3), np.uint8))
    moved = Image.fromarray(one_patch_on(scaled(picture, image).transpose(1, 2, 0), p, padding(image)))

    def patches(picture: Image.Image) -> np.ndarray:
        g = image.resize // p
        x = preprocess(picture, image)[:, : g * p, : g * p].reshape(3, g, p, g, p)
        return x.transpose(1, 3, 0, 2, 4).reshape(g * g, -1) @ kernel.T

    model = np.concatenate([(held + shared[0])[None], patches(picture) + shared[1:]])
    llama_cpp = np.concatenate([patches(moved), held[None]]) + shared
    np.testing.assert_allclose(llama_cpp, model, rtol=0, atol=2**-10)
    usual = np.concatenate([patches(picture), held[None]]) + shared
    assert np.abs(usual - model).max() > 0.1


def test_explain_knows_what_llama_cpp_makes_of_it_from_the_folder_too(tmp_path: Path) -> None:
    case = Case(DATA / "golden" / "ldpv2")
    convert_to_gguf(open_checkpoint(case.folder), tmp_path / "pair", "float16")
    model = load(tmp_path / "pair" / "model-F16.gguf", "float32", "numpy")
    assert model.vision and model.config.vision
    p, eps = model.config.vision.patch_size, model.config.vision.layer_norm_eps
    pixels, kernel = case.golden.stages["pixel_values"], model.vision.patch_embedding
    patches = ops.patches(pixels, p) @ kernel.reshape(len(kernel), -1).T
    behind = np.concatenate([patches, model.vision.class_embedding[None]]) + model.vision.position_embedding
    found = case.explain({"vision.hidden_states.0": ops.layer_norm(behind, *model.vision.pre_layrnorm, eps)})
    assert named(found) == {"class-token-last"}
