"""`mvlm bench --start`: what `mvlm ask` spends from its call to the first layer of the model, step by step.

Each start is a process of its own, in which the real `ask` runs until it has computed its first layer. Of
steps within steps only the innermost counts, so all add up to the whole. What is imported counts for the
package that our code asked for, together with all that it imports in its turn. What other threads do ahead is
no step; waiting for it is.
"""

import builtins
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from threading import current_thread, main_thread
from time import perf_counter, process_time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import argparse

# Functions that are steps of their own, by the module in which they are called.
STEPS = {
    "mvlm_np.cli.calls": {"read": "reading the call"},
    "mvlm_np.backend": {"choose": "kernels"},
    "mvlm_np.loading": {
        "open_checkpoint": "config, tables of files",
        "bound_tensors": "names and shapes",
        "require_memory": "memory that is free",
        "bind": "mapping of weights",
        "Loader.finish": "looking through scales",
    },
    "mvlm_np.ahead": {"Ahead.result": "tokenizer"},
    "mvlm_np.cli.progress": {"ProgressWatch.phase": "picture", "ProgressWatch.__call__": ""},
}
FIRST, OURS, STANDARD = "first layer", "import mvlm_np", "import standard library"
BAR = 40  # characters of the whole waterfall


def run(args: "argparse.Namespace", model: dict[str, Any]) -> int:
    """The verb's work. model: the keyword arguments of `load`."""
    from mvlm_np import demo
    from mvlm_np.checkpoints.opening import open_checkpoint
    from mvlm_np.errors import UserError

    if args.rounds < 1:
        raise UserError("--rounds", f"found {args.rounds}", "at least 1")
    path = model.pop("path_or_name")
    picture = args.image or str(demo.PICTURES / "0.png")
    sees = open_checkpoint(path, model["vision_tower"], model["mmproj"]).config.vision is not None
    given = {"model": path, **{name: value for name, value in model.items() if value is not None}}
    named = [f"--{name.replace('_', '-')}={value}" for name, value in given.items()]
    figures = measure([*named, *([picture] if sees else []), "What is this?"], args.rounds)
    if args.json:
        import json

        json.dump(figures, sys.stdout)
        print()
    else:
        show(figures)
    return 0


def measure(arguments: list[str], rounds: int) -> dict[str, Any]:
    """Medians over several starts, in seconds: all that comes before the first layer, and its steps.

    arguments  those of `mvlm ask`
    UserError: with these, `ask` does not come to its first layer.
    """
    from statistics import median

    _start(arguments)  # once unmeasured: files come into memory, and what is compiled is kept
    starts = [_start(arguments) for _ in range(rounds)]
    steps = {name: median(start["steps"].get(name, 0.0) for start in starts) for name in starts[-1]["steps"]}
    return {
        "seconds": median(sum(start["steps"].values()) - start["steps"][FIRST] for start in starts),
        "cpu_seconds": median(start["cpu_seconds"] for start in starts),
        "first_layer_seconds": steps.pop(FIRST),
        "steps": steps,
        "starts": rounds,
    }


def _start(arguments: list[str]) -> dict[str, Any]:
    import json
    import subprocess

    from mvlm_np.errors import UserError

    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    code = (
        f"import sys; {root!r} in sys.path or sys.path.append({root!r}); "
        f"from mvlm_np.cli.start import follow; follow({perf_counter()!r}, {arguments!r})"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True)
    if done.returncode == 0 and (lines := done.stdout.splitlines()):
        return dict(json.loads(lines[-1]))
    said = done.stderr.strip().rpartition("\n")[2].removeprefix("mvlm: ")
    raise UserError("--start", f"mvlm ask did not come to its first layer: {said}")


