"""Makes a data file for tools/finetune.py of a table, and shows samples as the model will see them.

    python tools/make_data.py photos gauge.csv -o gauge.json        # a folder, and picture,question,answer
    python tools/make_data.py photos gauge.csv -o gauge.json --question "What does the gauge say?"
    python tools/make_data.py photos gauge.json --check             # ten samples, in the terminal
    python tools/make_data.py photos gauge.json --check gauge.html --model FOLDER  # as a page, for this model

The data file is in the published format. An earlier one of that name is replaced, but no other kind of file.
Each row that cannot be used is named by its line, and then nothing is written, unless --skip-bad leaves those
rows out. A check shows what training does: the picture after padding and resizing, the text, and the tokens
that are learned. It counts the records that teach nothing.

Exit code 1: a check found records that teach nothing. 2: a file or a row is bad.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout, when run as a script

from mvlm_np import pages
from mvlm_np.checkpoints.opening import open_checkpoint
from mvlm_np.cli.progress import bar
from mvlm_np.demo import MODEL
from mvlm_np.errors import UserError, some
from mvlm_np.inputs.tokenizer import IMAGE_TOKEN, make
from mvlm_np.projector import image_tokens
from mvlm_np.rows.sources import TABLES, pictures_in
from tools.parts.arguments import at_least_1
from tools.parts.command import ended
from tools.training.records import read_records
from tools.training.shown import as_text, look, write_page
from tools.training.table import Entry, read_table
from tools.training.wording import VERSIONS, report, sample

MOST_LINES = 20  # of rows that are bad


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    top.add_argument("images", metavar="FOLDER", type=Path, help="where the pictures are")
    top.add_argument("file", metavar="FILE", type=Path, help="a table (.csv, .tsv), or a data file (.json)")
    top.add_argument(
        "-o", "--out", metavar="FILE", type=Path, help="the data file (.json) that is made of it"
    )
    top.add_argument("--question", metavar="TEXT", help="of rows that have none")
    top.add_argument("--skip-bad", action="store_true", help="leave bad rows out, each with a line")
    top.add_argument("--check", metavar="PAGE", nargs="?", const="", help="show samples, here or on a page")
    top.add_argument("--samples", metavar="N", type=at_least_1, default=10, help="so many (default: 10)")
    top.add_argument("--model", metavar="PATH", default=str(MODEL), help="default: the model in the box")
    top.add_argument("--version", choices=VERSIONS, default="v1", help="how it is worded (default: v1)")
    top.add_argument("--limit", metavar="N", type=at_least_1, default=2048, help="tokens (default: 2048)")
    top.add_argument("--as-published", action="store_true", help="show what the published training does")
    return top


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    return ended("make_data", lambda: run(args))


def run(args: argparse.Namespace) -> int:
    if args.check:
        pages.check(Path(args.check))
    if args.file.suffix.lower() in TABLES:
        if args.out is None:
            raise UserError(args.file, "is a table", "a name for the data file", "add -o DATA.json")
        check_name(args.out)
        if not convert(args):
            return 2
    elif args.out is not None:
        raise UserError(
            args.file, "is no table", f"{' or '.join(TABLES)} with -o", "leave out -o to check it"
        )
    elif args.check is None:
        raise UserError(args.file, "is a data file already", fix="add --check to see what it teaches")
    return 0 if args.check is None else check(args, args.out or args.file)


def check_name(out: Path) -> None:
    """UserError, before rows are read: what stands there, a table or a device say, must not be replaced."""
    if out.suffix.lower() != ".json":
        raise UserError(out, "is no name for a data file", "one that ends in .json", "say: -o DATA.json")
    if os.path.exists(out) and not is_list(out):
        found = "is something else, which a data file would replace"
        raise UserError(out, found, "a new file", "name another")


def is_list(path: Path) -> bool:
    """Whether a file is empty or begins as a data file does."""
    if not os.path.isfile(path):  # a pipe would wait to be read
        return False
    try:
        with open(path, "rb") as file:
            return file.read(64).lstrip()[:1] in (b"", b"[")
    except OSError:
        return False


def convert(args: argparse.Namespace) -> bool:
    """Writes the data file; False: rows are bad, and it is not written."""
    with bar("rows", None) as shown:
        entries, bad = read_table(args.file, args.images, args.question, shown.update)
    for error in bad[:MOST_LINES]:
        print(f"make_data: {error}", file=sys.stderr)
    if bad[MOST_LINES:]:
        print(f"make_data: {len(bad) - MOST_LINES} more rows are bad", file=sys.stderr)
    if not entries:
        raise UserError(args.file, "has no row that can be used", "at least one")
    if bad and not args.skip_bad:
        fix = "mend them, or leave them out with --skip-bad"
        raise UserError(args.file, f"{len(bad)} of {len(bad) + len(entries)} rows are bad", fix=fix)
    write(args.out, entries)
    used = {entry["image"] for entry in entries}
    left_out = f"; {len(bad)} rows are left out" if bad else ""
    print(f"{args.out}: {len(entries)} records about {len(used)} pictures{left_out}")
    there = {os.path.realpath(path): path for path in pictures_in(args.images)}
    unused = there.keys() - {os.path.realpath(args.images / name) for name in used}
    if unused:
        names = sorted(str(there[path].relative_to(args.images)) for path in unused)
        print(f"{len(names)} pictures of {args.images} are in no record: {some(names)}")
    return True


def write(path: Path, entries: Sequence[Entry]) -> None:
    """Writes a data file, whole or not at all."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        try:
            part.write_text(json.dumps(entries, indent=1, ensure_ascii=False) + "\n", "utf-8")
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(path, f"cannot be written ({error.strerror})") from None


def check(args: argparse.Namespace, file: Path) -> int:
    records = read_records(file, args.images, as_published=args.as_published)
    checkpoint = open_checkpoint(args.model)
    config = checkpoint.config
    if config.vision is None:
        raise UserError(args.model, "reads no pictures", "a MobileVLM")
    tokenizer = make(checkpoint.read_tokenizer(), config.decoder.vocab_size)
    aspect = "square" if args.version == "plain" else "pad"
    image = replace(config.image, aspect_ratio=aspect)
    with bar("records", len(records)) as shown:
        samples = []
        for record in records:
            made = sample(record, tokenizer, args.version, args.limit, as_published=args.as_published)
            # A batch cuts off what is longer; here that has been done already, but not as published.
            samples.append(replace(made, ids=made.ids[: args.limit], labels=made.labels[: args.limit]))
            shown.update()
    count = min(args.samples, len(records))
    chosen = [i * len(records) // count for i in range(count)]
    seen = [look(records[i], samples[i], image, as_published=args.as_published) for i in chosen]
    learned = sum(label >= 0 for one in samples for label in one.labels)
    pictures = sum(IMAGE_TOKEN in one.ids for one in samples)
    silent = sum(one.silent is not None for one in samples)
    found = f"{len(records)} records, {pictures} with a picture that is seen; {learned} tokens are learned"
    lines = [f"{file}: {found}", *report(records, samples)]
    positions = image_tokens(config)
    if args.check:
        write_page(Path(args.check), seen, tokenizer, positions, lines)
    else:
        print(as_text(seen, tokenizer, positions), end="\n\n")
    print("\n".join(lines))
    return int(silent > 0)


if __name__ == "__main__":
    sys.exit(main())
