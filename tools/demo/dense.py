"""What each patch of a picture is to tell: the labels that the vision tower learns from first.

There is no pretrained CLIP to begin with. So each patch is asked many small questions at once, whose answers
the scene knows. The heads that answer do not stay, but the projector begins with them. The questions are of
two kinds:

- What covers the patch: which kind of thing, in which shape and colour, which character, what the whole text
  says.
- What is known of the things of one name, wherever they are. The patches are a notice board for that, with a
  row for each noun and a column for each colour: the patch in the row "star" and the column "red" tells how
  many stars, red shapes and red stars there are and, of a single one, where it is, how large and so on. A
  trained CLIP, too, keeps in some patches what it knows of the whole picture (arXiv 2309.16588). To look a
  thing up by its name is then to look at a known place, which a decoder learns early.
"""

from collections.abc import Sequence

import numpy as np

from tools.demo.scenes import COLOURS, INSTRUMENTS, SHAPES, SIZES, UNSEEN, Item, Scene

CHARACTERS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"
KINDS = ("shape", "lamp", *INSTRUMENTS)  # 0 is the wall
TEXT = 5  # characters at most
NOUNS = (*SHAPES, "lamp", "shape")  # the rows of the notice board
# Each question and how many answers it has.
HEADS = {
    "kind": 1 + len(KINDS),
    "shape": len(SHAPES),
    "colour": len(COLOURS),
    "size": len(SIZES),
    "on": 2,
    "place": 9,
    "centre": 2,  # is this the patch in the middle of the item?
    "value": 11,
    "row": len(NOUNS),
    "column": len(COLOURS),
    "noun_count": 10,
    "colour_count": 10,
    "pair_count": 10,
    "lamps_on": 5,
}
HEADS |= {f"noun_{name}": HEADS[name] for name in ("place", "size", "on", "colour")}
HEADS |= {f"colour_{name}": HEADS[name] for name in ("place", "size", "shape")}
HEADS |= {f"pair_{name}": HEADS[name] for name in ("place", "size", "on")}
HEADS |= {"character": len(CHARACTERS), "slot": TEXT}  # and which character of the text it is
# What the whole text says; after its end the last answer.
HEADS |= {f"text{i}": len(CHARACTERS) + 1 for i in range(TEXT)}
NONE = -1  # does not apply to this patch


def labels(scene: Scene, grid: int) -> np.ndarray:
    """int8 (grid * grid, len(HEADS)), after `render`; NONE where a question makes no sense.

    The picture is seen in the middle of a square of its longer side, as the model sees it.
    """
    side = max(scene.width, scene.height)
    left, top = (side - scene.width) / 2, (side - scene.height) / 2
    patch = side / grid
    found = np.full((grid, grid, len(HEADS)), NONE, np.int8)
    found[..., 0] = 0
    covered = np.zeros((grid, grid))
    order = list(HEADS)
    for item in scene.items:
        x, y = (item.centre[0] + left) / patch, (item.centre[1] + top) / patch
        w, h = (0.9 * e / patch for e in item.extent)
        columns = _overlap(x - w / 2, x + w / 2, grid)
        rows = _overlap(y - h / 2, y + h / 2, grid)
        share = rows[:, None] * columns[None]
        middle = min(int(y), grid - 1), min(int(x), grid - 1)
        share[middle] = max(share[middle], 1.5)
        here = (share > 0.3) & (share > covered)
        covered[here] = share[here]
        for name, answer in _facts(item).items():
            found[..., order.index(name)][here] = answer
        found[..., order.index("centre")][here] = 0
        found[(*middle, order.index("centre"))] = 1
        for i, (character, cx, cy) in enumerate(item.characters):
            r, c = min(int((cy + top) / patch), grid - 1), min(int((cx + left) / patch), grid - 1)
            found[r, c, order.index("character")] = CHARACTERS.index(character)
            found[r, c, order.index("slot")] = i
    for row, noun in enumerate(NOUNS):
        for column, colour in enumerate(COLOURS):
            for name, answer in _board(scene, noun, colour).items():
                found[row, column, order.index(name)] = answer
    return found.reshape(grid * grid, -1)


def _overlap(start: float, end: float, grid: int) -> np.ndarray:
    """Which share of each of `grid` unit intervals lies between start and end."""
    i = np.arange(grid)
    return np.clip(np.minimum(end, i + 1) - np.maximum(start, i), 0, 1)


def _facts(item: Item) -> dict[str, int]:
    """The answers that hold for every patch of the item."""
    facts = {"kind": 1 + KINDS.index(item.kind)}
    if item.colour:
        facts["colour"] = [*COLOURS].index(item.colour)
    if item.span == 1:
        facts["place"] = item.cell
    if item.kind == "shape":
        facts["shape"], facts["size"] = SHAPES.index(item.shape), SIZES.index(item.size)
    elif item.kind == "lamp":
        facts["on"] = int(item.on)
    elif item.kind == "gauge":
        facts["value"] = item.value
    else:
        numbers = [CHARACTERS.index(c) for c in item.text] + [len(CHARACTERS)] * TEXT
        facts |= {f"text{i}": numbers[i] for i in range(TEXT)}
    return facts


def _board(scene: Scene, noun: str, colour: str) -> dict[str, int]:
    """What the notice board tells in the row of this noun and the column of this colour."""
    facts = {"row": NOUNS.index(noun), "column": [*COLOURS].index(colour)}
    named = scene.of(noun)
    facts |= _known("noun", named)
    facts |= _known("colour", [item for item in scene.shapes if item.colour == colour])
    if (colour, noun) not in UNSEEN:
        facts |= _known("pair", [item for item in named if item.colour == colour])
    if noun == "lamp":
        facts["lamps_on"] = sum(lamp.on for lamp in named)
    return {name: answer for name, answer in facts.items() if name in HEADS}


def _known(what: str, items: Sequence[Item]) -> dict[str, int]:
    """How many there are, and of a single one what it is like."""
    facts = {"count": len(items)} | (_facts(items[0]) if len(items) == 1 else {})
    return {f"{what}_{name}": answer for name, answer in facts.items()}
