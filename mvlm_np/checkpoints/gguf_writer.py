"""Writes a model as the two GGUF files that llama.cpp runs: the LLaMA decoder, and the mmproj.

Names, types and settings are those of llama.cpp's own converters and quantiser (F16, Q8_0, Q4_0, Q4_K), with
two differences. `clip.vision.feature_layer` is always set, since llama.cpp otherwise leaves out one more
layer of the vision tower. And in a file of 4 bits the matrix that makes the logits is Q8_0 where llama.cpp
takes Q6_K, which this engine reads but does not write.

What is in these blocks already, or in a packed kind that they hold, is not rounded again. Our uint4 counts
scales and minima in 8 bits, and Q4_K in 6: what does not fit is rounded again, and told. So are rows that
blocks do not divide: they go to a type of shorter blocks and more bits.

One tensor at a time is in memory, and a file appears under its name only when both are complete.
"""

import os
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from math import inf, log10, prod
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np

from mvlm_np.checkpoints.gguf_blocks import TYPES, encode, join
from mvlm_np.checkpoints.gguf_names import PROJECTOR_TYPES, decoder_names, mmproj_names
from mvlm_np.checkpoints.gguf_tokenizer import tokenizer_settings
from mvlm_np.checkpoints.packed import LOSSLESS, PackedTensor
from mvlm_np.checkpoints.tensors import CHUNK, Tensor
from mvlm_np.config import Config, VisionConfig
from mvlm_np.errors import CheckpointError, ConfigError, some
from mvlm_np.kernels import pack
from mvlm_np.precisions import FOUR_BIT_KINDS
from mvlm_np.quantize import dequantize, quantize, recount

ALIGNMENT = 32
# What we write, and llama.cpp's number for it.
FILE_TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q8_0": 7, "Q4_K": 14}
_TYPES = {"F32": "float32", "F16": "float16", "Q4_0": "q4_0", "Q8_0": "q8_0", "Q4_K": "q4_k"}
_BLOCKS = {kind: blocks for blocks, kind in LOSSLESS.items()}  # which hold a packed kind
_FOUR_BITS = tuple(_BLOCKS[kind] for kind in FOUR_BIT_KINDS)
Q4_K_WHOLE = 63  # the largest scale or minimum of a Q4_K
_QUANTIZATION_VERSION = 2  # of the block formats
_NUMBERS = {stored.name: number for number, stored in TYPES.items()}

# Of a matrix: its name, the type it is written in, and what that costs, in dB, where that is known.
Told = Callable[[str, str, float | None], object]


class Weight(Protocol):
    """What the writer needs of a tensor. A `Tensor` that has the wanted blocks already keeps them."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def float32(self) -> np.ndarray: ...


@dataclass(frozen=True)
class Entry:
    """A tensor to write: its name and shape in the file, how it is stored, and where its bytes come from.

    chunks  the values in the file's order, piece by piece: uint8 arrays
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    chunks: Callable[[], Iterator[np.ndarray]]

    @property
    def nbytes(self) -> int:
        stored = TYPES[_NUMBERS[self.dtype]]
        return prod(self.shape) // stored.values * stored.nbytes


