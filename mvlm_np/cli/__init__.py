"""The command line: `mvlm VERB ...`. Each verb is a module here, with `describe(parser)` and `run(args)`.

Exit codes: 0 it worked, 1 it ran and the answer is no, 2 a bad call or bad input, 130 interrupted. What
a user can mend is one line on stderr. Modules import what is heavy only when they run.
"""

import argparse
import io
import os
import sys
from collections.abc import Sequence
from importlib import import_module

import mvlm_np
from mvlm_np.errors import UserError

VERBS = {
    "demo": "ask the embedded demo model about embedded pictures",
    "ask": "ask about pictures",
    "chat": "talk about a picture, several turns",
    "inspect": "show what a model folder holds",
    "pull": "download a model from the hub",
    "convert": "write a model in another precision or format",
    "bench": "measure speed and memory",
    "warmup": "compile all kernels ahead of time",
    "doctor": "show what this machine computes with",
    "golden": "record every stage of a run, and check another implementation against it",
}


def parser(argv: Sequence[str]) -> argparse.ArgumentParser:
    """The command line. Of the verbs, only the one that is called is imported: `mvlm --help` is quick."""
    top = argparse.ArgumentParser(prog="mvlm", description="MobileVLM in NumPy and Numba.")
    top.add_argument("--version", action="version", version=f"mvlm {mvlm_np.__version__}")
    verbs = top.add_subparsers(dest="verb", metavar="VERB", required=True)
    for verb, summary in VERBS.items():
        if argv[:1] != [verb]:
            verbs.add_parser(verb, help=summary)
            continue
        module = import_module(f"mvlm_np.cli.{verb}")
        sub = verbs.add_parser(
            verb,
            help=summary,
            description=module.__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.describe(sub)
        sub.set_defaults(run=module.run)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one verb; returns the exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    _open_streams()
    args = parser(argv).parse_args(argv)
    try:
        code = args.run(args)
        sys.stdout.flush()  # here, where a reader that has gone is caught
        return code
    except UserError as error:
        print(f"mvlm: {error}", file=sys.stderr)
        return 2
    except MemoryError:
        print("mvlm: out of memory; close other programs, or take a smaller model", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader of our output has gone, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:  # a full disk behind our output, say
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        print(f"mvlm: the output cannot be written ({error.strerror})", file=sys.stderr)
        return 2


def _open_streams() -> None:
    """A stream that the caller has closed (`>&-`) is empty; what a terminal cannot show is shown as `?`."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
