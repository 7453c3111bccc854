"""A comparison as one page for a browser, a phone's too: the curve of the error by depth, and where it lies.

The page needs nothing but itself: pictures are inside it, and what can be shown without a script is.
"""

from html import escape
from math import floor, isqrt, log10
from pathlib import Path
from string import Template

import numpy as np
from PIL import Image

from mvlm_np import pages
from mvlm_np.errors import GoldenError
from mvlm_np.golden.compare.comparison import Comparison
from mvlm_np.golden.compare.report import row, summary
from mvlm_np.golden.compare.verdict import MISSING, RIGHT, UNJUDGED, StageResult
from mvlm_np.golden.format import Golden

LEAST, MOST = 1e-9, 10.0  # errors shown by the curve
NEAR = 3  # stages around the first wrong one that are shown large

# Colours of an error map by log10 of error / bound: calm up to the bound, then glowing.
SCALE = (
    (-2.0, (18, 32, 47)),
    (-1.0, (31, 63, 92)),
    (-0.02, (72, 124, 163)),
    (0.02, (255, 214, 102)),
    (1.0, (244, 125, 62)),
    (2.0, (214, 40, 80)),
    (3.0, (122, 0, 60)),
)
STEPS = 128  # of the palette

PARTS = (  # the beginning of a stage's name, and what the curve calls that part of the model
    ("pixel_values", "pixels"),
    ("vision.", "vision encoder"),
    ("projector.", "projector"),
    ("decode.", "answer"),
    ("", "decoder"),
)


def write_page(path: Path, result: Comparison, golden: Golden) -> None:
    """Writes the page. GoldenError: it cannot be written."""
    pages.write(path, page(result, golden), GoldenError)


def page(result: Comparison, golden: Golden) -> str:
    """The page's HTML."""
    about = golden.metadata
    facts = [
        (label, about[key])
        for label, key in (("model", "model"), ("picture", "image"), ("question", "question"))
        if key in about
    ]
    first = result.first_wrong
    headline = "Right" if result.right else "Undecided: none of the stages could be judged"
    if first is not None:
        headline = f"Wrong from <b>{_name(first.name)}</b> on"
    template = Template(Path(__file__).with_suffix(".html").read_text("utf-8"))
    return template.substitute(
        title=escape(summary(result)),
        state="good" if result.right else "bad",
        headline=headline,
        counted=escape(_counted(result)),
        facts="".join(f"<dt>{label}</dt><dd>{escape(text)}</dd>" for label, text in facts),
        notes="".join(f"<li>{escape(note)}</li>" for note in result.notes),
        notes_state="" if result.notes else "hidden",
        curve=curve(result),
        around=around(result),
        legend=_gradient(),
        maps="".join(card(s, s is first) for s in result.stages if s.map is not None),
        rows="".join(table_row(s, s is first) for s in result.stages if s.verdict != MISSING),
    )


def _counted(result: Comparison) -> str:
    given = sum(s.verdict != MISSING for s in result.stages)
    failed = sum(s.failed for s in result.stages)
    wrong = "none is wrong" if not failed else f"{failed} wrong"
    return f"{given} of {len(result.stages)} stages compared as {result.kind}, {wrong}"


def _name(name: str) -> str:
    """A stage's name that may break at its dots."""
    return escape(name).replace(".", ".<wbr>")


# ---------------------------------------------------------------- the curve


def curve(result: Comparison) -> str:
    """Error by depth: a dot for each stage, the bound as a line, and the first wrong stage marked."""
    shown = [s for s in result.stages if s.distance and s.bound]
    if not shown:
        return "<p>No stage could be measured.</p>"
    step = 100 / len(shown)

    def left(i: float) -> float:
        return step * (i + 0.5)

    def top(error: float) -> float:
        return 100 * log10(MOST / min(max(error, LEAST), MOST)) / log10(MOST / LEAST)

    errors = [(left(i), top(s.distance.rms)) for i, s in enumerate(shown) if s.distance]
    limits = [(left(i), top(s.bound.rms)) for i, s in enumerate(shown) if s.bound]
    grid = "".join(
        f'<span class="decade" style="top:{top(10.0**e):.2f}%"><em>{_decade(e)}</em></span>'
        for e in range(floor(log10(LEAST)), 2, 2)
    )
    parts, start = "", 0
    kinds = [next(label for prefix, label in PARTS if s.name.startswith(prefix)) for s in shown]
    for i in range(1, len(shown) + 1):
        if i == len(shown) or kinds[i] != kinds[start]:
            parts += (
                f'<span class="part" style="left:{step * start:.2f}%;width:{step * (i - start):.2f}%">'
                f"<em>{kinds[start] if step * (i - start) > 8 else ''}</em></span>"
            )
            start = i
    dots = "".join(
        f'<i class="dot {_class(s)}" style="left:{x:.2f}%;top:{y:.2f}%" title="{escape(_title(s))}"></i>'
        for s, (x, y) in zip(shown, errors, strict=True)
    )
    mark = ""
    if result.first_wrong in shown:
        at = left(shown.index(result.first_wrong))
        side = "right" if at > 50 else "left"
        mark = (
            f'<span class="fault {side}" style="left:{at:.2f}%"><em>first wrong<br>'
            f"<b>{_name(result.first_wrong.name)}</b></em></span>"
        )
    return (
        f'<div class="chart">{grid}{parts}<svg viewBox="0 0 100 100" preserveAspectRatio="none">'
        f'<path class="limit" d="{_path(limits)}"/><path class="error" d="{_path(errors)}"/></svg>'
        f"{mark}{dots}</div>"
    )