def write_gguf_pair(
    folder: Path,
    tensors: Mapping[str, Weight],
    config: Config,
    tokenizer: bytes | None,
    precision: str = "F16",
    *,
    name: str = "MobileVLM",
    added_tokens: Mapping[str, int] | None = None,
    legacy: bool = True,
    chat_template: str | None = None,
    quality: str = "fast",
    progress: Callable[[int, int], object] = lambda done, total: None,
    told: Told = lambda name, dtype, snr: None,
) -> list[Path]:
    """Writes `model-{precision}.gguf` and, if there is vision, `mmproj-model-f16.gguf`; returns their paths.

    tensors    by Hugging Face's names, checked against `config`; what the files have no place for is left out
    tokenizer  the bytes of its SentencePiece model; added_tokens and legacy as in `inputs.tokenizer`. None:
               there is none, and llama.cpp can only quantise the file
    chat_template  in Jinja; without one, llama.cpp's tools for pictures ask for it
    precision  one of `FILE_TYPES`, of the decoder's matrices. Rows that blocks of Q4_K do not
               divide are Q8_0, and those that others do not divide F16. A matrix that is kept in one of the
               two types of 4 bits is never rounded to the other
    quality    of Q4_0: "fast" rounds as llama.cpp's quantiser does, "high" as `quantize` does, of Q4_K always
    progress   is called after each piece with the bytes written so far and the bytes in all
    told       is called for each matrix that blocks do not divide, and so is not what was asked for, with
               the name, its type in the file, and None; and for each of uint4 whose scales are rounded again
               to 6 bits, with the name, "q4_k", and the signal-to-noise ratio in dB

    Raises CheckpointError for a missing tensor or values that the format cannot hold, ConfigError for a
    model that llama.cpp has no graph for, OSError if the disk is full; nothing is left behind then.
    """
    if precision not in FILE_TYPES:
        raise ConfigError("GGUF export", f"precision {precision!r}", " or ".join(FILE_TYPES))
    settings = _decoder_settings(config, name, precision)
    if tokenizer is not None:
        settings |= tokenizer_settings(tokenizer, config.decoder.vocab_size, added_tokens, legacy)
    if chat_template is not None:
        settings["tokenizer.chat_template"] = chat_template
    entries = list(_decoder_entries(tensors, config, precision, quality, told))
    files = {f"model-{precision}.gguf": (settings, entries)}
    if config.vision:
        settings = _mmproj_settings(config, config.vision, name)
        files["mmproj-model-f16.gguf"] = (settings, list(_mmproj_entries(tensors, config)))
    done, total = 0, sum(entry.nbytes for _, entries in files.values() for entry in entries)

    def count(nbytes: int) -> None:
        nonlocal done
        done += nbytes
        progress(done, total)

    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as cleanup:
        drafts = {}
        for file_name, (metadata, entries) in files.items():
            draft = drafts[folder / file_name] = folder / f".{file_name}.{os.getpid()}.part"
            cleanup.callback(draft.unlink, missing_ok=True)
            with open(draft, "wb") as f:
                write_gguf(f, metadata, entries, count)
                f.flush()
                os.fsync(f.fileno())
        for final, draft in drafts.items():
            draft.replace(final)
    return list(drafts)


# -- The format -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class F32:
    """A setting that is kept as float32, as all of llama.cpp's fractions are."""

    value: float


def write_gguf(
    f: BinaryIO,
    settings: Mapping[str, Any],
    entries: Iterable[Entry],
    count: Callable[[int], object] = lambda _: None,
) -> None:
    """Settings and tensors in GGUF version 3. `count` is called with the size of each piece written.

    A setting is a bool, int (kept as u32), F32 or str, or a list of int (i32), float (f32) or str.
    """
    entries = list(entries)
    head = [b"GGUF", struct.pack("<IQQ", 3, len(entries), len(settings))]
    head += [_string(key) + _setting(value) for key, value in settings.items()]
    offset = 0
    for entry in entries:
        sizes = entry.shape[::-1]
        layout = struct.Struct(f"<I{len(sizes)}QIQ")
        head.append(_string(entry.name) + layout.pack(len(sizes), *sizes, _NUMBERS[entry.dtype], offset))
        offset += entry.nbytes + -entry.nbytes % ALIGNMENT
    header = b"".join(head)
    f.write(header + bytes(-len(header) % ALIGNMENT))
    for entry in entries:
        written = 0
        for chunk in entry.chunks():
            f.write(chunk.data)
            written += chunk.nbytes
            count(chunk.nbytes)
        assert written == entry.nbytes, f"{entry.name}: announced {entry.nbytes} bytes, wrote {written}"
        f.write(bytes(-written % ALIGNMENT))


def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _setting(value: Any) -> bytes:
    if isinstance(value, bool):
        return struct.pack("<IB", 7, value)
    if isinstance(value, int):
        return struct.pack("<II", 4, value)
    if isinstance(value, F32):
        return struct.pack("<If", 6, value.value)
    if isinstance(value, str):
        return struct.pack("<I", 8) + _string(value)
    kind, code = {int: (5, "i"), float: (6, "f"), str: (8, "")}[type(value[0])]
    data = struct.pack(f"<{len(value)}{code}", *value) if code else b"".join(map(_string, value))
    return struct.pack("<IIQ", 9, kind, len(value)) + data


# -- The language model -----------------------------------------------------------------------------------


