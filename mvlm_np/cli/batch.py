"""Asks about many pictures. Answers come as JSON lines or CSV, a row each, in order, as they come about.

Pictures are files, folders, globs in quotes, lists (.txt, a picture a line), or tables: .csv, .tsv and .jsonl
with picture and question in each row. With --question, several questions are asked about each picture. A row
that fails holds its error, and the others go on. A run that was interrupted goes on with --resume.

Each answer is what `mvlm ask` gives. A picture is encoded once, and questions about it that stand one after
another are answered together.

examples:
  mvlm batch photos/ "What is in this picture?" --model mtgv/MobileVLM_V2-1.7B -o answers.jsonl
  mvlm batch photos/ --question "Is there a person?" --question "Is it night?" -o answers.csv
  mvlm batch rows.csv -o answers.jsonl --resume  # picture,question in each row
  mvlm batch rows.csv -o answers.jsonl --dask tcp://192.168.1.5:8786
  find . -name "*.jpg" | mvlm batch - "What does the sign say?"
"""

import argparse
import os
import sys
from collections.abc import Iterator
from time import monotonic
from typing import TYPE_CHECKING

from mvlm_np import demo
from mvlm_np.cli import cluster, options
from mvlm_np.cli.calls import place, whole
from mvlm_np.errors import UserError

if TYPE_CHECKING:
    from mvlm_np.rows.output import Output
    from mvlm_np.rows.row import Answered, Row
    from mvlm_np.rows.sources import Sources


def describe(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "what",
        metavar="PICTURES",
        nargs="+",
        help="files, folders, globs, lists, tables, - (standard input); last the question for all",
    )
    parser.add_argument(
        "--question",
        metavar="Q",
        action="append",
        help="asked about each picture; may be given several times",
    )
    parser.add_argument(
        "-o", "--output", metavar="FILE", type=place, help="where answers go (default: standard output)"
    )
    parser.add_argument(
        "--format",
        choices=("jsonl", "csv"),
        help="of the answers (csv if the output ends in .csv, else jsonl)",
    )
    parser.add_argument("--resume", action="store_true", help="go on with the output of an earlier run")
    parser.add_argument(
        "--together", metavar="N", type=whole, default=4, help="questions answered at a time (4)"
    )
    parser.add_argument(
        "--schema", metavar="S", help="a JSON schema, or its file: each answer is JSON that fits it"
    )
    options.add_model(parser, "$MVLM_MODEL, else the model in the box")
    options.add_generation(parser, many=True)
    cluster.add(parser)


def run(args: argparse.Namespace) -> int:
    from mvlm_np.cli.ask import read_schema
    from mvlm_np.errors import UserError
    from mvlm_np.generation import Settings
    from mvlm_np.rows.output import Output
    from mvlm_np.rows.sources import Sources

    # What is wrong with the call shows before minutes of loading.
    named, arguments = args.model, options.model_arguments(args, or_demo=True)
    settings = options.settings(args)
    Settings(**settings)
    most = settings.pop("max_new_tokens")
    schema = None if args.schema is None else read_schema(args.schema)
    if args.resume and args.output is None:
        raise UserError("--resume", "has no file to go on with", fix="name it: --output FILE")
    given, questions = split(args.what, args.question)
    sources = Sources(given, questions, most)
    is_csv = args.format == "csv" or (args.format is None and str(args.output or "").lower().endswith(".csv"))
    with Output(args.output, is_csv, args.resume) as output:
        pictures = list[str]()
        before, left = len(output.done), rows_left(sources, output, pictures)
        if left != 0:
            shared = {"together": args.together, "conv_mode": args.conv_mode, "schema": schema}
            with cluster.answerer(args, arguments, pictures) as who:
                if not named:
                    print(f"mvlm: note: {demo.NOTE}", file=sys.stderr)
                answered = who.answer(new_rows(sources, output), **shared, **settings)
                write(answered, output, None if left is None else before + left)
        failed = output.failed
    if failed:
        where = args.output or "the output"
        print(f'mvlm: {failed} rows failed, see "error" in {where}', file=sys.stderr)
    return int(failed > 0)


def split(what: list[str], questions: list[str] | None) -> tuple[list[str], list[str]]:
    """Pictures and questions. The last argument is a question, unless there are others or it names rows."""
    from mvlm_np.cli.ask import require_question
    from mvlm_np.rows.sources import has_questions

    if questions is not None:
        return what, questions
    if has_questions(what[-1]):
        return what, []
    *pictures, question = what
    if not pictures or os.path.exists(question):
        found, fix = f"is missing: {question} stands last", "it comes last, in quotes, behind the pictures"
        raise UserError("the question", found, fix=fix)
    if not any(map(has_special_meaning, pictures)):
        require_question(pictures, question, "batch")
    return pictures, [question]


def has_special_meaning(text: str) -> bool:
    """Whether an argument names more than one picture."""
    import glob

    return text == "-" or os.path.isdir(text) or glob.has_magic(text)


def new_rows(sources: "Sources", output: "Output") -> "Iterator[Row | Answered]":
    """The rows that are not in the output yet."""
    from mvlm_np.rows.row import Answered

    for row in sources.rows():
        if not output.has(row.row if isinstance(row, Answered) else row):
            yield row


def rows_left(sources: "Sources", output: "Output", pictures: list[str]) -> int | None:
    """How many rows are to be asked; None: that is not known. Says on stderr what cannot be asked.

    pictures  gets those that are there
    """
    from mvlm_np.rows.row import Answered

    if not sources.can_be_read_again:
        return None
    count, faults = 0, list[str]()
    for row in new_rows(sources, output):
        count += 1
        if isinstance(row, Answered):
            faults.append(str(row.error))
        elif isinstance(row.picture, str):
            if os.path.exists(row.picture):
                pictures.append(row.picture)
            else:
                faults.append(f"{row.picture}: there is no such file")
    if faults:
        what = "row holds" if len(faults) == 1 else "rows hold"
        print(f"mvlm: note: {len(faults)} {what} no question to ask; the first: {faults[0]}", file=sys.stderr)
    return count


def write(answered: "Iterator[Answered]", output: "Output", total: int | None) -> None:
    """Writes answers as they come, under a bar with pictures a minute and the time left."""
    from mvlm_np.cli.progress import bar

    start, pictures, last = monotonic(), 0, object()
    shown = "{desc}: {n_fmt}/{total_fmt} rows|{bar}|{postfix}, {elapsed}, {remaining} left"
    how = {"bar_format": shown} if total else {}
    mixed = output.path is None and sys.stdout.isatty()
    with bar("batch", total, initial=len(output.done), disable=mixed, **how) as progress:
        for one in answered:
            output.write(one)
            pictures, last = pictures + (one.row.picture != last), one.row.picture
            rate = 60 * pictures / (monotonic() - start)
            failed = f", {output.failed} failed" if output.failed else ""
            progress.set_postfix_str(f"{rate:.1f} pictures a minute{failed}", refresh=False)
            progress.update()
