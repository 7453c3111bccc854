"""A model that costs nothing: a position's state is a digest of all before it, and gives the next token.

So an answer shows whether its sequence was read whole and in order, and by nobody else's keys and values.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mvlm_np import decoder
from mvlm_np.checkpoints.checkpoint import StoredTokenizer
from mvlm_np.config import Config, DecoderConfig, ImageConfig, VisionConfig
from mvlm_np.inputs.tokenizer import Tokenizer
from mvlm_np.kv_cache import BatchCache, KVCache
from mvlm_np.model import MobileVLM
from mvlm_np.trace import Watch
from tests.conftest import DATA

TOKENIZER = Tokenizer(StoredTokenizer((DATA / "tokenizer" / "tokenizer.model").read_bytes()))
VOCABULARY, CONTEXT, BLOCKS, PICTURE = 640, 300, 3, 4  # blocks of the tower, positions of a picture
POISON = TOKENIZER.encode("\u2620")[-1]  # a byte whose reading gives NaN
ENDLESS = TOKENIZER.encode("\u221e")[-1]  # a byte behind which no answer ends
BOMB = TOKENIZER.encode("\U0001f4a3")[-1]  # and one whose reading fails, for a bug
CONFIG = Config(
    DecoderConfig(2, 2, 1, 1, 1, VOCABULARY, max_position_embeddings=CONTEXT),
    VisionConfig(4, 4, BLOCKS - 1, 1, image_size=4, patch_size=2),
    ImageConfig(resize=4, crop=(4, 4)),
    mm_projector_type="mlp2x_gelu",
)
MODULUS = (1 << 31) - 1


class Weights:
    """A decoder's, as far as anybody looks at them."""

    norm = np.empty(0, np.float64)  # which makes the cache float64, in which all states are exact
    layers: tuple[Any, ...] = ()
    nbytes = 0

    def embed_tokens(self, ids: np.ndarray) -> np.ndarray:
        """(T, 2): a value, and what is odd about it."""
        odd = np.where(ids == POISON, np.nan, np.where(ids == BOMB, np.inf, ids == ENDLESS))
        return np.stack([ids + 1.0, odd], axis=1)

    def lm_head(self, h: np.ndarray) -> np.ndarray:
        """Logits (T, vocabulary) that follow from the states (T, 2)."""
        logits = (np.arange(VOCABULARY) * 7919 + h[:, :1] * 104729) % 1009 / 50
        logits[:, TOKENIZER.eos_id] = np.where((h[:, 0] % 11 == 0) & (h[:, 1] == 0), 99, -99)
        logits[:, [POISON, BOMB]] = -99
        return np.where(np.isnan(h[:, 1:]), np.nan, logits).astype(np.float32)


class FakeModel(MobileVLM):
    """A MobileVLM of `CONFIG`, whose tower and projector count their steps in `encoded`."""

    def __init__(self) -> None:
        anything: Any = Weights()
        super().__init__(CONFIG, anything, anything, anything, anything, lambda: TOKENIZER)
        self.encoded = 0

    def encoding(self, pixels: np.ndarray, watch: Watch | None = None) -> Iterator[np.ndarray]:
        """As many states as there are blocks, and tokens that tell every picture from others."""
        for _ in range(BLOCKS):
            self.encoded += 1
            yield pixels
        value = float(np.rint(np.abs(pixels).sum() * 1e4))
        damage = np.nan if pixels.max() < -1.4 else 0.0  # of a black picture
        self.encoded += 1
        yield np.full((PICTURE, 2), [value, damage])


def forward(
    x: np.ndarray, weights: Any, config: DecoderConfig, cache: KVCache | BatchCache, ops: Any, trace: Any
) -> np.ndarray:
    """In place of `decoder.forward`."""
    caches, counts = (cache.caches, cache.counts) if isinstance(cache, BatchCache) else ([cache], [len(x)])
    if np.isinf(x[:, 1]).any():
        raise RuntimeError("a bug")
    out, rows = list[list[float]](), iter(x)
    for one, count in zip(caches, counts, strict=True):
        numbers = one.keys.numbers[0, 0]
        for position in range(one.length, one.length + count):
            value, odd = next(rows)
            before, was_odd = numbers[position - 1] if position else (1.0, 0.0)
            numbers[position] = (before * 31 + value + 7 * position) % MODULUS, odd + was_odd
            out.append(list(numbers[position]))
        one.advance(count)
    return np.array(out)


def picture(shade: int) -> Image.Image:
    """One of many pictures; the one of shade 0 is black, and cannot be encoded."""
    return Image.new("RGB", (4, 4), (shade, shade, shade))


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeModel:
    """The fake model, in whose place nothing else computes."""
    monkeypatch.setattr(decoder, "forward", forward)
    return FakeModel()
