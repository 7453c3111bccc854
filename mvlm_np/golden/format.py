"""The golden file: every stage of one question about one picture, in one safetensors file.

docs/golden-format.md is the format on one page. A stage has the name that `model.trace` gives it and a
leading batch axis of 1, which `Golden.stages` leaves out. All metadata is optional.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mvlm_np.checkpoints.safetensors import Entry, read_with_metadata, write_safetensors
from mvlm_np.checkpoints.tensors import Tensor, bfloat16_to_float32
from mvlm_np.errors import GoldenError
from mvlm_np.golden.compact import Sketch, sketch

FORMAT = "mvlm-golden 1"
SKETCH = ("rows", "columns", "sample")
CHOICES = ("choices/ids", "choices/logits")


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
    floors    {class: {stage: (rms, relative)}}, the measured distance of a run in that precision from the
              golden; see `tolerance`. Empty in goldens that were not recorded with --float64
    sketches  of a compact golden, in which `stages` holds the whole numbers only
    choices   the likeliest tokens at each step of the answer, ids and logits (steps, n); None: unknown
    """

    stages: Mapping[str, np.ndarray]
    metadata: Mapping[str, str] = field(default_factory=dict)
    floors: Mapping[str, Mapping[str, tuple[float, float]]] = field(default_factory=dict)
    sketches: Mapping[str, Sketch] = field(default_factory=dict)
    choices: tuple[np.ndarray, np.ndarray] | None = None
    path: Path | None = None

    @property
    def names(self) -> list[str]:
        """Every stage, in the order in which they are computed."""
        return sorted({*self.stages, *self.sketches}, key=order)

    def shape(self, name: str) -> tuple[int, ...]:
        return self.sketches[name].shape if name in self.sketches else self.stages[name].shape


def read_golden(path: Path) -> Golden:
    """Opens a golden file. GoldenError or CheckpointError: it is not one, or is damaged."""
    tensors, metadata = read_with_metadata(path)
    again = "record one: mvlm golden record --help"
    try:
        floors = {
            kind: {name: (float(rms), float(relative)) for name, (rms, relative) in stages.items()}
            for kind, stages in _json(metadata, "floors").items()
        }
        sketches = {
            name: Sketch(
                tuple(map(int, shape)),
                float(norm),
                float(peak),
                str(digest),
                *(numbers(tensors[f"{part}/{name}"]) for part in SKETCH),
            )
            for name, (shape, norm, peak, digest) in _json(metadata, "sketches").items()
        }
        for name, kept in sketches.items():
            kept.check(name)
        known = CHOICES[0] in tensors
        choices = (numbers(tensors[CHOICES[0]]), numbers(tensors[CHOICES[1]])) if known else None
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        found = f"is damaged ({type(error).__name__}: {error})"
        raise GoldenError(f"{path}: __metadata__", found, "a golden file", again) from None
    stages = stages_of({name: tensor for name, tensor in tensors.items() if "/" not in name})
    if not stages and not sketches:
        raise GoldenError(path, "holds no stages", "a golden file", again)
    return Golden(stages, metadata, floors, sketches, choices, path)


def write_golden(
    path: Path,
    stages: Mapping[str, np.ndarray],
    metadata: Mapping[str, str],
    floors: Mapping[str, Mapping[str, tuple[float, float]]] | None = None,
    compact: bool = False,
) -> None:
    """Writes a golden file, or none at all.

    stages   without batch axis; float32, or int64 for token ids
    compact  keep sketches in place of the stages
    """
    metadata = {"format": FORMAT, **metadata}
    if floors:
        metadata["floors"] = json.dumps(
            {k: {n: [float(f"{x:.3g}") for x in pair] for n, pair in v.items()} for k, v in floors.items()}
        )
    arrays = {name: stages[name][None] for name in sorted(stages, key=order)}
    if compact:
        whole = {name: array for name, array in stages.items() if array.dtype.kind == "i"}
        sketches = {name: sketch(name, array) for name, array in stages.items() if name not in whole}
        metadata["sketches"] = json.dumps(
            {n: [list(s.shape), s.norm, s.peak, s.sha256] for n, s in sketches.items()}
        )
        arrays = {name: array[None] for name, array in whole.items()}
        arrays |= {f"{part}/{n}": getattr(s, part) for n, s in sketches.items() for part in SKETCH}
        arrays |= dict(zip(CHOICES, choices_of(stages), strict=True)) if "logits" in stages else {}
    entries = [
        Entry(name, a.dtype.name, a.shape, lambda a=a: [a])  # type: ignore[misc]
        for name, a in arrays.items()
    ]
    try:
        write_safetensors(path, entries, metadata)
    except OSError as error:
        raise GoldenError(path, f"cannot be written ({error.strerror})", "a place with room") from None


def choices_of(stages: Mapping[str, np.ndarray], most: int = 16) -> tuple[np.ndarray, np.ndarray]:
    """The likeliest tokens at each step of the answer, best first: ids and logits (steps, most)."""
    logits = np.concatenate([stages["logits"][-1:], stages["decode.logits"][:-1]])
    ids = np.argsort(-logits, axis=1, kind="stable")[:, :most]
    return ids, np.take_along_axis(logits, ids, 1)


def _json(metadata: Mapping[str, str], key: str) -> Any:
    return json.loads(metadata.get(key, "{}"))


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
