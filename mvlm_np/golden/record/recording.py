"""Records every stage of one question."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mvlm_np.model import MobileVLM
from mvlm_np.trace import Recorder


@dataclass(frozen=True)
class Question:
    """What is asked. `image` is None for a model that reads text only."""

    text: str
    image: Path | None = None
    conv_mode: str = "v1"
    max_new_tokens: int = 24
    num_beams: int | None = None


def record(
    model: MobileVLM,
    question: Question,
    follow: np.ndarray | None = None,
    recorder: type[Recorder] = Recorder,
) -> dict[str, np.ndarray]:
    """Every stage of a question, without batch axis. follow: ids to feed in place of the model's own."""
    traced = model.trace(
        question.image,
        question.text,
        question.max_new_tokens,
        question.num_beams,
        conv_mode=question.conv_mode,
        follow=None if follow is None else follow.tolist(),
        recorder=recorder,
    )
    return {name: array[0] for name, array in traced.items()}
