"""Scores a model on the benchmarks of MobileVLM's papers: GQA, MMBench, MME, POPE, ScienceQA, TextVQA.

The data are the published ones, which you get yourself; docs/evaluation.md says from where. Questions,
pictures and scores are as published. Answers are written as JSON lines, which the published scripts read.

examples:
  mvlm evaluate gqa --data data/benchmark_data --model mtgv/MobileVLM_V2-1.7B
  mvlm evaluate pope --data data/benchmark_data --limit 300 --precision int4
  mvlm evaluate textvqa --data data/benchmark_data --resume          # go on after an interruption
  mvlm evaluate score gqa answers.jsonl --data data/benchmark_data   # no model is needed
  mvlm evaluate score gqa int4.jsonl --against float32.jsonl --html gqa.html --data data/benchmark_data
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from mvlm_np.cli import cluster, options
from mvlm_np.cli.calls import place, whole

if TYPE_CHECKING:
    from mvlm_np.evaluation.asked import Asked
    from mvlm_np.evaluation.benchmark import Benchmark
    from mvlm_np.evaluation.report.findings import Findings, Run

TITLES = {
    "gqa": "GQA: 12,578 questions",
    "mmbench": "MMBench dev: 1,164 questions in 4,329 rows",
    "mme": "MME: 2,374 questions",
    "pope": "POPE: 8,910 questions",
    "sqa": "ScienceQA: 4,241 questions, of which 2,017 have a picture",
    "textvqa": "TextVQA: 5,000 questions",
}
PUBLISHED_FOR = "published for"  # a fact of a run: which model's published score stands beside its own


def describe(parser: argparse.ArgumentParser) -> None:
    verbs = parser.add_subparsers(dest="benchmark", metavar="BENCHMARK", required=True)
    for key, title in TITLES.items():
        sub = verbs.add_parser(key, help=title, description=f"Asks a model {title}.")
        describe_scoring(sub)
        describe_asking(sub)
        sub.set_defaults(run_evaluate=ask)
    sub = verbs.add_parser("score", help="score answers that are there", description=score_only.__doc__)
    sub.add_argument("benchmark", metavar="BENCHMARK", choices=TITLES, help=", ".join(TITLES))
    sub.add_argument("answers", metavar="ANSWERS", type=place, help="JSON lines, as upstream writes them")
    describe_scoring(sub)
    sub.set_defaults(run_evaluate=score_only)


def describe_asking(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--answers", metavar="FILE", type=place, help="where answers go (default: BENCHMARK-MODEL.jsonl)"
    )
    parser.add_argument("--resume", action="store_true", help="go on with the answers of an earlier run")
    parser.add_argument(
        "--together", metavar="N", type=whole, default=4, help="questions answered at a time (4)"
    )
    options.add_model(parser)
    cluster.add(parser)


def describe_scoring(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data", metavar="FOLDER", type=place, required=True, help="folder of the benchmark, or of all six"
    )
    parser.add_argument(
        "--limit", metavar="N", type=whole, help="about so many questions, an equal share of each part"
    )
    parser.add_argument(
        "--pictures-only", action="store_true", help="without ScienceQA's questions that have no picture"
    )
    parser.add_argument(
        "--as-published",
        action="store_true",
        help="join answers, and count missing ones, as the published scripts do",
    )
    parser.add_argument("--against", metavar="ANSWERS", type=place, help="compare with another run's answers")
    parser.add_argument("--html", metavar="FILE", type=place, help="write a page: intervals, what was wrong")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")


def run(args: argparse.Namespace) -> int:
    return args.run_evaluate(args)


def score_only(args: argparse.Namespace) -> int:
    """Scores answers that are there, of whatever program."""
    benchmark, asked = chosen(args)
    return tell(args, benchmark, asked, args.answers)


def ask(args: argparse.Namespace) -> int:
    """Asks a model all questions, and scores what it says."""
    from mvlm_np.cli.progress import bar
    from mvlm_np.errors import UserError
    from mvlm_np.evaluation.answers import read_answers
    from mvlm_np.evaluation.benchmarks import folder_of
    from mvlm_np.evaluation.published import by_config
    from mvlm_np.evaluation.running import check_pictures, rows, write_answers
    from mvlm_np.rows.output import Output

    arguments = options.model_arguments(args)
    benchmark, asked = chosen(args)
    name = Path(args.model).resolve().name + (f"-{args.precision}" if args.precision else "")
    file: Path = args.answers or Path(f"{benchmark.key}-{name}.jsonl")
    # With the model in its name, so that no other one goes on with it.
    unfinished = file.with_name(f"{file.name}.{name}.part" if args.answers else f"{file.name}.part")
    if file.exists():
        if not args.resume:
            raise UserError(file, "is there already", "a new file", "name another one with --answers")
        if not unfinished.exists():
            require_complete(file, benchmark, asked, args.data)
            print(f"mvlm: note: {file} is complete, and nothing is asked", file=sys.stderr)
            return tell(args, benchmark, asked, file)
    check_pictures(benchmark, asked)
    benchmark.judge(folder_of(benchmark, args.data), asked, [], False)  # reads the right answers
    if args.against:
        read_answers(args.against)
    pictures = list(dict.fromkeys(str(one.source) for one in asked if isinstance(one.source, Path)))
    with (
        Output(unfinished, resume=args.resume) as output,
        cluster.answerer(args, arguments, pictures) as who,
    ):
        if who.config.vision is None:
            raise UserError(args.model, "cannot see", f"a model with a vision tower for {benchmark.title}")
        start, now, tokens = perf_counter(), 0, 0
        waiting = (row for row in rows(benchmark, asked, args.as_published) if not output.has(row))
        with bar(benchmark.title, len(asked), initial=len(output.done)) as progress:
            for one in who.answer(waiting, together=args.together):
                output.write(one)
                now, tokens = now + 1, tokens + one.tokens
                progress.update()
    seconds = perf_counter() - start
    if failed := write_answers(file, asked, unfinished, name):
        print(f'mvlm: note: {failed} questions failed, see "error" in {unfinished}', file=sys.stderr)
    else:
        unfinished.unlink()
    speed = {"asked": now, "seconds": seconds, "tokens": tokens}
    return tell(args, benchmark, asked, file, by_config(who.config), speed if now else None)


def require_complete(file: Path, benchmark: "Benchmark", asked: "Sequence[Asked]", data: Path) -> None:
    """UserError: the file does not have an answer to each question, as after a run with another --limit."""
    from mvlm_np.errors import UserError
    from mvlm_np.evaluation.answers import read_answers
    from mvlm_np.evaluation.benchmarks import folder_of

    verdict = benchmark.judge(folder_of(benchmark, data), asked, read_answers(file), False)
    answered, expected = (verdict.counts[what] for what in ("answered", "expected"))
    if answered < expected:
        fix = "name another one with --answers, or score this one with mvlm evaluate score"
        raise UserError(file, f"has answers to {answered} of {expected} questions", "a new file", fix)


def chosen(args: argparse.Namespace) -> "tuple[Benchmark, Sequence[Asked]]":
    """The benchmark, and those of its questions that are asked, or were."""
    from mvlm_np import pages
    from mvlm_np.evaluation.benchmarks import BENCHMARKS, limited, read

    if args.html:
        pages.check(args.html)
    benchmark = BENCHMARKS[args.benchmark]
    asked = read(benchmark, args.data)
    if args.pictures_only:
        asked = [one for one in asked if one.picture]
    return benchmark, asked if args.limit is None else limited(asked, args.limit)


def tell(
    args: argparse.Namespace,
    benchmark: "Benchmark",
    asked: "Sequence[Asked]",
    file: Path,
    model: str | None = None,
    speed: Mapping[str, float] | None = None,
) -> int:
    """Scores a file of answers, and says what they are worth. 1: the published script gives no score."""
    from mvlm_np.evaluation.benchmark import ScriptStops
    from mvlm_np.evaluation.report.findings import findings, numbers

    about = {"answers": str(file), "as_published": args.as_published, **(speed or {})}
    try:
        this = judged(args, benchmark, asked, file, model, speed)
        other = judged(args, benchmark, asked, args.against, None) if args.against else None
    except ScriptStops as stop:
        print(*stop.printed, sep="\n", file=sys.stderr if args.json else sys.stdout)
        print(f"mvlm: the published script stops here, without a score: {stop.error}", file=sys.stderr)
        if args.json:
            print(json.dumps(about | {"error": stop.error, "printed": stop.printed}))
        return 1
    found = findings(this, other)
    if args.html:
        write_page(args.html, found, asked)
    if args.json:
        print(json.dumps(asdict(this.score) | about | {"model": this.name, **this.facts} | numbers(found)))
    else:
        print("\n".join(shown(benchmark, found, about)))
    return 0


def judged(
    args: argparse.Namespace,
    benchmark: "Benchmark",
    asked: "Sequence[Asked]",
    file: Path,
    model: str | None,
    speed: Mapping[str, float] | None = None,
) -> "Run":
    """A file of answers, scored. model: of which published model they are, where that is known."""
    from mvlm_np.errors import EvaluationError
    from mvlm_np.evaluation.answers import read_answers
    from mvlm_np.evaluation.benchmarks import score
    from mvlm_np.evaluation.published import by_name
    from mvlm_np.evaluation.report.findings import Run

    answers = read_answers(file)
    name = next((one.model for one in answers if one.model), file.name)
    published = model or by_name(name)
    how = {"as_published": args.as_published, "model": published}
    worth, each = score(benchmark, args.data, answers, asked=asked, **how)
    if answers and not worth.counts["answered"]:
        found, fix = f"has no answer to a question of {benchmark.title}", "name the benchmark that it is of"
        raise EvaluationError(file, found, fix=fix)
    facts = {"speed": pace(speed)} if speed else {}
    if published:
        facts = {PUBLISHED_FOR: published, **facts}
    return Run(name, benchmark.title, worth, each, facts)


def pace(speed: Mapping[str, float]) -> str:
    """How long it took, in words."""
    asked, seconds, tokens = (speed[name] for name in ("asked", "seconds", "tokens"))
    rates = f"{60 * asked / seconds:.1f} a minute, {tokens / seconds:.1f} tokens a second"
    return f"{asked} questions in {seconds:.0f} s: {rates}"


def write_page(path: Path, found: "Findings", asked: "Sequence[Asked]") -> None:
    """Writes the report."""
    from PIL import Image

    from mvlm_np.evaluation.report import page
    from mvlm_np.evaluation.scores import Judged
    from mvlm_np.inputs.image import open_image
    from mvlm_np.inputs.picture_file import Encoded

    sources = {one.id: one.source for one in asked}

    def picture(one: Judged) -> Image.Image | None:
        source = sources[one.id]
        if source is None:
            return None
        return open_image(Encoded(source, one.id) if isinstance(source, bytes) else source, exif=False)

    page.write_page(path, found, picture)
    print(f"mvlm: wrote {path}", file=sys.stderr)


def shown(benchmark: "Benchmark", found: "Findings", about: Mapping[str, Any]) -> list[str]:
    """A score for reading: what it is and what to know of it, then everything else."""
    score, per_cent = found.run.score, "" if benchmark.key == "mme" else " %"
    text = [f"{benchmark.title}: {score.name} {score.value:.2f}{per_cent}"]
    if found.estimate:
        text[0] += f" (95 %: {found.estimate.low:.1f} to {found.estimate.high:.1f})"
    if score.published is not None:
        text[0] += f", published for {found.run.facts[PUBLISHED_FOR]}: {score.published}"
    text += score.remarks
    text.append(", ".join(f"{what}: {n}" for what, n in score.counts.items()))
    if beside := found.against:
        change = beside.difference
        interval = f"95 %: {change.low:+.2f} to {change.high:+.2f}"
        text.append(
            f"against {beside.other.name}: {change.value:+.2f} ({interval}), p = {change.p:.3g}; "
            f"{len(beside.changes)} answers differ"
        )
    if "speed" in found.run.facts:
        text.append(found.run.facts["speed"])
    text.append(f"answers: {about['answers']}")
    table = None
    for part in score.parts:
        if part.table != table:
            table = part.table
            text += ["", table] if table else [""]
        of = "" if part.of is None else f" of {part.of}"
        text.append(f"  {part.name:44} {part.value:10.6g}{of}")
    return text
