"""Candidates: what another implementation dumped, in whatever form it writes easily.

    FILE.safetensors    float32, float16, bfloat16, float64, whole numbers
    FILE.npz, FILE.npy  NumPy's; bfloat16 as its bit patterns in uint16, or as `ml_dtypes` saves it
    FOLDER              a file for each stage: NAME.npy, or raw little-endian numbers: float32 in .bin, .raw
                        or .f32, whole numbers in .i32 or .i64; a/b.npy is the stage a.b
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
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np

from mvlm_np.checkpoints.safetensors import read_with_metadata
from mvlm_np.checkpoints.sniff import HEAD, show, what_is
from mvlm_np.checkpoints.tensors import bfloat16_to_float32
from mvlm_np.errors import GoldenError
from mvlm_np.golden.compare.excerpts import partner
from mvlm_np.golden.stages import Stages, StoredStages, stored_stages

RAW = {".bin": "<f4", ".raw": "<f4", ".f32": "<f4", ".i32": "<i4", ".i64": "<i8"}
KINDS = "a safetensors or npz file, a folder of npy or raw float32 files, or llama.cpp's dump"
LLAMA_CPP = "projector.output"  # what llama.cpp dumps: the picture as the decoder gets it
GUIDE = "write a name map: docs/golden-format.md"


@dataclass(frozen=True)
class Candidate:
    """What a candidate holds, under the golden's names.

    stages    the arrays; leading batch axes are still there, and a raw file has one axis only
    dtypes    {stage: type in which it is stored}
    metadata  of a safetensors file
    unknown   names in the candidate for which the golden has no stage
    absent    names of the name map that are not in the candidate
    """

    stages: Stages
    dtypes: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    unknown: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()
    path: Path | None = None

    def under(self, wanted: Iterable[str]) -> "Candidate":
        """The same with a stage's last positions under the whole stage's name, or the other way round, where
        the golden has the other."""
        there = {name: partner(name, self.stages) for name in wanted}
        renamed = {name: other for name, other in there.items() if other is not None}
        if all(name == other for name, other in renamed.items()):
            return self
        reads = {name: partial(self.stages.__getitem__, other) for name, other in renamed.items()}
        dtypes = {name: self.dtypes[other] for name, other in renamed.items() if other in self.dtypes}
        return replace(self, stages=StoredStages(reads), dtypes=dtypes)


@dataclass(frozen=True)
class _Found:
    """A candidate under its own names."""

    stages: StoredStages
    dtypes: dict[str, str] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)


def read_candidate(path: Path, wanted: Iterable[str], names: Mapping[str, str] | None = None) -> Candidate:
    """Opens a candidate.

    wanted  the golden's stages
    names   {stage: the candidate's name for it}, as `read_names` gives it
    GoldenError or CheckpointError: it cannot be read, or has no stage that is wanted.
    """
    found, wanted = _open(path), list(wanted)
    mapped = expand(names or {}, wanted)
    theirs = {name: partner(name, found.stages) for name in wanted} | mapped
    kept = {name: t for name, t in theirs.items() if t is not None and t in found.stages}
    absent = tuple(t for t in mapped.values() if t not in found.stages)
    if not kept:
        there = ", ".join(map(show, list(found.stages)[:6])) or "nothing"
        wrong = f", and not {show(absent[0])}, which the name map says" if absent else ""
        examples = f"stages such as {wanted[0]} or {wanted[-1]}"
        raise GoldenError(path, f"has {there}{wrong}", examples, GUIDE)
    return Candidate(
        StoredStages(
            {n: partial(found.stages.__getitem__, t) for n, t in kept.items()},
            lambda n: found.stages.forget(kept[n]),
        ),
        {n: found.dtypes[t] for n, t in kept.items() if t in found.dtypes},
        found.metadata,
        tuple(t for t in found.stages if t not in kept.values()),
        absent,
        path,
    )


def read_names(path: Path) -> dict[str, str]:
    """The [stages] of a TOML file: {golden's name: candidate's name}. GoldenError: it is not such a file."""
    wanted = '[stages] and lines "ours" = "yours"'
    try:
        table = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise GoldenError(path, f"cannot be read ({error.strerror})", "a TOML file of names") from None
    except ValueError as error:
        raise GoldenError(path, f"is not TOML: {error}", wanted) from None
    stages = table.get("stages")
    if set(table) != {"stages"} or not isinstance(stages, dict):
        raise GoldenError(path, f"has {', '.join(map(show, table)) or 'nothing'}", wanted)
    for ours, theirs in stages.items():
        if not isinstance(theirs, str):  # an unquoted dot makes a table
            found = f"found {type(theirs).__name__}"
            raise GoldenError(f"{path}: {show(ours)}", found, "a text", "put both names in quotes")
    return stages


def expand(names: Mapping[str, str], wanted: Iterable[str]) -> dict[str, str]:
    """The map with every `{i}` replaced by the numbers that the wanted stages have there."""
    out, wanted = {}, list(wanted)
    for ours, theirs in names.items():
        pattern = re.compile(re.escape(ours).replace(re.escape("{i}"), r"(\d+)"))
        for name in wanted:
            if match := pattern.fullmatch(name):
                out[name] = theirs.replace("{i}", match[1]) if match.groups() else theirs
    return out


# ---------------------------------------------------------------- the formats


def _open(path: Path) -> _Found:
    try:
        if path.is_dir():
            files = {
                ".".join(file.relative_to(path).with_suffix("").parts): file
                for file in sorted(path.rglob("*"))
                if file.suffix in (".npy", *RAW) and file.is_file()
            }
            if not files:
                raise GoldenError(path, "holds no .npy file and no raw one", KINDS)
            return _files(files)
        with open(path, "rb") as f:
            head = f.read(HEAD)
    except OSError as error:
        raise GoldenError(path, f"cannot be read ({error.strerror})", KINDS) from None
    if head[:2] == b"PK":
        return _npz(path)
    if path.suffix in RAW:
        return _llama_cpp(path, head) or _files({path.stem: path})
    if head[:6] == b"\x93NUMPY":
        return _files({path.stem: path})
    if path.suffix != ".safetensors" and head[8:9] != b"{":
        raise GoldenError(
            path, what_is(head)[0] if head else "is empty", KINDS, "give what your port computed"
        )
    tensors, metadata = read_with_metadata(path)
    return _Found(stored_stages(tensors), {name: t.dtype for name, t in tensors.items()}, metadata)


def _llama_cpp(path: Path, head: bytes) -> _Found | None:
    if len(head) < 8:
        return None
    tokens, width = np.frombuffer(head, "<i4", 2).tolist()
    if tokens <= 0 or width <= 0 or path.stat().st_size != 8 + 4 * tokens * width:
        return None
    return _Found(StoredStages({LLAMA_CPP: partial(np.memmap, path, "<f4", "r", 8, (tokens, width))}))


def _npz(path: Path) -> _Found:
    def read(name: str) -> np.ndarray:
        with np.load(path, allow_pickle=False) as archive:
            return archive[name]

    try:
        with np.load(path, allow_pickle=False) as archive:
            names = archive.files
    except (ValueError, OSError, zipfile.BadZipFile) as error:
        raise GoldenError(path, f"cannot be read as npz ({error})", KINDS) from None
    return _Found(StoredStages({name: partial(_read, path, name, partial(read, name)) for name in names}))


def _files(files: Mapping[str, Path]) -> _Found:
    def read(file: Path) -> Callable[[], np.ndarray]:
        if file.suffix == ".npy" or file.suffix not in RAW:
            return partial(np.load, file, mmap_mode="r", allow_pickle=False)
        return partial(_raw, file)

    reads = {name: partial(_read, file, name, read(file)) for name, file in files.items()}
    return _Found(StoredStages(reads))


def _raw(file: Path) -> np.ndarray:
    dtype, size = np.dtype(RAW[file.suffix]), file.stat().st_size
    if not size or size % dtype.itemsize:
        raise GoldenError(file, f"has {size} bytes", f"{dtype.itemsize} for each number, as {dtype} has")
    return np.memmap(file, dtype, "r")


def _read(path: Path, name: str, read: Callable[[], np.ndarray]) -> np.ndarray:
    """The array as numbers that can be compared: half precision in float32, everything else as it is."""
    try:
        array = read()
    except GoldenError:
        raise
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise GoldenError(
            f"{path}: {show(name)}", f"cannot be read ({error})", "an array of numbers"
        ) from None
    if (array.dtype.kind == "V" and array.dtype.itemsize == 2) or array.dtype == np.uint16:
        return bfloat16_to_float32(array.view(np.uint16))
    if array.dtype.kind not in "fiub":
        raise GoldenError(f"{path}: {show(name)}", f"found {array.dtype}", "an array of numbers")
    return array.astype(np.float32) if array.dtype.itemsize < 4 and array.dtype.kind == "f" else array
