"""Mistakes in the projector."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from mvlm_np.golden.explain.changes import (
    ACTIVATIONS,
    changed_blocks,
    edit_stage,
    function,
    instead,
    weights,
)
from mvlm_np.golden.explain.mistake import Variant, mistake
from mvlm_np.golden.explain.scene import Scene
from mvlm_np.golden.stages import Stages
from mvlm_np.linear import Dense
from mvlm_np.projector import LDP, LDPV2_GRID, LDPBlock, LDPv2, grid, tokens
from mvlm_np.trace import Trace

LDP_MODEL = "a model with projector ldpnet (MobileVLM 1.7B, 3B)"


def _is(scene: Scene, kind: type) -> bool:
    return isinstance(scene.parts.projector, kind)


@mistake(
    stage="projector.peg",
    what="PEG's convolution is not added to its input",
    mend="peg(x) = conv(x) + x",
)
def peg_no_residual(scene: Scene) -> Iterator[Variant]:
    if _is(scene, LDPv2):

        def position(_: np.ndarray, seen: Stages) -> np.ndarray:
            return tokens(seen["projector.peg.peg"].transpose(1, 2, 0))

        yield Variant("project", edit_stage("projector.peg", position))


@mistake(
    stage="projector.dwn",
    what="PEG comes before the pooling",
    mend="pool to 12 x 12 first; PEG's convolution sees neighbours on the small grid",
)
def peg_before_pooling(scene: Scene) -> Iterator[Variant]:
    if _is(scene, LDPv2):
        yield Variant("project", lambda p: replace(p, project=_peg_first))
        yield Variant("project", lambda p: replace(p, project=_no_peg), "there is no PEG at all")


@mistake(
    stage="projector.dwn.dwn",
    what="tokens become a grid, or a grid tokens, in another order: without a transpose, or column by column",
    mend="transpose tokens to (D, T) before they are shaped as (D, h, w), row by row, and back after",
)
def token_grid_order(scene: Scene) -> Iterator[Variant]:
    def as_grid(x: np.ndarray, _: Any = None) -> np.ndarray:
        """(D, h, w) from the memory of (T, D)."""
        return np.ascontiguousarray(x.transpose(1, 2, 0)).reshape(x.shape)

    def as_tokens(x: np.ndarray, _: Stages) -> np.ndarray:
        """(T, D) from the memory of (D, T)."""
        return np.ascontiguousarray(x.T).reshape(x.shape)

    def columns(x: np.ndarray, _: Any = None) -> np.ndarray:
        """(D, h, w) with rows and columns in each other's place."""
        return x.swapaxes(1, 2)

    def token_columns(x: np.ndarray, _: Stages) -> np.ndarray:
        return tokens(grid(x).swapaxes(0, 1))

    def pool(order: Callable[..., np.ndarray]) -> Callable[[Any], Any]:
        def wrap(base: Any) -> Any:
            def misread(x: np.ndarray, *size: int) -> np.ndarray:
                return base(np.ascontiguousarray(order(x.transpose(2, 0, 1)).transpose(1, 2, 0)), *size)

            return misread

        return wrap

    orders = (("without a transpose", as_grid, as_tokens), ("column by column", columns, token_columns))
    for how, before, after in orders:
        if _is(scene, LDPv2):
            change = function("projector", "adaptive_avg_pool", pool(before))
            yield Variant("project", change, f"{how}, before the pooling")
            yield Variant("project", edit_stage("projector.dwn", after), f"{how}, after the pooling")
            yield Variant("project", edit_stage("projector.peg", after), f"{how}, at the end")
        elif _is(scene, LDP):
            yield Variant(
                "project", edit_stage("projector.model.mb_block.0", before), f"{how}, before the blocks"
            )
            yield Variant("project", edit_stage("projector.model", after), f"{how}, at the end")


def _peg_first(x: np.ndarray, w: LDPv2, ops: Any, trace: Trace) -> np.ndarray:
    x = w.fc1(x)
    trace("mlp.mlp.0", x)
    x = ops.gelu(x)
    trace("mlp.mlp.1", x)
    x = grid(w.fc2(x))
    trace("mlp", tokens(x))
    x = x + ops.depthwise_conv(x, w.peg_weight, w.peg_bias, stride=1)
    trace("peg", tokens(x))
    x = ops.adaptive_avg_pool(x, LDPV2_GRID, LDPV2_GRID)
    trace("dwn.dwn", x.transpose(2, 0, 1))
    trace("dwn", tokens(x))
    trace("output", tokens(x))
    return tokens(x)


