"""From a table of pictures, questions and answers to the entries of a data file.

    picture,question,answer
    0001.jpg,What does the gauge say?,42

The first line names the columns, in any order; `,`, `;` or tabs separate them. Other columns are not read.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mvlm_np.checkpoints.sniff import show
from mvlm_np.errors import UserError, some
from mvlm_np.inputs.conversation import IMAGE_MARK
from mvlm_np.inputs.image import open_image
from mvlm_np.rows.sources import NAMES, Lines, header, opened, records
from tools.training.records import picture_file

COLUMNS = {name: NAMES[name] for name in ("picture", "question", "id")} | {
    "answer": ("answer", "label", "caption")
}
Entry = dict[str, Any]  # as in the data file


def read_table(
    file: Path, images: Path, question: str | None = None, each: Callable[[], object] = lambda: None
) -> tuple[list[Entry], list[UserError]]:
    """An entry for each row, and what is wrong with the rows that give none, each by its line.

    question  of the rows that have none
    each      called after each row

    Blanks around a question or an answer are left out. Every picture is decoded, to see that it is whole.
    UserError: the file is no table, or has no column of pictures or answers.
    """
    entries, bad = list[Entry](), list[UserError]()
    answers = dict[tuple[str, str], tuple[str, int]]()  # (picture, question) -> answer, line
    for line, row in _rows(file):
        where = f"{file}:{line}"
        try:
            if isinstance(row, str):
                raise UserError(where, row)
            entry: Entry = {"id": row.get("id") or f"{file.stem}-{line}"}
            entry |= _entry(where, row, images, question)
            asked, answered = (turn["value"] for turn in entry["conversations"])
            picture = os.path.realpath(images / entry["image"])  # however it is spelled
            before, first = answers.setdefault((picture, asked), (answered, line))
            if before != answered:
                found = f"answers {show(answered)}, but line {first} {show(before)} to the same question"
                raise UserError(where, found, "one right answer", "mend or remove one of them")
            entries.append(entry)
        except UserError as error:
            bad.append(error)
        each()
    return entries, bad


def _rows(file: Path) -> Iterator[tuple[int, Mapping[str, str] | str]]:
    """Of each row that is not empty the line, and its fields by our names or what is wrong with it."""
    with opened(str(file)) as stream:
        lines = Lines(stream)
        columns, delimiter = header(str(file), lines)
        if twice := sorted({name for name in columns if columns.count(name) > 1}):
            raise UserError(f"{file}:1", f"names {some(twice)} twice", "each column once")
        ours = {
            name: found
            for name, names in COLUMNS.items()
            if (found := next((one for one in names if one in columns), None))
        }
        if "answer" not in ours:
            raise UserError(
                f"{file}:1", f"names no column answer but {some(columns)}", "picture,question,answer"
            )
        for number, fields in records(lines, delimiter):
            if isinstance(fields, str):
                yield number, fields
            elif any(fields[len(columns) :]):
                fix = f"put fields with {delimiter!r} in quotes"
                yield number, f"has {len(fields)} fields, wanted {len(columns)}; {fix}"
            elif any(fields):
                row = dict(zip(columns, fields, strict=False))
                yield number, {name: row.get(column, "").strip() for name, column in ours.items()}


def _entry(where: str, row: Mapping[str, str], images: Path, question: str | None) -> Entry:
    picture, asked, answer = row["picture"], row.get("question") or question, row["answer"]
    for what, text in (("picture", picture), ("question", asked), ("answer", answer)):
        if not text:
            fix = "; give one for all with --question" if what == "question" else ""
            raise UserError(where, f"has no {what}", fix=f"fill it in{fix}")
        if IMAGE_MARK in text:
            found = f"has {IMAGE_MARK} in its {what}"
            raise UserError(where, found, "text alone", "leave it out, the picture needs no mark")
    path = picture_file(picture, where, images)
    try:
        open_image(path)
    except UserError as error:
        raise UserError(where, error) from None
    conversation = [{"from": "human", "value": f"{IMAGE_MARK}\n{asked}"}, {"from": "gpt", "value": answer}]
    return {"image": picture, "conversations": conversation}
