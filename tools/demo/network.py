"""The model in torch: transformers' CLIP tower and LLaMA, LDPv2 between them, all as upstream has it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaForCausalLM

from mvlm_np.config import ImageConfig
from tools.demo.dense import HEADS
from tools.torch_projectors import LDPv2
from tools.torch_reference import llama_config

MEAN, STD = (torch.tensor(values).reshape(3, 1, 1) * 255 for values in (ImageConfig.mean, ImageConfig.std))


def build_tower(settings: Mapping[str, Any]) -> Any:
    """The CLIP tower of a `vision_config`, with random weights; its positions begin as sines.

    With CLIP's own small random positions the tower learns colours at once, and shapes, for which it has
    to know which patch is whose neighbour, very late.
    """
    config = CLIPVisionConfig(**settings)
    config._attn_implementation = "sdpa"
    tower = CLIPVisionModel(config)
    table = tower.get_parameter("embeddings.position_embedding.weight")
    with torch.no_grad():
        table[1:] += sines(config.image_size // config.patch_size, config.hidden_size)
    return tower


def sines(grid: int, V: int) -> Tensor:
    """Sines and cosines of row and column, (grid * grid, V), half as large as they usually are."""
    frequencies = torch.arange(1, V // 4 + 1) * (torch.pi / 2 / (V // 4) * 1.6)
    angles = torch.arange(grid)[:, None] * frequencies  # (grid, V / 4)
    along = 0.5 * torch.cat([angles.sin(), angles.cos()], dim=1)  # (grid, V / 2)
    rows, columns = along[:, None].expand(-1, grid, -1), along[None].expand(grid, -1, -1)
    return torch.cat([rows, columns], dim=-1).reshape(grid * grid, V)


def build_decoder(settings: Mapping[str, Any]) -> Any:
    """The LLaMA of a `config.json`, with random weights."""
    config = llama_config(settings)
    config._attn_implementation = "sdpa"
    return LlamaForCausalLM(config)


def build_projector(vision: Mapping[str, Any], settings: Mapping[str, Any]) -> LDPv2:
    return LDPv2(vision["hidden_size"], settings["hidden_size"])


def pixel_values(pixels: Tensor) -> Tensor:
    """uint8 (B, h, w, 3) -> float32 (B, 3, h, w), normalised."""
    return (pixels.permute(0, 3, 1, 2).float() - MEAN.to(pixels.device)) / STD.to(pixels.device)


def features(tower: Any, pixels: Tensor) -> Tensor:
    """Pixel values -> hidden_states[-2] without the class token, (B, patches, V); the last layer is idle."""
    vision = tower.vision_model if hasattr(tower, "vision_model") else tower
    x = vision.pre_layrnorm(vision.embeddings(pixels))
    for layer in vision.encoder.layers[:-1]:
        x = layer(x, attention_mask=None)
        x = x[0] if isinstance(x, tuple) else x
    return x[:, 1:]


class DenseHeads(nn.Module):
    """Answers every question of `dense.HEADS` about every patch; thrown away after stage 0."""

    def __init__(self, V: int):
        super().__init__()
        self.norm, self.answers = nn.LayerNorm(V), nn.Linear(V, sum(HEADS.values()))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """(B, patches, V) -> for each question its logits (B, patches, answers)."""
        return self.answers(self.norm(x)).float().split([*HEADS.values()], dim=-1)


def read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())
