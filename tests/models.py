"""Small random models, the same in torch and in ours, and how close the two must come."""

from collections.abc import Callable, Mapping
from math import prod
from typing import Any, TypeVar, cast

import numpy as np
import torch

from mvlm_np.binder import VISION_TOWER, Binder, Manifest
from mvlm_np.checkpoints.loader import Loader, check
from mvlm_np.checkpoints.tensors import Tensor
from tests.arrays import U, frozen

torch.set_num_threads(1)  # the models are so small that threads would mostly wait for each other

T = TypeVar("T")


def normal(rng: np.random.Generator, *shape: int, scale: float = 1.0) -> np.ndarray:
    """Read-only float32 from a normal distribution."""
    return frozen((scale * rng.standard_normal(shape)).astype(np.float32))


def randomise(module: torch.nn.Module, seed: int, scale: float = 1.0) -> None:
    """Fills a torch module with weights that keep the size of what they multiply, times `scale`.

    Gains and biases are random too, so that forgetting one shows.
    """
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        for name, weight in module.named_parameters():
            values = rng.standard_normal(weight.shape)
            if weight.ndim > 1:
                values *= scale / prod(weight.shape[1:]) ** 0.5
            else:
                values = 0.3 * values + name.endswith("weight")  # a norm's gain lies around 1
            weight.copy_(torch.from_numpy(values))


def state(module: torch.nn.Module, prefix: str = "") -> dict[str, np.ndarray]:
    """A torch module's tensors, each name with the prefix that it has in a checkpoint."""
    return {prefix + name: value.detach().numpy() for name, value in module.state_dict().items()}


def clip_state(module: torch.nn.Module) -> dict[str, np.ndarray]:
    """A CLIPVisionModel's tensors as in a checkpoint; newer transformers leave out `vision_model.`"""
    prefix = f"{VISION_TOWER}vision_model."
    return {prefix + name.removeprefix("vision_model."): value for name, value in state(module).items()}


def stored(arrays: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
    """Arrays as the float32 tensors of a checkpoint that lies in no file."""
    no_file = cast(Any, None)
    return {
        name: Tensor(name, "float32", array.shape, no_file, 0, frozen(array.copy()))
        for name, array in arrays.items()
    }


def bound(bind: Callable[[Binder], T], arrays: Mapping[str, np.ndarray]) -> T:
    """What `bind` collects of these arrays, which must be exactly what it wants, named as in a checkpoint."""
    wanted = Manifest()
    bind(wanted)
    return bind(Loader(check("test", wanted.shapes, stored(arrays))))


def assert_as_close_as_torch(
    stage: str, ours: np.ndarray, single: torch.Tensor, double: torch.Tensor
) -> None:
    """Ours lies no farther from torch's float64 result than eight times what torch's float32 one does.

    How far rounding carries a model off depends on its weights; torch's own float32 result measures that.
    Another order of summation differs from it by a small factor: of 10,000 stages of random models,
    the worst was 7 times as far off. Where torch happens to round well, the roundings of a stage's last
    operations remain, 16 U of its largest magnitude.
    """
    truth = double.detach().numpy()
    assert ours.dtype == np.float32, f"{stage}: {ours.dtype}"
    assert ours.shape == truth.shape, f"{stage}: {ours.shape} instead of {truth.shape}"
    error, yardstick = abs(ours - truth).max(), abs(single.detach().numpy() - truth).max()
    allowed = 8 * yardstick + 16 * U * abs(truth).max()
    assert error <= allowed, f"{stage}: off by {error:.3g}, allowed are {allowed:.3g}"
