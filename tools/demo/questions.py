"""Questions about a scene, in several wordings, with the one right answer to each."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from random import Random
from typing import NamedTuple

from tools.demo.scenes import COLOURS, PLACES, SHAPES, UNSEEN, Item, Scene

Json = dict[str, object]
MOST = 6  # counts go from 0 to this


class Question(NamedTuple):
    task: str
    text: str
    answer: str


WHERE = {
    "left": "on the left",
    "right": "on the right",
    "middle": "in the middle",
    "top": "at the top",
    "bottom": "at the bottom",
}
SIDES = {"left of": (0, -1), "right of": (0, 1), "above": (-1, 0), "below": (1, 0)}  # rows, columns

WORDINGS = {
    "what": ("Which shape is {0}?", "What shape is {0}?", "What shape do you see {0}?"),
    "place": ("What is {0}?", "What do you see {0}?"),
    "colour": (
        "What colour is the {0}?",
        "Which colour does the {0} have?",
        "What is the colour of the {0}?",
    ),
    "size": ("Is the {0} small or large?", "How large is the {0}?", "What size is the {0}?"),
    "count": ("How many {0} are there?", "How many {0} do you see?", "Count the {0}."),
    "on count": ("How many lamps are on?", "How many lamps are lit?"),
    "which": (
        "Which shape is {0}?",
        "What shape is the {0} one?",
        "What shape is {0}?",
        "What is the {0} thing?",
    ),
    "about": ("Describe the {0}.", "Tell me about the {0}.", "What about the {0}?"),
    "where": ("Where is the {0}?", "Where do you see the {0}?", "In which place is the {0}?"),
    "relation": ("Is the {0} {1} the {2}?",),
    "exists": ("Is there {0}?", "Do you see {0}?", "Is {0} in the picture?"),
    "lamp yes": ("Is the {0} on?", "Is the {0} lit?"),
    "lamp state": ("Is the {0} on or off?", "What is the state of the {0}?"),
    "lamp colour": ("What colour is the {0}?", "Which colour does the {0} have?"),
    "display": ("What does the display say?", "Read the display.", "What number is on the display?"),
    "label": ("What does the label say?", "Read the label.", "What is written on the label?"),
    "gauge": ("What does the gauge say?", "Read the gauge.", "What value does the gauge show?"),
    "describe": ("Describe the picture.", "What is in the picture?", "What do you see?"),
}
# By what is asked, and how a thing is named: by its place, or by what it is.
BY_PLACE = ("what", "colour", "size", "lamp", "place")
BY_CONTENT = ("which", "about", "where", "tally", "relation", "exists")
TASKS = (*BY_PLACE, *BY_CONTENT, "count", "display", "label", "gauge", "describe")


def questions(
    scene: Scene, random: Random, tasks: Iterable[str] = TASKS, each: int = 1
) -> Iterator[Question]:
    """Up to `each` questions of every task that makes sense for the scene, no text twice; one description."""
    asked = set()
    for task in tasks:
        for _ in range(1 if task == "describe" else each):
            found = ASK[task](scene, random)
            if found and found.text not in asked:
                asked.add(found.text)
                yield found


def _ask(task: str, answer: str, random: Random, *names: str, wording: str = "") -> Question:
    return Question(task, random.choice(WORDINGS[wording or task]).format(*names), answer)


# ---------------------------------------------------------------- what a thing can be called


def _names(item: Item, scene: Scene) -> list[str]:
    """Names that fit this item alone."""
    if item.kind in ("display", "gauge", "label"):
        return [item.kind]
    if item.kind == "lamp":
        same = [lamp for lamp in scene.of("lamp") if lamp.colour == item.colour]
        return [f"{item.colour} lamp"] if len(same) == 1 else []
    found = []
    for fields in (("shape",), ("colour", "shape"), ("size", "shape")):
        said = [getattr(item, f) for f in fields]
        if sum([getattr(other, f) for f in fields] == said for other in scene.shapes) == 1:
            found.append(" ".join(said))
    return found


def _pick(items: Sequence[Item], scene: Scene, random: Random) -> tuple[Item, str] | None:
    """An item that has a name of its own, and such a name."""
    named = [(item, names) for item in items if (names := _names(item, scene))]
    if not named:
        return None
    item, names = random.choice(named)
    return item, random.choice(names)


def place_phrase(place: str) -> str:
    return WHERE.get(place, f"at the {place}")


# ---------------------------------------------------------------- the tasks


def _what(scene: Scene, random: Random) -> Question | None:
    if not scene.shapes:
        return None
    item = random.choice(scene.shapes)
    return _ask("what", item.shape, random, place_phrase(item.place))


def _of_a_shape(task: str) -> Callable[[Scene, Random], Question | None]:
    """Asks for an attribute, of the task's name, of the shape in some place."""

    def ask(scene: Scene, random: Random) -> Question | None:
        if not scene.shapes:
            return None
        item = random.choice(scene.shapes)
        return _ask(task, getattr(item, task), random, f"shape {place_phrase(item.place)}")

    return ask


