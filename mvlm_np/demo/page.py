"""One self-contained HTML page of what the demo model was asked, answered, and looked at."""

from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np
from PIL import Image

from mvlm_np import pages
from mvlm_np.config import ImageConfig
from mvlm_np.demo import PICTURES
from mvlm_np.demo.asking import Shown
from mvlm_np.inputs.image import preprocess
from mvlm_np.look.looking import as_picture

SIDE = 256  # pixels of a picture on the page
HEAD = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>mvlm demo</title>
<style>
body { font: 16px/1.5 sans-serif; max-width: 70em; margin: 2em auto; padding: 0 1em; color: #222 }
section { display: flex; flex-wrap: wrap; gap: 1em; border-top: 1px solid #ccc; padding: 1em 0 }
figure { margin: 0; width: 256px } img { width: 100%; display: block }
figcaption b { font-weight: 600 } .differs { color: #b00020 }
</style></head><body>
<h1>What the demo model sees</h1>
<p>A small MobileVLM V2, trained by this project on drawn pictures like these, and run by mvlm-np.
The bright patches are where the decoder looked as it began its answer: attention to the picture's
12 × 12 tokens, averaged over heads and layers.</p>
"""


def write_page(path: Path, shown: Sequence[Shown]) -> None:
    """Writes the page; the pictures and maps are in it. UserError: it cannot be written."""
    pages.write(path, HEAD + "".join(map(_section, shown)) + "</body></html>\n")


def _section(shown: Shown) -> str:
    picture = square(Image.open(PICTURES / shown.picture))
    figures = [_figure(picture, f"{escape(shown.picture)}<br>encoded in {1000 * shown.seconds:.0f} ms")]
    for asked in shown.asked:
        differs = "" if asked.answer == asked.expected else f", expected {escape(asked.expected)}"
        style = ' class="differs"' if differs else ""
        said = f"{escape(asked.question)}<br><b{style}>{escape(asked.answer)}</b>{differs}"
        figures.append(_figure(lit(picture, asked.attention), f"{said}<br>{1000 * asked.seconds:.0f} ms"))
    return f"<section>{''.join(figures)}</section>\n"


def _figure(picture: Image.Image, caption: str) -> str:
    source = pages.inline(picture, "JPEG", quality=90)
    return f'<figure><img src="{source}" alt=""><figcaption>{caption}</figcaption></figure>'


def square(picture: Image.Image) -> Image.Image:
    """As the model sees it, padded, but SIDE pixels each way."""
    config = ImageConfig(resize=SIDE, crop=(SIDE, SIDE))
    return Image.fromarray(as_picture(preprocess(picture, config), config))


def lit(picture: Image.Image, attention: np.ndarray) -> Image.Image:
    """The picture darkened where nobody looked; the most watched patch keeps its light."""
    share = attention / attention.max()
    light = Image.fromarray((40 + 215 * share**0.5).astype(np.uint8))
    return Image.composite(picture, Image.new("RGB", picture.size), light.resize(picture.size))
