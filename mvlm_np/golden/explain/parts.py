"""What an implementation consists of: settings, weights, operations, steps. Another one has other parts."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mvlm_np import ops
from mvlm_np import projector as projectors
from mvlm_np import vision as encoder
from mvlm_np.backend import Ops, replaced
from mvlm_np.config import Config
from mvlm_np.decoder import DecoderWeights
from mvlm_np.golden.stages import Stages
from mvlm_np.model import MobileVLM
from mvlm_np.projector import Projector
from mvlm_np.vision import VisionWeights

Edit = Callable[[np.ndarray, Stages], np.ndarray]  # a stage, the stages so far -> the stage as it is used


@dataclass(frozen=True)
class Parts:
    """What an implementation consists of. The reference is one; a mistake is a change of one field.

    pixels      -> pixel values (3, h, w), from the picture
    ids         -> prompt ids
    *_ops       the operations (see `backend.Ops`) of each part of the model
    embed, block, project
                those of `vision` and `projector`
    positions   (first, number, prompt length) -> rotary positions; from the prompt's length on they are those
                of generated tokens
    feed        stages -> the ids that are fed after the prompt; the results of the last ones count, of as
                many as were generated
    edits       {stage: what else is done to it before it is used}
    """

    config: Config
    vision: VisionWeights | None
    projector: Projector | None
    decoder: DecoderWeights
    pixels: Callable[[], np.ndarray]
    ids: Callable[[], Sequence[int]]
    vision_ops: Ops
    projector_ops: Ops
    decoder_ops: Ops
    embed: Callable[..., np.ndarray] = encoder.embed
    block: Callable[..., np.ndarray] = encoder.block
    project: Callable[..., np.ndarray] = projectors.project
    positions: Callable[[int, int, int], np.ndarray] = lambda first, T, prompt: np.arange(first, first + T)
    feed: Callable[[Any], np.ndarray] = lambda stages: stages["generated_ids"]
    edits: Mapping[str, Edit] = field(default_factory=dict)

    @classmethod
    def of(
        cls, model: MobileVLM, pixels: Callable[[], np.ndarray], ids: Callable[[], Sequence[int]]
    ) -> "Parts":
        """The reference: what a model consists of."""
        decoder_ops = model.ops
        if decoder_ops.attention == decoder_ops.int8_attention:  # the tower's alone: it knows no past
            decoder_ops = replaced(decoder_ops, attention=ops.attention)
        return cls(
            config=model.config,
            vision=model.vision,
            projector=model.projector,
            decoder=model.decoder,
            pixels=pixels,
            ids=ids,
            vision_ops=model.ops,
            projector_ops=model.ops,
            decoder_ops=decoder_ops,
        )


Change = Callable[[Parts], Parts]
