"""Runs programs, ours and theirs, each to its end in a process of its own."""

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryFile, gettempdir
from time import perf_counter
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[3]
OURS_LIES_IN = Path(find_spec("mvlm_np").origin or "").parents[1]  # type: ignore[union-attr]
PYTHONPATH = os.pathsep.join(map(str, (OURS_LIES_IN, ROOT)))


class Ran(NamedTuple):
    seconds: float
    peak: int  # bytes
    out: str
    err: str


def find(program: str, folder: str | None = None) -> str | None:
    """The path of one of llama.cpp's programs: in `folder`, where $LLAMA_CPP points, or on the PATH."""
    places = (folder, os.environ.get("LLAMA_CPP"), os.environ.get("PATH"))
    return shutil.which(program, path=os.pathsep.join(filter(None, places)))


def run(command: Sequence[str], **environment: str) -> Ran:
    """Runs a program to its end. The peak of its memory is VmHWM, mapped pages included."""
    with TemporaryFile() as out, TemporaryFile() as err:
        start = perf_counter()
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            cwd=gettempdir(),
            env={**os.environ, "PYTHONPATH": PYTHONPATH, **environment},
        )
        _, status, usage = os.wait4(process.pid, 0)
        seconds = perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode(errors="replace"))
    if process.returncode:
        sys.exit(f"{shlex.join(command)}\nfailed with {process.returncode}:\n{texts[1][-2000:]}")
    return Ran(seconds, usage.ru_maxrss * 1024, *texts)
