"""Writing a model anew: any format in; out comes a folder of safetensors, or the two files of a GGUF.

The folder is laid out as upstream's, loads wherever a model folder does, and stands for itself: settings,
tokenizer and vision tower lie in it, and of a rounded model the beginning of every prompt (`prefix`).
`mvlm.json` says where the model came from, what rounding cost, and the SHA-256 of every file. Tensors are
read, rounded and written one at a time. Whatever stops a conversion leaves nothing under the destination's
name; killed, it leaves DESTINATION.part-PID, which may be removed. A calibration leaves what is done of it in
DESTINATION.calibrating, with which the same call goes on.
"""

import os
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from mvlm_np import prefix
from mvlm_np.backend import choose
from mvlm_np.binder import VISION_TOWER
from mvlm_np.calibrating.layers import Gains, Work, calibrated, origin
from mvlm_np.calibrating.reading import Reading, Sequences, reader
from mvlm_np.checkpoints import packed
from mvlm_np.checkpoints.checkpoint import Checkpoint
from mvlm_np.checkpoints.gguf_blocks import TYPES_BY_NAME
from mvlm_np.checkpoints.gguf_class_token import shared_out
from mvlm_np.checkpoints.gguf_tokenizer import as_sentencepiece
from mvlm_np.checkpoints.gguf_writer import Q4_K_WHOLE, Weight, write_gguf_pair
from mvlm_np.checkpoints.gguf_writer import Told as ToldOfGGUF
from mvlm_np.checkpoints.json_files import read_json
from mvlm_np.checkpoints.loader import kind
from mvlm_np.checkpoints.lora import MergedTensor
from mvlm_np.checkpoints.record import write_json, write_record
from mvlm_np.checkpoints.safetensors import Entry, write_safetensors
from mvlm_np.checkpoints.tensors import CHUNK, PLAIN, Tensor, float32_to_bfloat16
from mvlm_np.config import Config
from mvlm_np.errors import GenerationError, MemoryNeeded, NoTokenizer, TokenizerError, UserError
from mvlm_np.inputs.conversation import as_jinja
from mvlm_np.inputs.image import padding_seen
from mvlm_np.kernels import pack
from mvlm_np.loading import bound_tensors, load, manifest, open_tokenizer, quantized, require_memory
from mvlm_np.precisions import FLOATS, FOLDER, FOUR_BIT_KINDS, FOUR_BITS, GGUF, PACKED
from mvlm_np.quantize import WHOLE

QUALITIES = ("high", "fast")

# What is told of each tensor as it is written: its name, kind (None: not packed), signal-to-noise in dB.
Told = Callable[[str, str | None, float], object]


def convert(
    checkpoint: Checkpoint,
    destination: Path,
    precision: str | None,
    quality: str = "high",
    told: Told = lambda name, kind, snr: None,
    template: str | None = prefix.TEMPLATE,
    calibration: "Calibration | None" = None,
) -> None:
    """Writes `checkpoint` to the new folder `destination`.

    precision  of the linear layers: "float32", "bf16", "int8", "int4" or "int4-symmetric" (see `precisions`
               and `loader.kind`), or None: as stored. But for the first two, everything else stays as it is
    quality    of 4 bits: "high" or "fast", see `quantize`
    template   whose beginning is computed and stored for packed weights, see `prefix`; None: of none
    calibration  of 4 bits: rounds the decoder's layers by what goes through them. Of these, `told`
               hears the signal-to-noise ratio of what they compute, not that of their weights

    UserError: the folder is there already, or cannot be written; or the checkpoint is not sound.
    """
    tensors = _sound(checkpoint, precision, (None, *FOLDER), quality)
    with _calibrated(checkpoint, tensors, destination, precision, calibration) as (rounded, gains):
        _write_folder(checkpoint, rounded, destination, precision, quality, told, template, gains)


