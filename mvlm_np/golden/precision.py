"""The reference in other precisions, for what rounding does to each stage.

A precision is the type of a weight, here as everywhere: the forward pass is the model's own.
"""

from collections.abc import Callable
from copy import copy
from dataclasses import fields, is_dataclass, replace
from typing import Any

import numpy as np

from mvlm_np import backend
from mvlm_np.backend import Ops
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


def to_tf32(x: np.ndarray) -> np.ndarray:
    """float32 -> the nearest number with ten bits of mantissa, and float32's range."""
    bits = x.astype(np.float32).view(np.uint32)
    return ((bits + (0xFFF + (bits >> 13 & 1))) & 0xFFFFE000).astype(np.uint32).view(np.float32)


HALVES: dict[str, Round] = {"bf16": to_bf16, "float16": to_float16}  # in the order in which they are tried
FEW_VALUES = 16  # up to so many different numbers may be in any type by chance


def held_in(x: np.ndarray) -> str | None:
    """The type of 16 bits that can hold every number of an array, which then has been rounded to it; None if
    neither can. Most numbers of bf16 are float16's, too: bf16 comes first."""
    if x.dtype.kind != "f" or len(np.unique(x.ravel()[: 1 << 16])) <= FEW_VALUES:
        return None
    x = x.astype(np.float32)
    return next((name for name, to in HALVES.items() if np.array_equal(to(x), x)), None)


def to_even_steps(x: np.ndarray) -> np.ndarray:
    """float32 -> the nearest of 256 values, evenly spread from the least number to the largest, 0 among them:
    what static quantisation to 8 bits, whose ranges come from calibration, leaves of a whole tensor."""
    if not x.size or not np.isfinite(x).all():
        return x
    low, high = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
    step = (high - low) / (STEPS - 1)
    if not step:
        return x
    zero = round(-low / step)
    return ((np.clip(np.rint(x / step) + zero, 0, STEPS - 1) - zero) * step).astype(np.float32)


STEPS = 256  # of static int8
STATIC = "int8-static"
ROUNDINGS: dict[str, Round] = {"float16": to_float16, "bf16": to_bf16, STATIC: to_even_steps}  # by class
PACKED = {"int8": "int8", "int4": "int4-symmetric"}  # precision class -> the coarsest precision in it


def in_float64(model: MobileVLM) -> MobileVLM:
    """The model in float64: the same weights, and every operation on them in float64.

    Matrices stay in float32 and are converted as they are multiplied. The pixel values and the rotary
    angles are float32, as they are defined; every other number is float64.
    """

    def double(x: np.ndarray) -> np.ndarray:
        return x.astype(np.float64)

    def weight(name: str, value: Any) -> Any:
        match value:
            case Dense() | Quantized():
                return value  # NumPy converts W, and computes the product in float64, when x is float64
            case np.ndarray():
                return double(value)
        return lambda ids: double(value(ids))  # the table of embeddings

    wide = backend.choose("numpy")
    if model.ops.attention == model.ops.int8_attention:
        wide = backend.with_int8_attention(wide)
    return _mapped(model, weight, wide)


# The layers of a block whose results are added to its input.
ADDED = ("out_proj", "fc2", "o_proj", "down_proj")


def rounded(model: MobileVLM, to: Round) -> MobileVLM:
    """The model with every weight rounded by `to`, and the result of every operation, of every linear layer,
    and of every sum with what went into a block. Inside an operation everything is float32."""

    class Summand(np.ndarray):
        """A linear layer's result that is to be added to another array: the sum is rounded, too."""

        def __radd__(self, other: Any) -> Any:
            return to(other + plain(self))

    def plain(x: Any) -> Any:
        return x.view(np.ndarray) if isinstance(x, Summand) else x

    def smaller(w: np.ndarray) -> np.ndarray:
        # NumPy converts float16 as it multiplies: half the memory for this second copy of all weights.
        return w.astype(np.float16) if to is to_float16 else w

    def weight(name: str, value: Any) -> Any:
        match value:
            case Dense(w, b):
                value = Dense(smaller(to(w)), None if b is None else to(b))
            case np.ndarray():
                return to(value)
        if name in ADDED:
            return lambda x: to(value(x)).view(Summand)
        return lambda x: to(value(x))  # a linear layer, or the table of embeddings

    def operation(f: Callable) -> Callable:
        def call(*args: Any, **kwargs: Any) -> Any:
            y = f(*map(plain, args), **kwargs)
            return to(y) if isinstance(y, np.ndarray) and y.dtype == np.float32 else y

        return call

    operations = {name: operation(f) for name, f in vars(model.ops).items()}
    return _mapped(model, weight, backend.replaced(model.ops, **operations))


def rounding_recorder(to: Round) -> type[Recorder]:
    """A recorder that rounds every stage in place, so that the next one sees it rounded."""

    class Rounding(Recorder):
        def __call__(self, name: str, array: np.ndarray) -> None:
            if array.dtype == np.float32:
                array[...] = to(array)
            super().__call__(name, array)

    return Rounding


def _mapped(model: MobileVLM, weight: Callable[[str, Any], Any], ops: Ops) -> MobileVLM:
    """The model with `weight` applied to the name and the value of each of its weights."""
    out = copy(model)
    out.vision, out.projector, out.decoder = (
        mapped("", part, weight) for part in (model.vision, model.projector, model.decoder)
    )
    out.ops = ops
    return out


def mapped(name: str, value: Any, weight: Callable[[str, Any], Any]) -> Any:
    """A part of the model with `weight` applied to the name and the value of each of its weights."""
    match value:
        case None | int():
            return value
        case Joined():
            return Joined(*(weight(name, layer) for layer in value.layers))
        case Norm():
            return Norm(weight(name, value.weight), weight(name, value.bias))
        case list() | tuple():
            return [mapped(name, item, weight) for item in value]
        case Dense() | Quantized():
            return weight(name, value)
    if is_dataclass(value):
        changed = {f.name: mapped(f.name, getattr(value, f.name), weight) for f in fields(value)}
        return replace(value, **changed)  # type: ignore[type-var]
    return weight(name, value)
