"""Pictures such as a technician meets, simplified, and what is on them patch by patch.

A scene is a list of items on a grid of 3 x 3 places: coloured shapes, status lamps, seven-segment displays,
labels and gauges. It is drawn with Pillow at twice the size that the model sees, on varied backgrounds, with
noise, blur, tilt, lighting and aspect ratio. A scene follows from its seed alone: `scene("train", 17)`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from math import cos, pi, radians, sin
from random import Random

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

SIDE = 256  # longer side of a drawn picture
SPLITS = ("train", "validation", "test", "unseen", "demo")  # part of the seed, so that no two share a scene

SHAPES = ("circle", "square", "triangle", "star", "cross", "diamond")
COLOURS = {
    "red": (215, 38, 38),
    "orange": (245, 140, 25),
    "yellow": (245, 225, 50),
    "green": (40, 165, 70),
    "blue": (45, 85, 215),
    "purple": (135, 55, 170),
    "white": (245, 245, 245),
    "black": (25, 25, 25),
}
SIZES = ("small", "large")
DIAMETERS = {"small": (36, 42), "large": (54, 64)}
LAMPS = ("red", "yellow", "green", "blue")
SEGMENTS = {"red": (255, 70, 50), "green": (90, 255, 110), "yellow": (255, 205, 60), "blue": (90, 190, 255)}
WORDS = tuple("PUMP FAN OPEN SHUT HOT COLD STOP START OIL GAS WATER MAIN TEST EXIT FUSE VALVE".split())
PLACES = tuple("top left,top,top right,left,middle,right,bottom left,bottom,bottom right".split(","))
# Never drawn but in the split "unseen": the model knows the colour and the shape, not the two together.
UNSEEN = frozenset(
    {
        ("purple", "star"),
        ("green", "cross"),
        ("yellow", "diamond"),
        ("white", "triangle"),
        ("blue", "square"),
        ("red", "circle"),
    }
)
DIGITS = 3  # of a display, at most
INSTRUMENTS = ("display", "label", "gauge")
BACKGROUNDS = [(150,) * 3, (105,) * 3, (190,) * 3]
BACKGROUNDS += [(200, 185, 160), (150, 170, 190), (120, 105, 90), (75, 85, 95)]


@dataclass
class Item:
    """One thing on a picture; fields that do not apply to its kind keep their default."""

    kind: str  # shape, lamp, display, label, gauge
    cell: int  # 0..8, row by row; the first of those that it covers
    span: int = 1  # how many it covers, to the right
    colour: str = ""
    shape: str = ""
    size: str = ""
    on: bool = False
    text: str = ""
    value: int = 0
    tilt: float = 0.0  # degrees
    centre: tuple[float, float] = (0.0, 0.0)
    extent: tuple[float, float] = (0.0, 0.0)  # width, height
    characters: list[tuple[str, float, float]] = field(default_factory=list)  # and where they stand

    @property
    def place(self) -> str:
        return PLACES[self.cell]


Draw = Callable[[Image.Image, Item, Random], None]


@dataclass
class Scene:
    width: int
    height: int
    items: list[Item]
    seed: str

    @property
    def shapes(self) -> list[Item]:
        return self.of("shape")

    def of(self, noun: str) -> list[Item]:
        """The items of a kind ("lamp", "shape") or of a shape ("star")."""
        return [item for item in self.items if noun in (item.kind, item.shape)]


# ---------------------------------------------------------------- what stands where


def scene(split: str, number: int) -> Scene:
    """The scene of this number, always the same."""
    assert split in SPLITS
    seed = f"{split}/{number}"
    random = Random(seed)
    width, height = random.choice([(256, 256), (256, 256), (256, 192), (192, 256), (256, 220)])
    free, items = [*range(9)], []
    if split != "unseen" and random.random() < 0.5:
        items = _instruments(random, free, width < height)
        shapes = random.randint(0, min(5, len(free)))
    else:
        shapes = random.choice([1, 2, 3, 4, 5, 6, 7, 8, 9])
    items += _shapes(random, free, shapes, split == "unseen")
    items.sort(key=lambda item: item.cell)
    for item in items:
        _put(item, width, height, random)
    return Scene(width, height, items, seed)


def _shapes(random: Random, free: list[int], count: int, unseen: bool) -> list[Item]:
    """Shapes in free places. Some scenes keep to few kinds, or there would be little to count."""
    shapes = random.sample(SHAPES, random.choice([1, 2, 3, 6, 6]))
    colours = random.sample([*COLOURS], random.choice([1, 2, 3, 8, 8]))
    items = []
    for i in range(count):
        while True:
            colour, shape = random.choice(colours), random.choice(shapes)
            if unseen and i == 0:
                colour, shape = random.choice(sorted(UNSEEN))
            if unseen or (colour, shape) not in UNSEEN:
                break
            colours, shapes = [*COLOURS], list(SHAPES)  # the few that were drawn may all be kept for later
        cell = free.pop(random.randrange(len(free)))
        items.append(Item("shape", cell, colour=colour, shape=shape, size=random.choice(SIZES)))
    return items


def _instruments(random: Random, free: list[int], tall: bool) -> list[Item]:
    """Lamps, and a display, a label, a gauge or several of them."""
    items: list[Item] = []
    wanted = [kind for kind in ("display", "label") if random.random() < 0.7]
    for kind, row in zip(wanted, random.sample(range(3), len(wanted)), strict=True):
        span = 3 if tall else 2
        cell = 3 * row + random.randint(0, 3 - span)
        for c in range(cell, cell + span):
            free.remove(c)
        item = Item(kind, cell, span, tilt=random.uniform(-5, 5))
        if kind == "display":
            item.text = str(random.randrange(10 ** random.randint(1, DIGITS)))
            item.colour = random.choice([*SEGMENTS])
        else:
            item.text = random.choice(WORDS) if random.random() < 0.75 else str(random.randrange(10, 1000))
        items.append(item)
    if random.random() < 0.5:
        cell = free.pop(random.randrange(len(free)))
        items.append(Item("gauge", cell, value=random.randint(0, 10), tilt=random.uniform(-5, 5)))
    lamps = random.randint(0 if items else 1, min(4, len(free)))
    colours = random.sample(LAMPS, 4) if random.random() < 0.7 else random.choices(LAMPS, k=4)
    for colour in colours[:lamps]:
        cell = free.pop(random.randrange(len(free)))
        items.append(Item("lamp", cell, colour=colour, on=random.random() < 0.5))
    return items


def _put(item: Item, width: int, height: int, random: Random) -> None:
    """Chooses size and position inside the item's places."""
    w, h = width / 3, height / 3
    row, column = divmod(item.cell, 3)
    if item.kind == "shape":
        side = random.uniform(*DIAMETERS[item.size])
        item.extent, item.tilt = (side, side), random.uniform(-12, 12)
    elif item.kind in ("lamp", "gauge"):
        side = min(w, h) * random.uniform(0.78, 0.95) * (1.0 if item.kind == "gauge" else 0.85)
        item.extent = (side, side)
    else:
        item.extent = (item.span * w * random.uniform(0.9, 0.97), min(h, 76) * random.uniform(0.82, 0.92))
    spare_x, spare_y = item.span * w - item.extent[0], h - item.extent[1]
    item.centre = (
        (column + item.span / 2) * w + random.uniform(-0.3, 0.3) * spare_x,
        (row + 0.5) * h + random.uniform(-0.3, 0.3) * spare_y,
    )


