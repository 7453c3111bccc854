"""Several samples as one batch, and the batch with its pictures' positions spread out."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from mvlm_np.errors import UserError
from mvlm_np.inputs.tokenizer import IMAGE_TOKEN
from tools.training.wording import IGNORED, PAD, Sample


@dataclass(frozen=True)
class Batch:
    """What a step is made of.

    ids     (B, T) int64, with IMAGE_TOKEN in place of a picture
    labels  (B, T) int64, IGNORED where nothing is learned
    mask    (B, T) bool, False where there is nothing
    pixels  (B, 3, h, w) float32, zeros where a sample has no picture; or the frozen tower's features
            (B, patches, V), where those are kept; None: no picture in the whole batch
    """

    ids: Tensor
    labels: Tensor
    mask: Tensor
    pixels: Tensor | None


def collate(
    samples: Sequence[Sample], pixels: Tensor | None, limit: int, *, as_published: bool = False
) -> Batch:
    """A batch: shorter rows are padded at their end, then all are cut to `limit`.

    With `as_published` the mask has a hole at each id 0, be it padding or a real <unk>.
    """
    ids, labels = (
        pad_sequence(
            [torch.tensor(row, dtype=torch.int64) for row in rows], batch_first=True, padding_value=value
        )[:, :limit]
        for rows, value in (([s.ids for s in samples], PAD), ([s.labels for s in samples], IGNORED))
    )
    lengths = torch.tensor([len(s.ids) for s in samples])
    mask = ids != PAD if as_published else torch.arange(ids.shape[1]) < lengths[:, None]
    return Batch(ids, labels, mask, pixels)


def splice(batch: Batch, tokens: int) -> Batch:
    """The batch with IMAGE_TOKEN `tokens` times for each picture: one id for each position of the decoder.

    What is added is not learned and is seen. Its mask stands in front of the others, as in the published
    code, which matters only where the mask has a hole before the picture.

    UserError: tags for more pictures than there are. The published code takes the pictures in order, one for
    each tag, and one for a row without a tag.
    """
    wanted = (batch.ids == IMAGE_TOKEN).sum(1).clamp(min=1).sum()
    if wanted > len(batch.ids):
        raise UserError("a batch", f"tags for {wanted} pictures", f"{len(batch.ids)}, one a sample")
    ids, labels, mask = list[Tensor](), list[Tensor](), list[Tensor]()
    for row, learned, seen in zip(batch.ids, batch.labels, batch.mask, strict=True):
        counts = torch.where(row == IMAGE_TOKEN, tokens, 1)
        ids.append(row.repeat_interleave(counts))
        labels.append(learned.repeat_interleave(counts))
        mask.append(torch.cat([seen.new_ones(len(ids[-1]) - len(row)), seen]))
    return replace(
        batch,
        ids=pad_sequence(ids, batch_first=True, padding_value=PAD),
        labels=pad_sequence(labels, batch_first=True, padding_value=IGNORED),
        mask=pad_sequence(mask, batch_first=True),
    )
