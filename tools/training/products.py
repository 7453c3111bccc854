"""Products of 16-bit matrices on processors that have no instructions for them.

torch computes them there number by number, some fifty times slower than in float32. Here each factor becomes
float32 for the time of the product, and only the result is rounded: that is what instructions for bf16 give.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear


class Product(torch.autograd.Function):
    """`torch.nn.functional.linear`, which keeps no float32 copy of a weight for the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        y = linear(x.float(), weight.float(), None if bias is None else bias.float())
        return y.to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad
        g = gradients[0].float()
        rows = g.flatten(end_dim=-2)
        return (
            (g @ weight.float()).to(x.dtype) if of_x else None,
            (rows.T @ x.flatten(end_dim=-2).float()).to(weight.dtype) if of_weight else None,
            rows.sum(0).to(weight.dtype) if of_bias else None,
        )


def compute_in_float32(model: nn.Module) -> None:
    """Has the linear layers of a model with 16-bit weights compute so."""
    for module in model.modules():
        if isinstance(module, nn.Linear) and module.weight.dtype in (torch.bfloat16, torch.float16):
            module.forward = partial(_forward, module)


def _forward(layer: nn.Linear, x: Tensor) -> Tensor:
    return Product.apply(x, layer.weight, layer.bias)
