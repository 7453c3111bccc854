"""Our frozen dataclasses behave as those of the standard library."""

import dataclasses
import inspect
from dataclasses import FrozenInstanceError, asdict, field, fields, is_dataclass, replace
from typing import Any

import pytest

from mvlm_np import frozen

BOTH = pytest.mark.parametrize("dataclass", [dataclasses.dataclass, frozen.dataclass])


def made(dataclass: Any, **options: Any) -> Any:
    @dataclass(frozen=True, **options)
    class Point:
        """A point."""

        x: int
        y: int = 2
        names: list[str] = field(default_factory=list)

    return Point


@BOTH
def test_values_defaults_and_names(dataclass: Any) -> None:
    Point = made(dataclass)
    point = Point(1, names=["a"])
    assert (point.x, point.y, point.names) == (1, 2, ["a"])
    assert list(vars(Point(names=[], y=1, x=0))) == ["x", "y", "names"]
    assert Point(1).names is not Point(1).names
    assert repr(point).endswith("Point(x=1, y=2, names=['a'])")
    assert asdict(point) == {"x": 1, "y": 2, "names": ["a"]}
    assert replace(point, y=5) == Point(1, 5, ["a"]) != point
    assert is_dataclass(point) and [f.name for f in fields(Point)] == ["x", "y", "names"]


@BOTH
def test_equal_ones_have_the_same_hash_and_other_classes_are_not_equal(dataclass: Any) -> None:
    Point, Other = made(dataclass), made(dataclass)
    assert hash(Point(1, 2, ())) == hash(Point(1, 2, ())) and Point(1) != Other(1)
    Own = made(dataclass, eq=False)
    assert Own(1) != Own(1) and len({Own(1), Own(1)}) == 2


@BOTH
def test_nothing_can_be_changed(dataclass: Any) -> None:
    point = made(dataclass)(1)
    with pytest.raises(FrozenInstanceError):
        point.x = 2
    with pytest.raises(FrozenInstanceError):
        del point.x
    assert point.x == 1


@BOTH
@pytest.mark.parametrize(
    ("values", "named"), [((), {}), ((1, 2, [], 4), {}), ((1,), {"x": 1}), ((1,), {"z": 1})]
)
def test_wrong_calls_are_type_errors(dataclass: Any, values: tuple, named: dict[str, int]) -> None:
    with pytest.raises(TypeError):
        made(dataclass)(*values, **named)


@BOTH
def test_post_init_is_called(dataclass: Any) -> None:
    @dataclass(frozen=True)
    class Positive:
        """A positive number."""

        x: int

        def __post_init__(self) -> None:
            if self.x <= 0:
                raise ValueError

    assert Positive(1).x == 1
    with pytest.raises(ValueError):
        Positive(0)


def test_the_standard_ones_take_the_options_that_ours_take() -> None:
    ours = inspect.signature(frozen.dataclass).parameters
    assert ours.keys() <= inspect.signature(dataclasses.dataclass).parameters.keys()