# ---------------------------------------------------------------- drawing


def render(scene: Scene, draw: Mapping[str, Draw] | None = None) -> Image.Image:
    """The picture of a scene, RGB. It fills in where the characters of its texts stand.

    draw  how items of each kind are drawn; by default as `DRAW` says
    """
    random = Random(scene.seed + "/picture")
    numbers = np.random.default_rng(random.getrandbits(63))
    picture = _background(scene, random, numbers)
    for item in scene.items:
        (draw or DRAW)[item.kind](picture, item, random)
    if random.random() < 0.4:
        picture = picture.filter(ImageFilter.GaussianBlur(random.uniform(0.3, 1.3)))
    return _lighting(picture, random, numbers)


def _background(scene: Scene, random: Random, numbers: np.random.Generator) -> Image.Image:
    """A wall in a colour that no item on it has, plain, shaded, striped or speckled."""
    used = [COLOURS[item.colour] for item in scene.shapes]
    for _ in range(30):
        base = tuple(c + random.uniform(-18, 18) for c in random.choice(BACKGROUNDS))
        if all(sum((a - b) ** 2 for a, b in zip(base, u, strict=True)) > 85**2 for u in used):
            break
    wall = np.empty((scene.height, scene.width, 3), np.float32)
    wall[:] = np.array(base, np.float32)
    style = random.randrange(4)
    if style == 1:
        wall += random.uniform(-25, 25) * np.linspace(-1, 1, scene.height, dtype=np.float32)[:, None, None]
    elif style == 2:
        period = random.randint(10, 50)
        wall[:, np.arange(scene.width) // period % 2 == 0] += random.uniform(-14, 14)
    elif style == 3:
        coarse = numbers.normal(0, 9, (scene.height // 8 + 1, scene.width // 8 + 1, 1)).astype(np.float32)
        wall += coarse.repeat(8, 0).repeat(8, 1)[: scene.height, : scene.width]
    return Image.fromarray(wall.clip(0, 255).astype(np.uint8))


def _lighting(picture: Image.Image, random: Random, numbers: np.random.Generator) -> Image.Image:
    """Brightness, a light from one side, a tint, and the sensor's noise."""
    w, h = picture.size
    pixels = np.asarray(picture, np.float32).reshape(h, w * 3)  # long rows, on which NumPy is quick
    across = np.linspace(-1, 1, w, dtype=np.float32) * random.uniform(-0.12, 0.12) + 1
    down = np.linspace(-1, 1, h, dtype=np.float32) * random.uniform(-0.12, 0.12) + 1
    tint = np.array([random.uniform(0.95, 1.05) for _ in range(3)], np.float32) * random.uniform(0.8, 1.1)
    pixels *= (across[:, None] * tint).reshape(-1)
    pixels *= down[:, None]
    if noise := random.choice([0, 3, 6, 10]):
        pixels += (numbers.standard_normal((h, w), np.float32) * np.float32(noise)).repeat(3, axis=1)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8).reshape(h, w, 3))


def shade(colour: tuple[float, ...], random: Random, factor: float = 1.0) -> tuple[int, int, int]:
    r, g, b = (round(min(255, max(0, c * factor + random.uniform(-12, 12)))) for c in colour)
    return r, g, b


def outline(shape: str) -> list[tuple[float, float]]:
    """The corners of a shape inside the unit circle, y downwards."""
    if shape == "square":
        return [(-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8)]
    if shape == "triangle":
        return [(0, -0.95), (0.95, 0.8), (-0.95, 0.8)]
    if shape == "diamond":
        return [(0, -1), (0.68, 0), (0, 1), (-0.68, 0)]
    if shape == "star":
        spikes = [(1.05 if i % 2 == 0 else 0.44, pi * i / 5 - pi / 2) for i in range(10)]
        return [(r * cos(a), r * sin(a)) for r, a in spikes]
    assert shape == "cross"
    quarter = [(-0.32, -0.95), (0.32, -0.95), (0.32, -0.32)]
    return [
        (x * cos(a) - y * sin(a), x * sin(a) + y * cos(a))
        for a in (0, pi / 2, pi, 3 * pi / 2)
        for x, y in quarter
    ]


def _draw_shape(picture: Image.Image, item: Item, random: Random) -> None:
    draw, (x, y), r = ImageDraw.Draw(picture), item.centre, item.extent[0] / 2
    fill = shade(COLOURS[item.colour], random)
    edge = shade(fill, random, 0.65) if random.random() < 0.3 else None
    if item.shape == "circle":
        draw.ellipse((x - r, y - r, x + r, y + r), fill, edge, 2)
        return
    a = radians(item.tilt)
    corners = [
        (x + r * (u * cos(a) - v * sin(a)), y + r * (u * sin(a) + v * cos(a))) for u, v in outline(item.shape)
    ]
    draw.polygon(corners, fill, edge, 2)


def _draw_lamp(picture: Image.Image, item: Item, random: Random) -> None:
    draw, (x, y), r = ImageDraw.Draw(picture), item.centre, item.extent[0] / 2

    def disc(radius: float, fill: tuple[int, int, int], dx: float = 0, dy: float = 0) -> None:
        draw.ellipse((x + dx - radius, y + dy - radius, x + dx + radius, y + dy + radius), fill)

    plate = shade((60, 62, 66), random)
    draw.rounded_rectangle((x - r, y - r, x + r, y + r), r * 0.25, plate, (20, 20, 20), 2)
    colour = COLOURS[item.colour]
    if item.on:
        disc(r * 0.88, shade(tuple(0.5 * c + 40 for c in colour), random))  # the glow
        disc(r * 0.68, shade(tuple(c + 30 for c in colour), random))
        disc(r * 0.3, shade(tuple(0.4 * c + 150 for c in colour), random))
    else:
        disc(r * 0.76, (25, 25, 25))
        disc(r * 0.68, shade(colour, random, 0.42))
        disc(r * 0.12, (150, 150, 150), -r * 0.25, -r * 0.25)  # a reflection


#        a
#      f   b
#        g
#      e   c
#        d
LIT = dict(enumerate("abcdef bc abged abgcd fgbc afgcd afgedc abc abcdefg abcdfg".split()))
BARS = {
    "a": (0, 0, 1, 0),
    "b": (1, 0, 1, 1),
    "c": (1, 1, 1, 2),
    "d": (0, 2, 1, 2),
    "e": (0, 1, 0, 2),
    "f": (0, 0, 0, 1),
    "g": (0, 1, 1, 1),
}


def _draw_display(picture: Image.Image, item: Item, random: Random) -> None:
    w, h = (round(e) for e in item.extent)
    tile = Image.new("RGBA", (w, h), (*shade((20, 24, 22), random), 255))
    draw = ImageDraw.Draw(tile)
    draw.rectangle((0, 0, w - 1, h - 1), outline=(70, 72, 75, 255), width=3)
    lit = (*shade(SEGMENTS[item.colour], random), 255)
    dark = (34, 38, 36, 255) if random.random() < 0.3 else None
    step = (w - 14) / DIGITS
    wide, high = step * 0.6, h * 0.33
    thick = max(5, round(wide * 0.26))
    left = w / 2 - step * len(item.text) / 2 + (step - wide) / 2
    item.characters = []
    for i, digit in enumerate(item.text):
        x, y = left + i * step, h / 2 - high
        for bar, (x0, y0, x1, y1) in BARS.items():
            fill = lit if bar in LIT[int(digit)] else dark
            if fill:
                ends = (x + x0 * wide, y + y0 * high, x + x1 * wide, y + y1 * high)
                draw.line(ends, fill, thick)
        item.characters.append((digit, *_tilted(item, x + wide / 2 - w / 2, 0)))
    _paste(picture, tile, item)


@lru_cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)  # the one that is built into Pillow


