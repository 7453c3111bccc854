"""The projectors against the same in torch, whose modules are named as upstream's are.

MobileVLM (arXiv 2312.16886), section 3.4: LDP. MobileVLM V2 (arXiv 2402.03766), section 3.3: LDPv2.
"""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from mvlm_np import backend, projector
from mvlm_np.config import Config, DecoderConfig, VisionConfig
from mvlm_np.trace import Recorder, ignore
from tests.models import assert_as_close_as_torch, bound, normal, randomise, state
from tools.parts.torch_projectors import build_projector

OPS = backend.choose("numpy")

seeds = st.integers(0, 2**32 - 1)
widths = st.integers(1, 40)


# ---------------------------------------------------------------- ours against them


def our_weights(kind: str, module: nn.Module, V: int, D: int) -> projector.Projector:
    config = Config(DecoderConfig(D, 1, 1, 1, 1), VisionConfig(hidden_size=V), mm_projector_type=kind)
    tensors = state(module, "model.mm_projector.")
    return bound(lambda get: projector.bind(config, get), tensors)


def compare(kind: str, V: int, D: int, T: int, seed: int, scale: float) -> None:
    """Runs T random features through both, with the same random weights."""
    module = build_projector(kind, V, D)
    randomise(module, seed, scale)
    ours = our_weights(kind, module, V, D)
    x = normal(np.random.default_rng(seed), T, V, scale=3)
    batch = torch.from_numpy(x.copy())[None]
    with torch.no_grad():
        single, double = module(batch), module.double()(batch.double())
    assert_as_close_as_torch(kind, projector.project(x, ours, OPS, ignore), single[0], double[0])


@settings(max_examples=25)
@given(st.integers(1, 26), widths, widths, seeds, st.sampled_from([0.3, 1, 10]))
def test_ldpv2_gives_144_tokens_for_any_grid_of_patches(side, V, D, seed, scale):
    compare("ldpnetv2", V, D, side**2, seed, scale)


@settings(max_examples=25)
@given(st.integers(1, 13), widths, widths, seeds, st.sampled_from([0.3, 1, 10]))
def test_ldp_halves_any_grid_of_patches(side, V, D, seed, scale):
    compare("ldpnet", V, D, side**2, seed, scale)


@settings(max_examples=25)
@given(st.integers(1, 20), st.integers(1, 12), widths, widths, seeds, st.sampled_from([0.3, 1, 10]))
def test_mlps_of_any_depth_take_any_number_of_tokens(T, depth, V, D, seed, scale):
    compare(f"mlp{depth}x_gelu", V, D, T, seed, scale)


@settings(max_examples=10)
@given(st.integers(1, 20), widths, widths, seeds)
def test_linear_takes_any_number_of_tokens(T, V, D, seed):
    compare("linear", V, D, T, seed, 1)


def nearest_multiple_of_8(v: int) -> int:
    """The multiple of 8 nearest to v (the larger of two), of those that are no more than 10 % below it."""
    return min((m for m in range(8, v + 9, 8) if 10 * m >= 9 * v), key=lambda m: (abs(m - v), -m))


def test_squeeze_widths_follow_the_rule_of_eights():
    for D in range(1, 5000):
        assert projector.squeeze_width(D) == nearest_multiple_of_8(D // 4)


@pytest.mark.parametrize("D, width", [(2048, 512), (2560, 640), (4096, 1024), (96, 24), (72, 24), (28, 8)])
def test_squeeze_widths_of_some_models(D, width):
    """72 // 4 = 18 lies nearer to 16, but that is more than a tenth below it."""
    assert projector.squeeze_width(D) == width


# ---------------------------------------------------------------- what a trace shows


@pytest.mark.parametrize("kind", ["ldpnetv2", "ldpnet", "mlp3x_gelu"])
def test_a_trace_has_the_output_of_every_module_that_is_not_its_parents_output_too(kind: str) -> None:
    V, D, side = 5, 12, 7
    module = build_projector(kind, V, D)
    randomise(module, 0)
    outputs: dict[str, np.ndarray] = {}
    for name, part in module.named_modules():
        part.register_forward_hook(lambda _, __, y, name=name: outputs.__setitem__(name, y[0].numpy()))
    x = normal(np.random.default_rng(0), side**2, V)
    with torch.no_grad():
        module(torch.from_numpy(x.copy())[None])
    outputs["output"] = outputs.pop("")
    parents = {name: outputs.get(name.rpartition(".")[0], np.empty(0)) for name in outputs}
    expected = {name: y for name, y in outputs.items() if not np.array_equal(y, parents[name])}
    seen = Recorder()
    projector.project(x, our_weights(kind, module, V, D), OPS, seen)
    assert set(seen.arrays) == set(expected)
    for name, stage in seen.arrays.items():
        # two float32 results of the same few operations on numbers around 1
        np.testing.assert_allclose(stage, expected[name], atol=1e-5, err_msg=name)