def show(figures: dict[str, Any]) -> None:
    """Prints the waterfall: each step's bar begins where the one before ends."""
    per_second, begin = BAR / figures["seconds"], 0.0
    for name, seconds in figures["steps"].items():
        left, right = round(begin * per_second), round((begin + seconds) * per_second)
        bar = " " * left + "#" * (right - left)
        print(f"{name:24} {1e3 * seconds:5.0f} ms  {bar}".rstrip())
        begin += seconds
    of = f"{1e3 * figures['cpu_seconds']:.0f} ms of CPU time; medians of {figures['starts']} starts"
    print(f"{'before the first layer':24} {1e3 * figures['seconds']:5.0f} ms  ({of})")
    print(f"{FIRST:24} {1e3 * figures['first_layer_seconds']:5.0f} ms")


# ---------------------------------------------------------------- in the process that is started


def follow(called: float, arguments: list[str]) -> None:
    """Runs `mvlm ask` up to its first layer, and prints what each step took, as JSON.

    called  when the process was started, by `perf_counter`, which is one clock for all processes
    """
    clock = _Clock(called)
    builtins.__import__ = _importer(clock, builtins.__import__)
    from mvlm_np.cli import main

    try:
        sys.exit(main(["ask", *arguments]))
    except _Arrived:
        import json

        print(json.dumps({"steps": clock.steps, "cpu_seconds": clock.cpu}))


class _Arrived(BaseException):
    """The first layer has been computed."""


class _Clock:
    """The time of each step: that which passes while it is the innermost one.

    steps  {step: seconds}
    cpu    seconds of CPU time that all threads had taken when the first layer began
    """

    def __init__(self, called: float):
        self._since = perf_counter()
        self.steps, self.cpu = {"interpreter": self._since - called}, 0.0
        self._open = [OURS]

    @property
    def innermost(self) -> str:
        return self._open[-1]

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        if current_thread() is not main_thread():
            yield
            return
        self._count()
        self._open.append(name)
        try:
            yield
        finally:
            self._count()
            self._open.pop()

    def _count(self) -> None:
        now = perf_counter()
        self.steps[self.innermost] = self.steps.get(self.innermost, 0.0) + now - self._since
        self._since = now


def _importer(clock: _Clock, original: Any) -> Any:
    """`__import__` that makes steps of packages, and of the functions in STEPS as soon as they are there."""
    foreign = False  # within a package that is not ours

    def imports(name: str, scope: Any = None, *rest: Any) -> Any:
        nonlocal foreign
        if foreign or current_thread() is not main_thread():
            return original(name, scope, *rest)
        relative = len(rest) == 3 and rest[2] > 0
        package = (scope["__package__"] if relative else name).partition(".")[0]
        foreign = package != "mvlm_np"
        standard = package in sys.stdlib_module_names
        try:
            with clock.step(STANDARD if standard else f"import {package}"):
                return original(name, scope, *rest)
        finally:
            foreign = False
            _watch(clock)

    return imports


def _watch(clock: _Clock) -> None:
    """Makes steps of the functions of modules that have been imported by now."""
    for name in [name for name in STEPS if _is_whole(name)]:
        for function, step in STEPS.pop(name).items():
            owner: Any = sys.modules[name]
            *path, function = function.split(".")
            for part in path:
                owner = getattr(owner, part)
            timed = FOLLOWED.get(function, _timed)
            setattr(owner, function, timed(clock, step, getattr(owner, function)))


def _is_whole(name: str) -> bool:
    module = sys.modules.get(name)
    return all(hasattr(module, function.partition(".")[0]) for function in STEPS[name])


def _timed(clock: _Clock, step: str, function: Any) -> Any:
    def timed(*args: Any, **options: Any) -> Any:
        with clock.step(step):
            return function(*args, **options)

    return timed


def _phase(clock: _Clock, step: str, function: Any) -> Any:
    @contextmanager
    def phase(self: Any, name: str, steps: int | None = None) -> Iterator[None]:
        first = name != "preprocess"
        if first:
            clock.cpu = process_time()
        with clock.step(FIRST if first else step), function(self, name, steps):
            yield

    return phase


def _stage(clock: _Clock, step: str, function: Any) -> Any:
    def stage(self: Any, name: str, array: Any) -> None:
        function(self, name, array)
        if name.endswith(".hidden_states.1"):
            raise _Arrived

    return stage


FOLLOWED = {"phase": _phase, "__call__": _stage}
