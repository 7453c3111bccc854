"""What models predict, token by token, and how far one is from another."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mvlm_np.errors import UserError
from mvlm_np.model import MobileVLM


class Reading(NamedTuple):
    """What a model reads: ids, -200 for a picture; and from which of its positions on predictions count."""

    ids: list[int]
    picture: Path | None
    first: int


@dataclass(frozen=True)
class Quality:
    """One model against another, over `tokens` predictions."""

    model: str
    tokens: int
    perplexity: float
    kl: float
    kl_interval: float  # the mean lies within so much of `kl`, with 95 %
    kl_99: float
    same_best: float  # share of the predictions in which both prefer the same token


def pieces_of_text(ids: Sequence[int], tokens: int, window: int) -> list[Reading]:
    """A text's first ids in pieces of `window`, each read on its own."""
    ids = ids[:tokens]
    cut = [list(ids[i : i + window]) for i in range(0, len(ids), window)]
    return [Reading(piece, None, 0) for piece in cut if len(piece) > 1]


def predictions(model: MobileVLM, read: Reading) -> tuple[np.ndarray, np.ndarray]:
    """Logarithms of the next token's chances, float32 (n, vocabulary), and the tokens that come, (n,)."""
    x, at = model.embed(read.ids, model.encode_images(read.picture))
    session = model.session()
    session.cache.reserve(len(x))
    logits = model.decoder.lm_head(session.forward(x)[read.first : -1]).astype(np.float64)
    logits -= logits.max(-1, keepdims=True)
    logits -= np.log(np.exp(logits).sum(-1, keepdims=True))
    return logits.astype(np.float32), at[read.first + 1 :]


def divergence(true: np.ndarray, found: np.ndarray) -> np.ndarray:
    """KL(true || found) of each row, in nats, both given as logarithms."""
    wide = true.astype(np.float64)
    return (np.exp(wide) * (wide - found)).sum(-1)


def compare(
    name: str,
    model: MobileVLM,
    read: Sequence[Reading],
    true: Sequence[np.ndarray],
    progress: Callable[[], object] = lambda: None,
) -> Quality:
    """A model against the predictions `true` of another one."""
    kl, loss, same = list[np.ndarray](), list[np.ndarray](), list[np.ndarray]()
    for sequence, wanted in zip(read, true, strict=True):
        found, coming = predictions(model, sequence)
        if found.shape != wanted.shape:
            raise UserError(name, f"predicts {list(found.shape)}", f"{list(wanted.shape)}, as --against")
        kl.append(divergence(wanted, found))
        loss.append(-found[np.arange(len(coming)), coming])
        same.append(found.argmax(-1) == wanted.argmax(-1))
        progress()
    each = np.concatenate(kl)
    return Quality(
        name,
        len(each),
        float(np.exp(np.concatenate(loss).mean(dtype=np.float64))),
        float(each.mean()),
        float(1.96 * each.std() / np.sqrt(len(each))),
        float(np.percentile(each, 99)),
        float(np.concatenate(same).mean()),
    )
