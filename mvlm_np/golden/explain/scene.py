"""What there is to make mistakes with: the reference, the picture, the prompt, and the candidate's stages."""

from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mvlm_np.errors import TokenizerError
from mvlm_np.golden.compare.candidates import Candidate
from mvlm_np.golden.compare.excerpts import in_rows
from mvlm_np.golden.compare.orders import arrangements
from mvlm_np.golden.compare.verdict import decisive
from mvlm_np.golden.explain.parts import Parts
from mvlm_np.golden.explain.preprocessing import Picture
from mvlm_np.golden.explain.steps import CannotReplay
from mvlm_np.golden.format import Golden
from mvlm_np.golden.layout import axes
from mvlm_np.golden.measure import relative_error
from mvlm_np.golden.stages import Stages, order
from mvlm_np.inputs.conversation import IMAGE_MARK, render
from mvlm_np.inputs.tokenizer import Tokenizer, tokenize_prompt
from mvlm_np.model import MobileVLM


@dataclass(frozen=True)
class Prompt:
    """A question and the text that the model continues; calling it gives its ids."""

    tokenizer: Tokenizer
    question: str
    text: str

    @property
    def images(self) -> int:
        return self.text.count(IMAGE_MARK)

    def __call__(self) -> list[int]:
        return tokenize_prompt(self.text, self.tokenizer)


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


def make_scene(
    model: MobileVLM,
    golden: Golden,
    stages: Stages,
    image: object,
    spare: Mapping[str, Any],
) -> Scene:
    """What there is to make mistakes with: the model, the golden's question, the picture if there is one."""
    picture = Picture.open(image, model.config.image) if image is not None and model.vision else None
    question, text = golden.metadata.get("question"), golden.metadata.get("prompt")
    prompt = None
    if question is not None:
        text = text if text is not None else render("v1", question, int(model.vision is not None))
        with suppress(TokenizerError):
            prompt = Prompt(model.tokenizer, question, text)

    def no_picture() -> np.ndarray:
        raise CannotReplay("the picture is not here")

    def ids() -> list[int]:
        if "input_ids" not in golden.stages:
            raise CannotReplay("the prompt is not here")
        return golden.stages["input_ids"].tolist()

    parts = Parts.of(model, pixels=picture or no_picture, ids=prompt or ids)
    return Scene(parts, picture, prompt, spare, stages)


def aligned(
    golden: Golden, candidate: Candidate, positions_first: bool = False, left_out: Collection[str] = ()
) -> dict[str, np.ndarray]:
    """The candidate's stages as the reference has them: no batch axis, axes in order, raw files in shape.

    positions_first  read raw files whose numbers do not tell their order with positions first, (T, KV, d) and
                     (h, w, D), instead of in the golden's own order
    left_out         stages that are passed over

    Of generated tokens there are as many as were fed, and rows for them. The logits of the last positions are
    "logits" with fewer rows.
    """
    stages = {}
    candidate = candidate.under(golden.names)
    for name in sorted(set(candidate.stages) & set(golden.names) - set(left_out), key=order):
        shape = golden.shape(name)
        whole = name in golden.stages and golden.stages[name].dtype.kind == "i"
        array = in_rows(name, shape, np.asarray(candidate.stages[name]))
        if array.shape != shape:
            ways = dict(arrangements(shape, array))
            taken = 0
            if name in golden.stages and len(ways) > 1:
                taken = decisive([relative_error(way, golden.stages[name]) for way in ways.values()])
            order_of = list(ways)[taken] if ways else None
            if positions_first and not taken and axes(name, len(shape)) in ways:
                order_of = axes(name, len(shape))
            array = ways[order_of] if order_of is not None else array
        if array.ndim == len(shape):
            name = "logits" if name == "logits.tail" else name
            stages[name] = array.astype(np.int64 if whole else np.float32)
    generated = [n for n in stages if n.startswith("decode.")]
    ids = stages.get("generated_ids", golden.stages.get("generated_ids"))
    if generated and ids is not None:
        fed = min(len(ids), *(len(stages[n]) for n in generated))
        stages |= {n: stages[n][:fed] for n in generated} | {"generated_ids": ids[:fed]}
    return stages
