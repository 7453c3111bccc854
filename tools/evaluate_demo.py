"""Scores a model on scenes that the demo model's training has not seen, task by task.

    python tools/evaluate_demo.py                                   # the embedded model
    python tools/evaluate_demo.py --precision int4 --against float32.json
    python tools/evaluate_demo.py --backend torch --save torch.json # transformers' own modules
    python tools/evaluate_demo.py --grey                            # what the language alone guesses
    python tools/evaluate_demo.py --split unseen                    # colours and shapes never seen together
    python tools/evaluate_demo.py --html report.html                # the report that `mvlm evaluate` writes

An answer counts if it is exactly right; of a description or a list, the share of its facts does. A scene has
several questions, and counts once in the 95 % intervals and in the paired test, which are those of
`mvlm evaluate`. Exit code 1: `--least` is not reached.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout, when run as a script

from mvlm_np import pages
from mvlm_np.cli.progress import bar, load_with_bar
from mvlm_np.demo import MODEL
from mvlm_np.errors import UserError
from mvlm_np.evaluation.report.findings import findings, surely_wrong
from mvlm_np.evaluation.report.page import write_page
from mvlm_np.evaluation.statistics import Difference, Estimate
from mvlm_np.precisions import LOADED
from tools.demo import evaluation
from tools.demo.questions import TASKS
from tools.demo.scenes import SPLITS
from tools.parts.arguments import at_least_1
from tools.parts.command import ended


def load(args: argparse.Namespace) -> Any:
    if args.backend == "torch":
        from tools.demo.torch_model import TorchModel

        return TorchModel(args.model)
    return load_with_bar(
        path_or_name=args.model, precision=args.precision, backend=args.backend, threads=args.threads
    )


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    top.add_argument("--model", metavar="PATH", type=Path, default=MODEL, help="default: the embedded model")
    top.add_argument("--precision", metavar="P", help=f"{', '.join(LOADED)} (default: as stored)")
    top.add_argument("--backend", metavar="B", default="auto", help="auto, numba, numpy or torch")
    top.add_argument("--threads", metavar="N", type=int)
    top.add_argument("--split", choices=SPLITS[1:], default="test")
    top.add_argument("--questions", metavar="N", type=at_least_1, default=4000)
    top.add_argument("--tasks", nargs="+", choices=TASKS, default=TASKS, help="default: all")
    top.add_argument("--grey", action="store_true", help="even grey in place of every picture")
    top.add_argument("--save", metavar="FILE", type=Path, help="write the answers as JSON")
    top.add_argument("--against", metavar="FILE", type=Path, help="compare, paired, with saved answers")
    top.add_argument(
        "--wrong", metavar="N", type=at_least_1, help="show so many wrong answers, the surest first"
    )
    top.add_argument("--html", metavar="FILE", type=Path, help="write the report as a page")
    top.add_argument("--least", metavar="SHARE", type=float, default=0.0, help="exit with 1 below this score")
    return top


def saved(file: Path) -> dict[str, str]:
    """Answers that `--save` has written. UserError: it has not."""
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise UserError(file, error, "a file that --save has written") from None


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    return ended("evaluate_demo", lambda: run(args))


def line(task: str, questions: int, found: Estimate) -> str:
    return f"{task:13} {questions:5} {found.value:6.1f}%   {found.low:.1f}% to {found.high:.1f}%"


def compared(file: Path, found: Difference) -> str:
    return (
        f"against {file}: {found.questions} questions, {found.changed} answers differ, score "
        f"{found.value:+.2f} points ({found.low:+.2f} to {found.high:+.2f}, p = {found.p:.2g})"
    )


def run(args: argparse.Namespace) -> int:
    if args.save and not args.save.parent.is_dir():
        raise UserError(args.save, "there is no such folder", fix="make it first")
    if args.html:
        pages.check(args.html)
    earlier = saved(args.against) if args.against else {}
    model = load(args)
    start = perf_counter()
    with bar("questions", args.questions) as shown:
        judged = evaluation.evaluate(
            model,
            args.split,
            args.questions,
            tasks=args.tasks,
            grey=args.grey,
            probable=args.html is not None,
            progress=shown.update,
        )
    speed = f"{(perf_counter() - start) / len(judged):.3f} s a question"
    if args.save:
        args.save.write_text(json.dumps({one.id: one.answer for one in judged}, indent=0) + "\n")
    name = f"{args.model.resolve().name}, {args.precision or 'as stored'}"
    ours = evaluation.run(name, judged, {"speed": speed})
    other = None
    if args.against:
        other = evaluation.run(args.against.stem, evaluation.with_answers(judged, earlier))
    found = findings(ours, other)
    assert found.estimate
    print(f"{'task':13} {'n':>5} {'score':>7}   95 % interval")
    tasks = [one.category for one in judged]
    for task, part in found.categories.items():
        print(line(task, tasks.count(task), part))
    print(line("all", len(judged), found.estimate))
    print(speed)
    for one in surely_wrong(judged, args.wrong) if args.wrong else []:
        print(f"{one.id} -> {one.answer!r}, expected {one.gold!r}")
    if found.against:
        print(compared(args.against, found.against.difference))
    if args.html:
        write_page(args.html, found, lambda one: evaluation.picture(one.picture))
    return int(found.estimate.value < 100 * args.least)


if __name__ == "__main__":
    sys.exit(main())