def _draw_label(picture: Image.Image, item: Item, random: Random) -> None:
    w, h = (round(e) for e in item.extent)
    plate = random.choice([(240, 240, 235), (250, 225, 70), (210, 215, 220)])
    tile = Image.new("RGBA", (w, h), (*shade(plate, random), 255))
    draw = ImageDraw.Draw(tile)
    draw.rectangle((0, 0, w - 1, h - 1), outline=(50, 50, 50, 255), width=2)
    font = _font(round(min(46, h * 0.68)))
    step = min((w - 16) / len(item.text), 36)
    left = w / 2 - step * len(item.text) / 2
    item.characters = []
    for i, character in enumerate(item.text):
        x = left + (i + 0.5) * step
        draw.text((x, h / 2), character, (*shade((25, 25, 30), random), 255), font, "mm", stroke_width=1)
        item.characters.append((character, *_tilted(item, x - w / 2, 0)))
    _paste(picture, tile, item)


def _draw_gauge(picture: Image.Image, item: Item, random: Random) -> None:
    draw, (x, y), r = ImageDraw.Draw(picture), item.centre, item.extent[0] / 2

    def at(value: float, radius: float) -> tuple[float, float]:
        a = radians(-225 + 27 * value + item.tilt)  # 0 at the lower left, 10 at the lower right
        return x + r * radius * cos(a), y + r * radius * sin(a)

    draw.ellipse((x - r, y - r, x + r, y + r), shade((240, 240, 235), random), (40, 40, 40), 4)
    for value in range(11):
        draw.line((*at(value, 0.74), *at(value, 0.88)), (50, 50, 50), 2)
    needle = shade(random.choice([(200, 30, 30), (30, 30, 30)]), random)
    draw.line((*at(item.value + 5.0, 0.0), *at(item.value, 0.72)), needle, 5)
    draw.ellipse((x - 6, y - 6, x + 6, y + 6), (40, 40, 40))


def _tilted(item: Item, dx: float, dy: float) -> tuple[float, float]:
    """Where a point of a tile, counted from its middle, comes to lie."""
    a = radians(-item.tilt)
    return item.centre[0] + dx * cos(a) - dy * sin(a), item.centre[1] + dx * sin(a) + dy * cos(a)


def _paste(picture: Image.Image, tile: Image.Image, item: Item) -> None:
    tile = tile.rotate(item.tilt, Image.Resampling.BICUBIC, expand=True)
    corner = (round(item.centre[0] - tile.width / 2), round(item.centre[1] - tile.height / 2))
    picture.paste(tile, corner, tile)


DRAW = {
    "shape": _draw_shape,
    "lamp": _draw_lamp,
    "display": _draw_display,
    "label": _draw_label,
    "gauge": _draw_gauge,
}
