"""Draws pictures of an instrument that the demo model has never seen, with a question and the answer to each.

    python tools/draw_instruments.py photos --pictures 400                     # a valve, open or shut
    python tools/draw_instruments.py photos --pictures 400 --instrument slider # a slider with marks 0 to 5
    python tools/draw_instruments.py kept --pictures 200 --split held-out      # others, to test with

The folder gets the pictures and `photos.csv` (picture, question, answer), which tools/make_data.py takes. A
photos.csv that is there already is kept: then nothing is drawn. A picture follows from its split and number
alone, and every answer is right equally often; see docs/teach.md.
"""

import argparse
import csv
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout, when run as a script

from mvlm_np.errors import UserError
from tools.demo.instruments import INSTRUMENTS, SPLITS, example
from tools.parts.arguments import at_least_1
from tools.parts.command import ended

COLUMNS = ("picture", "question", "answer")


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    top.add_argument("folder", type=Path, metavar="FOLDER", help="where pictures and photos.csv go")
    top.add_argument("--pictures", type=at_least_1, default=50, metavar="N", help="how many (50)")
    top.add_argument("--instrument", choices=[*INSTRUMENTS], default="valve")
    top.add_argument("--split", choices=SPLITS, default="train")
    return top


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)

    def draw() -> None:
        try:
            write(args.folder, args.instrument, args.split, args.pictures)
        except OSError as error:
            found = f"cannot be written ({error.strerror})"
            raise UserError(args.folder, found, fix="name another folder") from None

    return ended("draw_instruments", draw, "stopped; the same command draws them again")


def write(folder: Path, instrument: str, split: str, pictures: int) -> None:
    """The table comes last, when all its pictures are there. UserError: there is one already."""
    folder.mkdir(parents=True, exist_ok=True)
    table = folder / "photos.csv"
    if table.exists():
        raise UserError(table, "is there already", "a new folder", "name another, or remove the table")
    rows = []
    for number in range(pictures):
        picture, question, answer = example(instrument, split, number)
        name = f"{instrument}-{split}-{number:04}.png"
        picture.save(folder / name)
        rows.append((name, question, answer))
    with open(table, "x", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([COLUMNS, *rows])


if __name__ == "__main__":
    sys.exit(main())
