"""The losses of a run as a picture."""

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image, ImageDraw

WIDTH, HEIGHT, MARGIN = 720, 360, 50
TRAINING, HELD_OUT = "navy", "darkorange"


def draw_curve(
    losses: Sequence[float], checks: Sequence[tuple[int, Mapping[str, float]]], steps: int, path: Path
) -> None:
    """Writes a PNG: the losses so far, averaged over hundredths of the run, on a logarithmic scale.

    checks: steps done -> what was measured; its "loss" is that of the held-out part, a second line.
    """
    window = max(1, steps // 100)
    parts = (losses[i : i + window] for i in range(0, len(losses), window))
    training = [((i + 0.5) * window, sum(part) / len(part)) for i, part in enumerate(parts)]
    held_out = [(float(step), found["loss"]) for step, found in checks if "loss" in found]
    lines = [_powers(training), _powers(held_out)]
    values = [power for line in lines for _, power in line] or [0]
    low = math.floor(min(values))
    high = max(math.ceil(max(values)), low + 1)

    def at(step: float, power: float) -> tuple[float, float]:
        x = MARGIN + (WIDTH - 2 * MARGIN) * step / max(steps, 1)
        return x, HEIGHT - MARGIN - (HEIGHT - 2 * MARGIN) * (power - low) / (high - low)

    picture = Image.new("RGB", (WIDTH, HEIGHT), "white")
    draw = ImageDraw.Draw(picture)
    for power in range(low, high + 1):
        draw.line((at(0, power), at(steps, power)), "lightgrey")
        draw.text((4, at(0, power)[1] - 6), f"{10.0**power:g}", "black")
    draw.text((MARGIN, HEIGHT - MARGIN + 8), f"0 .. {steps} steps", "black")
    for line, colour in zip(lines, (TRAINING, HELD_OUT), strict=True):
        draw.line([at(*point) for point in line], colour, 2)
    for x, y in (at(*point) for point in lines[1]):
        draw.ellipse((x - 3, y - 3, x + 3, y + 3), HELD_OUT)
    if training:
        draw.text((MARGIN + 160, HEIGHT - MARGIN + 8), f"training: loss {training[-1][1]:.4f}", TRAINING)
    if held_out:
        said = ", ".join(f"{what} {value:.3f}" for what, value in checks[-1][1].items())
        draw.text((MARGIN + 360, HEIGHT - MARGIN + 8), f"held out: {said}", HELD_OUT)
    partial = path.with_suffix(".partial.png")
    picture.save(partial)
    os.replace(partial, path)


def _powers(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The logarithms of what has one."""
    return [(step, math.log10(max(value, 1e-6))) for step, value in points if math.isfinite(value)]
