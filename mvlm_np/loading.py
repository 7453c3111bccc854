"""From files to a loaded model, or one error that says why not."""

import reprlib
from collections.abc import Callable, Mapping
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from mvlm_np import backend as backends
from mvlm_np import cores, decoder, memory, projector, vision
from mvlm_np.ahead import Ahead
from mvlm_np.binder import PROJECTOR, VISION_TOWER, Binder, Manifest
from mvlm_np.checkpoints.checkpoint import Checkpoint
from mvlm_np.checkpoints.loader import Loader, check, kind
from mvlm_np.checkpoints.opening import open_checkpoint
from mvlm_np.checkpoints.tensors import Tensor
from mvlm_np.config import Config
from mvlm_np.decoder import DecoderWeights
from mvlm_np.errors import MemoryNeeded, UserError
from mvlm_np.inputs.tokenizer import Tokenizer
from mvlm_np.inputs.tokenizer import make as make_tokenizer
from mvlm_np.kernels.pack import KINDS
from mvlm_np.kv_cache import TYPES as CACHES
from mvlm_np.kv_cache import bytes_per_position
from mvlm_np.linear import Quantized
from mvlm_np.model import MobileVLM
from mvlm_np.precisions import LOADED
from mvlm_np.projector import Projector
from mvlm_np.vision import VisionWeights

if TYPE_CHECKING:
    from mvlm_np.prefix import Prefix

SMALL = 50_000_000  # bytes: NumPy has answered with such a model before Numba is imported


