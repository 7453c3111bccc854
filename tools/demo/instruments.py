"""Instruments that the demo model has never seen, for teaching it something new: a valve, and a slider.

A picture shows one of them, drawn as `tools.demo.scenes` draws, and follows from its kind, split and number
alone. The demo model has never said the valve's answers, open and shut; it has all their letters.
"""

from collections.abc import Sequence
from math import cos, radians, sin
from random import Random
from typing import NamedTuple

from PIL import Image, ImageDraw

from tools.demo.scenes import DRAW, Draw, Item, Scene, render, shade

SPLITS = ("train", "held-out")  # part of the seed, so that no two share a picture
MARKS = 6  # of the slider's scale: 0 to 5

Point = tuple[float, float]
Colour = tuple[int, int, int]


class Example(NamedTuple):
    """A picture, a question about it, and the right answer."""

    picture: Image.Image
    question: str
    answer: str


QUESTIONS = {
    "valve": ("Is the valve open or shut?", "What is the state of the valve?"),
    "slider": ("What does the slider say?", "Read the slider.", "What value does the slider show?"),
}
ANSWERS = {"valve": ("open", "shut"), "slider": tuple(map(str, range(MARKS)))}


def example(kind: str, split: str, number: int) -> Example:
    """The picture of this number, always the same. Each question comes with each answer equally often."""
    assert split in SPLITS
    seed = f"{kind}/{split}/{number}"
    random = Random(seed)
    turn, which = divmod(number, len(ANSWERS[kind]))
    question, answer = QUESTIONS[kind][turn % len(QUESTIONS[kind])], ANSWERS[kind][which]
    width, height = random.choice([(256, 256), (256, 192), (192, 256)])
    item = Item(kind, 0, tilt=random.uniform(-5, 5))
    if kind == "valve":
        item.on = answer == "open"
        side = min(width, height) * random.uniform(0.6, 0.85)
        item.extent = (side, side)
    else:
        item.value = int(answer)
        tall = height * random.uniform(0.86, 0.96)
        item.extent = (tall * random.uniform(0.42, 0.5), tall)
    spare_x, spare_y = width - 1.1 * item.extent[0], height - 1.02 * item.extent[1]
    item.centre = (
        width / 2 + random.uniform(-0.4, 0.4) * spare_x,
        height / 2 + random.uniform(-0.4, 0.4) * max(0.0, spare_y),
    )
    picture = render(Scene(width, height, [item], seed), DRAW | INSTRUMENTS)
    return Example(picture, question, answer)


# ---------------------------------------------------------------- drawing


def _placed(item: Item, points: Sequence[Point], turn: float = 0.0) -> list[Point]:
    """Points counted from the item's middle, turned by so many degrees and tilted with it, in the picture."""
    a, (x, y) = radians(item.tilt + turn), item.centre
    return [(x + u * cos(a) - v * sin(a), y + u * sin(a) + v * cos(a)) for u, v in points]


def _box(left: float, top: float, right: float, bottom: float) -> list[Point]:
    return [(left, top), (right, top), (right, bottom), (left, bottom)]


def _draw_valve(picture: Image.Image, item: Item, random: Random) -> None:
    """A pipe from left to right, and on it a handle: along the pipe if the valve is open, else across."""
    draw, w = ImageDraw.Draw(picture), item.extent[0]
    pipe = shade(random.choice([(120, 125, 130), (185, 115, 60), (95, 105, 120)]), random)
    draw.polygon(_placed(item, _box(-0.5 * w, -0.16 * w, 0.5 * w, 0.16 * w)), pipe, (40, 40, 40), 2)
    body = shade(pipe, random, 0.75)
    draw.polygon(_placed(item, _box(-0.2 * w, -0.2 * w, 0.2 * w, 0.2 * w)), body, (40, 40, 40), 2)
    handle = shade(random.choice([(200, 30, 30), (240, 200, 40), (35, 75, 190)]), random)
    turn = random.uniform(-8, 8) - (0 if item.on else 90)
    half = 0.07 * w
    draw.polygon(_placed(item, _box(-half, -half, 0.46 * w, half), turn), handle, (30, 30, 30), 2)
    x, y = item.centre
    draw.ellipse((x - half, y - half, x + half, y + half), (60, 60, 60))


def _draw_slider(picture: Image.Image, item: Item, random: Random) -> None:
    """A plate with a slot from top to bottom, marks beside it from 0 at the bottom, and a knob."""
    draw, (w, h) = ImageDraw.Draw(picture), item.extent
    plate: Colour = shade(random.choice([(225, 225, 220), (235, 230, 200), (205, 212, 220)]), random)
    draw.polygon(_placed(item, _box(-0.5 * w, -0.5 * h, 0.5 * w, 0.5 * h)), plate, (40, 40, 40), 2)
    end = 0.4 * h
    draw.polygon(_placed(item, _box(-3, -end, 3, end)), (40, 40, 40))

    def height(value: float) -> float:
        return end - 2 * end * value / (MARKS - 1)

    for value in range(MARKS):
        draw.line(_placed(item, [(0.2 * w, height(value)), (0.45 * w, height(value))]), (50, 50, 50), 2)
    knob = shade(random.choice([(200, 30, 30), (35, 75, 190)]), random)
    v, half = height(item.value), 0.055 * h
    draw.polygon(_placed(item, _box(-0.44 * w, v - half, 0.44 * w, v + half)), knob, (20, 20, 20), 1)


INSTRUMENTS: dict[str, Draw] = {"valve": _draw_valve, "slider": _draw_slider}
