"""What need not be computed twice: pictures as tokens, and the keys and values of how prompts begin.

Both are bounded in bytes, and what is to go goes before what comes is allocated. A picture is told by all its
pixels, and a prompt's beginning by every id in it, in which a picture has an id of its own: nothing that is
found here belongs to another picture or another text, nor to another owner.
"""

from collections import OrderedDict
from dataclasses import dataclass, replace
from hashlib import sha256
from itertools import count
from threading import Lock

import numpy as np
from PIL import Image

from mvlm_np import memory
from mvlm_np.serve.requests import CacheStatus
from mvlm_np.session import Session, in_common

PICTURES = 50_000_000  # bytes of the cache of pictures: 42 of MobileVLM V2 1.7B
PREFIXES = (
    200_000_000  # bytes of the cache of prompts' beginnings, if that is at most a tenth of what is free
)
RESERVE = 64 << 20  # bytes of memory that no cache takes
WORTH = 16  # positions; to have fewer in common with another sequence is chance
PART = 0.75  # a sequence of which so much is in another one is not worth its memory beside it
NAMES = 4096  # pictures that are known by name

Digest = bytes


def digest(picture: Image.Image, owner: str = "") -> Digest:
    """What tells an owner's picture from every other one: SHA-256 of its mode, size and all its pixels."""
    return sha256(repr((owner, picture.mode, picture.size)).encode() + picture.tobytes()).digest()


class Pictures:
    """Pictures as tokens (N, D), by their digest. The one that was not used for longest goes first.

    Belongs to one model, whose settings of preprocessing never change. Any thread may use it.
    """

    def __init__(self, budget: int = PICTURES):
        self._kept: OrderedDict[Digest, np.ndarray] = OrderedDict()
        self._names: OrderedDict[Digest, int] = OrderedDict()
        self._next, self._lock = count(1), Lock()
        self._status = CacheStatus(budget=budget)

    @property
    def status(self) -> CacheStatus:
        """How it is used."""
        return self._status

    def name(self, picture: Digest) -> int:
        """The number that stands, negative, at the positions of a picture; no two pictures ever share one."""
        with self._lock:
            number = self._names.pop(picture, None) or next(self._next)
            self._names[picture] = number
            if len(self._names) > NAMES:
                self._names.popitem(last=False)
            return number

    def get(self, picture: Digest) -> np.ndarray | None:
        """A picture's tokens, if they are here."""
        with self._lock:
            found = self._kept.get(picture)
            old = self._status
            if found is None:
                self._status = replace(old, misses=old.misses + 1)
            else:
                self._status = replace(old, hits=old.hits + 1)
                self._kept.move_to_end(picture)
            return found

    def peek(self, picture: Digest) -> np.ndarray | None:
        """The same, without counting it as a use."""
        return self._kept.get(picture)

    def put(self, picture: Digest, tokens: np.ndarray) -> None:
        """Keeps a picture's tokens."""
        with self._lock:
            self._kept.pop(picture, None)
            used, budget = sum(kept.nbytes for kept in self._kept.values()), self._status.budget
            if tokens.nbytes <= budget:
                while used + tokens.nbytes > budget:
                    used -= self._kept.popitem(last=False)[1].nbytes
                self._kept[picture] = tokens
                used += tokens.nbytes
            self._status = replace(self._status, bytes=used, entries=len(self._kept))


@dataclass(eq=False)
class _Kept:
    """A sequence in the cache of prefixes.

    owner   for whom it was read
    once    nothing speaks for its being used again; kept until the next such comes
    pinned  kept for ever
    prompt  positions of its prompt, of which some may not have been read yet; 0 when it is not in use
    """

    session: Session
    owner: str = ""
    once: bool = False
    pinned: bool = False
    prompt: int = 0

    @property
    def ids(self) -> np.ndarray:
        """(T,) of what is in its cache."""
        return self.session.ids[: self.session.cache.length]

    @property
    def nbytes(self) -> int:
        """What that takes, or will when its prompt has been read."""
        cache = self.session.cache
        return max(cache.length, self.prompt) * cache.bytes_per_position