def _decoder_settings(config: Config, name: str, precision: str) -> dict[str, Any]:
    decoder = config.decoder
    plain = precision in ("F32", "F16")
    quantized = {} if plain else {"general.quantization_version": _QUANTIZATION_VERSION}
    return quantized | {
        "general.architecture": "llama",
        "general.type": "model",
        "general.name": name,
        "general.file_type": FILE_TYPES[precision],
        "llama.vocab_size": decoder.vocab_size,
        "llama.context_length": decoder.max_position_embeddings,
        "llama.embedding_length": decoder.hidden_size,
        "llama.block_count": decoder.num_hidden_layers,
        "llama.feed_forward_length": decoder.intermediate_size,
        "llama.rope.dimension_count": decoder.head_dim,
        "llama.rope.freq_base": F32(decoder.rope_theta),
        "llama.attention.head_count": decoder.num_attention_heads,
        "llama.attention.head_count_kv": decoder.num_key_value_heads,
        "llama.attention.key_length": decoder.head_dim,
        "llama.attention.value_length": decoder.head_dim,
        "llama.attention.layer_norm_rms_epsilon": F32(decoder.rms_norm_eps),
    }


def _decoder_entries(
    tensors: Mapping[str, Weight],
    config: Config,
    precision: str,
    quality: str,
    told: Told,
) -> Iterator[Entry]:
    decoder = config.decoder
    heads = {"attn_q": decoder.num_attention_heads, "attn_k": decoder.num_key_value_heads}
    names = decoder_names(decoder.num_hidden_layers, decoder.tie_word_embeddings)
    logits = "token_embd.weight" if decoder.tie_word_embeddings else "output.weight"
    for name, tensor in _chosen(tensors, names):
        shape = tensor.shape
        dtype = wanted = "float32" if len(shape) == 1 else _type_of(tensor, precision, name == logits)
        while shape[-1] % TYPES[_NUMBERS[dtype]].values:
            dtype = _SHORTER[dtype]
        if dtype != wanted:
            told(name, dtype, None)
        part = name.split(".")[-2]
        order = partial(_pairs, heads=heads[part]) if part in heads else None
        yield Entry(name, shape, dtype, partial(_chunks, name, tensor, dtype, order, quality, told))


_SHORTER = {"q4_k": "q8_0", "q8_0": "float16", "q4_0": "float16"}  # types of shorter blocks


def _type_of(tensor: Weight, precision: str, makes_logits: bool) -> str:
    """The type that a matrix is to be written in."""
    wanted = _TYPES[precision]
    if wanted not in _FOUR_BITS:
        return wanted
    kept = _BLOCKS.get(tensor.dtype, tensor.dtype) if isinstance(tensor, Tensor) else None
    return kept if kept in _FOUR_BITS else "q8_0" if makes_logits else wanted


