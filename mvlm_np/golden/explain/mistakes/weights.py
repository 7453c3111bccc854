"""Mistakes with weights, in any part of the model: left out, or another layer's."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from mvlm_np.golden.explain.changes import (
    WHERE,
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
from mvlm_np.linear import Joined, Norm
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


@mistake(
    stage="vision.hidden_states.1",
    what="a square matrix is used as its transpose",
    mend="y = x W^T for a weight (outputs, inputs); where both are the same, no shape tells",
)
def transposed_matrix(scene: Scene) -> Iterator[Variant]:
    for part, step, names in _attentions(scene):
        w = getattr(scene.parts, part).layers[0]
        square = [n for n in names if len(set(_matrix(w, n).weight.shape)) == 1]
        for group in [[n] for n in square] + ([square] if len(square) > 1 else []):
            change = layers(part, with_fields(group, _transposed))
            yield Variant(step, change, f"{', '.join(group)} in the {WHERE[part]}")
    if isinstance(scene.parts.projector, LDPv2 | LDP):
        turned = weights("projector", with_fields(["fc2"], _transposed))
        yield Variant("project", turned, "fc2 in the projector")


@mistake(
    stage="vision.hidden_states.1",
    what="two of the matrices q, k and v stand in each other's place",
    mend="load q_proj, k_proj and v_proj by their names, and split a joined matrix in the order q, k, v",
)
def qkv_swapped(scene: Scene) -> Iterator[Variant]:
    for part, step, _ in _attentions(scene):
        for i, j in ((0, 1), (1, 2), (0, 2)):
            of = getattr(scene.parts, part).layers[0].qkv.layers
            if of[i].weight.shape == of[j].weight.shape:
                change = layers(part, partial(_with_swapped, i, j))
                yield Variant(step, change, f"{'qkv'[i]} and {'qkv'[j]} in the {WHERE[part]}")


@mistake(
    stage="vision.hidden_states.1",
    what="a matrix is quantised to 8 bits with one scale for all its rows",
    mend="give each row, or each 32 numbers of it, a scale of its own",
    shown="weights whose rows differ in size, as those of trained models do",
)
def per_tensor_int8(scene: Scene) -> Iterator[Variant]:
    places = [(part, step) for part, step, _ in _attentions(scene)]
    for name, rounding in (("scale max / 127", _even(127)), ("scale max / 128", _even(128))):
        for part, step in places:
            every = ["q_proj", "k_proj", "v_proj", *(MLP[part]), "out_proj" if part == "vision" else "o_proj"]
            yield Variant(step, layers(part, with_fields(every, rounding)), f"{name}, in the {WHERE[part]}")
        if isinstance(scene.parts.projector, LDPv2 | LDP):
            change = weights("projector", with_fields(["fc1", "fc2"], rounding))
            yield Variant("project", change, f"{name}, in the projector")


MLP = {"vision": ("fc1", "fc2"), "decoder": ("gate_proj", "up_proj", "down_proj")}


def _attentions(scene: Scene) -> Iterator[tuple[str, str, list[str]]]:
    """Part, step and the names of the matrices of attention."""
    if scene.parts.vision:
        yield "vision", "block", ["q_proj", "k_proj", "v_proj", "out_proj"]
    yield "decoder", "layer", ["q_proj", "k_proj", "v_proj", "o_proj"]


def _matrix(layer: Any, name: str) -> Any:
    return layer.qkv.layers["qkv".index(name[0])] if name[0] in "qkv" else getattr(layer, name)


def _transposed(linear: Any) -> Any:
    return replace(linear, weight=np.ascontiguousarray(linear.weight.T))


def _with_swapped(i: int, j: int, layer: Any) -> Any:
    order = list(layer.qkv.layers)
    order[i], order[j] = order[j], order[i]
    return replace(layer, qkv=Joined(*order))


def _even(steps: int) -> Callable[[Any], Any]:
    def change(linear: Any) -> Any:
        scale = float(np.abs(linear.weight).max()) / steps or 1.0
        rounded = np.clip(np.rint(linear.weight / scale), -128, 127) * scale
        return replace(linear, weight=rounded.astype(np.float32))

    return change
