"""Changes of an implementation, of which mistakes are made: another setting, transformed weights, a replaced
function, an edited stage. The forward pass knows nothing of it."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, replace
from math import sqrt
from types import SimpleNamespace
from typing import Any

import numpy as np

from mvlm_np import ops
from mvlm_np.backend import replaced
from mvlm_np.config import VisionConfig
from mvlm_np.golden.explain.parts import Change, Edit, Parts
from mvlm_np.golden.precision import Round, mapped, rounded
from mvlm_np.linear import Dense, Joined, Norm
from mvlm_np.projector import LDP, LDPBlock


def config(**changes: Any) -> Change:
    """Other values in the model's own settings."""
    return lambda p: replace(p, config=replace(p.config, **changes))


def vision_config(**changes: Any) -> Change:
    return lambda p: replace(p, config=replace(p.config, vision=replace(vision_of(p), **changes)))


def decoder_config(**changes: Any) -> Change:
    return lambda p: replace(p, config=replace(p.config, decoder=replace(p.config.decoder, **changes)))


def weights(part: str, change: Callable[[Any], Any]) -> Change:
    """Other weights in "vision", "projector" or "decoder"."""
    return lambda p: replace(p, **{part: change(getattr(p, part))})


def layers(part: str, change: Callable[[Any], Any]) -> Change:
    """Every block of the vision tower or layer of the decoder changed."""
    return weights(part, lambda w: replace(w, layers=[change(layer) for layer in w.layers]))


def function(part: str, name: str, wrap: Callable[[Any], Any]) -> Change:
    """Another function among a part's operations; `wrap` gets the one in place, so that changes add up."""

    def change(p: Parts) -> Parts:
        ops = getattr(p, f"{part}_ops")
        changed: dict[str, Any] = {f"{part}_ops": replaced(ops, **{name: wrap(getattr(ops, name))})}
        return replace(p, **changed)

    return change


def instead(part: str, name: str, other: Callable[..., Any]) -> Change:
    """One of a part's operations replaced outright."""
    return function(part, name, lambda _: other)


def edit_stage(stage: str, edit: Edit) -> Change:
    """Something more done to a stage before it is used."""

    def change(p: Parts) -> Parts:
        others = p.edits.get(stage, lambda value, _: value)
        return replace(p, edits={**p.edits, stage: lambda value, seen: edit(others(value, seen), seen)})

    return change


def both(*changes: Change) -> Change:
    """Several changes, one after the other."""

    def change(p: Parts) -> Parts:
        for one in changes:
            p = one(p)
        return p

    return change


def vision_of(p: Parts) -> VisionConfig:
    assert p.config.vision is not None
    return p.config.vision


def changed_blocks(change: Callable[[LDPBlock], LDPBlock], which: int | None = None) -> Callable[[LDP], LDP]:
    """One of LDP's blocks changed, or both."""
    return lambda w: replace(
        w, blocks=[change(b) if which in (None, i) else b for i, b in enumerate(w.blocks)]
    )


def without_bias(x: Any) -> Any:
    """A Linear without bias, a Norm with a bias of zeros, or an array of zeros."""
    if isinstance(x, np.ndarray):
        return np.zeros_like(x)
    return Norm(x.weight, np.zeros_like(x.bias)) if isinstance(x, Norm) else replace(x, bias=None)


def without_gain(x: Any) -> Any:
    return Norm(np.ones_like(x.weight), x.bias) if isinstance(x, Norm) else np.ones_like(x)


def has_bias(x: Any) -> bool:
    return isinstance(x, Norm) or getattr(x, "bias", None) is not None


# Where a layer keeps matrices that have the same input.
JOINED = {"qkv": ("q_proj", "k_proj", "v_proj"), "gate_up": ("gate_proj", "up_proj")}


def with_fields(names: Iterable[str], change: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Some weights of a layer changed, by name; those of `JOINED` too."""

    def all_changed(w: Any) -> Any:
        for name in names:
            joined = next((field for field, inside in JOINED.items() if name in inside), None)
            if joined is None:
                w = replace(w, **{name: change(getattr(w, name))})
            else:
                inside = zip(JOINED[joined], getattr(w, joined).layers, strict=True)
                w = replace(w, **{joined: Joined(*(change(x) if n == name else x for n, x in inside))})
        return w

    return all_changed


def named(w: Any, wanted: Callable[[Any], bool]) -> list[str]:
    """The names of those weights of a layer that are of some kind."""
    found = []
    for f in fields(w):
        value = getattr(w, f.name)
        inside = zip(JOINED[f.name], value.layers, strict=True) if f.name in JOINED else [(f.name, value)]
        found += [name for name, x in inside if wanted(x)]
    return found


# ---------------------------------------------------------------- other types of numbers


def everything_in(to: Round) -> Change:
    """Weights and the results of all operations rounded, as in a precision class."""

    def change(p: Parts) -> Parts:
        new: dict[str, Any] = {}
        for part in ("vision", "projector", "decoder"):
            model: Any = SimpleNamespace(vision=None, projector=None, decoder=None)
            setattr(model, part, getattr(p, part))
            model.ops = getattr(p, f"{part}_ops")
            model = rounded(model, to)
            new |= {part: getattr(model, part), f"{part}_ops": model.ops}
        return replace(p, **new)

    return both(change, *(edit_stage(name, lambda x, _: to(x)) for name in ("pixel_values", "inputs_embeds")))


def products_in(to: Round) -> Change:
    """Both sides of each matrix product rounded, in attention and convolutions too; the sums stay float32."""

    @dataclass
    class Smaller(Dense):
        def __call__(self, x: np.ndarray) -> np.ndarray:
            return super().__call__(to(x))

    def linear(name: str, value: Any) -> Any:
        return Smaller(to(value.weight), value.bias) if isinstance(value, Dense) else value

    def attention(base: Any) -> Any:
        def attend(q: np.ndarray, k: np.ndarray, v: np.ndarray, causal: bool) -> np.ndarray:
            if base != ops.attention:  # another mistake's
                return base(to(q), to(k), to(v), causal)
            (H, T, d), S = q.shape, k.shape[1]
            k, v = (np.repeat(to(x), H // len(x), axis=0) for x in (k, v))
            scores = to(q) @ k.swapaxes(1, 2) * np.float32(d**-0.5)
            if causal:
                scores = np.where(np.arange(S) > np.arange(S - T, S)[:, None], np.float32(-np.inf), scores)
            return to(ops.softmax(scores)) @ v

        return attend

    def change(p: Parts) -> Parts:
        for part in ("vision", "projector", "decoder"):
            p = weights(part, lambda w: mapped("", w, linear))(p)
        return p

    functions = [function(part, "attention", attention) for part in ("vision", "decoder")]
    functions += [function("vision", "matmul", lambda base: lambda x, w: base(to(x), to(w)))]
    functions += [
        function(
            "projector", "depthwise_conv", lambda base: lambda x, w, b, stride: base(to(x), to(w), b, stride)
        )
    ]
    return both(change, *functions)


def tanh_gelu(x: np.ndarray) -> np.ndarray:
    """GELU's approximation by tanh."""
    return x / 2 * (1 + np.tanh(sqrt(2 / np.pi) * (x + 0.044715 * x * x * x)))


ACTIVATIONS: dict[str, Callable[..., np.ndarray]] = {
    name: getattr(ops, name) for name in "gelu quick_gelu relu silu sigmoid hardswish hardsigmoid".split()
} | {"tanh_gelu": tanh_gelu}
WHERE = {"vision": "vision encoder", "decoder": "decoder"}  # parts in words
EPS = (1e-12, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.1)
