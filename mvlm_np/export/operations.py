"""The model's operations as nodes of an ONNX graph.

A backend beside NumPy and Numba, which computes nothing: where the forward pass calls an operation, it writes
it down. Each method is the operation of the same name in `ops`, which defines it. Only operations are used
that accelerators know, on at most 4 axes.
"""

from math import pi, sqrt
from typing import Any, NamedTuple

import numpy as np

from mvlm_np import ops
from mvlm_np.export.graph import Graph, Operand, Symbol, Weight


class Patches(NamedTuple):
    """A picture that is to be cut into patches, (3, h, w), and the patches' side."""

    pixels: Symbol
    size: int


class Positions(NamedTuple):
    """Positions (T,), each below `stop`."""

    at: Symbol
    stop: int


class Operations:
    """The operations on the symbols of a graph.

    gelu_form        "erf": spelled out; "op": ONNX's Gelu (opset 20); "tanh": an approximation
    layer_norm_form  "op": LayerNormalization (opset 17); "steps": spelled out
    """

    def __init__(self, graph: Graph, gelu_form: str, layer_norm_form: str):
        self.graph, self.gelu_form, self.layer_norm_form = graph, gelu_form, layer_norm_form

    # ------------------------------------------------------------ normalisation

    def layer_norm(self, x: Symbol, weight: Weight, bias: Weight, eps: float) -> Symbol:
        if self.layer_norm_form == "op":
            return self.graph.node("LayerNormalization", [x, weight, bias], x.shape, axis=-1, epsilon=eps)
        wide = self.graph.cast(x, "float32")  # as the operation does: squares soon exceed float16
        centred = wide - self.graph.mean(wide, -1)
        normal = centred / self._sqrt(self.graph.mean(centred * centred, -1) + eps)
        return self.graph.cast(normal, x.dtype) * weight + bias

    def rms_norm(self, x: Symbol, weight: Weight, eps: float) -> Symbol:
        wide = self.graph.cast(x, "float32")
        normal = wide / self._sqrt(self.graph.mean(wide * wide, -1) + eps)
        return self.graph.cast(normal, x.dtype) * weight

    def _sqrt(self, x: Symbol) -> Symbol:
        return self.graph.elementwise("Sqrt", x)

    # ------------------------------------------------------------ activations

    def sigmoid(self, x: Symbol) -> Symbol:
        return self.graph.elementwise("Sigmoid", x)

    def quick_gelu(self, x: Symbol) -> Symbol:
        return x * self.sigmoid(x * 1.702)

    def silu(self, x: Symbol) -> Symbol:
        return x * self.sigmoid(x)

    def swiglu(self, gate: Symbol, up: Symbol) -> Symbol:
        return self.silu(gate) * up

    def gelu(self, x: Symbol) -> Symbol:
        if self.gelu_form == "op":
            return self.graph.elementwise("Gelu", x)
        if self.gelu_form == "tanh":
            inner = self.graph.elementwise("Tanh", (x + x * x * x * 0.044715) * sqrt(2 / pi))
        else:
            inner = self.graph.elementwise("Erf", x * (1 / sqrt(2)))
        return x * 0.5 * (inner + 1.0)

    def relu(self, x: Symbol) -> Symbol:
        return self.graph.elementwise("Relu", x)

    def hardsigmoid(self, x: Symbol) -> Symbol:
        return self.graph.node("HardSigmoid", [x], x.shape, alpha=1 / 6, beta=0.5)

    def hardswish(self, x: Symbol) -> Symbol:
        return x * self.hardsigmoid(x)

    # ------------------------------------------------------------ attention

    def split_heads(self, x: Symbol, heads: int) -> Symbol:
        return x.reshape(len(x), heads, -1).transpose(1, 0, 2)

    def merge_heads(self, x: Symbol) -> Symbol:
        return x.transpose(1, 0, 2).reshape(x.shape[1], -1)

    def softmax(self, x: Symbol) -> Symbol:
        return self.graph.node("Softmax", [x], x.shape, axis=-1)

    def attention(self, q: Symbol, k: Symbol, v: Symbol, causal: bool) -> Symbol:
        assert not causal and q.shape == k.shape, "the vision tower's; `FixedCache` has the decoder's"
        return self.softmax(q * q.shape[2] ** -0.5 @ k.transpose(0, 2, 1)) @ v

    def rope_angles(self, positions: Positions, d: int, theta: float) -> tuple[Symbol, Symbol]:
        """Rows of two tables, which hold the angles' cos and sin for every position."""
        tables = ops.rope_angles(np.arange(positions.stop), d, theta)
        shape = (len(positions.at), d // 2)
        cos, sin = (
            self.graph.node("Gather", [table.astype(self.graph.dtype), positions.at], shape, self.graph.dtype)
            for table in tables
        )
        return cos, sin

    def rope(self, x: Symbol, cos: Symbol, sin: Symbol) -> Symbol:
        d = x.shape[-1]
        first, second = x.part(0, d // 2, axis=-1), x.part(d // 2, d, axis=-1)
        turned = [first * cos - second * sin, second * cos + first * sin]
        return self.graph.concatenate(turned, axis=-1)

    # ------------------------------------------------------------ pictures

    def patches(self, pixels: Symbol, size: int) -> Patches:
        return Patches(pixels, size)

    def matmul(self, x: Patches, w: Weight) -> Symbol:
        """Patches times the patch embedding: a convolution, whose stride is its size."""
        (C, h, w_), p, V = x.pixels.shape, x.size, w.shape[0]
        shape = (V, h // p, w_ // p)
        kernel: dict[str, Any] = {"kernel_shape": [p, p], "strides": [p, p]}
        grid = self.graph.node("Conv", [x.pixels, w.reshape(V, C, p, p)], shape, **kernel)
        return grid.reshape(V, -1).transpose(1, 0)

    def depthwise_conv(self, x: Symbol, weight: Weight, bias: Weight | None, stride: int) -> Symbol:
        (h, w, C), n = x.shape, weight.shape[-1]
        inputs: list[Operand] = [_planes(x), weight, *([] if bias is None else [bias])]
        shape = (C, -(-h // stride), -(-w // stride))
        kernel: dict[str, Any] = {
            "kernel_shape": [n, n],
            "strides": [stride, stride],
            "pads": [n // 2] * 4,
            "group": C,
        }
        return _channels_last(self.graph.node("Conv", inputs, shape, **kernel))

    def adaptive_avg_pool(self, x: Symbol, rows: int, cols: int) -> Symbol:
        h, w, C = x.shape
        if (rows, cols) == (1, 1):
            return self.graph.mean(x, 0, 1)
        if h % rows or w % cols:  # windows that overlap: a matrix of the pixels' shares
            pixels = np.eye(h * w).reshape(h, w, h * w)
            shares = ops.adaptive_avg_pool(pixels, rows, cols).reshape(rows * cols, h * w)
            return self.graph.matmul(shares, x.reshape(h * w, C)).reshape(rows, cols, C)
        window = [h // rows, w // cols]
        pooled = self.graph.node(
            "AveragePool", [_planes(x)], (C, rows, cols), kernel_shape=window, strides=window
        )
        return _channels_last(pooled)


def _planes(x: Symbol) -> Symbol:
    """(h, w, C) -> (C, h, w), as ONNX's convolutions and pools want it."""
    return x.transpose(2, 0, 1)


def _channels_last(x: Symbol) -> Symbol:
    """(C, h, w) -> (h, w, C)"""
    return x.transpose(1, 2, 0)
