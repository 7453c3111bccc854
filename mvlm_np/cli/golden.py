"""Is my port right? Records every stage of a run, and says where another implementation departs from it.

examples:
  mvlm golden record FOLDER --image photo.jpg --question "What is this?" --float64 -o golden.safetensors
  mvlm golden compare golden.safetensors my-port.npz
  mvlm golden compare golden.safetensors dumps/ --names names.toml --html report.html
  mvlm golden explain FOLDER golden.safetensors my-port.npz
"""

import argparse
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

from mvlm_np.cli.calls import place, whole


class SubVerb(NamedTuple):
    summary: str
    describe: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]


def describe(parser: argparse.ArgumentParser) -> None:
    verbs = parser.add_subparsers(dest="subverb", metavar="|".join(SUBVERBS), required=True)
    for name, verb in SUBVERBS.items():
        sub = verbs.add_parser(
            name,
            help=verb.summary,
            description=verb.run.__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        verb.describe(sub)
        sub.set_defaults(run_golden=verb.run)


def run(args: argparse.Namespace) -> int:
    return args.run_golden(args)


def add_loading(parser: argparse.ArgumentParser) -> None:
    """How the model is loaded, for those that run it."""
    parser.add_argument(
        "--threads", metavar="N", type=whole, help="threads to compute with (default: all cores)"
    )
    parser.add_argument("--vision-tower", metavar="PATH", help="folder of the CLIP model, if it is elsewhere")
    parser.add_argument("--mmproj", metavar="PATH", help="GGUF file of the vision tower, if it is elsewhere")


def places_of(args: argparse.Namespace) -> dict[str, Any]:
    """Where parts of the model lie that are not in its own folder, as `load` takes them."""
    return {"vision_tower": args.vision_tower, "mmproj": args.mmproj}


# ---------------------------------------------------------------- record


def describe_record(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="model folder or GGUF file")
    parser.add_argument("--image", type=place, metavar="FILE", help="the picture; none for a text-only model")
    parser.add_argument("--question", required=True, metavar="TEXT")
    parser.add_argument("-o", "--output", type=place, required=True, metavar="FILE", help="the file to write")
    parser.add_argument(
        "--float64",
        action="store_true",
        help="measure each stage's rounding floor too, from which compare derives its bounds (takes longer)",
    )
    parser.add_argument(
        "--compact", action="store_true", help="keep sketches of the stages: under 2 MB at full size"
    )
    parser.add_argument(
        "--max-new-tokens", metavar="N", type=whole, default=24, help="at most this many (24)"
    )
    parser.add_argument("--num-beams", metavar="N", type=whole, help="record the answer of N beams too")
    parser.add_argument("--conv-mode", metavar="NAME", default="v1", help="prompt template (v1)")
    parser.add_argument(
        "--precision",
        metavar="P",
        default="float32",
        help="float32; int8, int4 or int4-symmetric for what is to be compared with a golden (float32)",
    )
    parser.add_argument("--backend", metavar="B", default="numpy", help="numpy, numba or auto (numpy)")
    add_loading(parser)


def record(args: argparse.Namespace) -> int:
    """Runs the model on one question and writes every stage, from pixel values to logits, to a golden file.

    Stages are those of the published code, in float32, the decode steps through the cache included. With
    --float64, six more runs in other precisions measure how far rounding alone carries each stage.

    example:
      mvlm golden record FOLDER --image photo.jpg --question "What is this?" --float64 -o golden.safetensors
    """
    from mvlm_np.cli.progress import bar, load_with_bar
    from mvlm_np.errors import GoldenError
    from mvlm_np.golden.format import write_golden
    from mvlm_np.golden.record.floors import measure_floors
    from mvlm_np.golden.record.metadata import describe
    from mvlm_np.golden.record.recording import Question
    from mvlm_np.golden.record.recording import record as trace

    if args.float64 and args.precision != "float32":
        raise GoldenError(
            "--float64", f"measures a float32 golden, not {args.precision}", fix="leave one out"
        )
    if not args.output.parent.is_dir():
        raise GoldenError(args.output, "cannot be written", "a place in a folder that exists")
    if args.output.exists():
        raise GoldenError(args.output, "exists already", "a new file", "name another, or remove it")
    places = places_of(args)
    question = Question(args.question, args.image, args.conv_mode, args.max_new_tokens, args.num_beams)
    model = load_with_bar(
        path_or_name=args.model,
        precision=args.precision,
        backend=args.backend,
        threads=args.threads,
        **places,
    )
    with bar("record", None, bar_format="{desc} {elapsed}") as progress:

        def step(name: str) -> None:
            progress.set_description(f"record, {name}", refresh=False)
            progress.update()

        step(args.precision)
        stages = trace(model, question)
        about = describe(args.model, model, question, stages, args.precision, **places)
        floors = measure_floors(args.model, model, question, stages, step, **places) if args.float64 else None
    write_golden(args.output, stages, about, floors, args.compact)
    size = args.output.stat().st_size
    print(f"wrote {args.output}: {len(stages)} stages, {size / 1e6:.1f} MB; answer: {about['text']!r}")
    return 0


# ---------------------------------------------------------------- compare


def add_candidate(parser: argparse.ArgumentParser) -> None:
    """What compare and explain have in common: a golden, a candidate, and how they are to be read."""
    parser.add_argument("golden", type=place, metavar="GOLDEN", help="golden file")
    parser.add_argument(
        "candidate", type=place, metavar="CANDIDATE", help="safetensors, npz, a folder of npy, or a dump"
    )
    parser.add_argument("--names", type=place, metavar="TOML", help="which of your names is which stage")
    parser.add_argument(
        "--class",
        dest="kind",
        metavar="C",
        default="float32",
        help="float32, float16, bf16, int8, int4 or int8-static: in what the candidate computes (float32)",
    )
    parser.add_argument("--json", action="store_true", help="print everything as JSON")


def read_both(args: argparse.Namespace) -> tuple[Any, Any]:
    """The golden and the candidate."""
    from mvlm_np.golden.compare.candidates import read_candidate, read_names
    from mvlm_np.golden.format import read_golden

    golden = read_golden(args.golden)
    names = read_names(args.names) if args.names else None
    return golden, read_candidate(args.candidate, golden.names, names)


def describe_compare(parser: argparse.ArgumentParser) -> None:
    add_candidate(parser)
    parser.add_argument("--html", type=place, metavar="FILE", help="write a page with pictures of the errors")
    parser.add_argument("--all", action="store_true", help="list stages that were not given, too")


def compare(args: argparse.Namespace) -> int:
    """Compares what a port computed with a golden, stage by stage, and names the first that is wrong.

    Exits with 0 if all stages that were given are right, and with 1 if one is not.

    examples:
      mvlm golden compare golden.safetensors my-port.npz
      mvlm golden compare golden.safetensors dumps/ --names names.toml --class float16 --html report.html
    """
    import json

    from mvlm_np import pages
    from mvlm_np.errors import GoldenError
    from mvlm_np.golden.compare.comparison import compare
    from mvlm_np.golden.compare.page import write_page
    from mvlm_np.golden.compare.report import as_json, as_text

    if args.html:
        pages.check(args.html, GoldenError)
    golden, candidate = read_both(args)
    result = compare(golden, candidate, args.kind)
    if args.json:
        json.dump(as_json(result), sys.stdout, indent=1)
        print()
    else:
        print(as_text(result, args.all))
    if args.html:
        write_page(args.html, result, golden)
        print(f"wrote {args.html}", file=sys.stderr)
    return 0 if result.right else 1


# ---------------------------------------------------------------- explain


def describe_explain(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="the golden's model: a folder or a GGUF file")
    add_candidate(parser)
    parser.add_argument(
        "--image", type=place, metavar="FILE", help="the golden's picture (default: beside the golden)"
    )
    add_loading(parser)
    parser.add_argument("--list", action=ListMistakes, help="list the mistakes that are known, and exit")


class ListMistakes(argparse.Action):
    """Prints what `explain` knows; needs no model, as --help needs none."""

    def __init__(self, option_strings: list[str], dest: str, help: str):
        super().__init__(option_strings, dest, nargs=0, help=help)

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from mvlm_np.golden.explain.mistake import known_mistakes

        for m in known_mistakes().values():
            print(f"{m.id:24} {m.what}\n{'':24} mend: {m.mend}\n{'':24} first shows at {m.stage}")
        parser.exit()


def explain(args: argparse.Namespace) -> int:
    """Compares, and names the porting mistakes that reproduce what is wrong, with what to do about them.

    Each stage is computed from the candidate's own earlier ones under each known mistake, alone and
    together with others: the more stages a candidate has, the quicker and surer the answer. One alone will
    do. Exits with 0 if all stages that were given are right, and with 1 if one is not.

    examples:
      mvlm golden explain mtgv/MobileVLM_V2-1.7B golden.safetensors my-port.npz
      mvlm golden explain FOLDER golden.safetensors embeddings.bin --image photo.jpg --class float16
      mvlm golden explain --list
    """
    import json

    from mvlm_np.checkpoints.opening import open_checkpoint
    from mvlm_np.cli.progress import bar, load_with_bar
    from mvlm_np.golden.explain.explanation import explain, find_picture, in_class
    from mvlm_np.golden.explain.report import as_json, as_text
    from mvlm_np.golden.explain.spare_weights import spare_weights

    golden, candidate = read_both(args)
    places = places_of(args)
    checkpoint = open_checkpoint(args.model, **places)
    load = {"path_or_name": args.model, "backend": "numpy", "threads": args.threads, **places}
    model = load_with_bar(precision="float32", **load)
    with bar("explain", None, unit=" runs") as progress:
        result = explain(
            model,
            golden,
            candidate,
            args.kind,
            args.image or find_picture(golden, args.candidate),
            spare_weights(checkpoint),
            in_class(args.kind, model, load),
            progress.update,
        )
    if args.json:
        json.dump(as_json(result), sys.stdout, indent=1)
        print()
    else:
        print(as_text(result))
    return 0 if result.right else 1


SUBVERBS = {
    "record": SubVerb("run the model and keep every stage", describe_record, record),
    "compare": SubVerb("compare what a port computed with a golden", describe_compare, compare),
    "explain": SubVerb("name the mistakes that make a port wrong", describe_explain, explain),
}
