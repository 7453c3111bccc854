"""In which order an epoch goes through the records.

Records of one kind and of like length come together: a step with pictures alone, or with none, wastes neither
the tower nor padding. The rule is the published code's (commit 688fdec); with the same seed so is the order.
"""

from collections.abc import Sequence
from itertools import chain

import torch

from mvlm_np.errors import UserError
from tools.training.records import Record


def epoch(
    lengths: Sequence[int],
    size: int,
    processes: int = 1,
    *,
    grouped: bool,
    seed: int = 0,
    number: int = 0,
) -> list[int]:
    """The indices of one epoch's records.

    lengths  of the records, as `measure` gives them
    size     records that a process takes at a time; accumulated steps do not count as one
    grouped  by kind and length, as the published fine-tuning has it; its pretraining has not
    seed     the order follows from it and the epoch's `number`
    """
    generator = torch.Generator().manual_seed(seed + number)
    if not grouped:
        return torch.randperm(len(lengths), generator=generator).tolist()
    return by_kind_and_length(lengths, size, processes, generator)


def measure(records: Sequence[Record], *, as_published: bool = False) -> list[int]:
    """Words of each record in all its turns, negative without a picture; of none, 1.

    as_published  what the published code stops at when it groups is a UserError
    """
    lengths = [length(record) for record in records]
    if as_published:
        _check(records, lengths)
    return [n or 1 for n in lengths]


def length(record: Record) -> int:
    words = sum(len(text.split()) for _, text in record.turns)
    return -words if record.image is None else words


def _check(records: Sequence[Record], lengths: Sequence[int]) -> None:
    fix = "the published code stops here; leave out --as-published"
    if 0 in lengths:
        raise UserError(records[lengths.index(0)].where, "has no words", "at least one", fix)
    if len({n > 0 for n in lengths}) < 2:
        found = f"all {len(lengths)} records have {'a' if lengths[0] > 0 else 'no'} picture"
        raise UserError("the data", found, "some with a picture and some without", fix)


def by_kind_and_length(
    lengths: Sequence[int], size: int, processes: int, generator: torch.Generator
) -> list[int]:
    """Indices, in mega-batches of `size` for each process.

    lengths  positive for the one kind, negative for the other

    Each kind is shuffled and cut into mega-batches; within one the longest come first, dealt out to the
    processes. The last mega-batch of each kind may be short. The two are joined: if that makes a whole one it
    goes first, and what is left goes last. The others are shuffled.
    """
    kinds = [[i for i, n in enumerate(lengths) if n > 0], [i for i, n in enumerate(lengths) if n < 0]]
    whole, last = list[list[int]](), list[int]()
    for kind in filter(None, kinds):
        *full, rest = _mega_batches(kind, lengths, size, processes, generator)
        whole, last = whole + full, last + rest
    shuffled = [whole[i] for i in torch.randperm(len(whole), generator=generator)]
    mega = size * processes
    if len(last) >= mega:
        shuffled, last = [last[:mega], *shuffled], last[mega:]
    return [*chain(*shuffled), *last]


def _mega_batches(
    kind: Sequence[int],
    lengths: Sequence[int],
    size: int,
    processes: int,
    generator: torch.Generator,
) -> list[list[int]]:
    drawn = [kind[i] for i in torch.randperm(len(kind), generator=generator)]
    mega = size * processes
    parts = [drawn[start : start + mega] for start in range(0, len(drawn), mega)]
    longest_first = [sorted(part, key=lambda i: abs(lengths[i]), reverse=True) for part in parts]
    return [[*chain(*deal(part, lengths, processes))] for part in longest_first]


def deal(indices: Sequence[int], lengths: Sequence[int], processes: int) -> list[list[int]]:
    """Equal shares, each index to the process with the least to do; if they cannot be equal, by turns."""
    room, left = divmod(len(indices), processes)
    if left:
        return [list(indices[i::processes]) for i in range(processes)]
    shares, loads = [list[int]() for _ in range(processes)], [0] * processes
    for index in indices:
        least = min((p for p in range(processes) if len(shares[p]) < room), key=loads.__getitem__)
        shares[least].append(index)
        loads[least] += abs(lengths[index])
    return shares
