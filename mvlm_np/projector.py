"""The projectors: from the vision encoder's patch vectors to tokens that the decoder can read.

    LDPv2  (576, V) -> Linear, GELU, Linear -> average pooling -> PEG                  -> (144, D)
    LDP    (576, V) -> Linear, GELU, Linear -> two depthwise-separable blocks          -> (144, D)
    linear, mlpNx_gelu                                                                 -> (576, D)

Pictures are kept channels-last, (h, w, D): a token's vector stays in one piece, and a row of the
(T, D) matrix is a pixel. The stages' names and shapes in a trace are upstream's, channels first.
Sources: LDP is MobileVLM (arXiv 2312.16886), figure 2; LDPv2 is MobileVLM V2 (arXiv 2402.03766), section 3.3.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isqrt

import numpy as np

from mvlm_np.backend import Ops
from mvlm_np.binder import PROJECTOR, Binder
from mvlm_np.config import Config
from mvlm_np.linear import Linear, Norm
from mvlm_np.trace import Trace

LDPV2_GRID = 12  # LDPv2 pools any grid of patches to 12 x 12 tokens
NORM_EPS = 1e-5  # of the LayerNorms in LDP


def grid(x: np.ndarray) -> np.ndarray:
    """Tokens of a square picture, row by row, as that picture: (T, D) -> (h, w, D)."""
    side = isqrt(len(x))
    return x.reshape(side, side, -1)


def tokens(x: np.ndarray) -> np.ndarray:
    """(h, w, D) -> (T, D)"""
    return x.reshape(-1, x.shape[-1])


def channels_first(x: np.ndarray) -> np.ndarray:
    """(h, w, D) -> (D, h, w), as upstream's stages are."""
    return x.transpose(2, 0, 1)


# ---------------------------------------------------------------- LDPv2


@dataclass(eq=False, repr=False)
class LDPv2:
    """The weights of `ldpv2`."""

    fc1: Linear
    fc2: Linear
    peg_weight: np.ndarray  # (D, 1, 3, 3)
    peg_bias: np.ndarray  # (D,)


def ldpv2(x: np.ndarray, w: LDPv2, ops: Ops, trace: Trace) -> np.ndarray:
    """The lightweight downsample projector of MobileVLM V2. (576, V) -> (144, D)"""
    # Feature transformation: into the decoder's width.
    x = w.fc1(x)  # (576, D)
    trace("mlp.mlp.0", x)
    x = ops.gelu(x)
    trace("mlp.mlp.1", x)
    x = w.fc2(x)
    trace("mlp", x)
    # Token reduction: each 2 x 2 patches become one token.
    x = ops.adaptive_avg_pool(grid(x), LDPV2_GRID, LDPV2_GRID)  # (24, 24, D) -> (12, 12, D)
    trace("dwn.dwn", channels_first(x))
    trace("dwn", tokens(x))
    # Positional enhancement: a convolution that sees the neighbours, added to its input.
    position = ops.depthwise_conv(x, w.peg_weight, w.peg_bias, stride=1)
    trace("peg.peg", channels_first(position))
    x = tokens(x + position)  # (144, D)
    trace("peg", x)
    return x


# ---------------------------------------------------------------- LDP


@dataclass(eq=False, repr=False)
class LDPBlock:
    """The weights of `ldp_block`."""

    depthwise: np.ndarray  # (D, 1, 3, 3)
    norm1: Norm
    squeeze: Linear  # D -> R
    excite: Linear  # R -> D
    pointwise: Linear  # D -> D
    norm2: Norm
    stride: int


@dataclass(eq=False, repr=False)
class LDP:
    """The weights of `ldp`."""

    fc1: Linear
    fc2: Linear
    blocks: Sequence[LDPBlock]


def ldp(x: np.ndarray, w: LDP, ops: Ops, trace: Trace) -> np.ndarray:
    """The lightweight downsample projector of MobileVLM. (576, V) -> (144, D)"""
    trace("model.mlp.0", x)
    x = w.fc1(x)  # (576, D)
    trace("model.mlp.1", x)
    x = ops.gelu(x)
    trace("model.mlp.2", x)
    x = w.fc2(x)
    trace("model.mlp", x)
    x = grid(x)  # (24, 24, D)
    trace("model.mb_block.0", channels_first(x))
    same, half = w.blocks
    y = ldp_block(x, same, ops, trace, "model.mb_block.1.block")
    trace("model.mb_block.1.block", channels_first(y))
    x = x + y  # the residual stands on the first block only
    trace("model.mb_block.1", channels_first(x))
    x = ldp_block(x, half, ops, trace, "model.mb_block.2.block")  # (12, 12, D)
    trace("model.mb_block", channels_first(x))
    x = tokens(x)  # (144, D)
    trace("model", x)
    return x


