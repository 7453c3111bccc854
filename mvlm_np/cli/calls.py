"""Reads the command line. What is wrong with a call is one line, as every other error is."""

import argparse
import os
import shlex
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

import mvlm_np
from mvlm_np.errors import UserError
from mvlm_np.paths import local

# Stands before an argument that is no option although it begins like one. No argument can hold it.
PLAIN = "\0"


class Parser(argparse.ArgumentParser):
    """An argument parser that lets options stand anywhere, and whose errors are UserErrors.

    argparse gives all arguments before the first option to the first of the positional ones, so that in
    `ask photo.jpg --model M QUESTION` no question would be left. Its own way out, `parse_intermixed_args`,
    is not used for sub-parsers and forgets about `--`.
    """

    _inner = False  # within parse_known_intermixed_args, which calls parse_known_args

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        if self._inner or self._subparsers is not None:
            return super().parse_known_args(args, namespace)
        args = list(args)
        if "--" in args:
            at = args.index("--")
            args[at:] = [PLAIN + arg for arg in args[at + 1 :]]
        self._inner = True
        try:
            found, unknown = self.parse_known_intermixed_args(args, namespace)
        finally:
            self._inner = False
        if unknown:  # said here, where the verb is known
            options = [arg for arg in unknown if arg.startswith("-")]  # the others follow from these
            self.error(f"unrecognized arguments: {' '.join(options or unknown)}")
        for name, value in vars(found).items():
            setattr(found, name, _without_mark(value))
        return found, unknown

    def error(self, message: str) -> NoReturn:
        where, _, found = message.removeprefix("argument ").replace(PLAIN, "").partition(": ")
        raise UserError(where, found, fix=f"see {self.prog} --help")


def _without_mark(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_mark(part) for part in value]
    return type(value)(str(value).removeprefix(PLAIN)) if isinstance(value, str | Path) else value


def read(argv: Sequence[str], known: Mapping[str, str]) -> argparse.Namespace:
    """What a call asks for; `run` is the verb's function. Of the verbs, only the called one is imported.

    known  {verb: what it does}

    UserError: the call is not as it should be. SystemExit: it was for --help or --version.
    """
    if argv and not argv[0].startswith("-") and argv[0] not in known:
        fix = f"mvlm ask {shlex.join(argv)}" if os.path.isfile(argv[0]) else "see mvlm --help"
        raise UserError(argv[0], "is no verb", f"one of {', '.join(known)}", fix)
    if argv and argv[0].startswith("-") and argv[0] not in ("-h", "--help", "--version") and argv[1:]:
        raise UserError(argv[0], "stands before the verb", "it behind", "mvlm VERB --help says what there is")
    top = Parser(prog="mvlm", description="MobileVLM in NumPy and Numba.")
    top.add_argument("--version", action="version", version=f"mvlm {mvlm_np.__version__}")
    verbs = top.add_subparsers(dest="verb", metavar="VERB", required=True)
    called = [verb for verb in argv[:1] if verb in known]
    for verb in called or known:
        if not called:
            verbs.add_parser(verb, help=known[verb])
            continue
        module = import_module(f"mvlm_np.cli.{verb}")
        sub = verbs.add_parser(
            verb,
            help=known[verb],
            description=module.__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.describe(sub)
        sub.set_defaults(run=module.run)
    return top.parse_args(argv)


# ---------------------------------------------------------------- types of options


def whole(text: str) -> int:
    """`type=` of an option that is a whole number."""
    return _number(text, int, "a whole number")


def number(text: str) -> float:
    """`type=` of an option that is a number."""
    return _number(text, float, "a number")


def place(text: str) -> Path:
    """`type=` of an option or argument that is a file or folder; see `paths.local`."""
    try:
        return Path(local(text))
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _number(text: str, kind: type, wanted: str) -> Any:
    try:
        return kind(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"found {text[:80]!r}, wanted {wanted}") from None
