"""Samples as the model will see them, in a terminal or on a page: picture, text, and what is learned."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from string import Template

import numpy as np
from PIL import Image

from mvlm_np import pages
from mvlm_np.checkpoints.sniff import show
from mvlm_np.config import ImageConfig
from mvlm_np.inputs.image import scaled
from mvlm_np.inputs.tokenizer import IMAGE_TOKEN, Tokenizer
from tools.training.pictures import opened
from tools.training.records import Record
from tools.training.wording import IGNORED, Sample

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Shown:
    """A record as the model will see it.

    picture  after padding and resizing; None: it has none
    size     of the picture's file, (width, height)
    """

    record: Record
    sample: Sample
    picture: Image.Image | None
    size: tuple[int, int] | None


def look(record: Record, sample: Sample, config: ImageConfig, *, as_published: bool) -> Shown:
    """UserError: the record's picture cannot be read."""
    if record.image is None:
        return Shown(record, sample, None, None)
    picture = opened(record, as_published=as_published)
    seen = Image.fromarray(np.ascontiguousarray(scaled(picture, config).transpose(1, 2, 0)))
    return Shown(record, sample, seen, picture.size)


def pieces(sample: Sample, tokenizer: Tokenizer) -> Iterator[tuple[str, bool]]:
    """The text of each token, and whether it is learned. Several that make one character come together."""
    waiting = b""
    for i, (id, label) in enumerate(zip(sample.ids, sample.labels, strict=True)):
        learned = label != IGNORED
        if id == IMAGE_TOKEN or id in tokenizer.special_ids:
            yield "<image>" if id == IMAGE_TOKEN else tokenizer.id_to_piece(id), learned
            continue
        waiting += tokenizer.piece_bytes(id)
        last = i + 1 == len(sample.ids) or (sample.labels[i + 1] != IGNORED) != learned
        try:
            text = waiting.decode()
        except UnicodeDecodeError:
            if not last:
                continue
            text = waiting.decode(errors="replace")
        waiting = b""
        yield text, learned


def counted(shown: Shown, positions: int) -> str:
    """In words: how long a sample is, and how much of it is learned."""
    sample = shown.sample
    tokens = len(sample.ids) - sample.ids.count(IMAGE_TOKEN)
    learned = sum(label != IGNORED for label in sample.labels)
    picture = f" and {positions} positions of the picture" * (IMAGE_TOKEN in sample.ids)
    return f"{tokens} tokens{picture}; {learned} are learned"


def seen(shown: Shown) -> str:
    """In words: what becomes of the picture."""
    if shown.picture is None or shown.size is None:
        return "no picture"
    (width, height), name = shown.size, shown.record.image
    if IMAGE_TOKEN not in shown.sample.ids:
        return f"{name}: not shown to the model"
    return f"{name}: {width} x {height} pixels, seen as {shown.picture.width} x {shown.picture.height}"


def remarks(shown: Shown) -> list[str]:
    """What is not taught of a sample."""
    silent = shown.sample.silent
    return [f"teaches nothing: {silent}"] * (silent is not None) + [*shown.sample.notes]


def as_text(shown: Sequence[Shown], tokenizer: Tokenizer, positions: int) -> str:
    """For a terminal: what is learned stands in [[ ]]."""
    blocks = []
    for one in shown:
        text, before = "", False
        for piece, learned in [*pieces(one.sample, tokenizer), ("", False)]:
            text += "[[" * (learned > before) + "]]" * (before > learned) + piece
            before = learned
        lines = [
            f"{one.record.where}: {counted(one, positions)}",
            seen(one),
            *remarks(one),
            *text.split("\n"),
        ]
        blocks.append(
            "\n    ".join("".join(c if c.isprintable() else show(c)[1:-1] for c in line) for line in lines)
        )
    return "\n\n".join(blocks)


def write_page(
    path: Path, shown: Sequence[Shown], tokenizer: Tokenizer, positions: int, lines: Sequence[str]
) -> None:
    """A page with the pictures in it. lines: what is to be said of the data as a whole.

    UserError: it cannot be written.
    """
    fields = pages.parts(HERE) | {
        "lines": "".join(f"<li>{escape(line)}</li>" for line in lines),
        "samples": "\n".join(_section(one, tokenizer, positions) for one in shown),
    }
    pages.write(path, Template((HERE / "page.html").read_text("utf-8")).substitute(fields))


def _section(one: Shown, tokenizer: Tokenizer, positions: int) -> str:
    words = "".join(
        f"<span{' class=learned' if learned else ''}>{escape(text).replace(chr(10), '↵<br>')}</span>"
        for text, learned in pieces(one.sample, tokenizer)
    )
    picture = ""
    if one.picture is not None and IMAGE_TOKEN in one.sample.ids:
        picture = f'<img src="{pages.inline(one.picture)}" alt="">'
    notes = "".join(f'<p class="note">{escape(remark)}</p>' for remark in remarks(one))
    return (
        f"<section><h2>{escape(one.record.where)}</h2><figure>{picture}<figcaption>{escape(seen(one))}"
        f"</figcaption></figure><p>{counted(one, positions)}</p>{notes}"
        f'<p class="words">{words}</p></section>'
    )
