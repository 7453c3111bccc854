"""Runs a reader on hostile files in processes that may not do much, and reports what they did.

Each file is read in a process of its own with 1 s of CPU time and 200 MB of memory above what the
interpreter had before. An audit hook lists all that Python itself reports as noteworthy (imports,
compiled code, opened files, started processes, sockets ...), so "nothing was executed" is an empty list.

    outcomes = read_confined("mvlm_np.checkpoints.pickles:read_pickle", paths)
"""

import importlib
import json
import os
import resource
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

CPU_SECONDS = 1
MEMORY = 200 << 20


@dataclass(frozen=True)
class Outcome:
    """What reading one file did. `error` is None if the file was read, or if the process was killed."""

    signal: int  # that killed the process (SIGXCPU, SIGSEGV, ...), or 0
    error: str | None = None  # class of the exception
    message: str = ""
    user_error: bool = False  # the exception is one of those that a user is meant to see
    grown: int = 0  # bytes of memory above the start, at the worst moment
    events: tuple[str, ...] = ()  # audit events; opening and mapping the file, or one in the folder, is none


def read_confined(reader: str, paths: list[Path]) -> list[Outcome]:
    """Outcomes of `reader` ("module:function" of one path, of a file or a folder) on each of `paths`."""
    run = subprocess.run(
        [sys.executable, "-m", "tests.checkpoints.confine", reader],
        input=json.dumps([str(path) for path in paths]),
        cwd=Path(__file__).resolve().parents[2],
        env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},  # no threads, as the process forks
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return [
        Outcome(**{**line, "events": tuple(line["events"])})
        for line in map(json.loads, run.stdout.splitlines())
    ]


def _main(reader: str) -> None:
    module, function = reader.split(":")
    read = getattr(importlib.import_module(module), function)
    for path in json.load(sys.stdin):
        from_child, to_parent = os.pipe()
        child = os.fork()
        if child == 0:
            outcome = json.dumps(_confined(read, path))
            os.write(to_parent, outcome[: 1 << 16].encode())
            os._exit(0)
        os.close(to_parent)
        with os.fdopen(from_child) as pipe:
            text = pipe.read()
        killed_by = os.WTERMSIG(os.waitpid(child, 0)[1])
        print(text if text and not killed_by else json.dumps({"signal": killed_by, "events": ()}), flush=True)


def _confined(read, path: str) -> dict:
    outcome: dict = {"signal": 0}
    start = _memory("VmRSS")
    # RLIMIT_DATA counts what a process allocates, and not the file that it maps.
    limit = _memory("VmData") + MEMORY
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    events: list[str] = []

    def hook(event: str, arguments: tuple) -> None:
        looks = event == "os.listdir" or (event == "open" and arguments[1] in ("r", "rb"))
        ours = looks and (os.path.abspath(str(arguments[0])) + os.sep).startswith(path + os.sep)
        if events is not None and not ours and event != "mmap.__new__":
            events.append(event)

    sys.addaudithook(hook)
    try:
        read(Path(path))
    except BaseException as error:
        seen = list(events)
        names = {cls.__name__ for cls in type(error).__mro__}
        outcome |= {"error": type(error).__name__, "user_error": "UserError" in names, "message": str(error)}
    else:
        seen = list(events)
    return outcome | {"events": seen[:20], "grown": _memory("VmHWM") - start}


def _memory(field: str) -> int:
    """A figure of /proc/self/status, in bytes."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) << 10 for line in status if line.startswith(field + ":"))


if __name__ == "__main__":
    _main(sys.argv[1])