def load(
    path_or_name: str | Path,
    precision: str | None = None,
    backend: str = "auto",
    threads: int | None = None,
    vision_tower: str | Path | None = None,
    mmproj: str | Path | None = None,
    cache: str | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> MobileVLM:
    """Loads a model.

    path_or_name  a model folder or a GGUF file
    precision     of the linear layers: "float32", "int8", "int4", "int4-symmetric", or None: as
                  stored; see `precisions` and `loader.kind`
    backend       "numba", "numpy" (the reference), or "auto": numba if it is there, but numpy for a model so
                  small that importing Numba would take longer than the answer
    threads       of BLAS and of the kernels, for the whole process; None leaves them alone
    vision_tower  the folder of the CLIP model, where it is not where the config says
    mmproj        the GGUF file with vision tower and projector, where it is not beside the model
    cache         type of the key-value cache: "float32", "float16" or "int8"; None: float16 beside a decoder
                  in packed weights, whose own rounding is far coarser, else float32
    progress      called with the bytes read so far and the bytes in all

    Raises a UserError if the files are unreadable, incomplete or do not fit each other, and MemoryNeeded
    if the model does not fit in memory; nothing large is allocated before all of that is known.
    """
    if precision not in (None, *LOADED):
        raise UserError("precision", f"found {precision!r}", f"{', '.join(LOADED)}, or None for as stored")
    if cache not in (None, *CACHES):
        raise UserError(
            "cache", f"found {cache!r}", f"{', '.join(CACHES)}, or None for what suits the weights"
        )
    backends.check(backend)
    if progress is not None and not callable(progress):
        raise UserError("progress", f"found {reprlib.repr(progress)}", "a function of two numbers, or None")
    checkpoint = open_checkpoint(path_or_name, vision_tower, mmproj)
    tensors = bound_tensors(checkpoint)
    if cache is None:
        cache = "float16" if quantized(tensors, precision) else "float32"
    require_memory(checkpoint, tensors, precision, cache)
    small = sum(tensor.nbytes for tensor in tensors.values()) < SMALL
    if backend == "auto" and small and not backends.prebuilt():
        backend = "numpy"
    ops = backends.choose(backend)
    notes = list(checkpoint.notes)
    if threads is not None:
        backends.limit_threads(threads)
        chosen, why = cores.usable()
        if threads > len(chosen):
            notes.append(
                f"{threads} threads on {len(chosen)} cores wait for each other ({why}); fewer are faster"
            )
    tokenizer = Ahead(lambda: open_tokenizer(checkpoint))
    done, total = 0, sum(tensor.nbytes for tensor in tensors.values())

    def count(nbytes: int) -> None:
        nonlocal done
        done += nbytes
        if progress:
            progress(done, total)

    loader = Loader(tensors, precision, ops, count)
    weights = bind(checkpoint.config, loader)
    loader.finish()
    if weights[0] is not None and isinstance(weights[0].layers[0].out_proj, Quantized):
        ops = backends.with_int8_attention(ops)
    notes += loader.notes() if precision is None else []
    for_pictures = [tensors[name] for name in tensors if name.startswith((VISION_TOWER, PROJECTOR))]

    def give_back() -> None:
        """What is mapped comes back from the file when it is needed again."""
        for tensor in for_pictures:
            tensor.forget()

    def find_prefix() -> "Prefix | None":
        """Imported and read when the first question is asked."""
        from mvlm_np import prefix

        return prefix.find(checkpoint.path, weights[2], checkpoint.config.decoder, ops, cache)

    return MobileVLM(
        checkpoint.config,
        *weights,
        ops,
        tokenizer.result,
        notes,
        cache,
        give_back,
        checkpoint.no_vision,
        find_prefix,
    )


def bind(config: Config, get: Binder) -> tuple[VisionWeights | None, Projector | None, DecoderWeights]:
    """All weights of the model that a config describes."""
    return (
        vision.bind(config.vision, get) if config.vision else None,
        projector.bind(config, get) if config.vision else None,
        decoder.bind(config.decoder, get),
    )


@lru_cache
def manifest(config: Config) -> Manifest:
    """Names and shapes of all weights of the model that a config describes. Nobody changes it."""
    wanted = Manifest()
    bind(config, wanted)
    return wanted


def bound_tensors(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """The tensors that the model reads. CheckpointError: the checkpoint's are not those of its config."""
    wanted, tied = manifest(checkpoint.config).shapes, checkpoint.config.decoder.tie_word_embeddings
    return check(checkpoint.path, wanted, checkpoint.tensors, tied)


def quantized(tensors: Mapping[str, Tensor], precision: str | None) -> bool:
    """Whether the decoder's layers are packed."""
    name = "model.layers.0.mlp.down_proj.weight"
    return kind(name, tensors[name], precision) is not None


def memory_needed(
    config: Config, tensors: Mapping[str, Tensor], precision: str | None, cache: str = "float32"
) -> int:
    """Bytes that a loaded model works with: its weights, mapped or not, and a cache of 512 positions."""
    matrices, needed = manifest(config).matrices, 0.0
    for name, tensor in tensors.items():
        kept = kind(name, tensor, precision) if name in matrices else None
        # Embeddings are read row by row where they lie.
        if name != "model.embed_tokens.weight" or name in matrices:
            needed += prod(tensor.shape) * (KINDS[kept] / 8 if kept else 4)
    positions = min(config.decoder.max_position_embeddings, 512)
    return round(needed) + bytes_per_position(config.decoder, cache) * positions


def require_memory(
    checkpoint: Checkpoint, tensors: Mapping[str, Tensor], precision: str | None, cache: str
) -> None:
    there, needed = memory.available(), memory_needed(checkpoint.config, tensors, precision, cache)
    if there is None or needed <= there:
        return
    sizes = {p: memory_needed(checkpoint.config, tensors, p, cache) for p in LOADED}
    fitting = [f"{p} ({size / 1e9:.1f} GB)" for p, size in sizes.items() if size <= there]
    raise MemoryNeeded(
        checkpoint.path,
        f"needs {needed / 1e9:.1f} GB {f'in {precision}' if precision else 'as stored'}",
        f"no more than the {there / 1e9:.1f} GB that are available",
        f"precision {' or '.join(fitting)} would fit" if fitting else "not even int4-symmetric would fit",
    )


def open_tokenizer(checkpoint: Checkpoint) -> Tokenizer:
    """TokenizerError: there is none, it is not sound, or it is another model's."""
    return make_tokenizer(checkpoint.read_tokenizer(), checkpoint.config.decoder.vocab_size)
