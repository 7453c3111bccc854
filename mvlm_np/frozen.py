"""`dataclass(frozen=True)` from the standard library, but made in an eighth of the time.

The standard one writes the methods of each class as source code and compiles it, some 0.8 ms a class up to
Python 3.12, and `mvlm ask` needs two dozen classes before its first layer. Here all of them share the methods
below. In everything else they are dataclasses, for `replace`, `fields` and `asdict` as for type checkers.
"""

import dataclasses
from dataclasses import MISSING, Field, FrozenInstanceError
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dataclasses import dataclass
else:

    def dataclass(*, frozen: bool, eq: bool = True, kw_only: bool = False) -> Any:
        """`dataclasses.dataclass` with these options."""
        assert frozen, "what changes is made by the standard library"

        def made(cls: type) -> type:
            cls = dataclasses.dataclass(init=False, repr=False, eq=False, kw_only=kw_only)(cls)
            methods = (__init__, __repr__, __setattr__, __delattr__, *((__eq__, __hash__) if eq else ()))
            for method in methods:
                setattr(cls, method.__name__, method)
            return cls

        return made


def __init__(self: Any, *values: Any, **named: Any) -> None:
    given = dict(zip(self.__match_args__, values, strict=False), **named)
    if len(given) < len(values) + len(named):
        raise TypeError(f"{type(self).__name__}: too many values, or two of one field")
    own = self.__dict__
    for name, field in self.__dataclass_fields__.items():
        own[name] = given.pop(name) if name in given else _default(self, field)
    if given:
        raise TypeError(f"{type(self).__name__} has no field {', '.join(given)}")
    if hasattr(self, "__post_init__"):
        self.__post_init__()


def _default(self: Any, field: Field) -> Any:
    if field.default_factory is not MISSING:
        return field.default_factory()
    if field.default is MISSING:
        raise TypeError(f"{type(self).__name__} needs {field.name}")
    return field.default


def _values(self: Any) -> tuple[Any, ...]:
    return tuple(getattr(self, name) for name in self.__dataclass_fields__)


def __repr__(self: Any) -> str:
    pairs = zip(self.__dataclass_fields__, _values(self), strict=True)
    return f"{type(self).__qualname__}({', '.join(f'{name}={value!r}' for name, value in pairs)})"


def __eq__(self: Any, other: object) -> bool:
    return _values(self) == _values(other) if type(other) is type(self) else NotImplemented


def __hash__(self: Any) -> int:
    return hash(_values(self))


def __setattr__(self: Any, name: str, value: object) -> None:
    raise FrozenInstanceError(f"cannot assign to field {name!r}")


def __delattr__(self: Any, name: str) -> None:
    raise FrozenInstanceError(f"cannot delete field {name!r}")
