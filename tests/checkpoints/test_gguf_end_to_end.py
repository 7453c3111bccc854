"""A loaded GGUF computes what torch computes from the same weights, decoded by the gguf package."""

import re
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import mvlm_np
from mvlm_np.checkpoints.gguf_names import decoder_names
from mvlm_np.checkpoints.safetensors import read_safetensors
from mvlm_np.config import DecoderConfig
from tests.checkpoints.gguf_models import package_decoder, package_mmproj, random_weights, small_config
from tests.conftest import shared_path

# The engine's own bound for the whole chain, of the largest logit; see the decoder's goldens.
BOUND = 5e-5


def torch_logits(path: Path, config: DecoderConfig, ids: np.ndarray) -> np.ndarray:
    """Logits by transformers; the weights are decoded by the package and put back in order here."""
    names = decoder_names(config.num_hidden_layers, config.tie_word_embeddings)
    state = {}
    for tensor in gguf.GGUFReader(path).tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(tensor.shape.tolist()[::-1])
        if "attn_q" in tensor.name or "attn_k" in tensor.name:
            d = config.head_dim
            order = [row + i for row in range(0, len(values), d) for j in (0, 1) for i in range(j, d, 2)]
            values = values[order]
        state[names[tensor.name]] = torch.tensor(values)
    model = LlamaForCausalLM(
        LlamaConfig(
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.num_hidden_layers,
            num_attention_heads=config.num_attention_heads,
            num_key_value_heads=config.num_key_value_heads,
            vocab_size=config.vocab_size,
            rms_norm_eps=config.rms_norm_eps,
            attn_implementation="eager",
        )
    )
    model.load_state_dict(state)
    with torch.inference_mode():
        return model(torch.tensor(ids[None])).logits[0].numpy()


def assert_same_logits(path: Path) -> None:
    model = mvlm_np.load(path, precision="float32", backend="numpy")
    trace = model.trace(None, "What does the photo show?", max_new_tokens=1)
    expected = torch_logits(path, model.config.decoder, trace["input_ids"].ravel())
    logits = trace["logits"].reshape(expected.shape)
    np.testing.assert_allclose(logits, expected, rtol=0, atol=BOUND * np.abs(expected).max())


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_0", "Q5_0"])
def test_logits_are_those_of_the_dequantised_weights(tmp_path: Path, kind: str) -> None:
    config = small_config(vision=False)
    assert_same_logits(package_decoder(tmp_path / "m.gguf", config, random_weights(config), kind))


@pytest.mark.parametrize(
    ("kind", "lossless"), [("F16", True), ("Q8_0", True), ("Q4_0", True), ("Q5_0", False)]
)
def test_a_loss_by_rounding_anew_is_reported(tmp_path: Path, kind: str, lossless: bool) -> None:
    config = small_config(vision=False)
    notes = mvlm_np.load(package_decoder(tmp_path / "m.gguf", config, random_weights(config), kind)).notes
    assert (notes == []) == lossless
    assert all(
        re.fullmatch(r"matrices stored as q5_0, .* to int8, .* of 4\d\.\d dB or more", n) for n in notes
    )


@pytest.mark.parametrize("name", ["F16", "Q8_0", "Q4_0", "Q4_0-pure", "Q4_K_S", "Q6_K"])
def test_logits_of_llama_cpps_files_are_those_of_their_dequantised_weights(name: str) -> None:
    assert_same_logits(shared_path(f"goldens/v2-256/gguf/llm-{name}.gguf"))


@pytest.mark.parametrize("projector", ["ldpnetv2", "ldpnet", "mlp2x_gelu"])
def test_a_tower_without_its_last_layer_computes_the_same_features(tmp_path: Path, projector: str) -> None:
    """The whole tower counts its features from the end differently, and holds the same ones."""
    config, picture = (
        small_config(projector),
        np.random.default_rng(0).integers(0, 256, (60, 50, 3), np.uint8),
    )
    weights, tokens = random_weights(config), []
    for whole in (False, True):
        folder = tmp_path / str(whole)
        folder.mkdir()
        package_mmproj(folder / "mmproj.gguf", config, weights, whole=whole)
        model = mvlm_np.load(
            package_decoder(folder / "m.gguf", config, weights), precision="float32", backend="numpy"
        )
        tokens.append(model.encode_image(picture))
    assert np.isfinite(tokens[0]).all()
    np.testing.assert_array_equal(tokens[0], tokens[1])


def test_llama_cpps_f16_pair_gives_the_goldens_answer() -> None:
    model = mvlm_np.load(
        shared_path("goldens/v2-256/gguf/llm-F16.gguf"), precision="float32", backend="numpy"
    )
    golden = {
        k: t.float32()
        for k, t in read_safetensors(shared_path("goldens/v2-256/golden-0.safetensors")).items()
    }
    trace = model.trace(shared_path("goldens/v2-256/chelsea.png"), "What animal is this?")
    assert trace["generated_ids"].ravel().tolist() == golden["generated_ids"].ravel().tolist()
    expected = golden["projector.output"]
    # 15 arrays of weights on the way (patches, positions, five in each of two layers, the projector's three),
    # each within 2^-11 of the true one, so its output moves by about as much.
    difference = np.abs(trace["projector.output"].reshape(expected.shape) - expected)
    assert difference.max() <= 15 * 2.0**-11 * np.abs(expected).max()
