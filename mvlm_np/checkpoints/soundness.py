"""Reads every byte of a model, and says what no trained model has: NaN, infinity, zeros in place of weights.

A download that was cut off inside a file of the full size leaves zeros behind. Such a file opens like any
other, so that its tables of contents show nothing, and the answers are empty or nonsense.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from math import prod

import numpy as np

from mvlm_np.checkpoints.lora import VOCABULARY
from mvlm_np.checkpoints.tensors import CHUNK, Tensor


@dataclass
class Findings:
    """problems  what makes a model useless, a line for each tensor
    notes     what is unusual: a tensor of one value throughout, such as a norm that was never trained
    """

    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def examine(
    tensors: Iterable[Tensor], progress: Callable[[int, int], object] = lambda done, total: None
) -> Findings:
    """Reads all values of all tensors, a part at a time.

    progress  is called with the bytes read so far and the bytes in all
    """
    tensors, found, done = list(tensors), Findings(), 0
    total = sum(tensor.nbytes for tensor in tensors)
    for tensor in tensors:
        _examine(tensor, found)
        tensor.forget()
        done += tensor.nbytes
        progress(done, total)
    return found


def _examine(tensor: Tensor, found: Findings) -> None:
    if not tensor.shape or 0 in tensor.shape:
        return
    N, K = tensor.shape[0], prod(tensor.shape[1:])
    step, filled, values = max(1, CHUNK // K), 0, set()
    for start in range(0, N, step):
        part = tensor.rows(slice(start, start + step)).reshape(-1, K)
        if not np.isfinite(part).all():
            found.problems.append(f"{tensor.name} holds NaN or infinity")
            return
        rows = np.flatnonzero(part.any(axis=1))
        filled = start + int(rows[-1]) + 1 if rows.size else filled
        values |= {float(part.min()), float(part.max())}
    if filled == 0 and (K > 1 or tensor.name.endswith("weight")):
        found.problems.append(f"{tensor.name} is zeros throughout")
    elif len(values) == 1 and N * K > 1:
        found.notes.append(f"{tensor.name} is {values.pop():g} throughout")
    elif filled < N and K > 1 and tensor.name not in VOCABULARY:
        found.problems.append(f"{tensor.name} ends in {N - filled} rows of zeros, of {N}")