def _lamp(scene: Scene, random: Random) -> Question | None:
    if not scene.of("lamp"):
        return None
    lamp = random.choice(scene.of("lamp"))
    way, answer = random.choice(
        [
            ("lamp yes", "yes" if lamp.on else "no"),
            ("lamp state", "on" if lamp.on else "off"),
            ("lamp colour", lamp.colour),
        ]
    )
    return _ask("lamp", answer, random, f"lamp {place_phrase(lamp.place)}", wording=way)


def _count(scene: Scene, random: Random) -> Question | None:
    lamps = scene.of("lamp")
    counts = {"shapes": len(scene.shapes), "lamps": len(lamps), "": sum(lamp.on for lamp in lamps)}
    name = random.choice([name for name, count in counts.items() if count <= MOST])
    return _ask("count", str(counts[name]), random, name, wording="count" if name else "on count")


def _tally(scene: Scene, random: Random) -> Question | None:
    way, known = random.choice([("shape", SHAPES), ("colour", tuple(COLOURS))])
    there = Counter(getattr(item, way) for item in scene.shapes)
    kind = random.choice([*there] if there and random.random() < 0.8 else known)
    name = {"cross": "crosses"}.get(kind, kind + "s") if way == "shape" else f"{kind} shapes"
    return _ask("tally", str(there[kind]), random, name, wording="count") if there[kind] <= MOST else None


def _which(scene: Scene, random: Random) -> Question | None:
    colours = Counter(item.colour for item in scene.shapes)
    unique = [item for item in scene.shapes if colours[item.colour] == 1]
    if not unique:
        return None
    item = random.choice(unique)
    return _ask("which", item.shape, random, item.colour)


def _about(scene: Scene, random: Random) -> Question | None:
    if picked := _pick([item for item in scene.items if item.span == 1], scene, random):
        return _ask("about", f"{_thing(picked[0])}, {picked[0].place}", random, picked[1])
    return None


def _where(scene: Scene, random: Random) -> Question | None:
    if picked := _pick([item for item in scene.items if item.span == 1], scene, random):
        return _ask("where", picked[0].place, random, picked[1])
    return None


def _place(scene: Scene, random: Random) -> Question | None:
    """What is there, or nothing. Places that an instrument covers are left out."""
    things = {item.cell: item for item in scene.items if item.span == 1}
    covered = {cell for item in scene.items for cell in range(item.cell, item.cell + item.span)}
    free = [cell for cell in range(9) if cell not in covered]
    if not things or (free and random.random() < 0.15):
        return _ask("place", "nothing", random, place_phrase(PLACES[random.choice(free)])) if free else None
    item = random.choice([*things.values()])
    return _ask("place", _thing(item), random, place_phrase(item.place))


def _relation(scene: Scene, random: Random) -> Question | None:
    items = [item for item in scene.items if item.span == 1]
    first = _pick(items, scene, random)
    second = first and _pick([item for item in items if item is not first[0]], scene, random)
    if not first or not second:
        return None
    (ra, ca), (rb, cb) = divmod(first[0].cell, 3), divmod(second[0].cell, 3)
    along = [side for side, (r, c) in SIDES.items() if (r and ra != rb) or (c and ca != cb)]
    side = random.choice(along)
    r, c = SIDES[side]
    holds = r * (ra - rb) > 0 or c * (ca - cb) > 0
    return _ask("relation", "yes" if holds else "no", random, first[1], side, second[1])


