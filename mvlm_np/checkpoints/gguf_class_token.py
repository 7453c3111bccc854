"""How a GGUF shares out the class token, so that llama.cpp can be right about it in either place.

The tower's first token is class embedding + position 0, and every other one a patch + its position. Only the
sum counts, so the share of each of the two is free. llama.cpp, as far as versions were tried, joins the class
embedding behind the patches: it adds the last position to it, and position 0 to the first patch. Hence this
share:

    class embedding = patch embedding · a patch of padding        position 0 = the rest

A right program computes what it did before, to float32's last digit. And a llama.cpp that gets a picture
whose first patch is padding and all others one place further on (`mvlm prepare --class-token-last`) has
exactly the model's tokens: the first patch becomes the class token, the class embedding a patch of padding.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from mvlm_np.binder import VISION_TOWER
from mvlm_np.checkpoints.gguf_writer import Weight

_AT = f"{VISION_TOWER}vision_model.embeddings."
CLASS, POSITIONS, PATCH = (
    f"{_AT}{name}" for name in ("class_embedding", "position_embedding.weight", "patch_embedding.weight")
)

LARGEST = 65504.0  # of float16


@dataclass(frozen=True)
class Shared:
    """A weight that is computed when it is asked for."""

    shape: tuple[int, ...]
    float32: Callable[[], np.ndarray]


def shared_out(tensors: Mapping[str, Weight], padding: np.ndarray) -> dict[str, Weight]:
    """The class embedding and the positions as a GGUF is to hold them, the latter in float16.

    tensors  by Hugging Face's names
    padding  the colour of padding as the tower sees it: normalised, (3,)
    """

    def first() -> tuple[np.ndarray, np.ndarray]:
        token = tensors[CLASS].float32() + tensors[POSITIONS].float32()[0]
        return shares(token, tensors[PATCH].float32(), padding)

    def positions() -> np.ndarray:
        held = tensors[POSITIONS].float32().copy()
        held[0] = first()[1]
        return held

    return {
        CLASS: Shared(tensors[CLASS].shape, lambda: first()[0]),
        POSITIONS: Shared(tensors[POSITIONS].shape, positions),
    }


def shares(
    token: np.ndarray, patch_embedding: np.ndarray, padding: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The class embedding and position 0, whose sum is `token`; the latter in float16's steps. (V,) each"""
    with np.errstate(over="ignore", invalid="ignore"):  # what is too large for the file, its writer refuses
        held = patch_embedding.astype(np.float16).astype(np.float32)  # as the file has it
        position = np.clip(token - held.sum((2, 3)) @ padding, -LARGEST, LARGEST)
    position = position.astype(np.float16).astype(np.float32)
    return token - position, position
