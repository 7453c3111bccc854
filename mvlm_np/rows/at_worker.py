"""What a Dask worker does: it loads the model once, and answers tasks one after another."""

import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

import mvlm_np
from mvlm_np import backend, cores
from mvlm_np.config import Config
from mvlm_np.errors import UserError
from mvlm_np.paths import local
from mvlm_np.rows.answering import answer
from mvlm_np.rows.pictures import Pictures
from mvlm_np.rows.row import Row

if TYPE_CHECKING:
    from mvlm_np.model import MobileVLM

Load = Callable[[], "MobileVLM"]  # a `functools.partial` of `load`, told by its arguments
Came = tuple[str | None, str | None, int, float, float]  # an `Answered` without its row

Files = tuple[tuple[str, int, str], ...]
END = 1 << 16  # bytes at the end of a file of weights by which it is told from another one

_LOADED = dict[str, tuple["MobileVLM", Pictures]]()
_LOCK = Lock()  # one task at a time: a model computes on all its cores


@dataclass(frozen=True)
class About:
    """What a worker says of itself before it is given anything.

    machine  what it computes with: results may depend on it
    model    what it has loaded; None: it could not
    files    of its weights: names, sizes, and a hash of each one's end
    error    in one line, why
    missing  of the pictures that it was asked for, those that it does not see
    """

    version: str
    machine: str
    model: Config | None
    files: Files
    error: str | None
    missing: tuple[str, ...]


def load(share: int | None = None, /, **arguments: Any) -> "MobileVLM":
    """`mvlm_np.load`, so that a worker computes what a process of its own would, to the bit.

    share  threads for the kernels, if other processes have the other cores; their results do not depend on it

    What BLAS computes does depend on its threads, of which Dask gives a worker one.
    """
    model = mvlm_np.load(**arguments)
    if arguments.get("threads") is None:
        backend.limit_threads(share or len(cores.usable()[0]), blas=len(os.sched_getaffinity(0)))
    return model


def examine(load: Load, pictures: Sequence[str]) -> About:
    """Loads the model, and looks for pictures."""
    config, error = None, None
    try:
        with _LOCK:
            config = _loaded(load)[0].config
    except (UserError, OSError, MemoryError) as problem:
        error = str(problem) or type(problem).__name__
    missing = tuple(picture for picture in pictures if not os.path.exists(picture))
    files = tuple((name, size, end) for name, size, _, end in _files(load))
    return About(mvlm_np.__version__, _machine(), config, files, error, missing)


def answer_task(load: Load, rows: Sequence[Row], options: dict[str, Any]) -> list[Came]:
    """Answers some rows."""
    with _LOCK:
        model, pictures = _loaded(load)
        return [
            (one.answer, one.error, one.tokens, one.probability, one.seconds)
            for one in answer(model, rows, pictures=pictures, **options)
        ]


def _loaded(load: Load) -> tuple["MobileVLM", Pictures]:
    name = repr((load, _files(load)))
    if name not in _LOADED:
        _LOADED.clear()  # the model of an earlier run
        model = load()
        _LOADED[name] = model, Pictures(model)
    return _LOADED[name]


def _files(load: Any) -> tuple[tuple[str, int, int, str], ...]:
    """Name, size, time, and a hash of the end, of each file of weights that `load` will read."""
    path = Path(local(load.keywords["path_or_name"]))
    there = sorted(path.iterdir()) if path.is_dir() else [path] if path.is_file() else []
    found = []
    for one in there:
        if one.suffix in (".safetensors", ".bin", ".gguf"):
            about = one.stat()
            with open(one, "rb") as file:
                file.seek(max(0, about.st_size - END))
                end = sha256(file.read()).hexdigest()
            found.append((one.name, about.st_size, about.st_mtime_ns, end))
    return tuple(found)


def _machine() -> str:
    kernels = backend.about_kernels()
    return f"{platform.machine()} {kernels.get('instruction_set') or 'without kernels'}"