def _path(points: list[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:.2f} {y:.2f}" for x, y in points)


def _decade(exponent: int) -> str:
    return "1" if exponent == 0 else f"10<sup>{exponent}</sup>".replace("-", "−")


def _title(s: StageResult) -> str:
    assert s.distance and s.bound
    return f"{s.name}: {s.verdict}, error {s.distance.rms:.1e}, bound {s.bound.rms:.1e}"


def _class(s: StageResult) -> str:
    return {RIGHT: "ok", UNJUDGED: "open"}.get(s.verdict, "no")


# ---------------------------------------------------------------- error maps


def around(result: Comparison) -> str:
    """Large maps: the last right stage, the first wrong one, and those after it."""
    first = result.first_wrong
    drawn = [s for s in result.stages if s.map is not None]
    if first is None or first not in drawn:
        return ""
    at = drawn.index(first)
    return "".join(card(s, s is first, large=True) for s in drawn[max(0, at - 1) : at + NEAR - 1])


def card(s: StageResult, first: bool, large: bool = False) -> str:
    assert s.map is not None and s.bound and s.distance
    rows, columns = s.map.shape
    row, column = np.unravel_index(int(s.map.argmax()), s.map.shape)
    ring = ""
    if s.failed:
        spot = f"left:{100 * (column + 0.5) / columns:.1f}%;top:{100 * (row + 0.5) / rows:.1f}%"
        ring = f'<i class="ring" style="{spot}"></i>'
    picture = (
        f'<div class="map"><img alt="error map of {escape(s.name)}" src="{_png(s.map / s.bound.relative)}">'
        f"{ring}</div>"
    )
    across, down = _axes(s.name)
    patches = ""
    if large and s.failed and s.profile is not None and (grid := _patches(s)) is not None:
        patches = (
            f'<div class="map square"><img alt="error by patch" src="{_png(grid / s.bound.rms)}"></div>'
            '<p class="axes">the same, patch by patch in the picture</p>'
        )
    where = f"<p>{escape(s.where)}</p>" if s.failed and s.where else ""
    note = f"<p>{escape(s.note)}</p>" if s.note else ""
    tag = '<span class="first">first wrong</span>' if first else ""
    return (
        f'<figure class="{_class(s)}{" large" if large else ""}{" marked" if first else ""}">'
        f'<figcaption><b>{_name(s.name)}</b> <span class="tag {_class(s)}">{s.verdict}</span>{tag}'
        "</figcaption>"
        f'{picture}<p class="axes">{across} →&ensp;{down} ↓&ensp;·&ensp;worst {s.distance.worst:.1e}'
        f"&ensp;·&ensp;{_snr(s)}</p>{where}{note}{patches}</figure>"
    )


def _snr(s: StageResult) -> str:
    assert s.distance
    return "exact" if s.distance.rms == 0 else f"SNR {s.distance.snr:.0f} dB"


def _axes(name: str) -> tuple[str, str]:
    if name == "pixel_values":
        return "columns of R, G, B", "rows"
    if name.startswith("vision."):
        return "channels", "patches"
    return "channels", "generated tokens" if name.startswith("decode.") else "tokens"


def _patches(s: StageResult) -> np.ndarray | None:
    """The error of each patch in its place in the picture."""
    assert s.profile is not None
    n = len(s.profile)
    if not s.name.startswith(("vision.", "projector.")) or n < 4:
        return None
    side = isqrt(n)
    tail = s.profile[n - side * side :]
    return tail.reshape(side, side) if n - side * side <= 1 else None


def _colours() -> np.ndarray:
    """The palette: (STEPS, 3) uint8 over the range of `SCALE`."""
    at = np.linspace(SCALE[0][0], SCALE[-1][0], STEPS)
    stops = [x for x, _ in SCALE]
    return np.stack(
        [np.interp(at, stops, [colour[i] for _, colour in SCALE]) for i in range(3)], axis=1
    ).astype(np.uint8)


def _png(ratio: np.ndarray) -> str:
    """Error / bound in each cell as a picture, a data URI."""
    low, high = SCALE[0][0], SCALE[-1][0]
    level = np.clip((np.log10(np.maximum(ratio, 1e-30)) - low) / (high - low), 0, 1)
    image = Image.fromarray((level * (STEPS - 1)).astype(np.uint8), "P")
    image.putpalette(_colours().tobytes())
    return pages.inline(image, "PNG", optimize=True)


def _gradient() -> str:
    low, high = SCALE[0][0], SCALE[-1][0]
    stops = ", ".join(f"rgb{colour} {100 * (at - low) / (high - low):.1f}%" for at, colour in SCALE)
    return f"linear-gradient(90deg, {stops})"


# ---------------------------------------------------------------- the table


def table_row(s: StageResult, first: bool) -> str:
    name, verdict, *cells = row(s)
    numbers = "".join(f"<td>{escape(cell)}</td>" for cell in cells[:-1])
    return (
        f'<tr class="{_class(s)}{" marked" if first else ""}"><th>{_name(name)}</th>'
        f'<td><span class="tag {_class(s)}">{escape(verdict)}</span></td>{numbers}'
        f'<td class="where">{escape(cells[-1])}</td></tr>'
    )
