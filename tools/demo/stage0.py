"""Stage 0: the vision tower learns from dense labels, patch by patch."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from tools.demo.data import Pictures
from tools.demo.dense import HEADS, NONE, TEXT
from tools.demo.network import DenseHeads, build_tower, device, features, optimizer, pixel_values, to_device
from tools.training.loop import History, accelerator, fit

# Shapes are what takes longest, and nothing of what a shape names can be known before.
WEIGHTS = {
    "shape": 3.0,
    "pair_count": 2.0,
    "noun_count": 2.0,
    "colour_count": 2.0,
    "centre": 0.3,
    "slot": 0.3,
    "on": 0.5,
    "place": 0.5,
}
WEIGHTS |= {f"text{i}": 0.3 for i in range(TEXT)}


def batch(pictures: Pictures, step: int, part: int, size: int, seed: int) -> tuple[Tensor, Tensor]:
    """Pictures and labels of a part of a step, from shards that are there; waits only if there is none."""
    while not (ready := pictures.ready()):
        time.sleep(1)
    random = np.random.default_rng([seed, step, part])
    pixels, labels = pictures[ready[random.integers(len(ready))]]
    chosen = np.sort(random.choice(len(pixels), size, replace=False))
    x, y = to_device(pixels[chosen], labels[chosen].astype(np.int64))
    x = pixel_values(x)
    # Light and contrast vary once more each time, so that a picture seen again is not the same.
    scale, shift = to_device(
        random.uniform(0.85, 1.15, (size, 1, 1, 1)).astype(np.float32),
        random.uniform(-0.15, 0.15, (size, 1, 1, 1)).astype(np.float32),
    )
    return x * scale + shift, y


def dense_loss(answers: tuple[Tensor, ...], labels: Tensor) -> Tensor:
    """The sum over the questions of the mean cross entropy over the patches that they make sense for."""
    total = labels.new_zeros((), dtype=torch.float32)
    for i, (name, logits) in enumerate(zip(HEADS, answers, strict=True)):
        wanted = labels[..., i]
        asked = wanted != NONE
        if asked.any():
            total = total + WEIGHTS.get(name, 1.0) * cross_entropy(logits[asked], wanted[asked])
    return total


def patch_accuracy(tower: Any, heads: nn.Module, pictures: Pictures, limit: int = 512) -> dict[str, float]:
    """The share of right answers per question, on the patches that it makes sense for."""
    right, asked = np.zeros(len(HEADS)), np.zeros(len(HEADS))
    pixels, labels = pictures[0]
    for start in range(0, min(limit, len(pixels)), 128):
        x, y = to_device(pixels[start : start + 128], labels[start : start + 128].astype(np.int64))
        for i, logits in enumerate(heads(features(tower, pixel_values(x)))):
            known = y[..., i] != NONE
            right[i] += (logits.argmax(-1) == y[..., i])[known].sum().item()
            asked[i] += known.sum().item()
    return dict(zip(HEADS, right / np.maximum(asked, 1), strict=True))


def train_tower(
    settings: Mapping[str, Any],
    folder: Path,
    training: Pictures,
    validation: Pictures,
    *,
    steps: int,
    size: int,
    rate: float,
    seed: int = 0,
    stop_at: int | None = None,
    check_every: int = 250,
) -> tuple[Any, DenseHeads, History]:
    """Returns the tower, the heads and how it went."""
    torch.manual_seed(seed)
    learner = Learner(build_tower(settings), DenseHeads(settings["hidden_size"])).to(device())
    parts = accelerator().num_processes

    def draw(step: int, part: int) -> tuple[Tensor, Tensor]:
        return batch(training, step, part, size // parts, seed)

    def check() -> dict[str, float]:
        return patch_accuracy(learner.tower, learner.heads, validation)

    history = fit(
        "stage0",
        folder,
        learner,
        optimizer(learner, rate),
        draw,
        steps,
        micro_batches=parts,
        clip=1.0,
        stop_at=stop_at,
        check=check,
        check_every=check_every,
    )
    return learner.tower, learner.heads, history


class Learner(nn.Module):
    """The tower and the heads, which give the loss of pictures with their labels."""

    def __init__(self, tower: Any, heads: DenseHeads):
        super().__init__()
        self.tower, self.heads = tower, heads

    def forward(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        x, labels = batch
        return dense_loss(self.heads(features(self.tower, x)), labels)
