"""Goldens that the tests record from this project's own small models, and candidates made of those models."""

from collections.abc import Callable, Mapping
from copy import copy
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mvlm_np.backend import replaced
from mvlm_np.golden.compare.candidates import Candidate
from mvlm_np.golden.compare.comparison import Comparison, compare
from mvlm_np.golden.format import Golden
from mvlm_np.golden.record.floors import measure_floors
from mvlm_np.golden.record.recording import Question, record
from mvlm_np.loading import load
from mvlm_np.model import MobileVLM
from tests.golden_sets import SETS, cases

OWN = [name for name in SETS if name.startswith("own/")]
Stages = dict[str, np.ndarray]


class Recorded(NamedTuple):
    folder: Path
    model: MobileVLM
    question: Question
    stages: Stages
    golden: Golden  # with floors
    plain: Golden  # without


@cache
def recorded(name: str = "own/ldpv2") -> Recorded:
    """The first case of a set, recorded once a process."""
    case = cases(name)[0]
    model = load(case.folder, "float32", "numpy")
    question = Question(case.question, case.image)
    stages = record(model, question)
    about = {"image": case.image.name, "question": case.question}
    golden = Golden(stages, about, measure_floors(case.folder, model, question, stages))
    return Recorded(case.folder, model, question, stages, golden, Golden(stages, about))


def against(golden: Golden, stages: Mapping[str, np.ndarray], kind: str = "float32") -> Comparison:
    return compare(golden, Candidate(stages), kind)


def with_ops(model: MobileVLM, **functions: Callable) -> MobileVLM:
    """The model with some of its operations replaced."""
    out = copy(model)
    out.ops = replaced(model.ops, **functions)
    return out


def with_eps(model: MobileVLM, eps: float) -> MobileVLM:
    out = copy(model)
    out.config = replace(model.config, decoder=replace(model.config.decoder, rms_norm_eps=eps))
    return out


def with_matrix(model: MobileVLM, layer: int, name: str, change: Callable[[np.ndarray], Any]) -> MobileVLM:
    """The model with a matrix of one block of the vision tower changed in place by `change`."""
    assert model.vision
    layers = list(model.vision.layers)
    matrix = getattr(layers[layer], name)
    weight = matrix.weight.copy()
    change(weight)
    layers[layer] = replace(layers[layer], **{name: replace(matrix, weight=weight)})
    out = copy(model)
    out.vision = replace(model.vision, layers=layers)
    return out
