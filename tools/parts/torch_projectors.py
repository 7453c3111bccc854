"""The projectors as torch modules, written from the papers (arXiv 2312.16886, 2402.03766).

A module's path is its name in the checkpoint, and so the name of its stage in a golden file.
"""

import re
from collections import OrderedDict
from math import isqrt

from torch import Tensor, nn


def build_projector(kind: str, V: int, D: int) -> nn.Module:
    """The projector of a `mm_projector_type`, from features of width V to tokens of width D."""
    if kind == "ldpnetv2":
        return LDPv2(V, D)
    if kind == "ldpnet":
        return LDP(V, D)
    if kind == "linear":
        return nn.Linear(V, D)
    depth = re.fullmatch(r"mlp(\d+)x_gelu", kind)
    assert depth, f"no projector is called {kind}"
    layers: list[nn.Module] = [nn.Linear(V, D)]
    for _ in range(1, int(depth[1])):
        layers += [nn.GELU(), nn.Linear(D, D)]
    return nn.Sequential(*layers)


class Grid(nn.Module):
    """Wraps a module that works on a picture: (1, T, D) -> (1, D, h, w) -> (1, T', D)."""

    def __init__(self, name: str, module: nn.Module):
        super().__init__()
        self.add_module(name, module)
        self.inner = name

    def picture(self, x: Tensor) -> Tensor:
        side = isqrt(x.shape[1])
        return x.transpose(1, 2).unflatten(2, (side, side))

    def forward(self, x: Tensor) -> Tensor:
        return self.get_submodule(self.inner)(self.picture(x)).flatten(2).transpose(1, 2)


# ---------------------------------------------------------------- LDPv2


class PEG(Grid):
    """Positional encoding generator: a depthwise convolution, added to its input."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + x


class LDPv2(nn.Module):
    def __init__(self, V: int, D: int):
        super().__init__()
        transform = nn.Sequential(nn.Linear(V, D), nn.GELU(), nn.Linear(D, D))
        self.mlp = nn.Sequential(OrderedDict(mlp=transform))
        self.dwn = Grid("dwn", nn.AdaptiveAvgPool2d((12, 12)))
        self.peg = PEG("peg", nn.Sequential(nn.Conv2d(D, D, 3, padding=1, groups=D)))

    def forward(self, x: Tensor) -> Tensor:
        return self.peg(self.dwn(self.mlp(x)))


# ---------------------------------------------------------------- LDP


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of each pixel of (1, D, h, w)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class SqueezeExcitation(nn.Module):
    def __init__(self, D: int):
        super().__init__()
        width = max(8, (D // 4 + 4) // 8 * 8)  # a quarter, to a multiple of 8,
        width += 8 * (width < 0.9 * (D // 4))  # but not more than a tenth below it
        self.fc1, self.fc2 = nn.Conv2d(D, width, 1), nn.Conv2d(width, D, 1)
        self.avgpool, self.activation, self.scale_activation = (
            nn.AdaptiveAvgPool2d(1), nn.ReLU(), nn.Hardsigmoid()
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale_activation(self.fc2(self.activation(self.fc1(self.avgpool(x)))))


class InvertedResidual(nn.Module):
    """MobileNetV3's block with an expansion of 1, so without the convolution that expands."""

    def __init__(self, D: int, stride: int):
        super().__init__()
        depthwise = nn.Conv2d(D, D, 3, stride, padding=1, groups=D, bias=False)
        self.block = nn.Sequential(
            nn.Sequential(depthwise, ChannelNorm(D), nn.Hardswish()),
            SqueezeExcitation(D),
            nn.Sequential(nn.Conv2d(D, D, 1, bias=False), ChannelNorm(D)),
        )
        self.has_residual = stride == 1

    def forward(self, x: Tensor) -> Tensor:
        y = self.block(x)
        return x + y if self.has_residual else y


class LDPBody(Grid):
    def __init__(self, V: int, D: int):
        blocks = nn.Sequential(nn.Identity(), InvertedResidual(D, stride=1), InvertedResidual(D, stride=2))
        super().__init__("mb_block", blocks)
        self.mlp = nn.Sequential(nn.Identity(), nn.Linear(V, D), nn.GELU(), nn.Linear(D, D))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.mlp(x))


class LDP(nn.Module):
    def __init__(self, V: int, D: int):
        super().__init__()
        self.model = LDPBody(V, D)

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)
