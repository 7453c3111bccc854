"""MMBench, dev in English: 1,164 questions, asked once for each turn of their options.

A question is right if it is right in all turns. A table holds everything. `index` numbers a question's rows:
the first is below 1,000,000, and the others are above it by multiples of that.
"""

import base64
import csv
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mvlm_np.checkpoints.sniff import show
from mvlm_np.errors import EvaluationError
from mvlm_np.evaluation.answers import Answer, by_id
from mvlm_np.evaluation.asked import LETTER, PAD_FIRST, Asked
from mvlm_np.evaluation.benchmark import Benchmark, Verdict, judged
from mvlm_np.evaluation.files import MOST_LINE, lines
from mvlm_np.evaluation.scores import Judged, Part, whole_groups

TABLES = ("mmbench_dev_en_20231003.tsv", "MMBench_DEV_EN.tsv")
ARCHIVE = "the first is in the published benchmark_data.zip"
COLUMNS = ("index", "question", "hint", "A", "B", "C", "D", "answer", "category", "image", "l2-category")
TURN = 1_000_000
REFERENCE = 64  # characters: a picture of so few is the index of the row that holds it
# What pandas takes for an empty cell. The published loader does so with "none" and "nan" in any case too.
EMPTY = {"", "#N/A N/A", "-1.#IND", "-1.#QNAN", "1.#IND", "1.#QNAN"}
EMPTY |= {*"#N/A #NA -NaN -nan <NA> N/A NA NULL NaN None n/a nan null".split()}
LETTERS = "ABCDE"
FORMS = ("{}.", "{},", "{}:", "{})", "{}).", "({})", "({}).", ":{}", ":{},", ":{}.", ":{})", ":{}).")


@dataclass(frozen=True)
class _Line:
    """A row of the table. where: for errors."""

    where: str
    index: int
    cells: dict[str, str]


def questions(folder: Path) -> list[Asked]:
    """The rows of the table, each a question with its options in one order."""
    table = list(_table(_path(folder)))
    pictures = _pictures(table)
    found = []
    for line in table:
        options = []
        for letter in "ABCD":
            if _is_empty(line.cells[letter]):
                break
            options.append(line.cells[letter])
        hint = "" if _is_empty(line.cells["hint"]) else line.cells["hint"] + "\n"
        prompt = (
            hint
            + line.cells["question"]
            + "".join(f"\n{letter}. {option}" for letter, option in zip("ABCD", options, strict=False))
        )
        base = line.index % TURN
        chars = [*"ABCD"[: len(options)]]
        found.append(
            Asked(
                id=str(line.index),
                question_id=line.index,
                group=str(base),
                category=line.cells["category"],
                picture=str(base),
                source=pictures[line.index],
                text=prompt + LETTER,
                prompt=prompt,
                more={"round_id": 0, "options": options, "option_char": chars},
            )
        )
    return found


def judge(folder: Path, asked: Sequence[Asked], answers: Sequence[Answer], as_published: bool) -> Verdict:
    """A row that has no answer is wrong; for the published script it says "nan", as an empty one does."""
    joined = by_id(asked, answers)
    table = {line.index: line for line in _table(_path(folder))}
    found, l2 = [], {}
    unmatched: list[str] = []
    wrong: dict[str, str] = {}  # {group: its first wrong row}; the published script looks no further
    for one, answer in zip(asked, joined.answers, strict=True):
        assert isinstance(one.question_id, int)
        cells = table[one.question_id].cells
        options = {letter: cells[letter] for letter in "ABCD" if cells[letter] not in EMPTY}
        letter = None
        if answer is not None or as_published:
            letter = said("" if answer is None else answer.text, options)
            if letter is None:
                unmatched.append(one.id)
        if letter != cells["answer"]:
            wrong.setdefault(one.group, one.id)
        base = table.get(one.question_id % TURN, table[one.question_id]).cells
        l2[one.group] = base["l2-category"]
        found.append(
            judged(one, answer, cells["answer"], letter == cells["answer"], category=base["category"])
        )
    counts = joined.counts | {
        "unmatched": len(unmatched),
        "unmatched, and the published script asks ChatGPT": len({*unmatched} & {*wrong.values()}),
    }
    first = [one for one in found if int(one.id) < TURN]
    parts = [
        _share("", "overall", found),
        _share("", "first pass only", first),
        *(
            _share("l2-category", key, [one for one in found if l2[one.group] == key])
            for key in sorted({*l2.values()})
        ),
        *(
            _share("category", key, [one for one in found if one.category == key])
            for key in sorted({one.category for one in found})
        ),
    ]
    return Verdict(found, counts, parts)


