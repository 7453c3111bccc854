"""Answers other programs over HTTP, in OpenAI's and in Ollama's dialect, and people on a page.

It listens on this machine alone, unless --host says otherwise; then it wants a key. Which clients it serves,
and how each is set up: docs/serve.md.

example:
  mvlm serve                                       # the model in the box, at http://127.0.0.1:8080
  mvlm serve --model mtgv/MobileVLM_V2-1.7B --port 11434
  mvlm serve --model FOLDER --host 0.0.0.0 --api-key-file key.txt
"""

import argparse
import gc
import logging
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mvlm_np.cli import options
from mvlm_np.cli.calls import place, whole
from mvlm_np.errors import UserError

if TYPE_CHECKING:
    from mvlm_np.serve.fetching import Fetching
    from mvlm_np.serve.server import Certificate

MEGABYTE = 1_000_000
GARBAGE = 1_000  # objects after which garbage is looked for; `cli` makes it many more, for short runs


def describe(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--host", metavar="ADDRESS", default="127.0.0.1", help="listen here (127.0.0.1)")
    parser.add_argument("--port", metavar="N", type=whole, default=8080, help="on this port; 0: any (8080)")
    parser.add_argument("--name", help="what clients call the model (default: the folder's name)")
    parser.add_argument(
        "--max-tokens", metavar="N", type=whole, default=512, help="of an answer, at most (512)"
    )
    parser.add_argument(
        "--cache-memory",
        metavar="MB",
        type=whole,
        help="for chats and pictures that come again; 0: none (250, or less where little is free)",
    )
    parser.add_argument("--conv-mode", metavar="NAME", default="v1", help="prompt template (v1)")
    safety = parser.add_argument_group("safety")
    safety.add_argument(
        "--api-key-file",
        metavar="FILE",
        type=place,
        help="requests need one of its keys, one a line (or $MVLM_API_KEY)",
    )
    safety.add_argument("--open", action="store_true", help="no key, although others can reach this server")
    safety.add_argument(
        "--allow-host", metavar="NAME", action="append", default=[], help="one more name of this server"
    )
    safety.add_argument(
        "--allow-origin", metavar="URL", action="append", default=[], help="whose web pages may ask too"
    )
    safety.add_argument(
        "--fetch-images", action="store_true", help="fetch pictures from addresses on the internet"
    )
    safety.add_argument(
        "--allow-fetch",
        metavar="HOST",
        nargs="+",
        action="extend",
        default=[],
        help="fetch pictures from these hosts (or HOST:PORT), in this network too",
    )
    safety.add_argument("--cert", metavar="FILE", type=place, help="certificate, for https")
    safety.add_argument("--key", metavar="FILE", type=place, help="its private key")
    safety.add_argument(
        "--no-shared-cache",
        action="store_true",
        help="nobody can find out, by how soon an answer begins, what was asked with another key",
    )
    safety.add_argument("--log-prompts", action="store_true", help="log the texts of questions and answers")
    options.add_model(parser, "$MVLM_MODEL, else the model in the box")


def run(args: argparse.Namespace) -> int:
    try:
        from mvlm_np.serve import server
        from mvlm_np.serve.app import build
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package == "mvlm_np":
            raise
        found = f"needs {package}, which is not installed"
        raise UserError("mvlm serve", found, fix="pip install 'mvlm-np[serve]'") from None
    from mvlm_np import demo
    from mvlm_np.checkpoints.opening import open_checkpoint
    from mvlm_np.cli.progress import load_with_bar, lose_what_cannot_be_said
    from mvlm_np.serve.about import describe as describe_model
    from mvlm_np.serve.dialects import PICTURES
    from mvlm_np.serve.engine import Engine
    from mvlm_np.serve.page import page
    from mvlm_np.serve.safety import Safety
    from mvlm_np.serve.worker import Worker

    if not 0 <= args.port <= 65535:
        raise UserError("--port", f"found {args.port}", "a number from 0 to 65535")
    if args.max_tokens < 1:
        raise UserError("--max-tokens", f"found {args.max_tokens}", "at least 1")
    lose_what_cannot_be_said()
    named, keys, certificate, fetching = args.model, _keys(args), _certificate(args), _fetching(args)
    safety = Safety(keys, tuple(name.lower() for name in args.allow_host), tuple(args.allow_origin))
    listening = server.listen(args.host, args.port)  # before anything is loaded, which takes longer
    with listening:
        arguments = options.model_arguments(args, or_demo=True)
        model = load_with_bar(**arguments)
        checkpoint = open_checkpoint(args.model, args.vision_tower, args.mmproj)
        name = args.name or (None if named else "demo")
        served = describe_model(model, Path(checkpoint.path), name, args.max_tokens)
        _log()
        worker = Worker(Engine(model, conv_mode=args.conv_mode, **_caches(args)))
        worker.start()
        worker.ready.wait()
        if worker.error is not None:
            raise worker.error
        pad = model.config.image.aspect_ratio == "pad"
        html = page(served.name, PICTURES if served.sees else 0, pad)
        app = build(
            worker,
            served,
            safety,
            page=html,
            log_prompts=args.log_prompts,
            fetching=fetching,
            shared_cache=not args.no_shared_cache,
        )
        if not named:
            print(f"mvlm: note: {demo.NOTE}", file=sys.stderr)
        host, port = listening.getsockname()[:2]
        address = f"{'https' if certificate else 'http'}://{f'[{host}]' if ':' in host else host}:{port}"
        print(f"mvlm: {served.name} answers at {address}; Ctrl-C ends it", file=sys.stderr, flush=True)
        # What is there by now stays: garbage is looked for in what requests leave behind, and soon.
        gc.collect()
        gc.freeze()
        gc.set_threshold(GARBAGE)
        server.run(app, listening, worker.stop, certificate)
    return 0


def _keys(args: argparse.Namespace) -> tuple[str, ...]:
    """The keys of which a request needs one. UserError: there is none, and others can reach this server."""
    from mvlm_np.serve.safety import is_loopback, keys_in

    keys: tuple[str, ...] = ()
    if args.api_key_file:
        try:
            keys = keys_in(args.api_key_file.read_text("utf-8"), str(args.api_key_file))
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "is not text"
            raise UserError(args.api_key_file, f"cannot be read ({reason})", "a file of keys") from None
    if in_environment := os.environ.get("MVLM_API_KEY"):
        keys += keys_in(in_environment, "MVLM_API_KEY")
    if not keys and not args.open and not is_loopback(args.host):
        found = f"{args.host} can be reached by others"
        fix = "--api-key-file FILE sets one, and --open does without"
        raise UserError("--host", found, "a key that requests need", fix)
    return keys


def _certificate(args: argparse.Namespace) -> "Certificate | None":
    from mvlm_np.serve.server import Certificate

    if args.cert is None and args.key is None:
        return None
    if args.cert is None or args.key is None:
        raise UserError("--cert and --key", "one of them is missing", "both, or none")
    certificate = Certificate(str(args.cert), str(args.key))
    certificate.check()
    return certificate


def _fetching(args: argparse.Namespace) -> "Fetching":
    """Whence pictures are fetched. UserError: something is listed that is no host."""
    from mvlm_np.serve.fetching import Fetching

    for host in args.allow_fetch:
        if not re.fullmatch(r"[\w.-]+(:\d+)?|\[[0-9a-fA-F:.]+\](:\d+)?|[0-9a-fA-F:]+", host, re.ASCII):
            raise UserError("--allow-fetch", f"found {host!r}", "a host, as camera.local or 192.168.1.7:8080")
    return Fetching(args.fetch_images, args.allow_fetch)


def _caches(args: argparse.Namespace) -> dict[str, Any]:
    """Keyword arguments for `Engine`. A quarter is for pictures, which are small and take long to compute."""
    from mvlm_np.serve.caches import PICTURES

    if args.cache_memory is None:
        return {}
    whole = args.cache_memory * MEGABYTE
    pictures = min(PICTURES, whole // 4)
    return {"pictures": pictures, "prefixes": whole - pictures}


def _log() -> None:
    """From now on, what happens is told on stderr, a line each."""
    handler = logging.StreamHandler()
    handler.setFormatter(_OneLine("%(asctime)s %(message)s", "%H:%M:%S"))
    for name in ("mvlm_np", "uvicorn"):
        logging.getLogger(name).addHandler(handler)
    logging.getLogger("mvlm_np.serve").setLevel(logging.INFO)
    logging.getLogger("uvicorn").setLevel(logging.ERROR)


class _OneLine(logging.Formatter):
    """Shows control characters as what they are: no request forges a line, or gives a terminal orders."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        text = super().formatMessage(record)
        return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