def _write_folder(
    checkpoint: Checkpoint,
    tensors: Mapping[str, Tensor],
    destination: Path,
    precision: str | None,
    quality: str,
    told: Told,
    template: str | None,
    gains: Gains,
) -> None:
    rounding: dict[str, dict[str, Any]] = {}

    def note(name: str, kept: str | None, snr: float) -> None:
        if name in gains:
            snr, nearest = gains[name]
            if np.isfinite(snr):
                of_output = {"output_signal_to_noise_db": snr, "to_nearest_db": nearest}
                rounding[name] = {"kind": kept, **of_output}
        elif kept and np.isfinite(snr):
            rounding[name] = {"kind": kept, "signal_to_noise_db": snr}
        told(name, kept, snr)

    with new_folder(destination) as part:
        _write_weights(checkpoint.config, tensors, part, precision, quality, note)
        write_tokenizer(checkpoint, part)
        _write_settings(checkpoint, part)
        if template is not None and precision not in FLOATS and quantized(tensors, precision):
            _write_prefix(part, template)
        write_record(part, {**_origin(checkpoint), "precision": precision, "rounding": rounding})


def convert_to_gguf(
    checkpoint: Checkpoint,
    destination: Path,
    precision: str,
    quality: str = "high",
    progress: Callable[[int, int], object] = lambda done, total: None,
    told: ToldOfGGUF = lambda name, dtype, snr: None,
    calibration: "Calibration | None" = None,
) -> None:
    """Writes `checkpoint` as the GGUF pair that llama.cpp runs, into the new folder `destination`.

    precision  of the decoder's matrices: "float16" (F16), "int8" (Q8_0), "int4" (Q4_K) or "int4-symmetric"
               (Q4_0)
    quality    of Q4_0: "high", the same weights as in a folder, or "fast", those of llama.cpp's quantiser;
               of Q4_K: see `quantize`
    told       hears of each matrix that is not written as asked or as stored, see `write_gguf_pair`
    progress   is called with the bytes written so far and the bytes in all
    calibration  as in `convert`

    UserError: as `convert`; or llama.cpp has no such model; or there is no tokenizer, which a GGUF contains.
    """
    tensors = _sound(checkpoint, precision, GGUF, quality)
    if calibration is not None and precision in FOUR_BITS:
        _require_blocks(checkpoint, tensors, precision)
    tokenizer = open_tokenizer(checkpoint)
    with (
        _calibrated(checkpoint, tensors, destination, precision, calibration, Q4_K_WHOLE) as (rounded, _),
        new_folder(destination) as part,
    ):
        write_gguf_pair(
            part,
            {**rounded, **_class_token(checkpoint.config, rounded)},
            checkpoint.config,
            as_sentencepiece(checkpoint.read_tokenizer()),
            GGUF[precision],
            name=checkpoint.path.stem,
            added_tokens={text: i for text, i in tokenizer.appended.items() if text not in tokenizer.beyond},
            legacy=tokenizer.legacy,
            chat_template=as_jinja("v1") if checkpoint.config.vision else None,
            quality=quality,
            progress=progress,
            told=told,
        )
        write_record(part, {**_origin(checkpoint), "precision": precision})


def _class_token(config: Config, tensors: Mapping[str, Tensor]) -> dict[str, Weight]:
    """The two tensors of the class token, for a place before the patches and for one behind them."""
    if not config.vision:
        return {}
    return shared_out(tensors, padding_seen(config.image))


def _sound(
    checkpoint: Checkpoint, precision: str | None, precisions: Collection[str | None], quality: str
) -> dict[str, Tensor]:
    """The checkpoint's tensors, once all that was asked for makes sense."""
    for where, found, known in (("precision", precision, precisions), ("quality", quality, QUALITIES)):
        if found not in known:
            raise UserError(where, f"found {found!r}", " or ".join(filter(None, known)))
    tensors = bound_tensors(checkpoint)
    for tensor in tensors.values():
        if isinstance(tensor, MergedTensor) and tensor.is_rounded and precision in PACKED:
            raise UserError(
                f"{checkpoint.path}: {tensor.name}",
                f"is kept in {tensor.base.dtype}, and would be rounded a second time after merging",
                "a base in floating point",
                "merge onto the model from which this one was made, or write bf16",
            )
    return tensors


@dataclass(frozen=True)
class Calibration:
    """What is read for it, and who hears of its progress: what is done, how much of it, and of how much."""

    reading: Reading
    progress: Callable[[str, float, float], object] = lambda what, done, total: None


