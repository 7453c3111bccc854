"""The reference in other precisions, for what rounding does to each stage.

A precision is the type of a weight, here as everywhere: the forward pass is the model's own.
"""

from collections.abc import Callable
from copy import copy
from dataclasses import fields, is_dataclass, replace
from inspect import isfunction
from types import SimpleNamespace
from typing import Any

import numpy as np

from mvlm_np import backend
from mvlm_np.checkpoints.tensors import bfloat16_to_float32, float32_to_bfloat16
from mvlm_np.linear import Dense, Joined, Norm, Quantized
from mvlm_np.model import MobileVLM
from mvlm_np.trace import Recorder

Round = Callable[[np.ndarray], np.ndarray]


def to_bf16(x: np.ndarray) -> np.ndarray:
    """float32 -> the nearest bfloat16, in float32."""
    return bfloat16_to_float32(float32_to_bfloat16(x))


def to_float16(x: np.ndarray) -> np.ndarray:
    """float32 -> the nearest float16, in float32; infinite from 65520 on."""
    with np.errstate(over="ignore"):
        return x.astype(np.float16).astype(np.float32)


ROUNDINGS: dict[str, Round] = {"float16": to_float16, "bf16": to_bf16}  # by precision class


def widened(model: MobileVLM) -> MobileVLM:
    """The model in float64: the same weights, and every operation on them in float64.

    Matrices stay in float32 and are widened as they are multiplied. The pixel values and the rotary
    angles are float32, as they are defined; every other number is float64.
    """

    def wide(x: np.ndarray) -> np.ndarray:
        return x.astype(np.float64)

    def weight(value: Any) -> Any:
        match value:
            case Dense() | Quantized():
                return value  # NumPy widens W, and with it the product, when x is float64
            case np.ndarray():
                return wide(value)
        return lambda ids: wide(value(ids))  # the table of embeddings

    return _mapped(model, weight, backend.choose("numpy"))


def rounded(model: MobileVLM, to: Round) -> MobileVLM:
    """The model with every weight and the result of every operation rounded by `to`; sums are in float32."""

    def smaller(w: np.ndarray) -> np.ndarray:
        # float16 is widened again as it is multiplied: half the memory for the second copy of all weights.
        return w.astype(np.float16) if to is to_float16 else w

    def weight(value: Any) -> Any:
        match value:
            case Dense(w, b):
                return _Rounded(Dense(smaller(to(w)), None if b is None else to(b)), to)
            case Quantized():
                return _Rounded(value, to)
            case np.ndarray():
                return to(value)
        return lambda ids: to(value(ids))

    def op(f: Callable) -> Callable:
        def call(*args: Any, **kwargs: Any) -> Any:
            y = f(*args, **kwargs)
            return to(y) if isinstance(y, np.ndarray) and y.dtype == np.float32 else y

        return call

    ops = {k: op(v) if isfunction(v) else v for k, v in vars(model.ops).items()}
    return _mapped(model, weight, SimpleNamespace(**ops))


def rounding_recorder(to: Round) -> type[Recorder]:
    """A recorder that rounds every stage in place, so that the next one sees it rounded."""

    class Rounding(Recorder):
        def __call__(self, name: str, array: np.ndarray) -> None:
            if array.dtype == np.float32:
                array[...] = to(array)
            super().__call__(name, array)

    return Rounding


class _Rounded:
    """A linear layer whose result is rounded, and the sum with a residual too."""

    def __init__(self, inner: Any, to: Round):
        self.inner, self.to, self.nbytes = inner, to, inner.nbytes

    def __call__(self, x: np.ndarray, add_to: np.ndarray | None = None) -> np.ndarray:
        y = self.to(self.inner(x))
        return y if add_to is None else self.to(y + add_to)

    def after(self, op: Callable, *args: Any, add_to: np.ndarray | None = None) -> np.ndarray:
        return self(op(*args), add_to)


def _mapped(model: MobileVLM, weight: Callable[[Any], Any], ops: Any) -> MobileVLM:
    out = copy(model)
    out.vision, out.projector, out.decoder = (
        _map(part, weight) for part in (model.vision, model.projector, model.decoder)
    )
    out.ops = ops
    return out


def _map(value: Any, weight: Callable[[Any], Any]) -> Any:
    """A part of the model with `weight` applied to each weight in it."""
    match value:
        case None | int():
            return value
        case Joined():
            return Joined(*(_map(layer, weight) for layer in value.layers))
        case Norm():
            return Norm(weight(value.weight), weight(value.bias))
        case list() | tuple():
            return [_map(item, weight) for item in value]
        case Dense() | Quantized():
            return weight(value)
    if is_dataclass(value):
        return replace(value, **{f.name: _map(getattr(value, f.name), weight) for f in fields(value)})  # type: ignore[type-var]
    return weight(value)
