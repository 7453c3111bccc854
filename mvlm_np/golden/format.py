"""The golden file: every stage of one question about one picture, in one safetensors file.

docs/golden-format.md is the format on one page. A stage has the name that `model.trace` gives it and a
leading batch axis of 1, which `Golden.stages` leaves out. All metadata is optional.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from mvlm_np.checkpoints.safetensors import read_with_metadata
from mvlm_np.checkpoints.tensors import Tensor, bfloat16_to_float32
from mvlm_np.errors import UserError

VERSION = "1"


class GoldenError(UserError):
    """A golden or a candidate cannot be read, or the two have nothing to compare."""


class Stages(Mapping[str, np.ndarray]):
    """Arrays by stage name, each read when it is asked for: a full-size golden has hundreds of megabytes.

    read    {name: what reads the array}
    forget  called with a name when its array is no longer needed
    """

    def __init__(
        self,
        read: Mapping[str, Callable[[], np.ndarray]],
        forget: Callable[[str], object] = lambda name: None,
    ):
        self._read, self.forget = dict(read), forget

    def __getitem__(self, name: str) -> np.ndarray:
        return self._read[name]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._read)

    def __len__(self) -> int:
        return len(self._read)


@dataclass(frozen=True)
class Golden:
    """What a golden file holds.

    stages    the arrays without batch axis, in the order in which they are computed
    metadata  texts by key: image, question, prompt, text, and whatever else the recorder noted
    floors    {class: {stage: (rms, worst)}}, the measured distance of a run in that precision from the
              float32 run; see `tolerance`. Empty in goldens that were not recorded with --float64
    """

    stages: Mapping[str, np.ndarray]
    metadata: Mapping[str, str] = field(default_factory=dict)
    floors: Mapping[str, Mapping[str, tuple[float, float]]] = field(default_factory=dict)
    path: Path | None = None


def read_golden(path: Path) -> Golden:
    """Opens a golden file. GoldenError or CheckpointError: it is not one, or is damaged."""
    tensors, metadata = read_with_metadata(path)
    stages = stages_of(tensors)
    if not stages:
        raise GoldenError(path, "holds no stages", "a golden file", "record one: mvlm golden record --help")
    floors = json.loads(metadata.get("floors", "{}"))
    return Golden(stages, metadata, floors, path)


def stages_of(tensors: Mapping[str, Tensor]) -> Stages:
    """Stored tensors as stages, in the order in which they are computed."""

    def forget(name: str) -> None:
        tensor = tensors[name]
        tensor.file.forget(tensor.offset, tensor.nbytes)

    names = sorted(tensors, key=order)
    return Stages({name: partial(_stage, tensors[name]) for name in names}, forget)


def _stage(tensor: Tensor) -> np.ndarray:
    return without_batch(numbers(tensor))


def numbers(tensor: Tensor) -> np.ndarray:
    """A tensor's values: float32, float64 and integers as they are, float16 and bfloat16 in float32."""
    if tensor.dtype == "bfloat16":
        return bfloat16_to_float32(tensor.stored())
    return tensor.stored().astype(np.float32) if tensor.dtype == "float16" else tensor.stored()


def without_batch(array: np.ndarray) -> np.ndarray:
    """(1, ...) -> (...)"""
    return array[0] if array.ndim > 1 and len(array) == 1 else array


# ---------------------------------------------------------------- the order of the stages

# Stages, and parts of a projector, in the order in which they are computed.
_PARTS = ("pixel_values vision projector input_ids inputs_embeds decoder logits generated_ids decode").split()
_MODULES = "mlp dwn mb_block peg avgpool fc1 activation fc2 scale_activation".split()


def order(name: str) -> tuple:
    """Sort key: a stage comes after all that it is computed from. A module comes after what is inside it."""
    parts = name.removesuffix(".tail").split(".")
    if parts[0] == "decoder" and len(parts) == 3 and parts[2].isdigit():
        kinds = ["hidden_states", "keys", "values"]  # the block's input, then what the block computes
        return (_PARTS.index("decoder"), int(parts[2]), kinds.index(parts[1]) if parts[1] in kinds else 3)
    first = parts[0].partition("_beam")[0]
    head = _PARTS.index(first) if first in _PARTS else len(_PARTS)
    rest = tuple(_rank(part) for part in parts[1:])
    return (head, *rest, (9, 0, "")) if head == _PARTS.index("projector") else (head, *rest, (0, 0, name))


def _rank(part: str) -> tuple[int, int, str]:
    if part.isdigit():
        return 0, int(part), ""
    if part in _MODULES:
        return 1, _MODULES.index(part), ""
    return (3, 0, part) if part in ("output", "features") else (2, 0, part)