def ldp_block(x: np.ndarray, w: LDPBlock, ops: Ops, trace: Trace, name: str) -> np.ndarray:
    """MobileNetV3's inverted residual without expansion: depthwise, squeeze-excitation, pointwise.

    (h, w, D) -> (h/stride, w/stride, D). LayerNorm over the channels stands where MobileNet has BatchNorm.
    """
    x = ops.depthwise_conv(x, w.depthwise, None, w.stride)
    trace(f"{name}.0.0", channels_first(x))
    x = ops.layer_norm(x, *w.norm1, NORM_EPS)
    trace(f"{name}.0.1", channels_first(x))
    x = ops.hardswish(x)
    trace(f"{name}.0", channels_first(x))

    # Squeeze and excitation: one factor a channel, computed from the mean of the whole picture.
    s = tokens(ops.adaptive_avg_pool(x, 1, 1))  # (1, D)
    trace(f"{name}.1.avgpool", channels_first(s[None]))
    s = w.squeeze(s)  # (1, R)
    trace(f"{name}.1.fc1", channels_first(s[None]))
    s = ops.relu(s)
    trace(f"{name}.1.activation", channels_first(s[None]))
    s = w.excite(s)  # (1, D)
    trace(f"{name}.1.fc2", channels_first(s[None]))
    s = ops.hardsigmoid(s)
    trace(f"{name}.1.scale_activation", channels_first(s[None]))
    x = x * s
    trace(f"{name}.1", channels_first(x))

    x = grid(w.pointwise(tokens(x)))
    trace(f"{name}.2.0", channels_first(x))
    return ops.layer_norm(x, *w.norm2, NORM_EPS)


def squeeze_width(D: int) -> int:
    """Width of the squeeze: D // 4 to the nearest multiple of 8, but no more than 10 % below it."""
    rounded = max(8, (D // 4 + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * (D // 4) else rounded + 8


# ---------------------------------------------------------------- linear, mlpNx_gelu


@dataclass(eq=False, repr=False)
class MLP:
    """The weights of `mlp`."""

    layers: Sequence[Linear]  # GELU stands between them; a single one is the projector "linear"


def mlp(x: np.ndarray, w: MLP, ops: Ops, trace: Trace) -> np.ndarray:
    """N linear layers with GELU between them, as in LLaVA. (T, V) -> (T, D)"""
    for i, layer in enumerate(w.layers):
        if i > 0:
            x = ops.gelu(x)
            trace(f"{2 * i - 1}", x)
        x = layer(x)
        trace(f"{2 * i}", x)
    return x


# ---------------------------------------------------------------- any of them

Projector = LDPv2 | LDP | MLP


def bind(config: Config, get: Binder) -> Projector:
    """Collects the weights of the projector that the config names."""
    assert config.vision is not None
    V, D, kind = config.vision.hidden_size, config.decoder.hidden_size, config.mm_projector_type
    if kind == "linear":
        return MLP([get.linear(PROJECTOR, D, V)])
    get = get.at(PROJECTOR)
    if kind.startswith("mlp"):
        depth = int(kind.removeprefix("mlp").removesuffix("x_gelu"))
        return MLP([get.linear(f"{2 * i}", D, V if i == 0 else D) for i in range(depth)])
    if kind == "ldpnetv2":
        return LDPv2(
            fc1=get.linear("mlp.mlp.0", D, V),
            fc2=get.linear("mlp.mlp.2", D, D),
            peg_weight=get.array("peg.peg.0.weight", D, 1, 3, 3),
            peg_bias=get.array("peg.peg.0.bias", D),
        )
    get = get.at("model")
    return LDP(
        fc1=get.linear("mlp.1", D, V),
        fc2=get.linear("mlp.3", D, D),
        blocks=[
            bind_block(get.at("mb_block.1.block"), D, stride=1),
            bind_block(get.at("mb_block.2.block"), D, stride=2),
        ],
    )


def bind_block(get: Binder, D: int, stride: int) -> LDPBlock:
    """The weights of one of LDP's two blocks."""
    R = squeeze_width(D)
    return LDPBlock(
        depthwise=get.array("0.0.weight", D, 1, 3, 3),
        norm1=get.norm("0.1", D),
        squeeze=get.conv1x1("1.fc1", R, D),
        excite=get.conv1x1("1.fc2", D, R),
        pointwise=get.conv1x1("2.0", D, D, bias=False),
        norm2=get.norm("2.1", D),
        stride=stride,
    )


def image_tokens(config: Config) -> int:
    """How many positions of the decoder one picture takes up."""
    assert config.vision is not None
    match config.mm_projector_type:
        case "ldpnetv2":
            return LDPV2_GRID**2
        case "ldpnet":
            return (-(-config.vision.grid // 2)) ** 2  # its second block has stride 2
    return config.patch_tokens


def project(x: np.ndarray, w: Projector, ops: Ops, trace: Trace) -> np.ndarray:
    """Vision features (T, V) -> image tokens for the decoder, (144, D) for the LDPs."""
    match w:
        case LDPv2():
            x = ldpv2(x, w, ops, trace)
        case LDP():
            x = ldp(x, w, ops, trace)
        case MLP():
            x = mlp(x, w, ops, trace)
    trace("output", x)
    return x
