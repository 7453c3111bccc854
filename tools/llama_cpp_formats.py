"""llama.cpp's formats beside ours, of the same weights: what they hold, in how many bits, and what they cost.

    python tools/real_model.py .cache/real/smollm2-wide --off-grid --widen
    python tools/llama_cpp_formats.py .cache/real/smollm2-wide
    python tools/llama_cpp_formats.py .cache/real/smollm2-wide SMALL...   # and what `mvlm convert` made of it

llama.cpp's own llama-quantize and `mvlm convert` round a LLaMA in floats. This engine reads the results; they
predict the same English text as the floats do. llama-quantize is looked for in the folder that --llama-cpp
or $LLAMA_CPP names, and on the PATH. In a checkout of llama.cpp, `cmake -B build && cmake --build build
--target llama-quantize` makes it, in build/bin.

The columns, ready for docs:

    layers    how the weights of the decoder's layers are stored: the types, each with its share, and the bits
              a weight; likewise lm_head's type
    runs as   the kinds of weights with which this engine multiplies in these layers
    KL        divergence of the next token's chances from those of the floats, in nats: its mean, with
              the 95 % interval of that mean. First of the weights alone, computed in float32; then of the
              engine as it runs, its activations rounded too
    same best, perplexity   how often the engine prefers the token that the floats prefer; its perplexity
"""

import argparse
import json
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout, when run as a script

import mvlm_np
from mvlm_np.checkpoints.gguf_writer import write_gguf_pair
from mvlm_np.checkpoints.loader import kind
from mvlm_np.checkpoints.opening import open_checkpoint
from mvlm_np.cli.progress import bar
from mvlm_np.converting import convert
from mvlm_np.errors import UserError
from mvlm_np.loading import bound_tensors, manifest
from mvlm_np.precisions import PACKED
from tools.parts.arguments import at_least_1
from tools.parts.llama_cpp.process import find
from tools.parts.predictions import Quality, compare, pieces_of_text, predictions
from tools.parts.real_text import encode, manual

FORMATS = ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_1", "Q4_0")
QUANTIZE = "llama-quantize"
Shares = dict[str, float]  # of the weights, by a type's name


@dataclass(frozen=True)
class Row:
    """One format, of the weights that all rows have."""

    format: str
    stored: Shares  # of the layers
    bits: float  # a weight of theirs
    lm_head: str
    runs_as: Shares  # the layers again
    alone: Quality  # computed in float32
    engine: Quality


# ---------------------------------------------------------------- files


def by_llama_cpp(
    folder: Path, formats: Sequence[str], program: str, work: Path
) -> Iterator[tuple[str, Path]]:
    """Name and file of each format of a model. A file is there until the next one is asked for."""
    checkpoint = open_checkpoint(folder)
    plain, *_ = write_gguf_pair(work, bound_tensors(checkpoint), checkpoint.config, None, "F32")
    for name in formats:
        path = work / f"{name}.gguf"
        done = subprocess.run([program, plain, path, name], stdin=subprocess.DEVNULL, capture_output=True)
        if done.returncode or not path.is_file():
            last = (done.stderr.decode(errors="replace").strip().splitlines() or ["it says nothing"])[-1]
            raise UserError(f"{program}: {name}", f"failed with {done.returncode} ({last})")
        yield name, path
        path.unlink()


def by_us(folder: Path, work: Path) -> Iterator[tuple[str, Path]]:
    """The same for our own precisions."""
    for name in PACKED:
        convert(open_checkpoint(folder), work / name, name, template=None)
        yield name, work / name
        shutil.rmtree(work / name)


def contents(path: Path) -> tuple[Shares, float, str, Shares]:
    """The first columns: how weights are stored, in how many bits, how lm_head is, and what they run as."""
    checkpoint = open_checkpoint(path)
    tensors, config = bound_tensors(checkpoint), checkpoint.config.decoder
    layers = [name for name in manifest(checkpoint.config).matrices if name.startswith("model.layers.")]
    stored, runs_as = Counter[str](), Counter[str]()
    for name in layers:
        tensor = tensors[name]
        stored[tensor.dtype] += prod(tensor.shape)
        runs_as[kind(name, tensor, None) or "float32"] += prod(tensor.shape)
    weights = stored.total()
    bits = 8 * sum(tensors[name].nbytes for name in layers) / weights
    logits = "model.embed_tokens" if config.tie_word_embeddings else "lm_head"
    return shares(stored), bits, tensors[f"{logits}.weight"].dtype, shares(runs_as)


