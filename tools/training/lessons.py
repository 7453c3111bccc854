"""What is taught in which step: samples of the training part in their order, and those that are held out."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Any

from tqdm import tqdm

from mvlm_np.errors import UserError
from mvlm_np.inputs.tokenizer import Tokenizer
from tools.training.order import epoch
from tools.training.records import Record
from tools.training.stages import Stage
from tools.training.wording import IGNORED, Sample, report, sample


@dataclass(frozen=True)
class Lessons:
    """The records of a run, of which each teaches something, or with `as_published` all.

    learned  of each record, its learned tokens
    longest  ids of the longest sample
    batch    samples of a step, a whole number of micro-batches
    micro    samples that are computed at once
    orders   of each epoch, the records
    """

    records: Sequence[Record]
    learned: Sequence[int]
    longest: int
    batch: int
    micro: int
    epochs: float
    orders: Sequence[Sequence[int]]
    as_published: bool

    @property
    def steps(self) -> int:
        return math.ceil(self.epochs * self.steps_of_epoch)

    @property
    def steps_of_epoch(self) -> int:
        return math.ceil(len(self.records) / self.batch)

    def chosen(self, step: int, number: int) -> list[int]:
        """A micro-batch's records. The last step of an epoch is filled up with the epoch's first ones."""
        round_, at = divmod(step, self.steps_of_epoch)
        start = at * self.batch + number * self.micro
        order = self.orders[round_]
        return [order[i % len(order)] for i in range(start, start + self.micro)]

    def share(self, step: int, number: int) -> float:
        """What a micro-batch's mean counts for in the step's loss: that of a token is the same everywhere.

        As published, the micro-batches count the same, be there ever so little to learn in one.
        """
        numbers = range(self.batch // self.micro)
        if self.as_published:
            return 1 / len(numbers)
        tokens = [sum(self.learned[i] for i in self.chosen(step, n)) for n in numbers]
        return tokens[number] / sum(tokens)


def lessons(
    records: Sequence[Record],
    tokenizer: Tokenizer,
    stage: Stage,
    micro: int,
    processes: int,
    *,
    as_published: bool = False,
    told: Callable[[str], object] = print,
) -> Lessons:
    """Reads all records once, says which teach nothing, and leaves those out; as published they stay."""
    samples, lengths, learned = list[Sample](), list[int](), list[int]()
    for record in tqdm(records, "reading the data", delay=2, leave=False):
        one = sample(record, tokenizer, stage.version, stage.limit, as_published=as_published)
        lengths.append(min(stage.limit, len(one.ids)))
        learned.append(sum(label != IGNORED for label in one.labels))
        samples.append(replace(one, ids=[], labels=[]))  # all ids of large data are too many to keep
    for line in report(records, samples):
        told(line)
    taught = [i for i in range(len(records)) if as_published or not samples[i].silent]
    if not any(learned):
        raise UserError("the data", f"none of {len(records)} records teaches anything", "at least one")
    batch = min(stage.batch, len(taught))
    micro = max(1, min(micro, batch // processes))
    batch = max(1, batch // (micro * processes)) * micro * processes
    if batch != stage.batch:
        told(f"a step has {batch} samples, not {stage.batch}: {len(taught)} records, {micro} at once")
    kept = [records[i] for i in taught]
    # As published, each process gets short and long ones; else a micro-batch gets those of like length.
    size, parts = (micro, batch // micro) if as_published else (batch, 1)
    more: dict[str, Any] = {"grouped": stage.grouped, "seed": stage.seed, "as_published": as_published}
    orders = [epoch(kept, size, parts, number=n, **more) for n in range(math.ceil(stage.epochs))]
    longest = max(lengths[i] for i in taught)
    return Lessons(
        kept, [learned[i] for i in taught], longest, batch, micro, stage.epochs, orders, as_published
    )


def hold_out(records: Sequence[Record], share: float, seed: int) -> tuple[list[Record], list[Record]]:
    """Records to train with, and about this share of them to score by; never the same picture in both."""
    pictures: dict[object, list[int]] = {}
    for i, record in enumerate(records):
        pictures.setdefault(record.image or i, []).append(i)
    kinds = [*pictures.values()]
    Random(seed).shuffle(kinds)
    held: set[int] = set()
    for indices in kinds[:-1]:
        if len(held) >= share * len(records):
            break
        held |= {*indices}
    return _part(records, held, False), _part(records, held, True)


def _part(records: Iterable[Record], held: set[int], wanted: bool) -> list[Record]:
    return [record for i, record in enumerate(records) if (i in held) == wanted]
