"""Scores the answers of `mvlm batch` by the right ones in its table, and says what a guess would score.

    mvlm batch kept/photos.csv -o answers.jsonl --model tuned
    python tools/score_answers.py kept/photos.csv answers.jsonl
    python tools/score_answers.py kept/photos.csv answers.jsonl --against int4.jsonl # the same, paired
    python tools/score_answers.py kept/photos.csv answers.jsonl --least 0.95         # exit code 1 below that

The table is a CSV with the columns picture, question and answer. An answer counts if it is exactly right, but
for blanks around it. A guess that knows the questions and has no pictures says the commonest answer to each.
"""

import argparse
import json
import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout, when run as a script

from mvlm_np.checkpoints.sniff import show
from mvlm_np.errors import UserError
from mvlm_np.evaluation.scores import Judged
from mvlm_np.evaluation.statistics import Estimate, difference, estimate
from mvlm_np.paths import local
from mvlm_np.rows.sources import Lines, decoded, header, named_as, opened, records
from tools.parts.arguments import at_least_1, share
from tools.parts.command import ended

Wanted = dict[str, tuple[str, str, str]]  # a row's name -> its picture, question and right answer
Given = dict[str, tuple[str | None, str, str | None]]  # a row's name -> its picture, question and answer


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    top.add_argument("table", type=Path, metavar="TABLE.csv", help="picture, question and right answer")
    top.add_argument("answers", type=Path, metavar="ANSWERS.jsonl", help="what mvlm batch wrote about it")
    top.add_argument("--against", metavar="FILE", type=Path, help="compare, paired, with these answers")
    top.add_argument("--wrong", metavar="N", type=at_least_1, default=5, help="wrong answers to show (5)")
    top.add_argument("--least", metavar="SHARE", type=share, default=0.0, help="exit with 1 below this score")
    return top


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    return ended("score_answers", lambda: run(args))


def run(args: argparse.Namespace) -> int:
    wanted = read_table(args.table)
    judged = judge(wanted, args.table, args.answers)
    right: dict[str, list[Judged]] = defaultdict(list)
    for one in judged:
        right[one.gold].append(one)
    for gold, those in sorted(right.items()):
        print(line(gold, len(those), estimate("", those)))
    found = estimate("", judged)
    print(line("all", len(judged), found))
    print(f"a guess from the questions alone: {100 * guess(wanted):.1f}%")
    for one in [one for one in judged if not one.right][: args.wrong]:
        print(f"wrong: {one.picture}: {one.prompt} -> {one.answer!r}, right is {one.gold!r}")
    if args.against:
        d = difference("", judged, judge(wanted, args.table, args.against))
        print(
            f"against {args.against}: {d.changed} of {d.questions} answers differ, "
            f"{d.value:+.2f} points ({d.low:+.2f} to {d.high:+.2f})"
        )
    return int(found.value < 100 * args.least)


def line(name: str, questions: int, found: Estimate) -> str:
    return f"{name:13} {questions:5} {found.value:6.1f}%   {found.low:.1f}% to {found.high:.1f}%"


def read_table(file: Path) -> Wanted:
    """UserError: there is no such table, or a row of it has not all that is needed."""
    wanted: Wanted = {}
    with opened(str(file)) as stream:
        lines = Lines(stream)
        columns, delimiter = header(str(file), lines)
        for number, fields in records(lines, delimiter):
            where = f"{file}:{number}"
            if isinstance(fields, str):
                raise UserError(where, fields)
            named = dict(zip(columns, fields, strict=False))
            picture, question = (named.get(named_as(name, named) or "") for name in ("picture", "question"))
            answer = (named.get("answer") or "").strip()
            if any(fields):
                if not (picture and question and answer):
                    raise UserError(where, f"found {fields!r:.80}", "a picture, a question and an answer")
                name = named.get(named_as("id", named) or "") or f"{file.name}:{number}"
                if name in wanted:
                    found = f"has the id {show(name)}, as a row before it"
                    raise UserError(where, found, "an id that no other row has")
                wanted[name] = picture, question, answer
    if not wanted:
        raise UserError(file, "has no rows", "a picture, a question and an answer in each")
    return wanted


def judge(wanted: Wanted, table: Path, file: Path) -> list[Judged]:
    """Every row of the table with its answer. UserError: answers are missing, or are to other questions."""
    answers = read_answers(file, table)
    if missing := [name for name in wanted if name not in answers]:
        found = f"has no answer to {missing[0]}, nor to {len(missing) - 1} more of {len(wanted)} rows"
        raise UserError(file, found, "one to each", f"run mvlm batch {table} -o {file} again")
    judged = []
    for name, (picture, question, gold) in wanted.items():
        shown, asked, answer = answers[name]
        fix = "give the table it is of"
        if asked != question:
            raise UserError(file, f"{name} asks {asked!r:.60}", f"{question!r:.60}", fix)
        if shown and Path(shown).name != Path(local(picture.strip())).name:
            raise UserError(file, f"{name} is about {shown!r:.200}", f"{picture!r:.60}", fix)
        one = Judged(name, name, gold, picture, question, answer, gold, 0.0)
        judged.append(replace(one, right=float((answer or "").strip() == gold)))
    return judged


def read_answers(file: Path, table: Path) -> Given:
    """A row without an id has been named by its table's path and its line; the folder does not count."""
    found: Given = {}
    fix = f"write it by mvlm batch {table} -o {file}"
    with opened(str(file)) as stream:
        lines = Lines(stream)
        for text in lines:
            where = f"{file}:{lines.number}"
            try:
                row = json.loads(decoded(text))
                name, picture, question, answer = (row[of] for of in ("id", "picture", "question", "answer"))
                texts = isinstance(name, str) and isinstance(question, str)
                if not (texts and isinstance(picture, str | None) and isinstance(answer, str | None)):
                    raise TypeError
            except (ValueError, TypeError, KeyError, RecursionError):
                raise UserError(where, "is no answer", "a line of mvlm batch's JSON lines", fix) from None
            if Path(name).name.startswith(f"{table.name}:"):
                name = Path(name).name
            if name in found:
                raise UserError(where, f"is a second answer to {show(name)}", "one to each row", fix)
            found[name] = picture, question, answer
    return found


def guess(wanted: Wanted) -> float:
    """The share that is right if to each question its commonest answer is given."""
    answers: dict[str, Counter[str]] = defaultdict(Counter)
    for _, question, answer in wanted.values():
        answers[question][answer] += 1
    return sum(counts.most_common(1)[0][1] for counts in answers.values()) / len(wanted)


if __name__ == "__main__":
    sys.exit(main())