def _exists(scene: Scene, random: Random) -> Question | None:
    pairs = {(item.colour, item.shape) for item in scene.shapes}
    if not pairs:
        return None
    if random.random() < 0.5:
        colour, shape = random.choice(sorted(pairs))
        return _ask("exists", "yes", random, _a(f"{colour} {shape}"))
    # Half of what is not there is made of a colour and a shape that are.
    colours, shapes = sorted({c for c, _ in pairs}), sorted({s for _, s in pairs})
    absent = [(c, s) for c in colours for s in shapes if (c, s) not in pairs | UNSEEN]
    if not absent or random.random() < 0.5:
        absent = [(c, s) for c in COLOURS for s in SHAPES if (c, s) not in pairs | UNSEEN]
    colour, shape = random.choice(absent)
    return _ask("exists", "no", random, _a(f"{colour} {shape}"))


def _reading(kind: str) -> Callable[[Scene, Random], Question | None]:
    def ask(scene: Scene, random: Random) -> Question | None:
        items = scene.of(kind)
        return _ask(kind, items[0].text or str(items[0].value), random) if items else None

    return ask


def _describe(scene: Scene, random: Random) -> Question:
    return _ask("describe", description(scene), random)


ASK: dict[str, Callable[[Scene, Random], Question | None]] = {
    "what": _what,
    "colour": _of_a_shape("colour"),
    "size": _of_a_shape("size"),
    "lamp": _lamp,
    "place": _place,
    "which": _which,
    "about": _about,
    "where": _where,
    "tally": _tally,
    "relation": _relation,
    "exists": _exists,
    "count": _count,
    "display": _reading("display"),
    "label": _reading("label"),
    "gauge": _reading("gauge"),
    "describe": _describe,
}


# ---------------------------------------------------------------- descriptions


def description(scene: Scene) -> str:
    """All items, row by row, each behind its place: a word that is there already is easily looked up."""
    return ", ".join(map(_phrase, scene.items))


def _a(name: str) -> str:
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def _thing(item: Item) -> str:
    if item.kind == "shape":
        return f"a {item.size} {item.colour} {item.shape}"
    if item.kind == "lamp":
        return f"a {item.colour} lamp {'on' if item.on else 'off'}"
    return f"a {item.kind} that says {item.text or item.value}"


def _phrase(item: Item) -> str:
    if item.kind in ("shape", "lamp"):
        return f"{item.place}: {_thing(item)}"
    return f"{item.kind}: {item.text or item.value}"


def facts(description: str) -> Counter[tuple[str, str]]:
    """What a description claims: each word of a phrase together with the place or the instrument before it.

    "middle: a small red star" claims (middle, small), (middle, red) and (middle, star).
    """
    found: Counter[tuple[str, str]] = Counter()
    for phrase in description.split(", "):
        place, _, thing = phrase.partition(": ")
        found.update((place, word) for word in thing.removeprefix("a ").split())
    return found


def score(question: Question, answer: str) -> float:
    """1 or 0; for a description the share of right facts, of those claimed or true, if more."""
    if question.task != "describe":
        return float(answer == question.answer)
    claimed, true = facts(answer), facts(question.answer)
    return (claimed & true).total() / max(claimed.total(), true.total(), 1)


# ---------------------------------------------------------------- upstream's format of training data


def record(name: str, turns: Sequence[Question]) -> Json:
    """A conversation as upstream's training data has it; the picture belongs to the first turn."""
    said: list[Json] = []
    for i, turn in enumerate(turns):
        said.append({"from": "human", "value": "" if i else "<image>\n"})
        said[-1]["value"] = f"{said[-1]['value']}{turn.text}"
        said.append({"from": "gpt", "value": turn.answer})
    return {"id": name, "image": f"{name}.png", "conversations": said}
