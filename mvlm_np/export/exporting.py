"""Writing a model's graphs, and what else a program needs to run them, as a new folder.

vision.onnx       from a picture to its tokens: vision tower and projector
decoder-N.onnx    from the embeddings of N positions to their logits
decoder.data      the weights of the decoder, where several graphs share them or they exceed 2 GB
embed_tokens.npy  the embeddings of all token ids
README.md         shapes, a loop that runs it, and how to check it; the tokenizer's files lie beside it
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mvlm_np.checkpoints.checkpoint import Checkpoint
from mvlm_np.converting import new_folder, write_tokenizer
from mvlm_np.errors import UserError
from mvlm_np.export import readme
from mvlm_np.export.graph import Finished, Weight
from mvlm_np.export.onnx_file import LARGEST, Count, require_onnx, write_graph, write_values, write_weights
from mvlm_np.export.tracing import Form, language_model, tower
from mvlm_np.loading import bound_tensors

OPSETS = range(13, 21)
LAYER_NORM_SINCE, GELU_SINCE = 17, 20  # the opset with that operation
PARTS = ("vision", "decoder")
CHOICES = {
    "dtype": ("float32", "float16"),
    "gelu": ("erf", "op", "tanh"),
    "layer_norm": ("op", "steps"),
    "input": ("float", "uint8"),
}


@dataclass(frozen=True)
class Export:
    """What is to be written.

    form      how the graphs are written
    parts     which of them: "vision", "decoder"
    rows      how many positions a call of the decoder computes; a graph for each number
    capacity  how many positions the decoder's cache holds
    """

    form: Form = field(default_factory=Form)
    parts: Sequence[str] = PARTS
    rows: Sequence[int] = (1, 64)
    capacity: int = 1024


def export(
    checkpoint: Checkpoint,
    destination: Path,
    wanted: Export,
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> None:
    """Writes the graphs to the new folder `destination`.

    progress  is called with the bytes of weights written so far and the bytes in all

    UserError: something asked for does not exist or does not fit the model; the folder is there already, or
    cannot be written; the checkpoint is not sound; float16 does not hold a weight; onnx is not installed.
    """
    _check(checkpoint, wanted)
    require_onnx()
    config, tensors, dtype = checkpoint.config, bound_tensors(checkpoint), wanted.form.dtype
    graphs: dict[str, dict[str, Finished]] = {}  # {part: {file: graph}}; those of a part share their weights
    if "vision" in wanted.parts:
        graphs["vision"] = {"vision": tower(config, tensors, wanted.form)}
    if "decoder" in wanted.parts:
        graphs["decoder"] = {
            f"decoder-{rows}": language_model(config.decoder, tensors, wanted.form, rows, wanted.capacity)
            for rows in wanted.rows
        }
    embeddings = tensors["model.embed_tokens.weight"]
    table = Weight(embeddings, embeddings.shape)
    done, total = 0, sum(next(iter(files.values())).weight_bytes for files in graphs.values())
    total += table.nbytes(dtype) if "decoder" in graphs else 0

    def count(nbytes: int) -> None:
        nonlocal done
        done += nbytes
        progress(done, total)

    with new_folder(destination) as part:
        for name, files in graphs.items():
            _write(part, name, files, count)
        if "decoder" in graphs:
            _write_table(part / "embed_tokens.npy", table, dtype, count)
            write_tokenizer(checkpoint, part)
        every = {name: graph for files in graphs.values() for name, graph in files.items()}
        (part / "README.md").write_text(readme.text(checkpoint, every, wanted.form), encoding="utf-8")


def _check(checkpoint: Checkpoint, wanted: Export) -> None:
    """UserError: it cannot be written so."""
    form, decoder = wanted.form, checkpoint.config.decoder
    for name, known in CHOICES.items():
        if (found := getattr(form, name)) not in known:
            raise UserError(name, f"found {found!r}", " or ".join(known))
    if form.opset not in OPSETS:
        raise UserError("opset", f"found {form.opset}", f"{OPSETS[0]} to {OPSETS[-1]}")
    if form.gelu == "op" and form.opset < GELU_SINCE:
        raise UserError("gelu", f"found op, with opset {form.opset}", f"opset {GELU_SINCE}", "or take erf")
    if form.layer_norm == "op" and form.opset < LAYER_NORM_SINCE:
        wanted_opset = f"opset {LAYER_NORM_SINCE} or more"
        raise UserError("layer_norm", f"found op, with opset {form.opset}", wanted_opset, "or take steps")
    if not wanted.parts or not set(wanted.parts) <= set(PARTS):
        raise UserError("parts", f"found {', '.join(wanted.parts) or 'none'}", " or ".join(PARTS))
    if "vision" in wanted.parts and checkpoint.config.vision is None:
        raise UserError(checkpoint.path, "has no vision tower", fix="export the decoder alone")
    if "decoder" in wanted.parts:
        longest = decoder.max_position_embeddings
        if not 1 <= wanted.capacity <= longest:
            raise UserError("capacity", f"found {wanted.capacity}", f"1 to {longest}, the model's positions")
        for rows in wanted.rows or [0]:
            if not 1 <= rows <= wanted.capacity:
                raise UserError("rows", f"found {rows}", f"1 to {wanted.capacity}, the capacity")


def _write(folder: Path, name: str, files: Mapping[str, Finished], count: Count) -> None:
    """The graphs of a part, each with its weights, or all with the same weights in a file of their own."""
    first, external = next(iter(files.values())), None
    if len(files) > 1 or first.weight_bytes > LARGEST:
        external = f"{name}.data", write_weights(folder / f"{name}.data", first, count)
    for file, graph in files.items():
        write_graph(folder / f"{file}.onnx", graph, count, external)


def _write_table(path: Path, table: Weight, dtype: str, count: Count) -> None:
    """The embeddings as NumPy's file: a header, then the rows."""
    header = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": table.shape}
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        write_values(file, table, dtype, count)
