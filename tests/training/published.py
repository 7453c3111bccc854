"""What the published training computed, and the batches that it computed it on."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from mvlm_np.config import ImageConfig
from tests.conftest import shared_path
from tools.training.batch import Batch

MEAN, STD = (torch.tensor(values).reshape(3, 1, 1) for values in (ImageConfig.mean, ImageConfig.std))


def published_loss() -> tuple[dict[str, Any], dict[str, Tensor], Path]:
    """The numbers, the tensors, and the folder of the model; skips where they are absent."""
    folder = shared_path("training/fixtures")
    numbers = json.loads((folder / "loss.json").read_text())
    return numbers, load_file(folder / "loss.safetensors"), shared_path("goldens/v2-256")


def v1_batch(tensors: dict[str, Tensor]) -> Batch:
    pixels = torch.zeros(len(tensors["input_ids"]), 3, 336, 336)
    for row in (0, 1, 3):
        pixels[row] = (tensors[f"image_u8.{row}"].float() / 255 - MEAN) / STD
    return Batch(tensors["input_ids"], tensors["labels"], tensors["attention_mask"].bool(), pixels)


def lora_weight(shape: tuple[int, ...], k: int) -> Tensor:
    """The k-th matrix of the published adapter, whose values are a formula's."""
    rows, columns = (torch.arange(n, dtype=torch.float64) for n in shape)
    return (0.02 * torch.cos(0.37 * rows[:, None] + 0.11 * columns + k)).float()
