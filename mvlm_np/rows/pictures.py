"""Pictures of rows as tokens for the decoder, each encoded once."""

import os
import shutil
import tempfile
from collections import OrderedDict
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from itertools import count
from typing import IO, TYPE_CHECKING

import numpy as np
from PIL import Image

from mvlm_np.inputs.picture_file import Encoded
from mvlm_np.rows.row import Row

if TYPE_CHECKING:
    from mvlm_np.model import MobileVLM

BUDGET = 64 << 20  # bytes of tokens in memory: 54 pictures of MobileVLM V2 1.7B
STORED = 2 << 30  # bytes in a file: 1,800 of them


@dataclass(frozen=True)
class Seen:
    """A picture as the decoder sees it.

    number  stands, negative, at its positions; no two pictures share one
    tokens  (N, D)
    """

    number: int
    tokens: np.ndarray


class Pictures:
    """Encodes pictures, each once: those that were used last are kept in memory, the others in a file.

    budget  bytes in memory
    stored  bytes in the file, which is nobody else's and goes with this process; at most a quarter of what is
            free there. Beyond that, and where no file can be written, pictures are encoded again
    """

    def __init__(self, model: "MobileVLM", budget: int = BUDGET, stored: int = STORED):
        self.model, self.budget, self.room = model, budget, stored
        self._kept: OrderedDict[object, Seen] = OrderedDict()
        self._stored = dict[object, tuple[int, int]]()  # number, and where the tokens lie
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
        seen = self._from_file(key)
        if seen is None:
            model.require_vision()
            for computed in model.encoding(row.preparation.pixels(source, model.config.image)):
                tokens = computed
            seen = Seen(next(self._numbers), tokens)
        self._kept[key] = seen
        while len(self._kept) > 1 and sum(kept.tokens.nbytes for kept in self._kept.values()) > self.budget:
            self._to_file(*self._kept.popitem(last=False))
        return [seen]

    @cached_property
    def _file(self) -> IO[bytes]:
        free = shutil.disk_usage(tempfile.gettempdir()).free
        self.room = min(self.room, free // 4)
        return tempfile.TemporaryFile(buffering=0)

    def _to_file(self, key: object, seen: Seen) -> None:
        if key in self._stored or self.room < seen.tokens.nbytes:
            return
        try:
            at = self._file.seek(0, os.SEEK_END)
            data = seen.tokens.tobytes()
            if self.room >= len(data) and self._file.write(data) == len(data):
                self._stored[key] = seen.number, at
                self.room -= len(data)
                self._like = seen.tokens
                return
        except OSError:
            pass
        self.room = 0

    def _from_file(self, key: object) -> Seen | None:
        if key not in self._stored:
            return None
        number, at = self._stored[key]
        data = os.pread(self._file.fileno(), self._like.nbytes, at)
        return Seen(number, np.frombuffer(data, self._like.dtype).reshape(self._like.shape))


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
