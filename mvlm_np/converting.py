"""Writing a model anew: any format in, a folder of safetensors in the wanted precision out.

The folder is laid out as upstream's, loads wherever a model folder does, and stands for itself: settings,
tokenizer and vision tower lie in it. `mvlm.json` says where it came from, what rounding cost, and the
SHA-256 of every file. Tensors are read, rounded and written one at a time.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from mvlm_np.checkpoints import names, packed
from mvlm_np.checkpoints.binding import bits
from mvlm_np.checkpoints.folder import Checkpoint
from mvlm_np.checkpoints.json_files import read_json
from mvlm_np.checkpoints.safetensors import Entry, write_safetensors
from mvlm_np.checkpoints.tensors import CHUNK, PLAIN, Tensor, float32_to_bfloat16
from mvlm_np.config import Config
from mvlm_np.errors import CheckpointError, UserError
from mvlm_np.kernels import pack
from mvlm_np.loading import bound_tensors, manifest

PRECISIONS = ("float32", "bf16", "int8", "int4")
RECORD = "mvlm.json"
TOKENIZER_FILES = (
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "generation_config.json",
)

# What is told of each tensor as it is written: its name, bits (None: not rounded), signal-to-noise in dB.
Told = Callable[[str, int | None, float], object]


def convert(
    checkpoint: Checkpoint,
    destination: Path,
    precision: str,
    quality: str = "high",
    told: Told = lambda name, bits, snr: None,
) -> None:
    """Writes `checkpoint` to the new folder `destination`.

    precision  of the linear layers: "float32", "bf16", "int8" or "int4" (see `binding.bits`). With the
               latter two, everything else stays as it is stored
    quality    of int4: "high" or "fast", see `quantize`

    The folder appears under its name when it is complete; killed at any moment, the conversion leaves
    nothing that loads. UserError: the folder is there already, or the checkpoint is not sound.
    """
    if precision not in PRECISIONS:
        raise UserError("precision", f"found {precision!r}", " or ".join(PRECISIONS))
    if quality not in ("high", "fast"):
        raise UserError("quality", f"found {quality!r}", "high or fast")
    if destination.exists():
        raise UserError(destination, "exists already", "a new folder", "name another, or remove it")
    tensors = bound_tensors(checkpoint)
    part = destination.with_name(f"{destination.name}.part-{os.getpid()}")
    rounding: dict[str, dict[str, float]] = {}

    def note(name: str, kept: int | None, snr: float) -> None:
        if kept:
            rounding[name] = {"bits": kept, "signal_to_noise_db": snr}
        told(name, kept, snr)

    try:
        part.mkdir(parents=True)
        _write_weights(checkpoint.config, tensors, part, precision, quality, note)
        _write_tokenizer(checkpoint, part)
        _write_settings(checkpoint, part)
        record = {
            "format": 1,
            "source": checkpoint.path.name,
            "precision": precision,
            "files": {str(f.relative_to(part)): sha256(f) for f in sorted(part.rglob("*")) if f.is_file()},
            "rounding": {name: v for name, v in rounding.items() if np.isfinite(v["signal_to_noise_db"])},
        }
        _write_json(part / RECORD, record)
        part.rename(destination)
    except OSError as error:
        raise UserError(destination, f"cannot be written ({error.strerror})") from None
    finally:
        shutil.rmtree(part, ignore_errors=True)


def verify(folder: Path) -> list[str]:
    """What is wrong with the files of a converted folder, by SHA-256; nothing, if all are as written."""
    record = read_json(folder / RECORD)
    files = record.get("files") if isinstance(record, dict) else None
    if not isinstance(files, dict) or not all(isinstance(digest, str) for digest in files.values()):
        raise CheckpointError(
            f"{folder / RECORD}: files", "is missing", "names and SHA-256 sums", "convert again"
        )
    problems = []
    for name, digest in files.items():
        path = folder / name
        if not path.resolve().is_relative_to(folder.resolve()):
            problems.append(f"{name} lies outside the folder")
        elif not path.is_file():
            problems.append(f"{name} is missing")
        elif sha256(path) != digest:
            problems.append(f"{name} has changed")
    return problems


def sha256(path: Path) -> str:
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


# ---------------------------------------------------------------- weights


def _write_weights(
    config: Config, tensors: Mapping[str, Tensor], part: Path, precision: str, quality: str, note: Told
) -> None:
    """model.safetensors; the vision tower in a folder of its own where upstream's rule looks for it there."""
    spelling, matrices = names.hugging_face(config.mm_projector_type), manifest(config).matrices
    model, tower = _File(), _File()
    for ours, tensor in tensors.items():
        theirs, file = spelling(ours), model
        if ours.startswith("vision.") and not config.vision_in_checkpoint:
            theirs, file = theirs.removeprefix(names.VISION), tower
        kept = bits(ours, tensor, precision) if ours in matrices and precision in ("int8", "int4") else None
        if kept is None:
            file.plain.append(_plain(theirs, tensor, precision, note))
        else:
            file.packed += _packed(theirs, tensor, kept, quality, note)
            file.metadata[theirs] = packed.describe(kept, tensor.shape)
    for file, path in ((model, part / "model.safetensors"), (tower, part / "clip" / "model.safetensors")):
        if file.plain:
            path.parent.mkdir(exist_ok=True)
            mark = {packed.MARK: packed.VERSION} if file.metadata else {}
            # Sizes of packed tensors are multiples of 32 bytes, so whatever follows them is aligned too.
            file.plain.sort(key=lambda entry: -PLAIN[entry.dtype].itemsize)
            write_safetensors(path, [*file.packed, *file.plain], {"format": "pt", **mark, **file.metadata})