def shares(counted: Counter[str]) -> Shares:
    """The largest first."""
    return {name: count / counted.total() for name, count in counted.most_common()}


# ---------------------------------------------------------------- the table


def rows(args: argparse.Namespace, program: str) -> Iterator[Row]:
    reference = load(args.folder, "float32", args)
    ids = encode(args.folder, reference, manual("evaluation"))
    read = pieces_of_text(ids, args.tokens, args.window)
    true = [predictions(reference, piece)[0] for piece in read]
    del reference

    def row(name: str, path: Path, progress: Callable[[], object]) -> Row:
        def quality(precision: str | None) -> Quality:
            return compare(name, load(path, precision, args), read, true, progress)

        return Row(name, *contents(path), quality("float32"), quality(None))

    models = len(args.formats) + (0 if args.theirs else len(PACKED)) + len(args.small)
    with TemporaryDirectory() as work, bar("formats", 2 * models * len(read)) as shown:
        for name, path in chain(
            by_llama_cpp(args.folder, args.formats, program, Path(work)),
            () if args.theirs else by_us(args.folder, Path(work)),
            ((path.name, path) for path in args.small),
        ):
            yield row(name, path, shown.update)


def load(path: Path, precision: str | None, args: argparse.Namespace) -> Any:
    return mvlm_np.load(path, precision, args.backend, args.threads)


def print_table(found: Sequence[Row]) -> None:
    columns = ["", "layers", "bits a weight", "lm_head", "runs as", "KL, weights alone", "KL, engine"]
    print("|", " | ".join([*columns, "same best", "perplexity"]), "|")
    print("|", " | ".join(["---"] * (len(columns) + 2)), "|")
    for row in found:
        kl = [f"{q.kl:.3f} ± {q.kl_interval:.3f}" for q in (row.alone, row.engine)]
        cells = [row.format, spelt(row.stored), f"{row.bits:.2f}", row.lm_head, spelt(row.runs_as), *kl]
        print("|", " | ".join([*cells, f"{row.engine.same_best:.1%}", f"{row.engine.perplexity:.2f}"]), "|")


def spelt(found: Shares) -> str:
    """One type by its name; of several, each with its share."""
    if len(found) == 1:
        return next(iter(found))
    return ", ".join(f"{share:.0%} {name}" for name, share in found.items())


# ---------------------------------------------------------------- the command


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    top.add_argument("folder", type=Path, help="a LLaMA in floats")
    top.add_argument("small", metavar="SMALL", type=Path, nargs="*", help="other models of these weights")
    top.add_argument("--llama-cpp", metavar="FOLDER", help=f"where {QUANTIZE} is")
    top.add_argument("--formats", metavar="F", nargs="+", default=FORMATS, help=f"({' '.join(FORMATS)})")
    top.add_argument("--theirs", action="store_true", help="leave out our own precisions")
    top.add_argument("--tokens", metavar="N", type=at_least_1, default=1024, help="at most so many (1024)")
    top.add_argument("--window", metavar="N", type=at_least_1, default=512, help="tokens read together (512)")
    top.add_argument("--backend", metavar="B", default="auto", help="auto, numba or numpy")
    top.add_argument("--threads", metavar="N", type=at_least_1)
    top.add_argument("--json", action="store_true", help="print the figures as JSON")
    return top


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    try:
        program = find(QUANTIZE, args.llama_cpp)
        if program is None:
            fix = "build it in a checkout of llama.cpp: cmake -B build && cmake --build build --target"
            where = "on the PATH, or in the folder of --llama-cpp or $LLAMA_CPP"
            raise UserError(QUANTIZE, "is not there", f"it {where}", f"{fix} {QUANTIZE}")
        found = list(rows(args, program))
    except UserError as error:
        print(f"llama_cpp_formats: {error}", file=sys.stderr)
        return 2
    if args.json:
        print(json.dumps([asdict(row) for row in found]))
    else:
        print_table(found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