@contextmanager
def _calibrated(
    checkpoint: Checkpoint,
    tensors: Mapping[str, Tensor],
    destination: Path,
    precision: str | None,
    calibration: Calibration | None,
    whole: int = WHOLE,
) -> Iterator[tuple[Mapping[str, Tensor], Gains]]:
    """The tensors with the decoder's matrices rounded by what goes through them, and what that has gained.

    What is done lies beside the destination, until the conversion is complete.
    """
    if calibration is None:
        yield tensors, {}
        return
    if precision is None or precision not in FOUR_BITS:
        fix = "leave it out: rounding to 8 bits costs next to nothing"
        raise UserError("calibration", f"found the precision {precision}", " or ".join(FOUR_BITS), fix)
    for name, tensor in tensors.items():
        if name.startswith("model.layers.") and kind(name, tensor, None) in FOUR_BIT_KINDS:
            fix = "calibrate the model from which this one was made"
            found = f"is rounded to {tensor.dtype} already"
            raise UserError(f"{checkpoint.path}: {name}", found, "more bits", fix)
    _require_new(destination)
    reading, told = calibration.reading, calibration.progress
    work = Work(
        destination.with_name(f"{destination.name}.calibrating"),
        origin(checkpoint.config, tensors, PACKED[precision], whole, reading.digest()),
    )
    ops, to = choose(), PACKED[precision]

    def sequences() -> Sequences:
        require_memory(checkpoint, tensors, "int8", "float16")
        return reading.sequences(reader(checkpoint, tensors, ops), partial(told, "read"))

    with work.held():
        decoder, progress = checkpoint.config.decoder, partial(told, "calibrate")
        rounded, gains = calibrated(tensors, decoder, to, whole, ops, work, sequences, progress)
        yield {**tensors, **rounded}, gains
        shutil.rmtree(work.path)


def _require_blocks(checkpoint: Checkpoint, tensors: Mapping[str, Tensor], precision: str) -> None:
    """UserError: blocks of GGUF's type do not divide a row, so that it would not hold what is calibrated."""
    values = TYPES_BY_NAME[GGUF[precision].lower()].values
    for name, tensor in tensors.items():
        if name.startswith("model.layers.") and len(tensor.shape) == 2 and tensor.shape[1] % values:
            found = f"has rows of {tensor.shape[1]}"
            wanted = f"a multiple of {values}, which is a block of {GGUF[precision]}"
            fix = "write a folder" if values == 32 else "take int4-symmetric, or write a folder"
            raise UserError(f"{checkpoint.path}: {name}", found, wanted, fix)


def _origin(checkpoint: Checkpoint) -> dict[str, Any]:
    return {"source": checkpoint.path.name, "notes": checkpoint.notes}


@contextmanager
def new_folder(destination: Path) -> Iterator[Path]:
    """A folder that gets its name when all is written, and vanishes if that fails."""
    _require_new(destination)
    part = destination.with_name(f"{destination.name}.part-{os.getpid()}")
    try:
        part.mkdir(parents=True)
        yield part
        part.rename(destination)
    except OSError as error:
        raise UserError(destination, f"cannot be written ({error.strerror})") from None
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _require_new(destination: Path) -> None:
    if os.path.lexists(destination):
        raise UserError(destination, "exists already", "a new folder", "name another, or remove it")


# ---------------------------------------------------------------- weights


def _write_weights(
    config: Config,
    tensors: Mapping[str, Tensor],
    part: Path,
    precision: str | None,
    quality: str,
    note: Told,
) -> None:
    """model.safetensors; the vision tower in a folder of its own where upstream's rule looks for it there."""
    matrices = manifest(config).matrices
    model, tower = _File(), _File()
    for name, tensor in tensors.items():
        kept = kind(name, tensor, precision) if name in matrices and precision not in FLOATS else None
        file = model
        if name.startswith(VISION_TOWER) and not config.vision_in_checkpoint:
            name, file = name.removeprefix(VISION_TOWER), tower
        if kept is None:
            file.plain.append(_plain(name, tensor, precision, note))
        else:
            file.packed += _packed(name, tensor, kept, quality, note)
            file.metadata[name] = packed.describe(kept, tensor.shape)
    for file, path in ((model, part / "model.safetensors"), (tower, part / "clip" / "model.safetensors")):
        if file.plain:
            path.parent.mkdir(exist_ok=True)
            mark = {packed.MARK: packed.VERSION} if file.metadata else {}
            # Sizes of packed arrays are multiples of 32 bytes, so whatever follows them is aligned too.
            file.plain.sort(key=lambda entry: -PLAIN[entry.dtype].itemsize)
            write_safetensors(path, [*file.packed, *file.plain], {"format": "pt", **mark, **file.metadata})


