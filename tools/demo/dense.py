"""What stands on each patch of a picture: the labels that the vision tower learns from first.

There is no pretrained CLIP to begin with. So each patch is asked many small questions at once, whose answers
the scene knows: which kind of thing covers it, in which shape and colour, which character, what the whole
text says, how many of the kind there are. The heads that answer are thrown away afterwards.
"""

from collections import Counter

import numpy as np

from tools.demo.scenes import COLOURS, SHAPES, SIZES, Item, Scene

CHARACTERS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"
KINDS = ("shape", "lamp", "display", "label", "gauge")  # 0 is the wall
TEXT = 5  # characters at most
# Each question and how many answers it has.
HEADS = {
    "kind": 1 + len(KINDS),
    "shape": len(SHAPES),
    "colour": len(COLOURS),
    "size": len(SIZES),
    "on": 2,
    "place": 9,
    "centre": 2,  # is this the patch in the middle of the item?
    "of_shape": 10,  # how many there are of this shape,
    "of_colour": 10,  # of this colour,
    "shapes": 10,  # of shapes,
    "lamps_on": 5,  # of lamps that are on
    "value": 11,
    "character": len(CHARACTERS),
    "slot": TEXT,  # which character of the text it is
}
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
    facts = {id(item): _facts(item, scene) for item in scene.items}
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
        for name, answer in facts[id(item)].items():
            found[..., order.index(name)][here] = answer
        found[..., order.index("centre")][here] = 0
        found[(*middle, order.index("centre"))] = 1
        for i, (character, cx, cy) in enumerate(item.characters):
            r, c = min(int((cy + top) / patch), grid - 1), min(int((cx + left) / patch), grid - 1)
            found[r, c, order.index("character")] = CHARACTERS.index(character)
            found[r, c, order.index("slot")] = i
    return found.reshape(grid * grid, -1)


def _overlap(start: float, end: float, grid: int) -> np.ndarray:
    """Which share of each of `grid` unit intervals lies between start and end."""
    i = np.arange(grid)
    return np.clip(np.minimum(end, i + 1) - np.maximum(start, i), 0, 1)


def _facts(item: Item, scene: Scene) -> dict[str, int]:
    """The answers that hold for every patch of the item."""
    facts = {"kind": 1 + KINDS.index(item.kind)}
    if item.colour:
        facts["colour"] = [*COLOURS].index(item.colour)
    if item.span == 1:
        facts["place"] = item.cell
    if item.kind == "shape":
        facts["shape"], facts["size"] = SHAPES.index(item.shape), SIZES.index(item.size)
        facts["of_shape"] = Counter(other.shape for other in scene.shapes)[item.shape]
        facts["of_colour"] = Counter(other.colour for other in scene.shapes)[item.colour]
        facts["shapes"] = len(scene.shapes)
    elif item.kind == "lamp":
        facts["on"] = int(item.on)
        facts["lamps_on"] = sum(lamp.on for lamp in scene.of("lamp"))
    elif item.kind == "gauge":
        facts["value"] = item.value
    else:
        numbers = [CHARACTERS.index(c) for c in item.text] + [len(CHARACTERS)] * TEXT
        facts |= {f"text{i}": numbers[i] for i in range(TEXT)}
    return facts
