"""What a golden says of itself: what was run on what, and fingerprints by which a candidate can tell."""

import hashlib
import json
import platform
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np

import mvlm_np
from mvlm_np.answer import Answer
from mvlm_np.checkpoints.opening import open_checkpoint
from mvlm_np.checkpoints.record import sha256
from mvlm_np.checkpoints.tensors import Tensor
from mvlm_np.config import Config
from mvlm_np.golden.record.recording import Question
from mvlm_np.golden.stages import Stages
from mvlm_np.inputs.conversation import render, stop_string
from mvlm_np.loading import bound_tensors
from mvlm_np.model import MobileVLM


def describe(
    path: Path,
    model: MobileVLM,
    question: Question,
    stages: Stages,
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
