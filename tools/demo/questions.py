"""Questions about a scene, in several wordings, with the one right answer to each."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from random import Random
from typing import NamedTuple

from tools.demo.scenes import COLOURS, INSTRUMENTS, PLACES, SHAPES, UNSEEN, Item, Scene

Json = dict[str, object]
MOST = 6  # counts go from 0 to this


class Question(NamedTuple):
    task: str
    text: str
    answer: str


Task = Callable[[Scene, Random], Question | None]
Meant = tuple[Item, str]  # and what it is called
Choice = Callable[[Scene, Random, str], Meant | None]

WHERE = {
    "left": "on the left",
    "right": "on the right",
    "middle": "in the middle",
    "top": "at the top",
    "bottom": "at the bottom",
}

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
    "exists": ("Is there {0}?", "Do you see {0}?", "Is {0} in the picture?"),
    "lamp yes": ("Is the {0} on?", "Is the {0} lit?"),
    "lamp state": ("Is the {0} on or off?", "What is the state of the {0}?"),
    "lamp colour": ("What colour is the {0}?", "Which colour does the {0} have?"),
    "display": ("What does the display say?", "Read the display.", "What number is on the display?"),
    "label": ("What does the label say?", "Read the label.", "What is written on the label?"),
    "gauge": ("What does the gauge say?", "Read the gauge.", "What value does the gauge show?"),
    "list": ("List the things.", "What things are there?", "Name the things you see."),
    "describe": ("Describe the picture.", "What is in the picture?", "What do you see?"),
}
# A thing is meant by its place, or by what it is.
BY_PLACE = ("what", "colour", "size", "lamp", "place")
BY_NAME = ("which", "named colour", "named size", "named lamp", "about", "where")
WHOLE = ("list", "describe")
TASKS = (*BY_PLACE, *BY_NAME, "tally", "exists", "count", "display", "label", "gauge", *WHOLE)


def questions(
    scene: Scene, random: Random, tasks: Iterable[str] = TASKS, each: int = 1
) -> Iterator[Question]:
    """Up to `each` questions of every task that fits the scene, one of the whole; no text twice."""
    asked = set()
    for task in tasks:
        for _ in range(1 if task in WHOLE else each):
            found = ASK[task](scene, random)
            if found and found.text not in asked:
                asked.add(found.text)
                yield found


def _ask(task: str, answer: str, random: Random, *names: str, wording: str = "") -> Question:
    return Question(task, random.choice(WORDINGS[wording or task]).format(*names), answer)


# ---------------------------------------------------------------- what a thing can be called


def _names(item: Item, scene: Scene) -> list[str]:
    """Nouns, with or without a colour, that mean this item alone."""
    found = []
    for noun in filter(None, (item.shape, item.kind)):
        colours = [other.colour for other in scene.of(noun)]
        if len(colours) == 1:
            found.append(noun)
        if colours.count(item.colour) == 1:
            found.append(f"{item.colour} {noun}")
    return found


def _by_name(scene: Scene, random: Random, *kinds: str) -> Meant | None:
    """An item that has a name of its own, and such a name."""
    items = [item for item in scene.items if item.kind in kinds]
    meant = [(item, names) for item in items if (names := _names(item, scene))]
    if not meant:
        return None
    item, names = random.choice(meant)
    return item, random.choice(names)


def _by_place(scene: Scene, random: Random, kind: str) -> Meant | None:
    if not scene.of(kind):
        return None
    item = random.choice(scene.of(kind))
    return item, f"{kind} {place_phrase(item.place)}"


def place_phrase(place: str) -> str:
    return WHERE.get(place, f"at the {place}")


# ---------------------------------------------------------------- the tasks


def _what(scene: Scene, random: Random) -> Question | None:
    if not scene.shapes:
        return None
    item = random.choice(scene.shapes)
    return _ask("what", item.shape, random, place_phrase(item.place))


def _of_a_shape(attribute: str, choose: Choice, task: str) -> Task:
    def ask(scene: Scene, random: Random) -> Question | None:
        item, name = choose(scene, random, "shape") or (None, "")
        if not item or (attribute == "colour" and item.colour in name):
            return None
        return _ask(task, getattr(item, attribute), random, name, wording=attribute)

    return ask


def _of_a_lamp(choose: Choice, task: str) -> Task:
    def ask(scene: Scene, random: Random) -> Question | None:
        lamp, name = choose(scene, random, "lamp") or (None, "")
        if not lamp:
            return None
        answers = {"lamp yes": "yes" if lamp.on else "no", "lamp state": "on" if lamp.on else "off"}
        if lamp.colour not in name:
            answers["lamp colour"] = lamp.colour
        way = random.choice([*answers])
        return _ask(task, answers[way], random, name, wording=way)

    return ask


def _count(scene: Scene, random: Random) -> Question | None:
    lamps = scene.of("lamp")
    counts = {"shapes": len(scene.shapes), "lamps": len(lamps), "": sum(lamp.on for lamp in lamps)}
    name = random.choice([name for name, count in counts.items() if count <= MOST])
    return _ask("count", str(counts[name]), random, name, wording="count" if name else "on count")


def _tally(scene: Scene, random: Random) -> Question | None:
    """How many there are of a shape, of a colour or of both; mostly such as are there."""
    item = random.choice(scene.shapes) if scene.shapes and random.random() < 0.8 else None
    shape = item.shape if item else random.choice(SHAPES)
    colour = item.colour if item else random.choice([*COLOURS])
    if (colour, shape) in UNSEEN:
        return None
    noun, shade = random.choice([(shape, ""), ("shape", colour), (shape, colour)])
    number = sum(shade in ("", other.colour) for other in scene.of(noun))
    name = f"{shade} {noun}{'es' if noun == 'cross' else 's'}".strip()
    return _ask("tally", str(number), random, name, wording="count") if number <= MOST else None


def _which(scene: Scene, random: Random) -> Question | None:
    colours = [item.colour for item in scene.shapes]
    unique = [item for item in scene.shapes if colours.count(item.colour) == 1]
    if not unique:
        return None
    item = random.choice(unique)
    return _ask("which", item.shape, random, item.colour)


def _of_any(task: str, tell: Callable[[Item], str]) -> Task:
    def ask(scene: Scene, random: Random) -> Question | None:
        meant = _by_name(scene, random, "shape", "lamp")
        return _ask(task, tell(meant[0]), random, meant[1]) if meant else None

    return ask


def _place(scene: Scene, random: Random) -> Question | None:
    """What is there, or nothing. Places that an instrument covers are left out."""
    things = {item.cell: item for item in scene.items if item.span == 1}
    covered = {cell for item in scene.items for cell in range(item.cell, item.cell + item.span)}
    free = [cell for cell in range(9) if cell not in covered]
    if not things or (free and random.random() < 0.15):
        return _ask("place", "nothing", random, place_phrase(PLACES[random.choice(free)])) if free else None
    item = random.choice([*things.values()])
    return _ask("place", _thing(item), random, place_phrase(item.place))


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


def _reading(kind: str) -> Task:
    def ask(scene: Scene, random: Random) -> Question | None:
        items = scene.of(kind)
        return _ask(kind, items[0].text or str(items[0].value), random) if items else None

    return ask


def _whole(task: str, say: Callable[[Scene], str]) -> Task:
    return lambda scene, random: _ask(task, say(scene), random)


# ---------------------------------------------------------------- descriptions


def description(scene: Scene) -> str:
    """All items, row by row, each behind its place: a word that is there already is easily looked up."""
    return ", ".join(map(_phrase, scene.items))


def listing(scene: Scene) -> str:
    """All items, each behind its name, by shape and colour; of several with one name, how many."""
    found: dict[str, list[Item]] = {}
    for noun in (*SHAPES, "lamp"):
        for item in sorted(scene.of(noun), key=lambda item: [*COLOURS].index(item.colour)):
            found.setdefault(f"{item.colour} {noun}", []).append(item)
    phrases = [
        f"{name}: {_state(same[0])} {same[0].place}" if len(same) == 1 else f"{name}: {len(same)}"
        for name, same in found.items()
    ]
    return ", ".join(phrases + [_phrase(item) for item in scene.items if item.kind in INSTRUMENTS])


def _state(item: Item) -> str:
    return item.size or ("on" if item.on else "off")


def _a(name: str) -> str:
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def _thing(item: Item) -> str:
    if item.kind == "shape":
        return f"a {item.size} {item.colour} {item.shape}"
    if item.kind == "lamp":
        return f"a {item.colour} lamp {_state(item)}"
    return f"a {item.kind} that says {item.text or item.value}"


def _phrase(item: Item) -> str:
    if item.kind in ("shape", "lamp"):
        return f"{item.place}: {_thing(item)}"
    return f"{item.kind}: {item.text or item.value}"


# ---------------------------------------------------------------- all tasks


ASK: dict[str, Task] = {
    "what": _what,
    "colour": _of_a_shape("colour", _by_place, "colour"),
    "size": _of_a_shape("size", _by_place, "size"),
    "lamp": _of_a_lamp(_by_place, "lamp"),
    "place": _place,
    "which": _which,
    "named colour": _of_a_shape("colour", _by_name, "named colour"),
    "named size": _of_a_shape("size", _by_name, "named size"),
    "named lamp": _of_a_lamp(_by_name, "named lamp"),
    "about": _of_any("about", lambda item: f"{_thing(item)}, {item.place}"),
    "where": _of_any("where", lambda item: item.place),
    "tally": _tally,
    "exists": _exists,
    "count": _count,
    "display": _reading("display"),
    "label": _reading("label"),
    "gauge": _reading("gauge"),
    "list": _whole("list", listing),
    "describe": _whole("describe", description),
}


# ---------------------------------------------------------------- scores


def facts(description: str) -> Counter[tuple[str, str]]:
    """What a description or a list claims: each word of a phrase together with the place or name before it.

    "middle: a small red star" claims (middle, small), (middle, red) and (middle, star).
    """
    found: Counter[tuple[str, str]] = Counter()
    for phrase in description.split(", "):
        place, _, thing = phrase.partition(": ")
        found.update((place, word) for word in thing.removeprefix("a ").split())
    return found


def score(question: Question, answer: str) -> float:
    """1 or 0; for a description or a list the share of right facts, of those claimed or true, if more."""
    if question.task not in WHOLE:
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
