"""Mistakes with activations: GELU in one of its other forms, or approximated."""

from collections.abc import Callable, Iterator

import numpy as np

from mvlm_np.golden.explain.approximations import (
    ERF,
    HARD,
    QUICK_SLOPE,
    SLOPES,
    TABLES,
    gelu_by,
    sigmoid_gelu,
    table,
)
from mvlm_np.golden.explain.changes import ACTIVATIONS, both, function, instead, vision_of
from mvlm_np.golden.explain.mistake import Variant, dial, mistake
from mvlm_np.golden.explain.parts import Change
from mvlm_np.golden.explain.scene import Scene
from mvlm_np.golden.precision import to_float16


def _activation(act: str | Callable[[np.ndarray], np.ndarray]) -> Change:
    """Another activation in the blocks of the encoder, or one of `ACTIVATIONS` by name."""
    other = ACTIVATIONS[act] if isinstance(act, str) else act
    return lambda p: instead("vision", vision_of(p).hidden_act, other)(p)


@mistake(
    stage="projector.mlp.mlp.1",
    what="GELU is computed in its tanh form",
    mend="the projector's GELU is the exact one, with erf; the encoder's is CLIP's x * sigmoid(1.702 x)",
)
def tanh_gelu(scene: Scene) -> Iterator[Variant]:
    if scene.parts.vision:
        encoder, projector = _activation("tanh_gelu"), instead("projector", "gelu", ACTIVATIONS["tanh_gelu"])
        yield Variant("project", projector, "in the projector")
        yield Variant("block", encoder, "in the vision encoder")
        yield Variant("block", both(encoder, projector), "in the vision encoder and the projector")


@mistake(
    stage="projector.mlp.mlp.1",
    what="the projector uses CLIP's quick GELU",
    mend="the projector's GELU is the exact one, with erf",
)
def quick_gelu(scene: Scene) -> Iterator[Variant]:
    if scene.parts.vision:
        yield Variant("project", function("projector", "gelu", lambda _: ACTIVATIONS["quick_gelu"]))


@mistake(
    stage="vision.hidden_states.1",
    what="the vision encoder uses the exact GELU",
    mend="CLIP's activation is quick GELU, x * sigmoid(1.702 x), as its config's hidden_act says",
)
def exact_gelu(scene: Scene) -> Iterator[Variant]:
    if scene.parts.vision and vision_of(scene.parts).hidden_act == "quick_gelu":
        yield Variant("block", _activation("gelu"))


@mistake(
    stage="vision.hidden_states.1",
    what="an activation is ReLU or SiLU where it should be GELU",
    mend="quick GELU in the vision encoder, exact GELU in the projector",
)
def relu(scene: Scene) -> Iterator[Variant]:
    if not scene.parts.vision:
        return
    for name in ("relu", "silu"):
        yield Variant("block", _activation(name), f"{name} in the vision encoder")
        yield Variant("project", instead("projector", "gelu", ACTIVATIONS[name]), f"{name} in the projector")


@mistake(
    stage="projector.mlp.mlp.1",
    what="GELU is approximated, as converters and accelerators do it",
    mend="keep erf and sigmoid as operations of their own, or ask the converter not to approximate; "
    "where the chip has nothing else, measure what it costs",
)
def gelu_approximated(scene: Scene) -> Iterator[Variant]:
    if not scene.parts.vision:
        return

    def in_projector(act: Callable[[np.ndarray], np.ndarray], what: str, rounds: bool = False) -> Variant:
        return Variant(
            "project", instead("projector", "gelu", act), f"{what}, in the projector", rounds=rounds
        )

    def in_encoder(act: Callable[[np.ndarray], np.ndarray], what: str, rounds: bool = False) -> Variant:
        return Variant("block", _activation(act), f"{what}, in the vision encoder", rounds=rounds)

    for name, erf in ERF.items():
        yield in_projector(gelu_by(erf), f"erf by {name}")
    for name, act in HARD.items():
        yield in_projector(act, name)
        yield in_encoder(act, name)
    right = vision_of(scene.parts).hidden_act
    for (entries, reach), joined in TABLES.items():
        kind = "straight lines between" if joined else "the nearest of"
        what = f"{kind} {entries} values from {-reach} to {reach}"
        yield in_projector(table(ACTIVATIONS["gelu"], entries, reach, joined), what)
        yield in_encoder(table(ACTIVATIONS[right], entries, reach, joined), what)
    for name in ("gelu", "tanh_gelu"):
        half = lambda x, act=ACTIVATIONS[name]: to_float16(act(to_float16(x)))  # noqa: E731
        yield in_projector(half, f"a table in float16 of {name.replace('_', ' ')}", True)
    yield in_encoder(
        lambda x: to_float16(ACTIVATIONS[right](to_float16(x))), "a table in float16 of its own form", True
    )
    for slope in SLOPES:
        yield in_projector(sigmoid_gelu(slope), f"x * sigmoid({slope:.6g} x)")
    if right == "quick_gelu":
        yield from dial(
            "block",
            "x * sigmoid({:.6g} x), in the vision encoder",
            lambda slope: _activation(sigmoid_gelu(slope)),
            SLOPES,
            QUICK_SLOPE,
        )
