"""The command line: `mvlm VERB ...`. Each verb is a module here, with `describe(parser)` and `run(args)`.

Exit codes: 0 it worked, 1 it ran and the answer is no, 2 a bad call or bad input, 130 interrupted. What
a user can mend is one line on stderr. Modules import what is heavy only when they run.
"""

import gc
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

VERBS = {
    "demo": "ask the embedded demo model about embedded pictures",
    "ask": "ask about pictures",
    "batch": "ask about many pictures",
    "look": "ask about a picture, and show how the answer came about",
    "chat": "talk about a picture, several turns",
    "watch": "watch a camera, and ask when something has changed",
    "inspect": "show what a model folder holds",
    "pull": "download a model from the hub",
    "convert": "write a model in another precision or format",
    "prepare": "write a picture as the model sees it, for another runtime",
    "export": "write a model as graphs for other runtimes",
    "bench": "measure speed and memory",
    "serve": "answer other programs over HTTP, and people on a page",
    "warmup": "compile all kernels ahead of time",
    "doctor": "show what this machine computes with",
    "evaluate": "score a model on the papers' benchmarks",
    "golden": "record every stage of a run, and check another implementation against it",
}


STARTED = 100_000  # objects; a start makes half as many, which all stay


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one verb; returns the exit code."""
    gc.set_threshold(STARTED)  # to look for garbage after each 700 takes 5 % of a start, and finds little
    try:
        with _quiet_interrupts():
            return _run(list(sys.argv[1:] if argv is None else argv))
    except KeyboardInterrupt:
        return 130


def _run(argv: list[str]) -> int:
    # Imported here, where Ctrl-C is caught already.
    from mvlm_np.cli import calls
    from mvlm_np.errors import UserError

    _open_streams()
    try:
        args = calls.read(argv, VERBS)
        code = args.run(args)
        sys.stdout.flush()  # here, where a reader that has gone is caught
        return code
    except UserError as error:
        print(f"mvlm: {error}", file=sys.stderr)
        return 2
    except MemoryError:
        print("mvlm: out of memory; close other programs, or take a smaller model", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader of our output has gone, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:  # a full disk behind our output, say
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        print(f"mvlm: the output cannot be written ({error.strerror})", file=sys.stderr)
        return 2


@contextmanager
def _quiet_interrupts() -> Iterator[None]:
    """Within it, Ctrl-C ends imports and the reading of the call at once. Libraries would make another error
    of it there, or take it for a sign that something is not installed.
    """
    import signal

    def interrupt(number: int, frame: FrameType | None) -> None:
        while frame is not None:
            importing = frame.f_code.co_filename.startswith("<frozen importlib")
            if importing or frame.f_globals.get("__name__") == "mvlm_np.cli.calls":
                os._exit(130)
            frame = frame.f_back
        raise KeyboardInterrupt

    try:
        if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
            raise ValueError("the caller, or a shell that starts us in the background, wants it otherwise")
        signal.signal(signal.SIGINT, interrupt)  # ValueError: this is not the main thread
    except ValueError:
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _open_streams() -> None:
    """A stream that the caller has closed (`>&-`) is empty; what a terminal cannot show is shown as `?`."""
    import io

    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
