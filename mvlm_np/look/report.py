"""What a look has found, in plain numbers and words: the JSON of `mvlm look`, and what its page tells."""

from math import isqrt
from typing import Any

import numpy as np

from mvlm_np.inputs.tokenizer import Tokenizer
from mvlm_np.look.looking import Likely, Look, Seen, Step
from mvlm_np.model import MobileVLM
from mvlm_np.projector import image_tokens

PARTS = ("picture", "first", "text", "answer")  # of what a position can look at


def report(look: Look, model: MobileVLM, name: str) -> dict[str, Any]:
    """Everything but the maps of attention, as JSON has it. `name` is what the model is called."""
    answered = look.answered
    return {
        "model": name,
        "question": look.question,
        "answer": answered.text,
        "picture": about_picture(look.seen, model) if look.seen else None,
        "blocks": model.config.decoder.num_hidden_layers,
        "heads": model.config.decoder.num_attention_heads,
        "prompt": prompt(answered.at, model.tokenizer),
        "positions": len(answered.at),
        "steps": [about_step(step, answered.at, model.tokenizer) for step in answered.steps],
        "stages": [stage._asdict() for stage in look.stages],
        "cache_bytes": answered.cache_bytes,
        "peak_bytes": look.peak,
    }


def about_picture(seen: Seen, model: MobileVLM) -> dict[str, Any]:
    """The sizes of a picture's way into the decoder."""
    vision = model.config.vision
    assert vision is not None
    height, width, _ = seen.pixels.shape
    tokens = image_tokens(model.config)
    return {
        "size": list(seen.size),
        "pixels": [width, height],
        "fit": "padded" if model.config.image.aspect_ratio == "pad" else "cropped",
        "patch": vision.patch_size,
        "grid": vision.grid,
        "blocks": [len(seen.heads.levels), vision.num_hidden_layers],
        "heads": vision.num_attention_heads,
        "width": vision.hidden_size,
        "projector": model.config.mm_projector_type,
        "tokens": tokens,
        "token_grid": isqrt(tokens),
        "token_width": seen.tokens.shape[1],
    }


def prompt(at: np.ndarray, tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """The prompt's tokens in order. The picture is one entry, with the position at which its tokens start."""
    entries: list[dict[str, Any]] = []
    for position, id in enumerate(at.tolist()):
        if id >= 0:
            entries.append({"position": position, "id": id, "piece": piece(id, tokenizer)})
        elif position == 0 or at[position - 1] >= 0:
            entries.append({"position": position, "picture": int((at < 0).sum())})
    return entries


def about_step(step: Step, at: np.ndarray, tokenizer: Tokenizer) -> dict[str, Any]:
    """One token of the answer. `looked`: the share of attention that goes to each of `PARTS`, block by block.
    `looked_at_picture`: the share of each image token, mean over the blocks."""
    return {
        "id": step.token,
        "piece": piece(step.token, tokenizer),
        "probability": step.probability,
        "likeliest": _likely(step.likeliest, tokenizer),
        "lens": [
            entry | {"answered": float(p)}
            for entry, p in zip(_likely(step.lens, tokenizer), step.lens_token, strict=True)
        ],
        "looked": {
            name: step.attention[:, mask].sum(axis=1).tolist()
            for name, mask in parts(at, step.attention.shape[1]).items()
        },
        "looked_at_picture": step.attention[:, : len(at)].mean(axis=0)[at < 0].tolist(),
    }


def parts(at: np.ndarray, positions: int) -> dict[str, np.ndarray]:
    """Which positions are the picture, the first token, other text of the prompt, and the answer so far.

    The first token is told apart because decoders look at it when they look for nothing (Xiao et al. 2023,
    "Efficient Streaming Language Models with Attention Sinks").
    """
    position = np.arange(positions)
    picture = np.zeros(positions, bool)
    picture[: len(at)] = at < 0
    first, answer = (position == 0) & ~picture, position >= len(at)
    return dict(zip(PARTS, (picture, first, ~(picture | first | answer), answer), strict=True))


def piece(id: int, tokenizer: Tokenizer) -> str:
    """A token as the tokenizer spells it; a vocabulary may be padded beyond the tokenizer's."""
    return tokenizer.id_to_piece(id) if id < tokenizer.vocab_size else f"[{id}]"


def _likely(likely: Likely, tokenizer: Tokenizer) -> list[dict[str, Any]]:
    pairs = zip(likely.ids.tolist(), likely.probabilities.tolist(), strict=True)
    return [{"id": id, "piece": piece(id, tokenizer), "probability": p} for id, p in pairs]
