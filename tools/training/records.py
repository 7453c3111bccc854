"""Upstream's data files: a JSON list of records, each a conversation and perhaps one picture.

    {"id": "17", "image": "17.png", "conversations": [
        {"from": "human", "value": "<image>\\nWhat does the gauge say?"}, {"from": "gpt", "value": "42"}]}

Anybody may have written such a file. What is wrong with it is one line, which names file and record.
"""

import logging
import os
import unicodedata
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mvlm_np import memory
from mvlm_np.checkpoints.json_files import read_json, short
from mvlm_np.checkpoints.sniff import show
from mvlm_np.errors import UserError, some
from mvlm_np.inputs.picture_file import open_file
from mvlm_np.inputs.tokenizer import HALF_CHARACTER

HUMAN, GPT = SPEAKERS = "human", "gpt"
MEMORY = 8  # bytes of memory that a byte of JSON takes: 5 of long texts, 14 of the shortest
CONVERSATION = 'a list like [{"from": "human", "value": ...}, {"from": "gpt", "value": ...}]'
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Record:
    """One entry of a data file.

    where  for messages: "data.json: record 17 (id gauge-17)", counted from 1
    turns  ("human" or "gpt", text), as written
    """

    where: str
    image: Path | None
    turns: tuple[tuple[str, str], ...]


def read_records(file: Path, images: Path, *, as_published: bool = False) -> list[Record]:
    """All records of a data file, checked; `image` is looked for in the folder `images`.

    UserError: the file is no such list, or there are bad records, of which the first is explained and the
    others are counted. With `as_published` an `image` of null is bad too; upstream stops at it.

    Upstream never reads `id`. Here it is a name for messages, and one that several records have is logged.
    """
    entries = _entries(file)
    records, bad, first = list[Record](), list[str](), None
    for number, entry in enumerate(entries, 1):
        try:
            records.append(_record(entry, f"{file}: record {number}", images, as_published))
        except UserError as error:
            first = first or error
            bad.append(str(number))
    if first:
        raise UserError(first, f"records {some(bad[1:])} are bad, too") if bad[1:] else first
    names = Counter(str(entry["id"]) for entry in entries if isinstance(entry, Mapping) and "id" in entry)
    if twice := [f"{show(name)} {count} times" for name, count in names.items() if count > 1]:
        log.warning("%s: several records have the same id, which is only a name: %s", file, some(twice))
    return records


def _entries(file: Path) -> list[object]:
    if file.suffix.lower() in (".csv", ".tsv"):
        raise UserError(file, "is a table", "upstream's JSON", "tools/make_data.py makes it of a table")
    if file.suffix.lower() in (".jsonl", ".ndjson"):
        raise UserError(file, "is JSON lines", "one JSON list", "make one: jq -s . IN.jsonl > OUT.json")
    size = os.path.getsize(file) if os.path.isfile(file) else 0
    free = memory.available()
    if free is not None and MEMORY * size > free:
        found = f"takes about {memory.text(MEMORY * size)} of memory"
        raise UserError(file, found, f"at most the {memory.text(free)} that are free", "split it")
    found = read_json(file, UserError, size, size, "mend it, or make it again")
    if not isinstance(found, list):
        raise UserError(file, "is a JSON object", "a list of records", "put the records in square brackets")
    if not found:
        raise UserError(file, "is an empty list", "at least one record")
    return found


def _record(entry: object, where: str, images: Path, as_published: bool) -> Record:
    if not isinstance(entry, Mapping):
        raise UserError(where, f"found {short(entry)}", "an object with conversations, and perhaps image")
    if isinstance(entry.get("id"), str | int):
        where += f" (id {show(str(entry['id'])).strip(chr(39))})"
    turns = entry.get("conversations")
    if not isinstance(turns, list) or not turns:
        found = f"conversations is {short(turns)}" if "conversations" in entry else "has no conversations"
        raise UserError(where, found, CONVERSATION)
    image = None
    if "image" in entry and (as_published or entry["image"] is not None):
        image = _picture(entry["image"], where, images)
    return Record(where, image, tuple(_turn(turn, f"{where}: turn {i}") for i, turn in enumerate(turns, 1)))


def _turn(turn: object, where: str) -> tuple[str, str]:
    if not isinstance(turn, Mapping):
        raise UserError(where, f"found {short(turn)}", 'an object with "from" and "value"')
    if not {"from", "value"} <= {*turn}:
        raise UserError(where, f"has {some(map(short, turn)) or 'nothing'}", '"from" and "value"')
    speaker, text = turn["from"], turn["value"]
    if speaker not in SPEAKERS:
        raise UserError(where, f'"from" is {short(speaker)}', '"human" or "gpt"', "rename or remove it")
    if not isinstance(text, str):
        raise UserError(where, f'"value" is {short(text)}', "a text", "put it in quotes")
    if half := HALF_CHARACTER.search(text):
        raise UserError(where, f"half a character at {half.start()}", "valid Unicode", "write it in UTF-8")
    return speaker, text


def _picture(name: object, where: str, images: Path) -> Path:
    if not isinstance(name, str) or not name:
        raise UserError(where, f"image is {short(name)}", "the name of one picture's file")
    return picture_file(name, where, images)


def picture_file(name: str, where: str, images: Path) -> Path:
    """The file of a picture in the folder `images`. UserError: there is none, or its name cannot be shown."""
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in name):
        found, fix = f"image is {short(name)}", "rename the file"
        raise UserError(where, found, "a name without control characters", fix)
    path = images / name
    if not os.path.isfile(path):
        if not name.isprintable():  # of other kinds: a narrow blank, as in the names of macOS's screenshots
            raise UserError(where, f"there is no file {short(name)}", fix="check the path")
        try:
            open_file(name if "://" in name else str(path)).close()  # says what is wrong
        except UserError as error:
            raise UserError(where, error) from None
    return path
