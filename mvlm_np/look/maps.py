"""The maps of a look as a page carries them: in 8 bits, compressed, and no larger than there is room for."""

import base64
import zlib
from collections.abc import Callable

import numpy as np

from mvlm_np.look.looking import Attention, Look, Seen, stacked

LEFT_OUT = "Left out for size:"

Add = Callable[[str, float], bool]


def maps(look: Look, room: int) -> tuple[list[str], list[str]]:
    """The maps as blocks of the page, `room` bytes in all, and a note about each that is left out.

    First come the means over heads, the answer's and the tower's; then single heads: the tower's, on a
    coarser grid if there is no room for every patch, and the answer's.
    """
    blocks: list[str] = []
    notes: list[str] = []

    def add(block: str, at_most: float) -> bool:
        fits = len(block) + sum(map(len, blocks)) <= at_most
        blocks.extend([block] * fits)
        return fits

    steps, shown = look.answered.steps, len(look.answered.steps)
    means = [Attention.of(step.attention) for step in steps]
    while shown and not add(_block("answer-mean", padded(means[:shown])), room / 3):
        shown //= 2
    if shown < len(steps):
        notes.append(f"{LEFT_OUT} where the tokens after the first {shown} looked.")
    if look.seen:
        like = likeness(on_picture(look.seen))
        blocks.append(_raw_block("likeness", like.shape, like.tobytes()))
        notes += _add_tower("tower-mean", "the mean of the tower's heads", look.seen.mean, room, add)
        notes += _add_tower("tower-heads", "single heads of the tower", look.seen.heads, room, add)
    if not shown or not add(_block("answer-heads", padded([step.heads for step in steps[:shown]])), room):
        notes.append(f"{LEFT_OUT} where the answer's tokens looked, head by head.")
    return blocks, notes


def _add_tower(name: str, what: str, attention: Attention, room: int, add: Add) -> list[str]:
    """Adds the tower's attention, on the finest grid for which there is room."""
    side = int(attention.levels.shape[-1] ** 0.5)
    for size in range(1, side + 1):
        cells = -(-side // size)
        shape = (*attention.levels.shape[:-2], cells**2 + 1, cells**2 + 1)
        if np.prod(shape) > 2 * room:  # no compression makes this fit
            continue
        if add(_block(name, coarse(attention, size) if size > 1 else attention), room):
            squares = f"{cells} × {cells} squares of {size} × {size} patches"
            return [f"{LEFT_OUT} {what} look from and at {squares}."] if size > 1 else []
    return [f"{LEFT_OUT} {what}."]


def coarse(attention: Attention, size: int) -> Attention:
    """Attention (L, ..., T, T) between squares of size × size patches; the class token stays alone.

    What the patches of a square look at is averaged; what is looked at in a square is added up.
    """
    side = int(attention.levels.shape[-1] ** 0.5)
    cells = -(-side // size)
    line = np.arange(side) // size
    square = np.concatenate([[0], 1 + (line[:, None] * cells + line).reshape(-1)])  # of each patch
    member = (square[:, None] == np.arange(cells**2 + 1)).astype(np.float32)  # (T, t)
    average = (member / member.sum(axis=0)).T
    return stacked(
        [
            Attention.of(average @ Attention(levels, peaks).weights() @ member)
            for levels, peaks in zip(attention.levels, attention.peaks, strict=True)
        ]
    )


def padded(steps: list[Attention]) -> Attention:
    """Steps (..., S) of growing S as one, (steps, ..., S), with zeros behind."""
    levels = np.zeros((len(steps), *steps[-1].levels.shape), np.uint8)
    for i, step in enumerate(steps):
        levels[i, ..., : step.levels.shape[-1]] = step.levels
    return Attention(levels, np.stack([step.peaks for step in steps]))


def _block(name: str, attention: Attention) -> str:
    peaks = attention.peaks.astype("<f4").tobytes()
    return _raw_block(name, attention.levels.shape, peaks + attention.levels.tobytes())


def _raw_block(name: str, shape: tuple[int, ...], raw: bytes) -> str:
    packed = base64.b64encode(zlib.compress(raw, 9)).decode()
    return f'<script type="text/plain" id="{name}" data-shape="{",".join(map(str, shape))}">{packed}</script>'


# ---------------------------------------------------------------- image tokens


def on_picture(seen: Seen) -> np.ndarray:
    """The image tokens that lie on the picture, (side, side, D): all but a class token in front."""
    side = int(len(seen.tokens) ** 0.5)
    return seen.tokens[len(seen.tokens) - side * side :].reshape(side, side, -1)


def colour(tokens: np.ndarray) -> np.ndarray:
    """Tokens (side, side, D) as colours, uint8 (side, side, 3): their three principal components."""
    flat = tokens.reshape(-1, tokens.shape[-1])
    left, values, _ = np.linalg.svd(flat - flat.mean(axis=0), full_matrices=False)
    parts = (left * values)[:, :3]
    low, high = np.percentile(parts, (2, 98), axis=0)
    share = ((parts - low) / np.where(high > low, high - low, 1)).clip(0, 1)
    out = np.full((len(flat), 3), 128, np.uint8)
    out[:, : parts.shape[1]] = (60 + 170 * share).round()  # paler than they could be
    return out.reshape(*tokens.shape[:2], 3)


def likeness(tokens: np.ndarray) -> np.ndarray:
    """Cosines between tokens (side, side, D) after what all share is taken away: uint8 (N, N), 255 is 1,
    and what is below 0 is 0."""
    flat = tokens.reshape(-1, tokens.shape[-1])
    flat = flat - flat.mean(axis=0)
    flat /= np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-12)
    return (255 * (flat @ flat.T).clip(0, 1)).round().astype(np.uint8)
