"""What a mistake is, and the ways to make one: a changed config value, a transformed weight, a replaced
function of the vocabulary, or another step. The forward pass knows nothing of it.

A mistake comes in variants: which layer, which value, which of two ways. `variants` may look at what the
candidate computed, for a number that can be read off it.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from math import sqrt
from types import SimpleNamespace
from typing import Any

import numpy as np

from mvlm_np import ops
from mvlm_np.config import VisionConfig
from mvlm_np.golden.pictures import Picture
from mvlm_np.golden.prompts import Prompt
from mvlm_np.golden.replay import Change, Parts, Stages
from mvlm_np.linear import Joined, Norm
from mvlm_np.projector import LDP, LDPBlock
from mvlm_np.vision import VisionWeights


@dataclass(frozen=True)
class Dial:
    """What variants that differ in one number have in common.

    at      makes the variant with another number
    values  those that are tried first, and the right one, in order
    """

    at: Callable[[float], "Variant"]
    values: tuple[float, ...]


@dataclass(frozen=True)
class Variant:
    """One way to make a mistake.

    step    where it acts first; see `replay.STEPS`
    detail  what is particular about this way, in words
    layer   the one layer that it acts on; None for all
    dial    how to make it with another number, and value: its own
    rounds  whether it rounds: then its result is not reproduced to the last bit
    rare    whether to try it only where one layer alone is in question
    """

    step: str
    change: Change
    detail: str = ""
    layer: int | None = None
    dial: Dial | None = None
    value: float = 0.0
    rounds: bool = False
    rare: bool = False


@dataclass(frozen=True)
class Scene:
    """What there is to make mistakes with.

    parts    the reference
    picture  the picture and how it is prepared; None where there is no picture
    prompt   how the prompt becomes ids; None where the question or the tokenizer is missing
    spare    weights that the model does not use: "post_layernorm", "other_tower"
    stages   what the candidate computed
    """

    parts: Parts
    picture: Picture | None = None
    prompt: Prompt | None = None
    spare: Mapping[str, Any] = field(default_factory=dict)
    stages: Stages = field(default_factory=dict)


@dataclass(frozen=True)
class Mistake:
    """A mistake, under a stable name.

    what   what the port does
    mend   what it should do
    stage  where it first shows
    shown  which golden tells it from the right way, where one may not
    """

    id: str
    what: str
    mend: str
    stage: str
    shown: str
    variants: Callable[[Scene], Iterable[Variant]]


MISTAKES: dict[str, Mistake] = {}
ANY = "any golden"


def mistake(id: str, stage: str, what: str, mend: str, shown: str = ANY) -> Callable[[Any], Any]:
    """Puts a generator of variants on the list."""

    def listed(variants: Callable[[Scene], Iterable[Variant]]) -> Callable[[Scene], Iterable[Variant]]:
        assert id not in MISTAKES
        MISTAKES[id] = Mistake(id, what, mend, stage, shown, variants)
        return variants

    return listed


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


def layers(part: str, change: Callable[[Any], Any], only: int | None = None) -> Change:
    """Every block of the vision tower or layer of the decoder changed."""

    def all_layers(w: Any) -> Any:
        return replace(w, layers=[change(x) if only in (None, i) else x for i, x in enumerate(w.layers)])

    return weights(part, all_layers)


def function(part: str, name: str, wrap: Callable[[Any], Any]) -> Change:
    """Another function in a part's vocabulary; `wrap` gets the one in place, so that changes add up."""

    def change(p: Parts) -> Parts:
        ops = getattr(p, f"{part}_ops")
        changed: dict[str, Any] = {
            f"{part}_ops": SimpleNamespace(**{**vars(ops), name: wrap(getattr(ops, name))})
        }
        return replace(p, **changed)

    return change


def instead(part: str, name: str, other: Callable[..., np.ndarray]) -> Change:
    """A function of a part's vocabulary replaced outright."""
    return function(part, name, lambda _: other)


def after(stage: str, then: Callable[[np.ndarray, Stages], np.ndarray]) -> Change:
    """Something more done to a stage."""

    def change(p: Parts) -> Parts:
        before = p.after.get(stage, lambda value, _: value)
        return replace(p, after={**p.after, stage: lambda value, seen: then(before(value, seen), seen)})

    return change


def both(*changes: Change) -> Change:
    def change(p: Parts) -> Parts:
        for one in changes:
            p = one(p)
        return p

    return change


def dial(
    step: str, text: str, make: Callable[[float], Change], values: Iterable[float], right: float
) -> Iterator[Variant]:
    """Variants that differ in a number only, which can be tuned; `text` has a place for it."""
    numbers = tuple(sorted({*values, right}))

    def at(value: float) -> Variant:
        return Variant(step, make(value), text.format(value), None, Dial(at, numbers), value)

    return (at(value) for value in numbers if value != right)


def vision_of(p: Parts) -> VisionConfig:
    assert p.config.vision is not None
    return p.config.vision


def tower_of(scene: Scene) -> VisionWeights | None:
    return scene.parts.vision


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


# Where a layer keeps matrices that are multiplied together.
JOINED = {"q": ("qkv", 0), "k": ("qkv", 1), "v": ("qkv", 2), "gate": ("gate_up", 0), "up": ("gate_up", 1)}


def with_fields(names: Iterable[str], change: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Some weights of a layer changed, by name; q, k, v, gate and up are inside others."""

    def all_changed(w: Any) -> Any:
        for name in names:
            if name in JOINED:
                field, i = JOINED[name]
                inside = list(getattr(w, field).layers)
                inside[i] = change(inside[i])
                w = replace(w, **{field: Joined(*inside)})
            else:
                w = replace(w, **{name: change(getattr(w, name))})
        return w

    return all_changed


def named(w: Any, wanted: Callable[[Any], bool]) -> list[str]:
    """The names of those weights of a layer that are of some kind."""
    found = []
    for f in fields(w):
        value = getattr(w, f.name)
        inside = [name for name, (joined, _) in JOINED.items() if joined == f.name]
        if isinstance(value, Joined):
            found += [n for n, x in zip(inside, value.layers, strict=True) if wanted(x)]
        elif wanted(value):
            found.append(f.name)
    return found


def tanh_gelu(x: np.ndarray) -> np.ndarray:
    """GELU's approximation by tanh."""
    return x / 2 * (1 + np.tanh(sqrt(2 / np.pi) * (x + 0.044715 * x * x * x)))


FUNCTIONS: dict[str, Callable[..., np.ndarray]] = {
    name: getattr(ops, name) for name in "gelu quick_gelu relu silu sigmoid hardswish hardsigmoid".split()
} | {"tanh_gelu": tanh_gelu}
EPS = (1e-12, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.1)
