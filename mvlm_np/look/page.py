"""A look as one page for a browser, a phone's too, from the picture to the answer.

The page needs nothing but itself. Its words, numbers and pictures stand in it as they are; the maps of
attention are compressed (`maps`), and its script (page.js) draws the one that is asked for.
"""

import json
import re
from collections.abc import Iterator
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from PIL import Image

from mvlm_np import pages
from mvlm_np.look.looking import Look
from mvlm_np.look.maps import colour, maps, on_picture
from mvlm_np.memory import text

HERE = Path(__file__).parent
LARGEST = 24_000_000  # bytes of a page

STAGES = {
    "preprocess": "picture to pixels",
    "encode": "tower",
    "project": "projector",
    "prefill": "reading the prompt",
    "decode": "writing the answer",
}

NOTES = (
    "Attention says where numbers were fetched, not why the answer is what it is.",
    "Attention is rounded to 8 bits: each weight is right within half a percent of the largest in its row. "
    "The shares of attention by block are exact.",
    "The strongest colour in a map is its largest weight; half the colour is half the weight.",
    "A decoder looks at the first token when it looks for nothing, so the text's colours leave it out.",
)


def write_page(path: Path, look: Look, numbers: dict[str, Any]) -> None:
    """Writes the page. UserError: it cannot be written."""
    pages.write(path, page(look, numbers))


def page(look: Look, numbers: dict[str, Any], largest: int = LARGEST) -> str:
    """The page's HTML, of about `largest` bytes at most. `numbers` are those of `report`."""
    steps = [{k: v for k, v in step.items() if k != "looked_at_picture"} for step in numbers["steps"]]
    fields = pages.parts(HERE) | {
        "title": escape(f"{look.question} – mvlm look"),
        "model": escape(numbers["model"]),
        "question": escape(look.question),
        "answer": escape(look.answered.text) or "nothing",
        "numbers": json.dumps(numbers | {"steps": steps}, ensure_ascii=False).replace("<", "\\u003c"),
        "stages": "".join(_stage_rows(numbers)),
    }
    fields |= {name: escape(words) for name, words in _words(numbers).items()}
    template = (HERE / "page.html").read_text("utf-8")
    if look.seen:
        fields |= {
            name: pages.inline(Image.fromarray(array))
            for name, array in (("picture", look.seen.pixels), ("colours", colour(on_picture(look.seen))))
        }
    else:
        template = re.sub("<!-- with a picture -->.*?<!-- end -->", "", template, flags=re.DOTALL)
    blocks, left_out = maps(look, largest - len(template) - sum(map(len, fields.values())))
    fields["maps"] = "\n".join(blocks)
    fields["notes"] = "".join(f"<li>{escape(note)}</li>" for note in (*NOTES, *left_out))
    return Template(template).substitute(fields)


# ---------------------------------------------------------------- words


def _words(numbers: dict[str, Any]) -> dict[str, str]:
    count, seen = numbers["positions"], numbers["picture"]
    peak = f" The process took at most {text(numbers['peak_bytes'])}." if numbers["peak_bytes"] else ""
    words = {
        "prompt_words": f"The decoder reads {count} positions, each a piece of text from its vocabulary"
        + (f", and in the picture's place its {seen['tokens']} tokens." if seen else "."),
        "cost_words": f"Times are without the recording of this page.{peak}",
    }
    if seen is None:
        return words
    (width, height), (across, down) = seen["size"], seen["pixels"]
    (run, blocks), grid, patch, side = (seen[key] for key in ("blocks", "grid", "patch", "token_grid"))
    rest = "" if run == blocks else f" (of {blocks}; no answer depends on the rest)"
    return words | {
        "picture_words": f"{width} × {height} pixels, {seen['fit']} to a square and scaled to "
        f"{across} × {down}, cut into {grid} × {grid} patches of {patch} × {patch} pixels.",
        "tower_words": f"Each patch becomes a vector of {seen['width']} numbers, and in each of {run} "
        f"blocks{rest} it gathers from the other patches what it needs. Point at a patch to see where it "
        "looks: the stronger the colour, the more.",
        "token_words": f"They lie on the picture as {side} × {side} vectors of {seen['token_width']} "
        "numbers, and are all that the decoder gets of it. Point at a token to see which others are like it.",
        "token_count": str(seen["tokens"]),
    }


def _stage_rows(numbers: dict[str, Any]) -> Iterator[str]:
    count = len(numbers["steps"])
    for stage in numbers["stages"]:
        name, seconds = STAGES[stage["name"]], stage["seconds"]
        if stage["name"] == "decode" and count > 1:
            name += f", {text_seconds(seconds / (count - 1))} a token"
        weights = text(stage["weight_bytes"]) if stage["weight_bytes"] else "–"
        yield f'<tr><th scope="row">{name}</th><td>{text_seconds(seconds)}</td><td>{weights}</td></tr>'
    cache = text(numbers["cache_bytes"])
    yield f'<tr><th scope="row">keys and values in the end</th><td></td><td>{cache}</td></tr>'


def text_seconds(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"
