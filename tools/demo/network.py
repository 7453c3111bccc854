"""The model in torch: transformers' CLIP tower and LLaMA, LDPv2 between them, all as upstream has it."""

from collections.abc import Mapping
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, CLIPVisionConfig, CLIPVisionModel, LlamaForCausalLM

from mvlm_np.config import ImageConfig
from tools.demo.dense import HEADS
from tools.parts.torch_projectors import LDPv2
from tools.parts.torch_reference import llama_config
from tools.training.loop import accelerator

MEAN, STD = (torch.tensor(values).reshape(3, 1, 1) * 255 for values in (ImageConfig.mean, ImageConfig.std))


def build_tower(settings: Mapping[str, Any]) -> Any:
    """The CLIP tower of a `vision_config`; its random weights resemble a trained tower's in three respects.

    From CLIP's own small random numbers it learns colours at once, and shapes, for which it has to know which
    patch is whose neighbour, very late.
    """
    config = CLIPVisionConfig(**settings)
    config._attn_implementation = "eager"  # quicker than fused attention on so few patches
    tower = CLIPVisionModel(config)
    patches, table = (
        tower.get_parameter(f"embeddings.{name}.weight") for name in ("patch_embedding", "position_embedding")
    )
    with torch.no_grad():
        patches.copy_(waves(*patches.shape[::2]))
        table[1:] += sines(config.image_size // config.patch_size, config.hidden_size)
        for layer in tower.get_submodule("encoder.layers").children():
            like_trained(layer.self_attn)
    return tower


def waves(V: int, side: int) -> Tensor:
    """Filters of patches (V, 3, side, side): the lowest frequencies of the cosine transform.

    As in JPEG they are those of brightness and, fewer, of two differences of colours.
    """
    n = torch.arange(side)
    along = torch.cos(torch.pi / side * (n[:, None] + 0.5) * n) * (2 / side) ** 0.5  # (pixel, frequency)
    along[:, 0] *= 0.5**0.5
    kinds = torch.tensor([(1.0, 1.0, 1.0), (1.0, -1.0, 0.0), (0.5, 0.5, -1.0)])
    kinds /= kinds.norm(dim=1, keepdim=True)
    found = product(range(side), range(side), range(3))
    lowest = sorted(found, key=lambda uvk: (uvk[0] ** 2 + uvk[1] ** 2 + 12 * (uvk[2] > 0), uvk))[:V]
    return torch.stack([torch.einsum("c,y,x->cyx", kinds[k], along[:, u], along[:, v]) for u, v, k in lowest])


def like_trained(attention: Any) -> None:
    """Sets an attention's weights so that it does what a trained tower's does (arXiv 2305.09828).

    Each patch looks at those that are like it, its neighbours by position first, and moves away from them.
    """
    V, d = attention.embed_dim, attention.head_dim
    for head in torch.arange(V).split(d):
        u, s, v = torch.linalg.svd(0.7 * torch.randn(V, V) / V**0.5 + 0.7 * torch.eye(V))
        attention.q_proj.weight[head] = (u[:, :d] * s[:d].sqrt()).T
        attention.k_proj.weight[head] = (v[:d].T * s[:d].sqrt()).T
    u, s, v = torch.linalg.svd(0.4 * torch.randn(V, V) / V**0.5 - 0.4 * torch.eye(V))
    attention.v_proj.weight.copy_(s.sqrt()[:, None] * v)
    attention.out_proj.weight.copy_(u * s.sqrt())


def sines(grid: int, V: int) -> Tensor:
    """Sines and cosines of row and column, (grid * grid, V), half as large as they usually are."""
    frequencies = torch.arange(1, V // 4 + 1) * (torch.pi / 2 / (V // 4) * 1.6)
    angles = torch.arange(grid)[:, None] * frequencies  # (grid, V / 4)
    along = 0.5 * torch.cat([angles.sin(), angles.cos()], dim=1)  # (grid, V / 2)
    rows, columns = along[:, None].expand(-1, grid, -1), along[None].expand(grid, -1, -1)
    return torch.cat([rows, columns], dim=-1).reshape(grid * grid, V)


def attend(
    module: nn.Module, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scaling: float, **_: Any
) -> tuple[Tensor, None]:
    """The decoder's attention over `language.Packed` sequences, at half the cost of one mask over all tokens.

    q (B, H, T, d), k and v (B, KV, T, d) -> (B, T, H, d)
    """
    B, W, P = len(q), mask.shape[2], mask.shape[3] - mask.shape[2]
    q, k = (x.to(v.dtype) for x in (q * scaling, k))

    def blocks(x: Tensor) -> Tensor:  # (B, h, T, d) -> (B * blocks, h, W, d)
        return x[:, :, P:].unflatten(2, (-1, W)).transpose(1, 2).flatten(0, 1)

    def with_picture(x: Tensor) -> Tensor:  # (B, h, T, d) -> (B * blocks, h, P + W, d)
        return torch.cat([x[:, :, :P].repeat_interleave(len(mask) // B, 0), blocks(x)], dim=2)

    with torch.autocast(q.device.type, enabled=False):  # which would do the softmax in float32
        causal = torch.ones(P, P, dtype=torch.bool, device=q.device).tril()
        seen = mixed(q[:, :, :P], k[:, :, :P], v[:, :, :P], causal)
        said = mixed(blocks(q), with_picture(k), with_picture(v), mask)
    said = said.unflatten(0, (B, -1)).transpose(1, 2).flatten(2, 3)
    return torch.cat([seen, said], dim=2).transpose(1, 2), None


def mixed(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """softmax(q k^T) v with grouped heads where the mask is true; on a CPU twice as quick as fused attention,
    whose backward pass is slow there."""
    grouped = q.unflatten(1, (k.shape[1], -1)).flatten(2, 3)  # (B, KV, G*T, d)
    scores = (grouped @ k.mT).view(*q.shape[:3], -1)
    shares = (scores + torch.zeros_like(mask, dtype=q.dtype).masked_fill(~mask, -torch.inf)).softmax(-1)
    return (shares.view(*grouped.shape[:3], -1) @ v).view(q.shape)


ATTENTION = "a picture and its questions"
AttentionInterface.register(ATTENTION, attend)


def build_decoder(settings: Mapping[str, Any]) -> Any:
    """The LLaMA of a `config.json`, with random weights, as large as its width asks for."""
    config = llama_config(settings)
    config.initializer_range = config.hidden_size**-0.5  # the usual 0.02 suits a width of 2,500
    config._attn_implementation = ATTENTION
    return LlamaForCausalLM(config)


def build_projector(
    vision: Mapping[str, Any], settings: Mapping[str, Any], heads: "DenseHeads", seen: Tensor
) -> LDPv2:
    """An LDPv2 whose tokens begin as the answers of the heads of stage 0, as many as fit, each apart from the
    others; among random mixtures of them the decoder would have to find them first.

    seen: features (B, patches, V), whose spread stands for that of every patch, by which the heads divide.
    """
    projector = LDPv2(vision["hidden_size"], settings["hidden_size"])
    first, _, second = projector.mlp.mlp
    spread = (seen - seen.mean(-1, keepdim=True)).square().mean().sqrt()
    with torch.no_grad():
        weight = (heads.answers.weight * heads.norm.weight)[: len(first.weight)]
        first.weight[: len(weight)] = (weight - weight.mean(1, keepdim=True)) / spread
        first.bias[: len(weight)] = heads.answers(heads.norm.bias)[: len(weight)]
        second.weight.copy_(torch.eye(len(second.weight)))
        second.bias.zero_()
    return projector


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
    """Answers every question of `dense.HEADS` about every patch."""

    def __init__(self, V: int):
        super().__init__()
        self.norm, self.answers = nn.LayerNorm(V), nn.Linear(V, sum(HEADS.values()))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """(B, patches, V) -> for each question its logits (B, patches, answers)."""
        return self.answers(self.norm(x)).float().split([*HEADS.values()], dim=-1)


def optimizer(model: nn.Module, rate: float) -> torch.optim.Optimizer:
    """AdamW, with weight decay on matrices alone."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": 0.02},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98), fused=True)


def device() -> torch.device:
    return accelerator().device


def to_device(*arrays: Any) -> tuple[Tensor, ...]:
    return tuple(torch.tensor(a).to(device(), non_blocking=True) for a in arrays)
