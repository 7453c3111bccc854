"""What a mistake is, in how many ways it can be made, and the list of all that are known.

The list is made of the files of `mistakes`: a mistake is a generator of its variants there, under `@mistake`.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pkgutil import iter_modules

from mvlm_np.golden.explain import mistakes
from mvlm_np.golden.explain.parts import Change
from mvlm_np.golden.explain.scene import Scene
from mvlm_np.golden.stages import order


@dataclass(frozen=True)
class Dial:
    """What variants that differ in one number have in common.

    at      makes the variant with another number
    values  those that are tried first, and the right one, in order
    """

    at: Callable[[float], "Variant"]
    values: tuple[float, ...]


@dataclass(frozen=True)
class Variant:
    """One way to make a mistake.

    step    where it acts first; see `steps.STEPS`
    detail  what is particular about this way, in words
    layer   the one layer that it acts on; None for all
    dial    how to make it with another number, and value: its own
    rounds  whether results are rounded: then the candidate's are not reproduced to the last bit
    half    the type of 16 bits that numbers are rounded to, "bf16" or "float16"
    rare    whether to try it only where one layer alone is in question
    """

    step: str
    change: Change
    detail: str = ""
    layer: int | None = None
    dial: Dial | None = None
    value: float = 0.0
    rounds: bool = False
    half: str = ""
    rare: bool = False


@dataclass(frozen=True)
class Mistake:
    """A mistake, under a stable name.

    what   what the port does
    mend   what it should do
    stage  where it first shows
    shown  which golden tells it from the right way, where one may not
    """

    id: str
    what: str
    mend: str
    stage: str
    shown: str
    variants: Callable[[Scene], Iterable[Variant]]


# ---------------------------------------------------------------- the list

Variants = Callable[[Scene], Iterable[Variant]]

_listed: dict[str, Mistake] = {}


def mistake(stage: str, what: str, mend: str, shown: str = "any golden") -> Callable[[Variants], Variants]:
    """Puts a generator of variants on the list. Its name is the mistake's id: `no_pad` makes "no-pad"."""

    def put(variants: Variants) -> Variants:
        id = variants.__name__.replace("_", "-")
        assert id not in _listed, f"two mistakes are called {id}"
        _listed[id] = Mistake(id, what, mend, stage, shown, variants)
        return variants

    return put


@cache
def known_mistakes() -> dict[str, Mistake]:
    """All mistakes by id, in the order of the stages where they show: those of every file in `mistakes`."""
    for module in iter_modules(mistakes.__path__):
        import_module(f"{mistakes.__name__}.{module.name}")
    return dict(sorted(_listed.items(), key=lambda item: order(item[1].stage)))


# ---------------------------------------------------------------- variants


def dial(
    step: str, text: str, make: Callable[[float], Change], values: Iterable[float], right: float
) -> Iterator[Variant]:
    """Variants that differ in a number only, which can be tuned; `text` has a place for it."""
    numbers = tuple(sorted({*values, right}))

    def at(value: float) -> Variant:
        return Variant(step, make(value), text.format(value), None, Dial(at, numbers), value)

    return (at(value) for value in numbers if value != right)
