"""Records a golden: every stage of one question, and how far rounding alone carries each of them."""

import hashlib
import json
import platform
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

import mvlm_np
from mvlm_np.answer import Answer
from mvlm_np.checkpoints.opening import open_checkpoint
from mvlm_np.checkpoints.record import sha256
from mvlm_np.checkpoints.tensors import Tensor
from mvlm_np.config import Config
from mvlm_np.golden.measure import distance
from mvlm_np.golden.precision import rounded, rounding_recorder, to_bf16, to_float16, widened
from mvlm_np.inputs.conversation import render, stop_string
from mvlm_np.loading import bound_tensors, load
from mvlm_np.model import MobileVLM
from mvlm_np.trace import Recorder

Floors = dict[str, dict[str, tuple[float, float]]]
ROUNDINGS = {"float16": to_float16, "bf16": to_bf16}


@dataclass(frozen=True)
class Question:
    """What is asked. `image` is None for a model that reads text only."""

    text: str
    image: Path | None = None
    conv_mode: str = "v1"
    max_new_tokens: int = 24
    num_beams: int | None = None


def record(
    model: MobileVLM,
    question: Question,
    follow: np.ndarray | None = None,
    recorder: type[Recorder] = Recorder,
) -> dict[str, np.ndarray]:
    """Every stage of a question, without batch axis. follow: ids to feed in place of the model's own."""
    traced = model.trace(
        question.image,
        question.text,
        question.max_new_tokens,
        question.num_beams,
        conv_mode=question.conv_mode,
        follow=None if follow is None else follow.tolist(),
        recorder=recorder,
    )
    return {name: array[0] for name, array in traced.items()}


def measure_floors(
    path: Path,
    model: MobileVLM,
    question: Question,
    stages: Mapping[str, np.ndarray],
    progress: Callable[[str], object] = lambda step: None,
    vision_tower: Path | None = None,
    mmproj: Path | None = None,
) -> Floors:
    """How far the model's run in each other precision lies from `stages`, its float32 run.

    {class: {stage: (rms, relative)}}; "float32" is the distance to the float64 run, which is the rounding
    floor of both. A run in which numbers overflow is left out. path, vision_tower and mmproj are as `load`
    takes them, for int8 and int4; progress is called with the name of each run.
    """
    ids = stages["generated_ids"]

    def run(name: str, in_precision: MobileVLM, recorder: type[Recorder] = Recorder) -> None:
        progress(name)
        found = record(in_precision, question, ids, recorder)
        floats = [n for n, array in stages.items() if array.dtype.kind == "f"]
        if all(np.isfinite(found[n]).all() for n in floats):
            distances = {n: distance(n, stages[n], found[n]) for n in floats}
            floors[name] = {n: (d.rms, d.relative) for n, d in distances.items()}

    floors: Floors = {}
    run("float32", widened(model))
    for name, to in ROUNDINGS.items():
        run(name, rounded(model, to), rounding_recorder(to))
    for name in ("int8", "int4"):
        run(name, load(path, name, vision_tower=vision_tower, mmproj=mmproj))
    return floors


def describe(
    path: Path,
    model: MobileVLM,
    question: Question,
    stages: Mapping[str, np.ndarray],
    dtype: str,
    **places: Path | None,
) -> dict[str, str]:
    """The metadata of a golden: what was run on what, and with which programs."""
    checkpoint = open_checkpoint(path, **places)
    answer = Answer(model.tokenizer, stop_string(question.conv_mode))
    for token in stages["generated_ids"].tolist():
        answer.push(token)
    answer.finish()
    about = {
        "model": checkpoint.path.resolve().name,
        "config_sha256": config_sha256(model.config),
        "weights_sha256": weights_sha256(bound_tensors(checkpoint)),
        "question": question.text,
        "prompt": render(question.conv_mode, question.text, int(question.image is not None)),
        "text": answer.text,
        "dtype": dtype,
        "recorder": f"mvlm-np {mvlm_np.__version__}, NumPy {np.__version__}, "
        f"Python {platform.python_version()}, {platform.machine()}",
    }
    if question.image is not None:
        about |= {"image": question.image.name, "image_sha256": sha256(question.image)}
    return about


def config_sha256(config: Config) -> str:
    """The same for the same settings, however their files spell them."""
    return hashlib.sha256(json.dumps(asdict(config), sort_keys=True).encode()).hexdigest()


def weights_sha256(tensors: Mapping[str, Tensor]) -> str:
    """The same for the same stored numbers, in whatever files they lie: names, types, shapes and bytes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(np.ascontiguousarray(tensor.stored()).view(np.uint8).data)
        tensor.file.forget(tensor.offset, tensor.nbytes)
    return digest.hexdigest()