def _pairs(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rows of q or k from Hugging Face's order, halves of a head, to llama.cpp's, neighbouring pairs."""
    return rows.reshape(heads, 2, -1, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def _chosen(tensors: Mapping[str, Weight], names: Mapping[str, str]) -> Iterator[tuple[str, Weight]]:
    """llama.cpp's names with the tensors for them."""
    missing = [name for name in names.values() if name not in tensors]
    if missing:
        raise CheckpointError("GGUF export", f"{len(missing)} are missing: {some(missing, 6)}")
    return ((theirs, tensors[ours]) for theirs, ours in names.items())


def _chunks(
    name: str,
    tensor: Weight,
    dtype: str,
    order: Callable[[np.ndarray], np.ndarray] | None = None,
    quality: str = "fast",
    told: Told = lambda name, dtype, snr: None,
) -> Iterator[np.ndarray]:
    """The bytes of `tensor` as `dtype`, its rows put in `order`."""
    if isinstance(tensor, Tensor) and _grid(tensor) == dtype:
        rows = _blocks(tensor, dtype, told)
        if not np.isfinite(rows[..., : _HEADS[dtype]].view("<f2")).all():
            raise CheckpointError(name, "has scales that are not finite numbers")
        rows = rows.reshape(tensor.shape[0], -1)
        yield np.ascontiguousarray(order(rows) if order else rows).reshape(-1)
        return
    values = tensor.float32()
    values = order(values) if order else values
    step = max(1, CHUNK // max(1, values.shape[-1]))
    for start in range(0, len(values), step):
        part = values[start : start + step]
        if dtype == "q4_k" or (dtype == "q4_0" and quality == "high"):
            rounded = quantize(part, LOSSLESS[dtype], quality, name, Q4_K_WHOLE)
            yield join(dtype, *rounded).reshape(-1)
        else:
            yield encode(dtype, part.reshape(-1), name)


_HEADS = {"q4_0": 2, "q8_0": 2, "q4_k": 4}  # bytes at the beginning of a block that are float16


def _grid(tensor: Weight) -> str | None:
    """The block type on whose grid a matrix is kept: GGUF's own, or the one that ours repack to."""
    if isinstance(tensor, PackedTensor):
        name = _BLOCKS[tensor.dtype]
        return name if tensor.shape[-1] % TYPES[_NUMBERS[name]].values == 0 else None
    return tensor.dtype if isinstance(tensor, Tensor) and tensor.decode else None


def _blocks(tensor: Tensor, dtype: str, told: Told) -> np.ndarray:
    """The blocks of a matrix that is kept on a grid, uint8 (N, blocks, bytes), in the order of the values."""
    if not isinstance(tensor, PackedTensor):
        return tensor.stored().reshape(tensor.shape[0], -1, tensor.raw.shape[-1])
    rounded = pack.unpack(tensor.packed)
    if dtype == "q4_k" and rounded[1].max() > Q4_K_WHOLE:
        before, rounded = dequantize(*rounded), recount(rounded, Q4_K_WHOLE)
        after = dequantize(*rounded)
        signal, noise = (np.vdot(a, a) for a in (before, before - after))
        told(tensor.name, dtype, 10 * log10(signal / noise) if noise else inf)
    return join(dtype, *rounded)


# -- The vision tower and the projector -------------------------------------------------------------------


def _mmproj_settings(config: Config, vision: VisionConfig, name: str) -> dict[str, Any]:
    return {
        "general.architecture": "clip",
        "general.type": "mmproj",
        "general.name": name,
        "general.description": "image encoder for LLaVA",
        "general.file_type": FILE_TYPES["F16"],
        "clip.has_text_encoder": False,
        "clip.has_vision_encoder": True,
        "clip.has_llava_projector": True,
        "clip.projector_type": _projector(config),
        "clip.vision.image_size": vision.image_size,
        "clip.vision.patch_size": vision.patch_size,
        "clip.vision.embedding_length": vision.hidden_size,
        "clip.vision.feed_forward_length": vision.intermediate_size,
        "clip.vision.projection_dim": config.decoder.hidden_size,
        "clip.vision.attention.head_count": vision.num_attention_heads,
        "clip.vision.attention.layer_norm_epsilon": F32(vision.layer_norm_eps),
        "clip.vision.block_count": config.vision_layers,
        "clip.vision.feature_layer": [config.vision_layers],
        "clip.vision.image_mean": list(config.image.mean),
        "clip.vision.image_std": list(config.image.std),
        "clip.vision.image_aspect_ratio": config.image.aspect_ratio or "square",
        "clip.use_gelu": vision.hidden_act == "gelu",
    }


def _projector(config: Config) -> str:
    """llama.cpp's name for the projector, if it has the same model."""
    names = {ours: theirs for theirs, ours in PROJECTOR_TYPES.items()}
    kind = config.mm_projector_type
    if kind not in names:
        raise ConfigError("GGUF export", f"projector {kind}", f"one that llama.cpp has: {', '.join(names)}")
    if config.mm_vision_select_feature != "patch":
        raise ConfigError("GGUF export", "the projector sees the class token", "patches alone")
    if config.vision_layers == 0:
        raise ConfigError("GGUF export", "the features are taken before the first layer", "after one or more")
    return names[kind]


def _mmproj_entries(tensors: Mapping[str, Weight], config: Config) -> Iterator[Entry]:
    for name, tensor in _chosen(tensors, mmproj_names(config.vision_layers, _projector(config))):
        dtype = "float32" if len(tensor.shape) == 1 else "float16"
        shape = tuple(size for size in tensor.shape if size > 1)  # as the usual converter squeezes them
        yield Entry(name, shape, dtype, partial(_chunks, name, tensor, dtype))
