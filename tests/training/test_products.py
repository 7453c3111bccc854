"""Products of 16-bit matrices by way of float32 are those of torch, but for the order of their sums."""

import pytest
import torch
from torch import nn

from tools.training.products import compute_in_float32


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bias", [True, False])
def test_products_and_their_gradients(dtype: torch.dtype, bias: bool) -> None:
    torch.manual_seed(0)
    plain = nn.Linear(48, 20, bias=bias).to(dtype)
    ours = nn.Linear(48, 20, bias=bias).to(dtype)
    ours.load_state_dict(plain.state_dict())
    compute_in_float32(ours)
    inputs, found = torch.randn(2, 7, 48).to(dtype), []
    for layer in (plain, ours):
        x = inputs.clone().requires_grad_()
        y = layer(x)
        (y * torch.linspace(-1, 1, y.numel(), dtype=dtype).view_as(y)).sum().backward()
        found.append([y, x.grad, *(p.grad for p in layer.parameters())])
    # One step of the type: both round a sum in float32, whose last digits depend on its order.
    step = torch.finfo(dtype).eps
    for a, b in zip(*found, strict=True):
        assert b.dtype == dtype
        torch.testing.assert_close(b, a, rtol=step, atol=step * a.abs().max().item())


def test_what_is_frozen_gets_no_gradient_and_float32_stays_as_it_is() -> None:
    wide, narrow = nn.Linear(8, 8), nn.Linear(8, 8).to(torch.bfloat16).requires_grad_(False)
    model = nn.Sequential(wide, narrow)
    compute_in_float32(model)
    assert "forward" not in vars(wide) and "forward" in vars(narrow)
    narrow(torch.ones(3, 8, dtype=torch.bfloat16, requires_grad=True)).sum().backward()
    assert narrow.weight.grad is None and narrow.bias.grad is None
