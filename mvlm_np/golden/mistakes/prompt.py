"""Mistakes in the prompt, and in putting the picture into it."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from math import sqrt

import numpy as np

from mvlm_np.golden.mistakes.base import (
    Scene,
    Variant,
    after,
    mistake,
    tower_of,
)
from mvlm_np.golden.prompts import Prompt
from mvlm_np.golden.replay import Change, Parts, Stages
from mvlm_np.inputs.tokenizer import IMAGE_TOKEN


def prompt(scene: Scene, ways: Mapping[str, Callable[[Prompt], list[int]]]) -> Iterator[Variant]:
    if scene.prompt is not None:
        for detail, way in ways.items():
            yield Variant("ids", partial(_with_ids, partial(way, scene.prompt)), detail)


def _with_ids(ids: Callable[[], list[int]], p: Parts) -> Parts:
    return replace(p, ids=ids)


def edit_ids(detail: str, edit: Callable[[list[int], int], list[int]]) -> Variant:
    """The ids that would be, changed: (ids, bos) -> ids."""

    def change(p: Parts) -> Parts:
        before, bos = p.ids, p.config.decoder.bos_token_id
        return replace(p, ids=lambda: edit(list(before()), bos))

    return Variant("ids", change, detail)


@mistake(
    "bos-missing",
    "input_ids",
    "the prompt does not begin with BOS",
    "put BOS (id 1) first, once",
)
def _(scene: Scene) -> Iterator[Variant]:
    yield edit_ids("", lambda ids, bos: ids[1:] if ids[0] == bos else ids)


@mistake(
    "bos-doubled",
    "input_ids",
    "BOS stands in the prompt more than once",
    "put BOS first, once: each piece of the prompt is tokenised with one, and the later ones are dropped",
)
def _(scene: Scene) -> Iterator[Variant]:
    yield edit_ids("two at the start", lambda ids, bos: [bos, *ids])

    def after_image(ids: list[int], bos: int) -> list[int]:
        return [x for i in ids for x in ([i, bos] if i < 0 else [i])]

    yield edit_ids("one after the picture", after_image)


@mistake(
    "no-dummy-prefix",
    "input_ids",
    "the text after the picture begins without SentencePiece's space",
    "tokenise each piece of the prompt on its own, with its dummy prefix: ids 29871, 13 follow the picture",
)
def _(scene: Scene) -> Iterator[Variant]:
    yield from prompt(
        scene, {"": Prompt.without_prefix, "nor does that before it": Prompt.without_any_prefix}
    )


@mistake(
    "wrong-template",
    "input_ids",
    "the prompt follows another template",
    'template "v1": system text, then " USER: <image>\\n" question " ASSISTANT:"',
)
def _(scene: Scene) -> Iterator[Variant]:
    if scene.prompt is not None:
        yield from prompt(scene, scene.prompt.other_templates())


@mistake(
    "image-misplaced",
    "input_ids",
    "the picture stands elsewhere in the prompt",
    "<image> and a newline stand before the first question",
)
def _(scene: Scene) -> Iterator[Variant]:
    if scene.prompt is not None:
        yield from prompt(scene, scene.prompt.other_places())


@mistake(
    "image-tokens-order",
    "inputs_embeds",
    "the image tokens reach the decoder in another order or scale",
    "put them in the picture's place row by row, as the projector gives them",
)
def _(scene: Scene) -> Iterator[Variant]:
    if not tower_of(scene):
        return

    def rows(change: Callable[[np.ndarray], np.ndarray]) -> Change:
        def then(x: np.ndarray, seen: Stages) -> np.ndarray:
            ids = seen.get("input_ids", scene.stages.get("input_ids"))
            if ids is None or IMAGE_TOKEN not in ids:
                return x
            first, count = list(ids).index(IMAGE_TOKEN), len(x) - len(ids) + 1
            return np.concatenate([x[:first], change(x[first : first + count]), x[first + count :]])

        return after("inputs_embeds", then)

    def columns(x: np.ndarray) -> np.ndarray:
        side = round(sqrt(len(x)))
        return x.reshape(side, side, -1).swapaxes(0, 1).reshape(x.shape) if side * side == len(x) else x

    D = scene.parts.config.decoder.hidden_size
    yield Variant("embeds", rows(columns), "column by column")
    yield Variant("embeds", rows(lambda x: x[::-1]), "from the end")
    yield Variant("embeds", rows(lambda x: x * np.float32(sqrt(D))), "times sqrt(D)")
    scale = after("inputs_embeds", lambda x, _: x * np.float32(sqrt(D)))
    yield Variant("embeds", scale, "all embeddings times sqrt(D), as Gemma has it")
