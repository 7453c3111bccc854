"""What is taught in which step: samples of the training part in their order, and those that are held out."""

import math
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from random import Random

from tqdm import tqdm

from mvlm_np.errors import UserError
from mvlm_np.inputs.tokenizer import Tokenizer
from tools.training.order import epoch, measure
from tools.training.records import Record
from tools.training.stages import Stage
from tools.training.wording import IGNORED, Sample, report, sample

# What few records get, where nothing else is asked for.
FEW_STEPS, SMALL_BATCH, MOST_EPOCHS = 100, 8, 10


@dataclass(frozen=True)
class Lessons:
    """The records of a run, of which each teaches something, or with `as_published` all.

    learned        of each record, its learned tokens
    longest        ids of the longest sample
    batch          samples of a step; of an epoch's last one, what is left
    micro_batches  of a step, all processes' together: its samples are cut as evenly as can be
    order          an epoch's number -> its records in their order
    """

    records: Sequence[Record]
    learned: Sequence[int]
    longest: int
    batch: int
    micro_batches: int
    epochs: float
    order: Callable[[int], Sequence[int]]
    as_published: bool = False

    @property
    def micro(self) -> int:
        """The most samples that are computed at once."""
        return math.ceil(self.batch / self.micro_batches)

    @property
    def steps(self) -> int:
        return math.ceil(self.epochs * self.steps_of_epoch)

    @property
    def steps_of_epoch(self) -> int:
        return math.ceil(len(self.records) / self.batch)

    def chosen(self, step: int, number: int) -> Sequence[int]:
        """A micro-batch's records. Where a step has too few, one that counts for nothing: see `share`."""
        return self._part(step, number) or self._part(step, self.micro_batches - 1)[:1]

    def share(self, step: int, number: int) -> float:
        """What a micro-batch's mean counts for in the step's loss: that of a token is the same everywhere.

        As published, the micro-batches count the same, be there ever so little to learn in one.
        """
        if self.as_published:
            return 1 / self.micro_batches
        tokens = [sum(self.learned[i] for i in self._part(step, n)) for n in range(self.micro_batches)]
        return tokens[number] / sum(tokens)

    def _part(self, step: int, number: int) -> Sequence[int]:
        epoch, at = divmod(step, self.steps_of_epoch)
        chosen = self.order(epoch)[at * self.batch : (at + 1) * self.batch]
        start, end = (len(chosen) * n // self.micro_batches for n in (number, number + 1))
        return chosen[start:end]


def lessons(
    records: Sequence[Record],
    tokenizer: Tokenizer,
    stage: Stage,
    micro: int,
    processes: int,
    *,
    open_: Collection[str] = (),
    as_published: bool = False,
    told: Callable[[str], object] = print,
) -> Lessons:
    """Reads all records once, says which teach nothing, and leaves those out; as published they stay.

    micro  samples that a process computes at once, at most
    open_  "batch", "epochs": those of the stage's numbers that few records may change, see `for_few`
    """
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
    stage = stage if as_published else for_few(stage, len(taught), open_, told)
    batch, parts = stage.batch, processes * math.ceil(stage.batch / (micro * processes))
    if as_published and batch % parts:
        found = f"{batch} samples of a step, computed in {parts} parts"
        raise UserError("the batch", found, "as published, parts of one size", "change --micro-batch")
    kept = [records[i] for i in taught]
    words = measure(kept, as_published=as_published and stage.grouped)
    # As published, each process gets short and long ones; else a micro-batch gets those of like length.
    size, dealt = (batch // parts, parts) if as_published else (batch, 1)

    @lru_cache(2)  # at an epoch's end, that of the next is in use, too
    def order(number: int) -> list[int]:
        found = epoch(words, size, dealt, grouped=stage.grouped, seed=stage.seed, number=number)
        if as_published:  # the last step is filled up with the epoch's first ones
            whole = math.ceil(len(found) / batch) * batch
            found = (found * math.ceil(whole / len(found)))[:whole]
        return found

    longest = max(lengths[i] for i in taught)
    return Lessons(
        kept, [learned[i] for i in taught], longest, batch, parts, stage.epochs, order, as_published
    )


def for_few(stage: Stage, count: int, open_: Collection[str], told: Callable[[str], object]) -> Stage:
    """The stage for so many records: the published batch makes of fifty a single step, which teaches nothing.

    Of the numbers in `open_`, the batch becomes smaller and the epochs more, within bounds, until there are
    FEW_STEPS steps.

    UserError: nothing would be learned in the only step.
    """
    batch, epochs = stage.batch, stage.epochs
    if "batch" in open_:
        batch = min(batch, max(SMALL_BATCH, int(count * epochs / FEW_STEPS)))
    batch = min(batch, count)
    if "epochs" in open_:
        epochs = max(epochs, min(MOST_EPOCHS, math.ceil(FEW_STEPS / math.ceil(count / batch))))
    changed = [f"a step has {batch} samples, not {stage.batch}"] * (batch != stage.batch)
    changed += [f"there are {epochs:g} epochs, not {stage.epochs:g}"] * (epochs != stage.epochs)
    if changed:
        told(f"{count} records are few: {' and '.join(changed)}")
    steps = math.ceil(epochs * math.ceil(count / batch))
    fix = "take a smaller --batch or more --epochs"
    if steps == 1 and stage.warmup:  # which begins at 0
        raise UserError("steps", "one in all, whose learning rate is 0", "more", fix)
    if steps < FEW_STEPS // 10:
        told(f"few steps ({steps}), which teach little; {fix}")
    return replace(stage, batch=batch, epochs=epochs)


def hold_out(
    records: Sequence[Record], share: float, seed: int, told: Callable[[str], object] = print
) -> tuple[list[Record], list[Record]]:
    """Records to train with, and about this share of them to score by; never the same picture in both.

    A picture with so many records that they would be more than twice the share is not held out.
    """
    files = {image: image.resolve() for image in {record.image for record in records} if image}
    pictures: dict[object, list[int]] = {}
    for i, record in enumerate(records):
        pictures.setdefault(files[record.image] if record.image else i, []).append(i)
    kinds = [*pictures.values()]
    Random(seed).shuffle(kinds)
    held, wanted = set[int](), share * len(records)
    for indices in kinds[:-1]:
        if len(held) >= wanted:
            break
        if len(held) + len(indices) <= max(1, 2 * wanted):
            held |= {*indices}
    if wanted and not held:
        told(f"none of {len(records)} records is held out: too many are about one picture; see --held-out")
    return _part(records, held, False), _part(records, held, True)


def _part(records: Iterable[Record], held: set[int], wanted: bool) -> list[Record]:
    return [record for i, record in enumerate(records) if (i in held) == wanted]
