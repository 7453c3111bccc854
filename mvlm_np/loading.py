"""From files to a loaded model, or one error that says why not."""

from collections.abc import Callable, Mapping
from math import prod
from pathlib import Path

from mvlm_np import backend as backends
from mvlm_np import decoder, memory, projector, vision
from mvlm_np.checkpoints.binding import Binder, Loader, Manifest, check
from mvlm_np.checkpoints.folder import Checkpoint
from mvlm_np.checkpoints.names import hugging_face, unused
from mvlm_np.checkpoints.opening import open_checkpoint
from mvlm_np.checkpoints.tensors import Tensor
from mvlm_np.config import Config
from mvlm_np.decoder import DecoderWeights
from mvlm_np.errors import MemoryNeeded, UserError
from mvlm_np.inputs.tokenizer import Tokenizer
from mvlm_np.model import MobileVLM
from mvlm_np.projector import Projector
from mvlm_np.vision import VisionWeights


def load(
    path_or_name: str | Path,
    precision: str | None = None,
    backend: str = "auto",
    threads: int | None = None,
    vision_tower: str | Path | None = None,
    mmproj: str | Path | None = None,
    cache: str = "float32",
    progress: Callable[[int, int], object] | None = None,
) -> MobileVLM:
    """Loads a model.

    path_or_name  a model folder or a GGUF file
    precision     None: as stored; "float32"
    backend       "numba", "numpy" (the reference), or "auto": numba if it is there
    threads       of BLAS and Numba, for the whole process; None leaves them alone
    vision_tower  the folder of the CLIP model, where it is not where the config says
    mmproj        the GGUF file with vision tower and projector, where it is not beside the model
    cache         type of the key-value cache: "float32"
    progress      called with the bytes read so far and the bytes in all

    Raises a UserError if the files are unreadable, incomplete or do not fit each other, and MemoryNeeded
    if the model does not fit in memory; nothing large is allocated before all of that is known.
    """
    if precision not in (None, "float32"):
        raise UserError("precision", f"found {precision!r}", "float32, or None for as stored")
    if cache != "float32":
        raise UserError("cache", f"found {cache!r}", "float32")
    ops = backends.choose(backend)
    checkpoint = open_checkpoint(path_or_name, vision_tower, mmproj)
    tensors = bound_tensors(checkpoint)
    require_memory(checkpoint, tensors)
    if threads is not None:
        backends.limit_threads(threads)
    done, total = 0, sum(tensor.nbytes for tensor in tensors.values())

    def count(nbytes: int) -> None:
        nonlocal done
        done += nbytes
        if progress:
            progress(done, total)

    weights = bind(checkpoint.config, Loader(tensors, count))
    return MobileVLM(checkpoint.config, *weights, ops, lambda: open_tokenizer(checkpoint))


def bind(config: Config, get: Binder) -> tuple[VisionWeights | None, Projector | None, DecoderWeights]:
    """All weights of the model that a config describes."""
    return (
        vision.bind(config.vision, get.at("vision")) if config.vision else None,
        projector.bind(config, get.at("projector")) if config.vision else None,
        decoder.bind(config.decoder, get.at("decoder")),
    )


def manifest(config: Config) -> dict[str, tuple[int, ...]]:
    """Our name and the shape of every weight of the model that a config describes."""
    wanted = Manifest()
    bind(config, wanted)
    return wanted.shapes


def bound_tensors(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """The checkpoint's tensors under our names. CheckpointError: they are not exactly those of its config."""
    spelling = hugging_face(checkpoint.config.mm_projector_type)
    return check(checkpoint.path, manifest(checkpoint.config), checkpoint.tensors, spelling, unused)


def float32_bytes(tensors: Mapping[str, Tensor]) -> int:
    """Memory that loading takes. Stored float32 is mapped, not copied: the system can take its pages back."""
    return sum(4 * prod(t.shape) for t in tensors.values() if t.dtype != "float32")


def require_memory(checkpoint: Checkpoint, tensors: Mapping[str, Tensor]) -> None:
    config = checkpoint.config.decoder
    per_position = 8 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    needed = float32_bytes(tensors) + per_position * min(config.max_position_embeddings, 512)
    there = memory.available()
    if there is not None and needed > there:
        raise MemoryNeeded(
            checkpoint.path,
            f"needs {needed / memory.GB:.1f} GB in float32",
            f"no more than the {there / memory.GB:.1f} GB that are available",
            f"what is stored takes {sum(t.nbytes for t in tensors.values()) / memory.GB:.1f} GB",
        )


def open_tokenizer(checkpoint: Checkpoint) -> Tokenizer:
    if checkpoint.tokenizer is not None:
        return Tokenizer(checkpoint.tokenizer, where=checkpoint.path)
    return Tokenizer.from_folder(checkpoint.path)
