"""Candidates: what another implementation dumped, in whatever form it writes easily.

    FILE.safetensors    float32, float16, bfloat16, float64
    FILE.npz            NumPy's archive
    FOLDER              a file for each stage: NAME.npy, or raw little-endian float32 (.bin .raw .f32)
    FILE.bin            llama.cpp's embedding dump: int32 tokens, int32 width, float32 data

Names that differ from the golden's are mapped by a small TOML file:

    [stages]
    "vision.hidden_states.{i}" = "encoder_block_{i}_out"      # ours = yours; {i} is any number
    "projector.output" = "image_embeds"
"""

import re
import tomllib
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mvlm_np.checkpoints.safetensors import read_with_metadata
from mvlm_np.checkpoints.sniff import show
from mvlm_np.errors import GoldenError
from mvlm_np.golden.format import Stages, numbers

RAW = (".bin", ".raw", ".f32")
KINDS = "a safetensors file, an npz file, a folder of npy or raw float32 files, or llama.cpp's dump"
LLAMA_CPP = "projector.output"  # what llama.cpp dumps: the picture as the decoder gets it


@dataclass(frozen=True)
class Candidate:
    """What a candidate holds, under the golden's names.

    stages    the arrays; leading batch axes are still there, and a raw file has one axis only
    dtypes    {stage: type in which it is stored}
    metadata  of a safetensors file
    unknown   names in the candidate for which the golden has no stage
    """

    stages: Mapping[str, np.ndarray]
    dtypes: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    unknown: tuple[str, ...] = ()
    path: Path | None = None


@dataclass(frozen=True)
class _Found:
    """A candidate under its own names."""

    stages: Stages
    dtypes: dict[str, str]
    metadata: Mapping[str, str] = field(default_factory=dict)


def read_candidate(path: Path, wanted: Iterable[str], names: Mapping[str, str] | None = None) -> Candidate:
    """Opens a candidate.

    wanted  the golden's stages
    names   {stage: the candidate's name for it}, as `read_names` gives it
    GoldenError or CheckpointError: it cannot be read, or has no stage that is wanted.
    """
    found, wanted = _open(path), list(wanted)
    theirs = {name: name for name in wanted} | {n: t for n, t in expand(names or {}, wanted).items()}
    missing = [t for n, t in theirs.items() if names and t not in found.stages and n != t]
    kept = {n: t for n, t in theirs.items() if t in found.stages}
    if not kept:
        there = ", ".join(map(show, list(found.stages)[:6])) or "nothing"
        more = f"; {missing[0]} of the name map is not in it" if missing else ""
        raise GoldenError(
            path,
            f"has no stage of the golden's, but {there}{more}",
            f"names such as {wanted[0]} or {wanted[-1]}",
            "write a name map: docs/golden-format.md",
        )
    return Candidate(
        Stages(
            {n: partial(found.stages.__getitem__, t) for n, t in kept.items()},
            lambda n: found.stages.forget(kept[n]),
        ),
        {n: found.dtypes[t] for n, t in kept.items()},
        found.metadata,
        tuple(t for t in found.stages if t not in kept.values()),
        path,
    )


def read_names(path: Path) -> dict[str, str]:
    """The [stages] of a TOML file: {golden's name: candidate's name}. GoldenError: it is not such a file."""
    try:
        stages = tomllib.loads(path.read_text("utf-8")).get("stages")
    except OSError as error:
        raise GoldenError(path, f"cannot be read ({error.strerror})", "a TOML file of names") from None
    except ValueError as error:
        raise GoldenError(path, f"is not TOML: {error}", 'lines such as "ours" = "yours"') from None
    if not isinstance(stages, dict) or not all(isinstance(v, str) for v in stages.values()):
        raise GoldenError(path, "has no table [stages] of texts", '[stages] with lines "ours" = "yours"')
    return stages


def expand(names: Mapping[str, str], wanted: Iterable[str]) -> dict[str, str]:
    """The map with every `{i}` replaced by the numbers that the wanted stages have there."""
    out = {}
    for ours, theirs in names.items():
        pattern = re.compile(re.escape(ours).replace(re.escape("{i}"), r"(\d+)"))
        for name in wanted:
            if match := pattern.fullmatch(name):
                out[name] = theirs.replace("{i}", match[1]) if match.groups() else theirs
    return out


def _open(path: Path) -> _Found:
    if not path.exists():
        raise GoldenError(path, "is not there", KINDS)
    if path.is_dir():
        return _folder(path)
    with open(path, "rb") as f:
        head = f.read(8)
    if head[:2] == b"PK":
        return _npz(path)
    if head[:6] == b"\x93NUMPY":
        return _folder_of([path])
    if path.suffix in RAW and len(head) == 8:
        tokens, width = np.frombuffer(head, "<i4").tolist()
        if tokens > 0 and width > 0 and path.stat().st_size == 8 + 4 * tokens * width:
            return _llama_cpp(path, tokens, width)
    if path.suffix in RAW:
        return _folder_of([path])
    tensors, metadata = read_with_metadata(path)

    def forget(name: str) -> None:
        tensors[name].file.forget(tensors[name].offset, tensors[name].nbytes)

    read = {name: partial(numbers, tensor) for name, tensor in tensors.items()}
    return _Found(Stages(read, forget), {name: t.dtype for name, t in tensors.items()}, metadata)


def _llama_cpp(path: Path, tokens: int, width: int) -> _Found:
    def read() -> np.ndarray:
        return np.memmap(path, "<f4", "r", 8, (tokens, width))

    return _Found(Stages({LLAMA_CPP: read}), {LLAMA_CPP: "float32"})


def _npz(path: Path) -> _Found:
    try:
        archive = np.load(path, allow_pickle=False)
    except (ValueError, OSError, zipfile.BadZipFile) as error:
        raise GoldenError(path, f"cannot be read as npz ({error})", KINDS) from None
    read = {name: partial(_member, archive, name) for name in archive.files}
    return _Found(Stages(read), dict.fromkeys(read, "float32"))


def _folder(path: Path) -> _Found:
    files = sorted(f for f in path.rglob("*") if f.suffix in (".npy", *RAW) and f.is_file())
    if not files:
        raise GoldenError(path, "holds no .npy and no raw float32 file", KINDS)
    return _folder_of(files)


def _folder_of(files: list[Path]) -> _Found:
    read: dict[str, Callable[[], np.ndarray]] = {}
    for file in files:
        if file.suffix == ".npy":
            read[file.stem] = partial(_npy, file)
        else:
            read[file.stem] = partial(np.memmap, file, "<f4", "r")
    return _Found(Stages(read), dict.fromkeys(read, "float32"))


def _npy(file: Path) -> np.ndarray:
    return _plain(np.load(file, mmap_mode="r", allow_pickle=False))


def _member(archive: Any, name: str) -> np.ndarray:
    return _plain(archive[name])


def _plain(array: np.ndarray) -> np.ndarray:
    """float16 in float32; everything else as it is."""
    return array.astype(np.float32) if array.dtype == np.float16 else array
