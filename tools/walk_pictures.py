"""Draws the pictures of docs/walk.md.

    python tools/walk_pictures.py

patches.png    the picture, cut up
tokens.png     its patches; where features and tokens tell of something
attention.png  where the decoder's last layer looks before each word of the answer

There is no text in them, and the gaps between their squares are transparent: they suit light and dark pages.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout, when run as a script

import numpy as np
from PIL import Image, ImageDraw

import mvlm_np
from mvlm_np.backend import replaced
from mvlm_np.demo import MODEL, PICTURES
from mvlm_np.demo.page import lit, square
from mvlm_np.model import MobileVLM
from mvlm_np.session import Session
from mvlm_np.trace import Stages, Watch

FOLDER = Path(__file__).parents[1] / "docs" / "pictures" / "walk"
PICTURE, QUESTION = PICTURES / "1.png", "What do you see at the bottom?"
SIDE, GAP = 192, 12  # of a square, and between two


def draw(model: MobileVLM) -> dict[str, Image.Image]:
    """All pictures by the names of their files."""
    stages = model.trace(PICTURE, QUESTION)
    return {
        "patches.png": patches(model),
        "tokens.png": tokens(stages, model),
        "attention.png": attention(stages, model),
    }


def patches(model: MobileVLM) -> Image.Image:
    """The picture cut into patches."""
    assert model.config.vision is not None
    cut = seen()
    pen = ImageDraw.Draw(cut)
    for at in range(0, SIDE + 1, SIDE // model.config.vision.grid):
        pen.line([(at, 0), (at, SIDE)], fill="white")
        pen.line([(0, at), (SIDE, at)], fill="white")
    return cut


def tokens(stages: Stages, model: MobileVLM) -> Image.Image:
    """The patches; how far the features, and the tokens, are from an empty picture's."""
    picture = np.array(Image.open(PICTURE))
    empty = model.trace(np.full_like(picture, np.median(picture, axis=(0, 1))), QUESTION)
    return strip(
        [patches(model), *(light(stages[n] - empty[n]) for n in ("vision.features", "projector.output"))]
    )


def attention(stages: Stages, model: MobileVLM) -> Image.Image:
    """One square for each word of the answer: the mean over the last layer's heads."""
    layers: list[np.ndarray] = []

    def watched(q: np.ndarray, k: np.ndarray, v: np.ndarray, *cache: Any) -> np.ndarray:
        k_of_q = np.repeat(k, len(q) // len(k), axis=0)
        scores = q[:, -words:] @ k_of_q.transpose(0, 2, 1) * q.shape[-1] ** -0.5  # (H, words, S)
        future = np.arange(scores.shape[2]) > np.arange(-words, 0)[:, None] + scores.shape[2]
        layers.append(model.ops.softmax(np.where(future, -np.inf, scores)).mean(axis=0))
        return model.ops.cached_attention(q, k, v, *cache)

    said = stages["generated_ids"][0, :-1]  # without the end
    words = len(said)
    ids = np.concatenate([stages["input_ids"][0], said[:-1]])
    x, at = model.embed(ids.tolist(), [stages["projector.output"][0]])
    ops = replaced(model.ops, cached_attention=watched)
    Session(model.decoder, model.config.decoder, ops).prefill(x, at, 0, Watch())
    return strip([lit(seen(), grid(row[at < 0])) for row in layers[-1]])


def seen() -> Image.Image:
    """The picture as the model sees it."""
    return square(Image.open(PICTURE)).resize((SIDE, SIDE))


def grid(x: np.ndarray) -> np.ndarray:
    """(n * n, ...) -> (n, n, ...)"""
    side = round(len(x) ** 0.5)
    return x.reshape(side, side, *x.shape[1:])


def light(x: np.ndarray) -> Image.Image:
    """Vectors (1, n * n, width) as n x n flat squares, the brighter the longer."""
    length = np.linalg.norm(x[0], axis=-1)
    flat = np.round(255 * grid(length / length.max())).astype(np.uint8)
    return Image.fromarray(flat).resize((SIDE, SIDE), Image.Resampling.NEAREST)


def strip(squares: Sequence[Image.Image]) -> Image.Image:
    """Squares side by side on a transparent ground."""
    whole = Image.new("RGBA", (len(squares) * (SIDE + GAP) - GAP, SIDE))
    for i, picture in enumerate(squares):
        whole.paste(picture.convert("RGBA"), (i * (SIDE + GAP), 0))
    return whole


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, picture in draw(mvlm_np.load(MODEL)).items():
        picture.save(FOLDER / name, optimize=True)