def said(answer: str, options: dict[str, str]) -> str | None:
    """The letter that an answer gives to a question with these options; None if there is no single one.

    The published script reads answers back from a spreadsheet, which loses some texts: they are "nan" then.
    """
    if answer in EMPTY or answer.startswith("="):
        answer = "nan"
    words = answer.split()
    for form in ("{}", *FORMS):
        there = [letter for letter in LETTERS if form.format(letter) in words]
        if len(there) == 1 and not (form == "{}" and "A" in words and len(words) > 3):
            return there[0]
    contained = [letter for letter, option in options.items() if option.lower() in answer.lower()]
    return contained[0] if len(contained) == 1 else None


def _share(table: str, name: str, found: Sequence[Judged]) -> Part:
    groups = whole_groups(found)
    return Part(table, name, sum(groups) / len(groups) if groups else 0.0, len(groups))


def _is_empty(cell: str) -> bool:
    return cell in EMPTY or cell.lower() in ("none", "nan")


def _path(folder: Path) -> Path:
    for name in TABLES:
        if (folder / name).exists():
            return folder / name
    raise EvaluationError(folder, "has no table of MMBench", " or ".join(TABLES), ARCHIVE)


def _table(path: Path) -> Iterator[_Line]:
    """The rows of a table with tabs, in which a cell in quotes may hold line breaks."""
    usual, number = csv.field_size_limit(MOST_LINE), 0  # of the whole process, so it is put back

    def counted() -> Iterator[str]:
        nonlocal number
        for number, line in lines(path):  # noqa: B007 (it is what errors name)
            yield line

    rows = csv.reader(counted(), delimiter="\t")
    try:
        header = next(rows, [])
        if missing := [name for name in COLUMNS if name not in header]:
            raise EvaluationError(path, f"has no column {' '.join(missing)}", "a table of MMBench", ARCHIVE)
        seen = set()
        for row in rows:
            where = f"{path}, line {number}"
            if len(row) > len(header):
                raise EvaluationError(where, f"has {len(row)} cells", f"{len(header)}")
            cells = dict.fromkeys(header, "") | dict(zip(header, row, strict=False))
            if not re.fullmatch(r"[0-9]{1,12}", cells["index"]):
                raise EvaluationError(where, f"has the index {show(cells['index'])}", "a number")
            index = int(cells["index"])
            if index in seen:
                raise EvaluationError(where, f"has the index {index}, as a row before", "each once")
            seen.add(index)
            yield _Line(where, index, cells)
    except csv.Error as reason:
        raise EvaluationError(f"{path}, line {number}", reason, "cells with tabs between them") from None
    finally:
        csv.field_size_limit(usual)


def _pictures(table: Iterable[_Line]) -> dict[int, bytes]:
    """{index: its picture's file}. Equal pictures are kept once."""
    texts = {line.index: line.cells["image"] for line in table}
    kept: dict[str, bytes] = {}
    found = {}
    for line in table:
        text = line.cells["image"]
        if text.isdecimal() and len(text) <= REFERENCE:
            text = texts.get(int(text), text)
        if text not in kept:
            try:
                kept[text] = base64.b64decode(text, validate=True)
            except ValueError:  # binascii's, or text that is not ASCII
                kept[text] = b""
            if len(text) <= REFERENCE or not kept[text]:
                wanted = "a picture in base64, or the index of a row that has one"
                raise EvaluationError(line.where, f"found the image {show(text)}", wanted)
        found[line.index] = kept[text]
    return found


BENCHMARK = Benchmark(
    key="mmbench",
    title="MMBench dev",
    headline="Accuracy, right in all turns",
    questions=questions,
    judge=judge,
    preparation=PAD_FIRST,
    max_new_tokens=1024,
    images="they are in its table",
    otherwise='it takes a missing answer for the text "nan"',
)
