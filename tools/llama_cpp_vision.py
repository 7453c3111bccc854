"""What llama.cpp makes of a picture, beside what the model makes of it: the table in docs/llama-cpp.md.

    python tools/llama_cpp_vision.py FOLDER ... --source llama.cpp --libraries stock/bin changed/bin

Each FOLDER has a model, a golden (golden-0.safetensors), its picture, and cases.json, which names it, as in
tests/data/golden. Its GGUF pair is written as `mvlm convert --to gguf --precision float16` does; --pair takes
another one. --source is llama.cpp's source, --libraries are folders with its built libmtmd, libllama and
libggml: one as it is, say, and one with the edits of docs/llama-cpp.md. The picture is given as it is
("photo"), as `mvlm prepare` pads it ("square"), and as it does with --class-token-last ("moved"). It needs a
C++ compiler. `make llama-cpp` runs it, on small random models.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from math import log10
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout, when run as a script

import numpy as np
from PIL import Image

from mvlm_np.checkpoints.opening import open_checkpoint
from mvlm_np.converting import convert_to_gguf
from mvlm_np.errors import UserError
from mvlm_np.golden.compare.candidates import read_candidate
from mvlm_np.golden.compare.comparison import compare
from mvlm_np.golden.format import read_golden
from mvlm_np.inputs.image import one_patch_on, open_image, padded, padding, scaled
from tools.parts.command import ended

PROGRAM = Path(__file__).parent / "parts" / "llama_cpp" / "embeddings.cpp"


def compiled(source: Path, libraries: Path, out: Path, program: Path = PROGRAM) -> Path:
    """A program, made against llama.cpp; which build's libraries it takes is settled when it runs."""
    includes = [f"-I{source / folder}" for folder in ("include", "ggml/include", "tools/mtmd")]
    linked = ["-lmtmd", "-lllama", "-lggml", "-lggml-base", f"-Wl,-rpath-link,{libraries}"]
    command: list[str | Path] = ["c++", "-O1", *includes, program, "-o", out, f"-L{libraries}", *linked]
    ran = subprocess.run(command, capture_output=True, text=True)
    if ran.returncode:
        last = ran.stderr.strip().splitlines()[-1]
        wanted = "llama.cpp's source, and a folder with its libraries"
        raise UserError(libraries, f"{program.name} cannot be built ({last})", wanted)
    return out


class Row(NamedTuple):
    """What a build made of a picture ("photo", "square" or "moved"), against the golden."""

    libraries: Path
    picture: str
    right: bool
    cosine: float
    decibels: float


def table(
    folder: Path, source: Path, libraries: Sequence[Path], pair: Sequence[Path] | None = None
) -> Iterator[Row]:
    """A row for each build and picture. pair: the model and mmproj to take in place of ours."""
    golden, checkpoint = read_golden(folder / "golden-0.safetensors"), open_checkpoint(folder)
    picture = folder / json.loads((folder / "cases.json").read_text())[0]["image"]
    wanted = golden.stages["projector.output"]
    with TemporaryDirectory() as place:
        here = Path(place)
        if pair is None:
            convert_to_gguf(checkpoint, here / "pair", "float16")
            pair = here / "pair" / "model-F16.gguf", here / "pair" / "mmproj-model-f16.gguf"
        pictures = {"photo": picture, "square": here / "square.png", "moved": here / "moved.png"}
        photo, image, vision = (
            open_image(picture, exif=False),
            checkpoint.config.image,
            checkpoint.config.vision,
        )
        assert vision, folder
        padded(photo, image).save(pictures["square"])
        moved = one_patch_on(scaled(photo, image).transpose(1, 2, 0), vision.patch_size, padding(image))
        Image.fromarray(moved).save(pictures["moved"])
        program, out = compiled(source, libraries[0], here / "embeddings"), here / "embeddings.bin"
        for build in libraries:
            environment = {**os.environ, "LD_LIBRARY_PATH": str(build)}
            for name, path in pictures.items():
                command = [program, *pair, path, out]
                ran = subprocess.run(command, env=environment, capture_output=True, text=True)
                if ran.returncode:
                    last = ran.stderr.strip().splitlines()[-1:] or ["it says nothing"]
                    raise UserError(folder, f"llama.cpp of {build} ended with {ran.returncode} ({last[0]})")
                right = compare(golden, read_candidate(out, golden.names), "float16").right
                found = np.fromfile(out, np.float32, offset=8).reshape(wanted.shape)
                lengths = np.linalg.norm(found, axis=1) * np.linalg.norm(wanted, axis=1)
                cosine = float(((found * wanted).sum(axis=1) / lengths).mean())
                off = float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))
                yield Row(build, name, right, cosine, -20 * log10(off))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", type=Path, nargs="+", metavar="FOLDER")
    parser.add_argument("--source", type=Path, required=True)
    parser.add_argument("--libraries", type=Path, nargs="+", required=True)
    parser.add_argument("--pair", type=Path, nargs=2, metavar=("MODEL", "MMPROJ"))
    args = parser.parse_args()

    def show() -> None:
        for folder in args.folders:
            for row in table(folder, args.source, args.libraries, args.pair):
                said = f"{'right' if row.right else 'wrong'}, cosine {row.cosine:.3f}, {row.decibels:.0f} dB"
                print(f"{folder.name:12} {row.libraries.name:10} {row.picture:7} {said}", flush=True)

    return ended("llama_cpp_vision", show)


if __name__ == "__main__":
    sys.exit(main())
