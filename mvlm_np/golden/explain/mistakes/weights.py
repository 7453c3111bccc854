"""Mistakes with weights, in any part of the model: left out, or another layer's."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from mvlm_np.golden.explain.changes import (
    changed_blocks,
    has_bias,
    layers,
    named,
    weights,
    with_fields,
    without_bias,
    without_gain,
)
from mvlm_np.golden.explain.mistake import Variant, mistake
from mvlm_np.golden.explain.scene import Scene
from mvlm_np.linear import Norm
from mvlm_np.projector import LDP, LDPv2

DECODER_NORMS = ("input_layernorm", "post_attention_layernorm")


@mistake(
    stage="vision.hidden_states.1",
    what="a bias is not added",
    mend="add every bias that the checkpoint holds: "
    "attention, MLP, norms, projector, PEG, squeeze-excitation",
    shown="a checkpoint whose biases are not near zero",
)
def missing_bias(scene: Scene) -> Iterator[Variant]:
    yield from _missing(scene, without_bias, has_bias, "bias")


@mistake(
    stage="vision.hidden_states.0",
    what="a norm's gain is not applied",
    mend="multiply by the norm's weight",
    shown="a checkpoint whose gains are not near one",
)
def missing_gain(scene: Scene) -> Iterator[Variant]:
    yield from _missing(scene, without_gain, lambda x: isinstance(x, Norm), "gain")
    yield Variant("layer", layers("decoder", with_fields(DECODER_NORMS, without_gain)), "the decoder's norms")
    for name in DECODER_NORMS:
        yield Variant("layer", layers("decoder", with_fields([name], without_gain)), f"the decoder's {name}")
    final = weights("decoder", lambda w: replace(w, norm=np.ones_like(w.norm)))
    yield Variant("layer", final, "the decoder's last norm")
    more = layers("decoder", with_fields(DECODER_NORMS, lambda g: g + 1))
    yield Variant("layer", more, "1 + weight, as Gemma has it")


def _missing(
    scene: Scene, change: Callable[[Any], Any], wanted: Callable[[Any], bool], thing: str
) -> Iterator[Variant]:
    """Each bias or gain of vision tower and projector, and all of them."""
    tower, projector = scene.parts.vision, scene.parts.projector
    if not tower:
        return
    first = weights("vision", with_fields(["pre_layrnorm"], change))
    yield Variant("embed", first, f"{thing} of pre_layrnorm")
    names = named(tower.layers[0], wanted)
    groups = {name: [name] for name in names} | {
        "attention": [n for n in names if n.endswith("_proj")],
        "q, k and v": [n for n in names if n in ("q_proj", "k_proj", "v_proj")],
        "all linear layers": [n for n in names if not n.startswith("layer_norm")],
        "everything": names,
    }
    for name, group in groups.items():
        if name in names or len(group) > 2:  # two together are found as a pair of mistakes
            yield Variant("block", layers("vision", with_fields(group, change)), f"of {name} in the encoder")
    match projector:
        case LDPv2():
            linear = ["fc1", "fc2"] if thing == "bias" else []
            for name in linear + (["peg_bias"] if thing == "bias" else []):
                yield Variant("project", weights("projector", with_fields([name], change)), f"of {name}")
            if thing == "bias":
                yield Variant(
                    "project", weights("projector", with_fields(["fc1", "fc2"], change)), "of fc1 and fc2"
                )
                every = with_fields(["fc1", "fc2", "peg_bias"], change)
                yield Variant("project", weights("projector", every), "of the whole projector")
        case LDP():
            if thing == "bias":
                for names in (["fc1"], ["fc2"], ["fc1", "fc2"]):
                    way = weights("projector", with_fields(names, change))
                    yield Variant("project", way, f"of {' and '.join(names)} in the projector")
            inner = named(projector.blocks[0], wanted)
            for which in (None, 0, 1):
                where = "both blocks" if which is None else f"block {which + 1}"
                for group in [[n] for n in inner] + [[n for n in inner if n in ("squeeze", "excite")], inner]:
                    if group:
                        way = weights("projector", changed_blocks(with_fields(group, change), which))
                        yield Variant("project", way, f"of {' and '.join(group)} in {where} of the projector")
        case _:
            for i in range(len(projector.layers)) if thing == "bias" and projector else ():
                yield Variant(
                    "project", weights("projector", partial(_mlp_layer, i, change)), f"of layer {i}"
                )


def _mlp_layer(i: int, change: Callable[[Any], Any], w: Any) -> Any:
    return replace(w, layers=[change(x) if i == n else x for n, x in enumerate(w.layers)])


@mistake(
    stage="vision.hidden_states.1",
    what="a layer runs with the weights of another one",
    mend="load each layer's own weights",
)
def repeated_layer(scene: Scene) -> Iterator[Variant]:
    towers = (("vision", "block", scene.parts.vision), ("decoder", "layer", scene.parts.decoder))
    for part, step, w in towers:
        count = len(w.layers) if w else 0
        for i in range(count):
            for j in sorted(set(range(count)) - {i}, key=lambda j: (abs(j - i), j)):
                change = weights(part, partial(_with_layer, i, j))
                far = abs(j - i) > 1
                yield Variant(step, change, f"{part} layer {i} has those of layer {j}", i, rare=far)


def _with_layer(i: int, j: int, w: Any) -> Any:
    return replace(w, layers=[w.layers[j] if n == i else x for n, x in enumerate(w.layers)])
