"""Options that several verbs share, and what they stand for."""

import argparse
import os
from typing import Any

from mvlm_np import demo
from mvlm_np.cli.calls import number, whole
from mvlm_np.errors import UserError
from mvlm_np.precisions import LOADED


def add_model(parser: argparse.ArgumentParser, default: str = "$MVLM_MODEL") -> None:
    """Which model, and how it is loaded. default: what its help says of it."""
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model",
        metavar="PATH",
        default=os.environ.get("MVLM_MODEL") or None,
        help=f"model folder (default: {default})",
    )
    group.add_argument("--precision", metavar="P", help=f"{', '.join(LOADED)} (default: as stored)")
    group.add_argument("--backend", metavar="B", default="auto", help="auto, numba or numpy (default: auto)")
    group.add_argument(
        "--threads", metavar="N", type=whole, help="threads to compute with (default: all cores)"
    )
    group.add_argument(
        "--cache",
        metavar="T",
        help="key-value cache: float32, float16, int8 (default: float16 for rounded models)",
    )
    group.add_argument("--vision-tower", metavar="PATH", help="folder of the CLIP model, if it is elsewhere")
    group.add_argument("--mmproj", metavar="PATH", help="GGUF file of the vision tower, if it is elsewhere")


def add_generation(parser: argparse.ArgumentParser, many: bool = False) -> None:
    """How answers are generated; the defaults are those of `generation.Settings`.

    many: without what only one question at a time can have, beams and drafts
    """
    group = parser.add_argument_group("answer")
    group.add_argument(
        "--max-new-tokens", metavar="N", type=whole, default=512, help="at most this many (512)"
    )
    group.add_argument(
        "--temperature", metavar="T", type=number, default=0.0, help="0 is greedy, above samples (0)"
    )
    group.add_argument(
        "--top-p", metavar="P", type=number, help="sample from the likeliest that reach P together"
    )
    group.add_argument(
        "--top-k", metavar="K", type=whole, default=50, help="sample from the K likeliest (50)"
    )
    if not many:
        group.add_argument(
            "--num-beams", metavar="N", type=whole, default=1, help="continuations side by side (1)"
        )
    group.add_argument("--seed", metavar="N", type=whole, help="makes sampling repeatable")
    if not many:
        group.add_argument(
            "--draft",
            metavar="D",
            default="none",
            help="drafts tokens, which are checked several at a time: ngrams, or a small model's PATH (none)",
        )
    group.add_argument("--conv-mode", metavar="NAME", default="v1", help="prompt template (v1)")


def model_arguments(args: argparse.Namespace, or_demo: bool = False) -> dict[str, Any]:
    """Keyword arguments for `load`. or_demo: without a model the embedded one answers."""
    if args.model is None and or_demo:
        args.model = str(demo.MODEL)
    if not args.model:
        found = "is missing" if args.model is None else "is empty"
        raise UserError("--model", found, "a model folder", "name one, or set MVLM_MODEL")
    return {
        "path_or_name": args.model,
        "precision": args.precision,
        "backend": args.backend,
        "threads": args.threads,
        "cache": args.cache,
        "vision_tower": args.vision_tower,
        "mmproj": args.mmproj,
    }


def draft(args: argparse.Namespace) -> Any:
    """What `Chat` takes as `draft`. A model is loaded, in int8 unless it is stored packed."""
    if args.draft in ("none", "ngrams"):
        return args.draft
    from mvlm_np.checkpoints.opening import open_checkpoint
    from mvlm_np.cli.progress import load_with_bar
    from mvlm_np.loading import bound_tensors, quantized

    try:
        checkpoint = open_checkpoint(args.draft)
    except UserError as error:
        fix = None if os.path.lexists(args.draft) else "without a model: --draft ngrams"
        raise UserError("--draft", error, fix=fix) from None
    stored = quantized(bound_tensors(checkpoint), None)
    arguments = {"precision": None if stored else "int8", "backend": args.backend, "threads": args.threads}
    return load_with_bar(path_or_name=args.draft, **arguments)


def settings(args: argparse.Namespace) -> dict[str, Any]:
    """Keyword arguments for `generation.Settings`."""
    names = ("max_new_tokens", "temperature", "top_p", "top_k", "num_beams", "seed")
    return {name: getattr(args, name) for name in names if hasattr(args, name)}