class _File:
    """What will be written to one file."""

    def __init__(self) -> None:
        self.packed: list[Entry] = []
        self.plain: list[Entry] = []
        self.metadata: dict[str, str] = {}


def _packed(name: str, tensor: Tensor, kept: str, quality: str, note: Told) -> list[Entry]:
    """The arrays of a packed matrix. Rounding gives them all at once, so the factors wait for their turn."""
    waiting: list[np.ndarray] = []

    def values() -> Iterator[np.ndarray]:
        if isinstance(tensor, packed.PackedTensor) and tensor.dtype == kept:
            packed.require_finite([tensor])
        matrix, snr = packed.packed(tensor, kept, quality)
        values, *waiting[:] = matrix.arrays
        yield values
        tensor.file.forget(tensor.offset, tensor.raw.nbytes)
        note(name, kept, snr)

    first, *others = (
        (f"{name}.{part}", *about) for part, about in pack.parts(kept, *packed.matrix(tensor.shape)).items()
    )
    return [Entry(*first, values), *(Entry(*other, lambda: [waiting.pop(0)]) for other in others)]


def _plain(name: str, tensor: Tensor, precision: str | None, note: Told) -> Entry:
    """A tensor in floating point: as stored, but where the precision or a block type says otherwise."""
    dtype = FLOATS.get(precision or "", tensor.dtype)
    dtype = dtype if dtype in PLAIN else "float32"

    def values() -> Iterator[np.ndarray]:
        step = max(1, CHUNK // max(1, prod(tensor.shape[1:])))
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
    values.pop("quantization_config", None)  # of which nothing is true any more
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
        write_json(clip / "config.json", {"model_type": "clip_vision_model", **asdict(config.vision)})
        height, width = config.image.crop
        preprocessor = {
            "image_processor_type": "CLIPImageProcessor",
            "size": {"shortest_edge": config.image.resize},
            "crop_size": {"height": height, "width": width},
            "image_mean": config.image.mean,
            "image_std": config.image.std,
            "resample": 3,
        }
        write_json(clip / "preprocessor_config.json", preprocessor)
    generation = checkpoint.path / "generation_config.json"
    if generation.is_file():
        shutil.copyfile(generation, part / generation.name)
    write_json(part / "config.json", values)


def _write_prefix(part: Path, template: str) -> None:
    """The keys and values of the template's beginning, where this machine can compute them for all others."""
    try:
        model = load(part)
        if prefix.is_exact(model.decoder, model.config.decoder, model.ops):
            pictures = model.config.vision is not None
            prefix.write(
                part / prefix.NAME, prefix.compute(model.session(), template, model.tokenizer, pictures)
            )
    except (MemoryNeeded, TokenizerError, GenerationError):
        return  # the model has been converted all the same


def write_tokenizer(checkpoint: Checkpoint, part: Path) -> None:
    """Copies the tokenizer's files, or writes down what a GGUF holds. A model without one stays without."""
    try:
        stored = checkpoint.read_tokenizer()
    except NoTokenizer:
        return
    for name, path in stored.files.items():
        shutil.copyfile(path, part / name)
    if not stored.files:
        (part / "tokenizer.model").write_bytes(as_sentencepiece(stored))
        settings = {
            "tokenizer_class": "LlamaTokenizer",
            "legacy": stored.legacy,
            "add_bos_token": stored.add_bos,
            "add_eos_token": stored.add_eos,
            "bos_token": stored.bos,
            "eos_token": stored.eos,
            "unk_token": stored.unk,
        }
        write_json(part / "tokenizer_config.json", settings)
