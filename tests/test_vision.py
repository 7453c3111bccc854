"""The vision encoder against transformers' CLIPVisionModel, with the same random weights."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import CLIPVisionConfig, CLIPVisionModel

from mvlm_np import ops, vision
from mvlm_np.config import VisionConfig
from tests.models import assert_as_close_as_torch, bound, clip_state, normal, randomise

seeds = st.integers(0, 2**32 - 1)


@st.composite
def configs(draw) -> VisionConfig:
    patch, heads = draw(st.integers(1, 7)), draw(st.integers(1, 4))
    grid, rest = draw(st.integers(1, 6)), draw(st.integers(0, 6))
    return VisionConfig(
        hidden_size=heads * draw(st.integers(1, 12)),
        intermediate_size=draw(st.integers(1, 50)),
        num_hidden_layers=draw(st.integers(1, 3)),
        num_attention_heads=heads,
        image_size=patch * grid + rest % patch,  # what does not fill a patch is left out
        patch_size=patch,
        hidden_act=draw(st.sampled_from(["quick_gelu", "gelu"])),
        layer_norm_eps=draw(st.sampled_from([1e-6, 1e-5, 1e-2, 1.0])),
    )


def their_model(config: VisionConfig, seed: int, scale: float) -> CLIPVisionModel:
    # scaled_dot_product_attention, since the eager one takes its softmax in float32 even in float64
    model = CLIPVisionModel(CLIPVisionConfig(**vars(config), attn_implementation="sdpa")).eval()
    randomise(model, seed, scale)
    return model


def our_weights(config: VisionConfig, model: CLIPVisionModel) -> vision.VisionWeights:
    return bound(lambda get: vision.bind(config, get), clip_state(model))


@settings(max_examples=40)
@given(configs(), seeds, st.sampled_from([0.3, 1, 3]), st.sampled_from([1e-6, 1, 255, 1e6]))
def test_every_hidden_state_is_that_of_transformers(config, seed, scale, brightness):
    model = their_model(config, seed, scale)
    ours = our_weights(config, model)
    size = config.image_size
    pixels = normal(np.random.default_rng(seed), 3, size, size, scale=brightness)
    batch = torch.from_numpy(pixels.copy())[None]
    with torch.no_grad():
        single = model(batch, output_hidden_states=True).hidden_states
        double = model.double()(batch.double(), output_hidden_states=True).hidden_states
    states = list(vision.hidden_states(pixels, ours, config, ops))
    assert len(states) == len(double) == config.num_hidden_layers + 1
    for i, state in enumerate(states):
        assert_as_close_as_torch(f"hidden_states[{i}]", state, single[i][0], double[i][0])


def test_no_block_runs_that_nobody_asks_for():
    config = VisionConfig(8, 8, 3, 2, image_size=4, patch_size=2)
    weights = our_weights(config, their_model(config, 0, 1))
    del weights.layers[1:]
    states = vision.hidden_states(normal(np.random.default_rng(0), 3, 4, 4), weights, config, ops)
    assert [state.shape for state, _ in zip(states, range(2), strict=False)] == [(5, 8)] * 2
