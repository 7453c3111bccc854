"""Pictures of rows as tokens for the decoder, each encoded once."""

import os
from collections import OrderedDict
from dataclasses import dataclass
from hashlib import sha256
from itertools import count
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from mvlm_np.inputs.picture_file import Encoded
from mvlm_np.rows.row import Row

if TYPE_CHECKING:
    from mvlm_np.model import MobileVLM

BUDGET = 64 << 20  # bytes of tokens that are kept: 54 pictures of MobileVLM V2 1.7B


@dataclass(frozen=True)
class Seen:
    """A picture as the decoder sees it.

    number  stands, negative, at its positions; no two pictures share one
    tokens  (N, D)
    """

    number: int
    tokens: np.ndarray


class Pictures:
    """Encodes pictures, and keeps those that were used last."""

    def __init__(self, model: "MobileVLM", budget: int = BUDGET):
        self.model, self.budget = model, budget
        self._kept: OrderedDict[object, Seen] = OrderedDict()
        self._numbers = count(1)

    def of(self, row: Row) -> list[Seen]:
        """The row's picture, or none. ImageError, PromptError: it cannot be read, or the model cannot see."""
        source, model = row.source, self.model
        if source is None:
            return []
        key = identity(row)
        if key in self._kept:
            self._kept.move_to_end(key)
            return [self._kept[key]]
        model.require_vision()
        for computed in model.encoding(row.preparation.pixels(source, model.config.image)):
            tokens = computed
        seen = self._kept[key] = Seen(next(self._numbers), tokens)
        while len(self._kept) > 1 and sum(kept.tokens.nbytes for kept in self._kept.values()) > self.budget:
            self._kept.popitem(last=False)
        return [seen]


def identity(row: Row) -> object:
    """What two rows have in common just if the model sees the same picture in both; to be used as a key."""
    source = row.source
    if isinstance(source, Encoded):
        return row.preparation, sha256(source.data).digest()
    if isinstance(source, np.ndarray):
        return row.preparation, repr((source.dtype, source.shape)), sha256(source.tobytes()).digest()
    if isinstance(source, Image.Image):
        return row.preparation, repr((source.mode, source.size)), sha256(source.tobytes()).digest()
    if source is None:
        return None
    try:
        stat = os.stat(source)  # another picture may come under the same name
    except (OSError, ValueError):
        return row.preparation, os.fspath(source)
    return row.preparation, os.fspath(source), stat.st_ino, stat.st_size, stat.st_mtime_ns
