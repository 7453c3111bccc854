"""Is my port right? Records every stage of a run, and says where another implementation departs from it.

examples:
  mvlm golden compare golden.safetensors my-port.npz
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple


class SubVerb(NamedTuple):
    summary: str
    describe: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]


def describe(parser: argparse.ArgumentParser) -> None:
    verbs = parser.add_subparsers(dest="subverb", metavar="record|compare", required=True)
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


def add_candidate(parser: argparse.ArgumentParser) -> None:
    """What compare and explain have in common: a golden, a candidate, and how they are to be read."""
    parser.add_argument("golden", type=Path, metavar="GOLDEN", help="golden file")
    parser.add_argument("candidate", type=Path, metavar="CANDIDATE", help="safetensors, npz, folder, or dump")
    parser.add_argument(
        "--names", type=Path, metavar="TOML", help="which of your names stands for which stage"
    )
    parser.add_argument(
        "--class", dest="kind", metavar="C", default="float32", help="float32, float16, bf16, int8 or int4"
    )
    parser.add_argument("--json", action="store_true", help="print everything as JSON")


def compare(args: argparse.Namespace) -> int:
    """Compares what a port computed with a golden, stage by stage. Exits with 1 if a stage is wrong."""
    from mvlm_np.golden.candidates import read_candidate, read_names
    from mvlm_np.golden.compare import compare
    from mvlm_np.golden.format import read_golden

    golden = read_golden(args.golden)
    names = read_names(args.names) if args.names else None
    result = compare(golden, read_candidate(args.candidate, golden.stages, names), args.kind)
    for stage in result.stages:
        print(stage.name, stage.verdict, stage.distance)
    return 0 if result.right else 1


SUBVERBS = {
    "compare": SubVerb("compare a candidate with a golden", add_candidate, compare),
}