class _File:
    """What will be written to one file."""

    def __init__(self) -> None:
        self.packed: list[Entry] = []
        self.plain: list[Entry] = []
        self.metadata: dict[str, str] = {}


def _packed(name: str, tensor: Tensor, kept: int, quality: str, note: Told) -> list[Entry]:
    """The two tensors of a packed matrix. Rounding gives both at once, so the scales wait for their turn."""
    waiting: list[np.ndarray] = []

    def values() -> Iterator[np.ndarray]:
        values, scales, snr = packed.packed(tensor, kept, quality)
        waiting.append(scales)
        yield values
        tensor.file.forget(tensor.offset, tensor.raw.nbytes)
        note(name, kept, snr)

    value_shape, scale_shape = pack.shapes(kept, *packed.matrix(tensor.shape))
    return [
        Entry(name + packed.VALUES, packed.VALUE_DTYPES[kept], value_shape, values),
        Entry(name + packed.SCALES, "float16", scale_shape, lambda: [waiting.pop()]),
    ]


def _plain(name: str, tensor: Tensor, precision: str, note: Told) -> Entry:
    """A tensor in floating point: as stored, but where the precision or a block type says otherwise."""
    dtype = {"float32": "float32", "bf16": "bfloat16"}.get(precision, tensor.dtype)
    dtype = dtype if dtype in PLAIN else "float32"

    def values() -> Iterator[np.ndarray]:
        step = max(1, CHUNK * len(tensor.raw) // max(1, tensor.raw.size)) if tensor.shape else 1
        for start in range(0, tensor.shape[0], step):
            part = slice(start, start + step)
            if dtype == tensor.dtype:
                yield tensor.stored()[part]
            elif dtype == "bfloat16":
                yield float32_to_bfloat16(tensor.rows(part))
            else:
                yield tensor.rows(part)
        tensor.file.forget(tensor.offset, tensor.raw.nbytes)
        note(name, None, float("inf"))

    return Entry(name, dtype, tensor.shape, values)


# ---------------------------------------------------------------- settings and tokenizer


def _write_settings(checkpoint: Checkpoint, part: Path) -> None:
    """config.json last: without it the folder is not a model."""
    config = checkpoint.config
    here = checkpoint.path / "config.json"
    values: dict[str, Any] = dict(read_json(here)) if here.is_file() else {}
    values |= asdict(config.decoder) | {"hidden_act": "silu"}
    if config.vision is None:
        values |= {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
    else:
        values |= {"architectures": ["MobileLlamaForCausalLM"], "model_type": "mobilevlm"}
        values |= {key: value for key, value in asdict(config).items() if key.startswith("mm_")}
        values |= {
            "mm_vision_tower": "clip",
            "mm_hidden_size": config.vision.hidden_size,
            "image_aspect_ratio": config.image.aspect_ratio,
        }
        clip = part / "clip"
        clip.mkdir(exist_ok=True)
        _write_json(clip / "config.json", {"model_type": "clip_vision_model", **asdict(config.vision)})
        height, width = config.image.crop
        preprocessor = {
            "image_processor_type": "CLIPImageProcessor",
            "size": {"shortest_edge": config.image.resize},
            "crop_size": {"height": height, "width": width},
            "image_mean": config.image.mean,
            "image_std": config.image.std,
            "resample": 3,
        }
        _write_json(clip / "preprocessor_config.json", preprocessor)
    _write_json(part / "config.json", values)


def _write_tokenizer(checkpoint: Checkpoint, part: Path) -> None:
    """Copies the tokenizer's files, or writes down what a GGUF holds. A model without one stays without."""
    inside = checkpoint.tokenizer
    if inside is not None:
        (part / "tokenizer.model").write_bytes(inside.model)
        settings = {
            "tokenizer_class": "LlamaTokenizer",
            "legacy": inside.legacy,
            "add_bos_token": inside.add_bos,
            "add_eos_token": inside.add_eos,
            "bos_token": inside.bos,
            "eos_token": inside.eos,
            "unk_token": inside.unk,
        }
        _write_json(part / "tokenizer_config.json", settings)
        return
    folder = checkpoint.path if checkpoint.path.is_dir() else checkpoint.path.parent
    for name in TOKENIZER_FILES:
        if (folder / name).is_file():
            shutil.copyfile(folder / name, part / name)


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
