"""Measures how far rounding alone carries each stage of a golden: its floors."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from mvlm_np.golden.format import Floors
from mvlm_np.golden.measure import distance
from mvlm_np.golden.precision import PACKED, ROUNDINGS, in_float64, rounded, rounding_recorder
from mvlm_np.golden.record.recording import Question, record
from mvlm_np.golden.stages import Stages
from mvlm_np.loading import load
from mvlm_np.model import MobileVLM
from mvlm_np.trace import Recorder


def measure_floors(
    path: Path,
    model: MobileVLM,
    question: Question,
    stages: Stages,
    progress: Callable[[str], object] = lambda step: None,
    vision_tower: Path | None = None,
    mmproj: Path | None = None,
) -> Floors:
    """How far the model's run in each other precision lies from `stages`, its float32 run.

    "float32" is the distance to the float64 run, which is the rounding floor of both. A run in which numbers
    overflow is left out. path, vision_tower and mmproj are as `load` takes them, for int8 and int4; progress
    is called with the name of each run.
    """
    ids = stages["generated_ids"]

    def run(name: str, in_precision: MobileVLM, recorder: type[Recorder] = Recorder) -> None:
        progress(name)
        found = record(in_precision, question, ids, recorder)
        floats = [n for n, array in stages.items() if array.dtype.kind == "f"]
        if all(np.isfinite(found[n]).all() for n in floats):
            distances = {n: distance(n, stages[n], found[n]) for n in floats}
            floors[name] = {n: (d.rms, d.relative) for n, d in distances.items()}

    floors: dict[str, dict[str, tuple[float, float]]] = {}
    run("float32", in_float64(model))
    for name, to in ROUNDINGS.items():
        run(name, rounded(model, to), rounding_recorder(to))
    for name, precision in PACKED.items():
        run(name, load(path, precision, vision_tower=vision_tower, mmproj=mmproj))
    return floors
