"""The golden file: every stage of one question about one picture, in one safetensors file.

docs/golden-format.md is the format on one page. A stage has the name that `model.trace` gives it, and a
leading batch axis of 1, which `Golden.stages` leaves out. All metadata are optional.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mvlm_np.checkpoints.safetensors import Entry, read_with_metadata, write_safetensors
from mvlm_np.checkpoints.tensors import Tensor
from mvlm_np.errors import GoldenError
from mvlm_np.golden.compact import Sketch, sketch
from mvlm_np.golden.stages import Stages, is_stage, numbers, order, stored_stages

FORMAT = "mvlm-golden 1"
SKETCH = ("rows", "columns", "sample")
CHOICES = ("choices/ids", "choices/logits")

Floors = Mapping[str, Mapping[str, tuple[float, float]]]  # {class: {stage: (rms, relative)}}


@dataclass(frozen=True)
class Golden:
    """What a golden file holds.

    stages    the arrays without batch axis, in the order in which they are computed
    metadata  texts by key: image, question, prompt, text, and whatever else the recorder noted
    floors    how far a run in each precision class was from the golden, see `compare.tolerance`; empty in
              goldens that were not recorded with --float64
    sketches  of a compact golden, in which `stages` holds the whole numbers only
    choices   the likeliest tokens at each step of the answer, ids and logits (steps, n); None: unknown
    """

    stages: Stages
    metadata: Mapping[str, str] = field(default_factory=dict)
    floors: Floors = field(default_factory=dict)
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
    names = sorted((name for name in tensors if "/" not in name), key=order)
    stages = stored_stages({name: tensors[name] for name in names}, _without_batch)
    if not any(map(is_stage, [*stages, *sketches])):
        raise GoldenError(path, "holds no stages", "a golden file", again)
    return Golden(stages, metadata, floors, sketches, choices, path)


def write_golden(
    path: Path,
    stages: Stages,
    metadata: Mapping[str, str],
    floors: Floors | None = None,
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


def choices_of(stages: Stages, most: int = 16) -> tuple[np.ndarray, np.ndarray]:
    """The likeliest tokens at each step of the answer, best first: ids and logits (steps, most)."""
    logits = np.concatenate([stages["logits"][-1:], stages["decode.logits"][:-1]])
    ids = np.argsort(-logits, axis=1, kind="stable")[:, :most]
    return ids, np.take_along_axis(logits, ids, 1)


def _without_batch(tensor: Tensor) -> np.ndarray:
    """(1, ...) -> (...)"""
    array = numbers(tensor)
    return array[0] if array.ndim > 1 and len(array) == 1 else array


def _json(metadata: Mapping[str, str], key: str) -> Any:
    return json.loads(metadata.get(key, "{}"))