def _no_peg(x: np.ndarray, w: LDPv2, ops: Any, trace: Trace) -> np.ndarray:
    x = grid(w.fc2(ops.gelu(w.fc1(x))))
    x = tokens(ops.adaptive_avg_pool(x, LDPV2_GRID, LDPV2_GRID))
    trace("dwn", x)
    trace("output", x)
    return x


@mistake(
    stage="projector.dwn.dwn",
    what="the pooling takes something else than the mean of each window",
    mend="average over windows that cover the grid: AdaptiveAvgPool2d((12, 12))",
)
def pooling(scene: Scene) -> Iterator[Variant]:
    if not _is(scene, LDPv2):
        return

    def stride(first: int) -> Callable[..., np.ndarray]:
        def pool(x: np.ndarray, rows: int, cols: int) -> np.ndarray:
            h, w = x.shape[0] // rows, x.shape[1] // cols
            return x[min(first, h - 1) :: h, min(first, w - 1) :: w][:rows, :cols].copy()

        return pool

    def windows(kind: Callable[..., np.ndarray], exact: bool) -> Callable[..., np.ndarray]:
        def pool(x: np.ndarray, rows: int, cols: int) -> np.ndarray:
            h, w, C = x.shape
            out = np.empty((rows, cols, C), x.dtype)
            for i in range(rows):
                for j in range(cols):
                    window = x[
                        i * h // rows : -(-(i + 1) * h // rows), j * w // cols : -(-(j + 1) * w // cols)
                    ]
                    if not exact:
                        window = x[i * (h // rows) :, j * (w // cols) :][: h // rows, : w // cols]
                    out[i, j] = kind(window, axis=(0, 1))
            return out

        return pool

    ways = {
        "the first patch of each window": stride(0),
        "the last patch of each window": stride(1),
        "the largest of each window": windows(np.max, True),
        "windows of the grid divided by 12, rounded down": windows(np.mean, False),
        "the sum of each window": windows(np.sum, True),
    }
    for name, way in ways.items():
        yield Variant("project", instead("projector", "adaptive_avg_pool", way), name)


@mistake(
    stage="projector.peg.peg",
    what="the depthwise 3 x 3 convolution is turned around, or its border is not zeros",
    mend="a cross-correlation, weight[row, column] on the pixel at that offset, with a border of zeros",
)
def convolution(scene: Scene) -> Iterator[Variant]:
    if not (_is(scene, LDPv2) or _is(scene, LDP)):
        return

    def weight(turn: Callable[[np.ndarray], np.ndarray]) -> Callable[[Any], Any]:
        return lambda base: lambda x, w, b, stride: base(x, turn(w), b, stride)

    def border(mode: str) -> Callable[[Any], Any]:
        def wrap(base: Any) -> Any:
            def conv(x: np.ndarray, w: np.ndarray, b: np.ndarray | None, stride: int) -> np.ndarray:
                padded = np.pad(x, ((1, 1), (1, 1), (0, 0)), mode=mode)  # type: ignore[call-overload]
                out = base(padded, w, b, 1)[1:-1, 1:-1]
                return np.ascontiguousarray(out[::stride, ::stride])

            return conv

        return wrap

    def shifted(base: Any) -> Any:
        def conv(x: np.ndarray, w: np.ndarray, b: np.ndarray | None, stride: int) -> np.ndarray:
            return base(x, w, b, 1)[1::2, 1::2] if stride == 2 else base(x, w, b, stride)

        return conv

    ways = {
        "the weight turned around": weight(lambda w: w[..., ::-1, ::-1]),
        "rows and columns of the weight swapped": weight(lambda w: w.swapaxes(-1, -2)),
        "the border repeats the edge": border("edge"),
        "the border mirrors the picture": border("reflect"),
    }
    if _is(scene, LDP):
        ways["stride 2 starts at the second pixel"] = shifted
    for name, way in ways.items():
        yield Variant("project", function("projector", "depthwise_conv", way), name)


@mistake(
    stage="projector.model.mb_block.1.block.0",
    what="Hardswish is replaced by SiLU or ReLU",
    mend="x * clip(x + 3, 0, 6) / 6",
    shown=LDP_MODEL,
)
def hardswish_as_silu(scene: Scene) -> Iterator[Variant]:
    if _is(scene, LDP):
        for name in ("silu", "relu", "gelu"):
            yield Variant("project", instead("projector", "hardswish", ACTIVATIONS[name]), name)
        relu6 = lambda x: np.clip(x, 0, 6)  # noqa: E731
        yield Variant("project", instead("projector", "hardswish", relu6), "ReLU6")


@mistake(
    stage="projector.model.mb_block.1.block.1.scale_activation",
    what="Hardsigmoid is replaced by sigmoid, or by one of another slope",
    mend="clip(x + 3, 0, 6) / 6",
    shown=LDP_MODEL,
)
def hardsigmoid_as_sigmoid(scene: Scene) -> Iterator[Variant]:
    if _is(scene, LDP):
        yield Variant("project", instead("projector", "hardsigmoid", ACTIVATIONS["sigmoid"]), "sigmoid")
        keras = lambda x: np.clip(0.2 * x + 0.5, 0, 1)  # noqa: E731
        yield Variant("project", instead("projector", "hardsigmoid", keras), "clip(0.2 x + 0.5, 0, 1)")


@mistake(
    stage="projector.model.mb_block.1.block.1.fc1",
    what="the squeeze has another width",
    mend="D // 4 to the nearest multiple of 8, but no more than 10 % below it; read it off fc1's shape",
    shown="a model with projector ldpnet whose D // 4 is no multiple of 8, and one that reaches this stage",
)
def squeeze_width(scene: Scene) -> Iterator[Variant]:
    if not isinstance(w := scene.parts.projector, LDP):
        return
    assert isinstance(w.blocks[0].squeeze, Dense)
    D, width = scene.parts.config.decoder.hidden_size, len(w.blocks[0].squeeze.weight)

    def narrowed(n: int) -> Callable[[LDPBlock], LDPBlock]:
        def change(block: LDPBlock) -> LDPBlock:
            squeeze, excite = block.squeeze, block.excite
            assert isinstance(squeeze, Dense) and isinstance(excite, Dense) and squeeze.bias is not None
            return replace(block, squeeze=Dense(squeeze.weight[:n], squeeze.bias[:n]),
                           excite=Dense(excite.weight[:, :n], excite.bias))  # fmt: skip

        return change

    widths = {D // 4, D // 4 // 8 * 8, width - 8, width // 2, width - 1, D // 16}
    for n in sorted(widths, reverse=True):
        if 0 < n < width:
            yield Variant(
                "project", weights("projector", changed_blocks(narrowed(n))), f"{n} instead of {width}"
            )


@mistake(
    stage="projector.model.mb_block.1.block.1",
    what="squeeze-excitation is left out, or computed otherwise",
    mend="x times one factor a channel, from the mean of the whole picture through fc1, ReLU, fc2, "
    "Hardsigmoid",
    shown=LDP_MODEL,
)
def squeeze_excitation(scene: Scene) -> Iterator[Variant]:
    if _is(scene, LDP):
        ones = instead("projector", "hardsigmoid", np.ones_like)
        yield Variant("project", ones, "left out")
        yield Variant("project", instead("projector", "relu", lambda x: x), "no ReLU between fc1 and fc2")
        swish = instead("projector", "relu", ACTIVATIONS["hardswish"])
        yield Variant("project", swish, "Hardswish between fc1 and fc2")


@mistake(
    stage="projector.model.mb_block",
    what="the block of stride 2 has a residual too",
    mend="only the block of stride 1 adds its input",
    shown=LDP_MODEL,
)
def residual_on_stride_2(scene: Scene) -> Iterator[Variant]:
    if not _is(scene, LDP):
        return

    def every_second(x: np.ndarray) -> np.ndarray:
        return x[:, ::2, ::2]

    def mean(x: np.ndarray) -> np.ndarray:
        D, h, w = x.shape
        even = np.pad(x, ((0, 0), (0, h % 2), (0, w % 2)), mode="edge")
        return even.reshape(D, -(-h // 2), 2, -(-w // 2), 2).mean(axis=(2, 4))

    for name, smaller in (("every second pixel", every_second), ("means of 2 x 2", mean)):

        def added(x: np.ndarray, seen: Stages, smaller: Callable[..., np.ndarray] = smaller) -> np.ndarray:
            return x + smaller(seen["projector.model.mb_block.1"])

        yield Variant("project", edit_stage("projector.model.mb_block", added), name)


@mistake(
    stage="projector.model.mb_block.1",
    what="the block of stride 1 has no residual",
    mend="add the block's input to its output",
    shown=LDP_MODEL,
)
def no_residual_on_stride_1(scene: Scene) -> Iterator[Variant]:
    if _is(scene, LDP):

        def block(_: np.ndarray, seen: Stages) -> np.ndarray:
            return seen["projector.model.mb_block.1.block"]

        yield Variant("project", edit_stage("projector.model.mb_block.1", block))