class Prefixes:
    """Sequences that have been read, for prompts of the same owner that begin like one of them.

    A prompt takes what it has in common with one of them, at most all but its last position, which is
    computed for its logits. The same picture with another question has template and picture in common, a chat
    that goes on everything.

    Most pictures are asked about once. So a sequence that began like no other, and had no history, is kept
    until the next such one comes; others until there is no room, those not used for longest first. Of several
    questions about one picture the last is kept: what the others had besides it is soon read again.

    Sequences in use count in the budget, and prompts can begin like them, too: many chats at once take little
    more memory than few, since each stands for what it was begun from. Only they can exceed the budget.

    One thread uses it. With budget 0 nothing is kept but what is pinned.
    """

    def __init__(self, budget: int | None = None):
        free = memory.available()
        default = PREFIXES if free is None else min(PREFIXES, free // 10)
        self._kept: list[_Kept] = []  # the least recently used first
        self._used: list[_Kept] = []
        self._status = CacheStatus(budget=default if budget is None else budget)

    @property
    def status(self) -> CacheStatus:
        """How it is used; what is pinned or in use does not count."""
        return self._status

    def pin(self, session: Session) -> None:
        """Keeps a sequence for ever, outside the budget, and for all: the beginning of the template."""
        self._kept.insert(0, _Kept(session, pinned=True))

    def begin(self, session: Session, ids: np.ndarray, owner: str = "") -> tuple[int, bool]:
        """Has an empty session begin like a prompt ids (T,), as far as that is kept.

        Returns how many positions that are, and whether a sequence that is not pinned had a good part in it.
        """
        best, common, pinned = None, 0, 0
        read = [used for used in self._used if used.owner == owner and len(used.ids) >= used.prompt]
        for kept in sorted([*self._open_to(owner), *read], key=lambda kept: not kept.pinned):
            length = in_common(kept.ids, ids[:-1])
            if length > common:
                best, common = kept, length
            if kept.pinned:
                pinned = common
        if best is not None:
            cache = best.session.cache
            session.begin(ids[:common], cache.keys, cache.values)
            if best in self._kept:
                self._kept.remove(best)
                self._kept.append(best)
        again = common >= pinned + WORTH
        old = self._status
        self._status = replace(old, hits=old.hits + again, misses=old.misses + (not again))
        return common, again

    def use(self, session: Session, prompt: int, owner: str = "") -> None:
        """Counts a session that has begun, and is to read a prompt of so many positions, until `free`."""
        new = _Kept(session, owner, prompt=prompt)
        for kept in self._open_to(owner):
            if not kept.pinned and in_common(kept.ids, new.ids) >= PART * len(kept.ids):
                self._kept.remove(kept)
        if self._status.budget:
            self._used.append(new)
        self.shrink(self._left())

    def free(self, session: Session) -> None:
        """Counts a session no more."""
        self._used = [used for used in self._used if used.session is not session]

    def _left(self) -> int:
        """Bytes of the budget that no session in use takes."""
        return self._status.budget - sum(used.nbytes for used in self._used)

    def keep(self, session: Session, once: bool, owner: str = "") -> None:
        """Keeps what a session has read, if there is room for it. The session itself is free again.

        once: nothing speaks for its being used again
        """
        new = _Kept(session, owner, once)
        if new.nbytes > self._status.budget:
            return
        ours = self._open_to(owner)
        if any(in_common(kept.ids, new.ids) == len(new.ids) for kept in ours):
            return  # all of it is there
        for kept in self._kept[:]:
            is_part = kept in ours and in_common(kept.ids, new.ids) >= PART * len(kept.ids)
            if not kept.pinned and (is_part or (once and kept.once)):
                self._kept.remove(kept)
        self.shrink(self._left() - new.nbytes)
        free = memory.available()
        if free is None or free >= new.nbytes + RESERVE:
            new.session = session.fork()  # which has no more memory than it needs
            self._kept.append(new)
        self._count()

    def _open_to(self, owner: str) -> list[_Kept]:
        return [kept for kept in self._kept if kept.pinned or kept.owner == owner]

    def shrink(self, budget: int) -> None:
        """Lets sequences go until the rest takes at most so many bytes."""
        going = sorted((kept for kept in self._kept if not kept.pinned), key=lambda kept: not kept.once)
        used = sum(kept.nbytes for kept in going)
        for kept in going:
            if used <= budget:
                break
            self._kept.remove(kept)
            used -= kept.nbytes
        self._count()

    def _count(self) -> None:
        sizes = [kept.nbytes for kept in self._kept if not kept.pinned]
        self._status = replace(self._status, bytes=sum(sizes), entries=len(sizes))
