"""How well the held-out part is known: its loss, and the share of answers that are right in every token."""

from collections.abc import Callable, Sequence
from itertools import groupby

import torch
from torch.nn.functional import cross_entropy

from tools.training.batch import Batch
from tools.training.loop import accelerator
from tools.training.network import IGNORED, Trainee


@torch.no_grad()
def score(trainee: Trainee, batches: Sequence[Callable[[], Batch]]) -> dict[str, float]:
    """ "loss": the mean over all tokens to be learned; "exact": the share of exact matches.

    An answer is an exact match if each of its tokens, and its end, has the largest logit after the right
    ones before it; that is, if greedy decoding gives just this answer. Each process takes its part of the
    batches.
    """
    run = accelerator()
    totals = torch.zeros(4, dtype=torch.float64, device=run.device)  # loss, tokens, right answers, answers
    for make in batches[run.process_index :: run.num_processes]:
        batch = make()
        with run.autocast():
            x, labels, mask = trainee.splice(batch)
            hidden = trainee.llama.model(inputs_embeds=x, attention_mask=mask, use_cache=False)
            wanted = labels[:, 1:]
            learned = wanted != IGNORED
            logits = trainee.llama.lm_head(hidden.last_hidden_state[:, :-1][learned]).float()
        totals[0] += cross_entropy(logits, wanted[learned], reduction="sum")
        totals[1] += len(logits)
        hit = torch.zeros_like(learned).masked_scatter(learned, logits.argmax(-1) == wanted[learned])
        for row, hits in zip(learned.tolist(), hit.tolist(), strict=True):
            places = groupby(range(len(row)), key=row.__getitem__)
            answers = [all(hits[i] for i in group) for is_answer, group in places if is_answer]
            totals[2] += sum(answers)
            totals[3] += len(answers)
    loss, tokens, right, answers = run.reduce(totals, "sum").tolist()
    return {"loss": loss / max(1, tokens), "exact": right / max(1, answers)}
