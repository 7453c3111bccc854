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
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout, when run as a script

from mvlm_np.errors import UserError
from mvlm_np.evaluation.scores import Judged
from mvlm_np.evaluation.statistics import Estimate, difference, estimate
from mvlm_np.rows.sources import Lines, decoded, header, named_as, opened, records
from tools.parts.arguments import at_least_1

Wanted = dict[str, tuple[str, str, str]]  # a row's name -> its picture, question and right answer


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    top.add_argument("table", type=Path, metavar="TABLE.csv", help="picture, question and right answer")
    top.add_argument("answers", type=Path, metavar="ANSWERS.jsonl", help="what mvlm batch wrote about it")
    top.add_argument("--against", metavar="FILE", type=Path, help="compare, paired, with these answers")
    top.add_argument("--wrong", metavar="N", type=at_least_1, default=5, help="wrong answers to show (5)")
    top.add_argument("--least", metavar="SHARE", type=float, default=0.0, help="exit with 1 below this score")
    return top


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    try:
        return run(args)
    except UserError as error:
        print(f"score_answers: {error}", file=sys.stderr)
        return 2


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
                wanted[named.get(named_as("id", named) or "") or f"{file.name}:{number}"] = (
                    picture,
                    question,
                    answer,
                )
    if not wanted:
        raise UserError(file, "has no rows", "a picture, a question and an answer in each")
    return wanted


def judge(wanted: Wanted, table: Path, file: Path) -> list[Judged]:
    """Every row of the table with its answer. UserError: answers are missing, or are to other questions."""
    answers = read_answers(file)
    if missing := [name for name in wanted if name not in answers]:
        found = f"has no answer to {missing[0]}, nor to {len(missing) - 1} more of {len(wanted)} rows"
        raise UserError(file, found, "one to each", f"run mvlm batch {table} -o {file} again")
    judged = []
    for name, (picture, question, gold) in wanted.items():
        asked, answer = answers[name]
        if asked != question:
            fix = "give the table it is of"
            raise UserError(file, f"{name} asks {asked!r:.60}", f"{question!r:.60}", fix)
        one = Judged(name, name, gold, picture, question, answer, gold, 0.0)
        judged.append(replace(one, right=float((answer or "").strip() == gold)))
    return judged


def read_answers(file: Path) -> Mapping[str, tuple[str, str | None]]:
    """Row -> question and answer. A row that its table does not name has the table's name and its line."""
    found = {}
    with opened(str(file)) as stream:
        lines = Lines(stream)
        for text in lines:
            where = f"{file}:{lines.number}"
            try:
                row = json.loads(decoded(text))
                found[Path(row["id"]).name] = row["question"], row["answer"]
            except (ValueError, TypeError, KeyError, RecursionError):
                fix = "write it by mvlm batch TABLE.csv -o ANSWERS.jsonl"
                raise UserError(where, "is no answer", "a line of mvlm batch's JSON lines", fix) from None
    return found


def guess(wanted: Wanted) -> float:
    """The share that is right if to each question its commonest answer is given."""
    answers: dict[str, Counter[str]] = defaultdict(Counter)
    for _, question, answer in wanted.values():
        answers[question][answer] += 1
    return sum(counts.most_common(1)[0][1] for counts in answers.values()) / len(wanted)


if __name__ == "__main__":
    sys.exit(main())
