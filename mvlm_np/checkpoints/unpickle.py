"""A stack machine for pickles that has nothing to run.

A pickle is a program. Python's own machine imports and calls whatever the program asks for; this
one knows 29 of the 68 instructions, those that torch.save writes, builds only Python's plain values
from them, and gives a program only the names that its caller lists. A listed name is a function of
the caller's or stands for nothing but itself; an instruction or a name that is not listed ends the
run. Nothing is ever imported, and no method of a value is called.

A run costs no more than its program is long: no instruction allocates more than its own operands or
walks over what earlier ones built. So a bound on the program bounds time and memory.

Instructions: the names are those of Python's `pickletools`, which documents each.
"""

import pickletools
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from mvlm_np.checkpoints.sniff import show
from mvlm_np.errors import CheckpointError

MAX_GLOBAL = 256  # bytes of a module's or a function's name


@dataclass(frozen=True, slots=True)
class Global:
    """A listed name that the program asked for. What else bears that name is never touched."""

    name: str


def unpickle(
    code: bytes,
    where: str,
    names: Mapping[str, Callable[[tuple], Any] | None],
    persistent: Callable[[Any], Any],
) -> Any:
    """The value that the pickle `code` builds: None, bool, int, float, str, tuple, list, dict, `Global`,
    or what the caller's functions return.

    where       begins every error; the byte of the program is added
    names       "module.name" -> function of a tuple of arguments, which returns None if they will not
                do; or None, for a name that cannot be called
    persistent  what a persistent id stands for

    Raises CheckpointError.
    """
    return _Machine(code, where, names, persistent).run()


def kind(value: object) -> str:
    """What a value is, in a few words; it may be too large, or too hostile, to be shown."""
    if isinstance(value, Global):
        return value.name
    return "None" if value is None else f"a value of type {type(value).__name__.lstrip('_')}"


class _Machine:
    """One run of one program."""

    def __init__(self, code: bytes, where: str, names: Mapping, persistent: Callable[[Any], Any]):
        self.code = code
        self.where = where
        self.names = names
        self.persistent = persistent
        self.at = 0  # the next byte
        self.start = 0  # first byte of the instruction under way
        self.stack: list[Any] = []
        self.marks: list[int] = []  # how deep the stack was at each MARK
        self.memo: dict[int, Any] = {}

    def run(self) -> Any:
        if self.take(2) != b"\x80\x02":
            raise self.refusal("starts a pickle of another protocol", "protocol 2, as torch.save writes")
        while (opcode := self.opcode()) != STOP:
            action = ACTIONS.get(opcode)
            if action is None:
                raise self.refusal("is no instruction that torch.save writes")
            action(self)
        if len(self.stack) != 1 or self.marks:
            raise self.refusal(f"leaves {len(self.stack)} values and {len(self.marks)} marks", "one value")
        if self.at != len(self.code):
            raise self.refusal(f"is followed by {len(self.code) - self.at} bytes", "the end")
        return self.stack[0]

    def refusal(self, found: str, wanted: object = None, fix: str | None = None) -> CheckpointError:
        """An error that begins: where, byte, name of the instruction."""
        opcode = self.code[self.start : self.start + 1]
        name = next(
            (known.name for known in pickletools.opcodes if known.code == opcode.decode("latin-1")), None
        )
        found = f"{name or '0x' + opcode.hex()} {found}"
        return CheckpointError(f"{self.where}, byte {self.start}", found, wanted, fix)

    # Reading the program

    def opcode(self) -> int:
        self.start = at = self.at
        if at == len(self.code):
            raise CheckpointError(f"{self.where}, byte {at}", "ends", "STOP before that")
        self.at = at + 1
        return self.code[at]

    def take(self, count: int) -> bytes:
        end = self.at + count
        if end > len(self.code):
            raise self.refusal(f"reaches {end - len(self.code)} bytes past the program's end")
        part = self.code[self.at : end]
        self.at = end
        return part

    def number(self, layout: struct.Struct) -> Any:
        return layout.unpack(self.take(layout.size))[0]

    def line(self) -> str:
        end = self.code.find(b"\n", self.at, self.at + MAX_GLOBAL)
        if end < 0:
            raise self.refusal("has a name without an end", f"a line feed within {MAX_GLOBAL} bytes")
        return self.take(end + 1 - self.at)[:-1].decode("utf-8", "backslashreplace")

    # The stack

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop(self) -> Any:
        return self.pops(1)[0]

    def pops(self, count: int) -> list[Any]:
        """The last `count` values, in the order in which they were pushed."""
        stack = self.stack
        depth = len(stack) - count
        if depth < (self.marks[-1] if self.marks else 0):
            raise self.refusal("takes more values than the stack has")
        values = stack[depth:]
        del stack[depth:]
        return values

    def pop_to_mark(self) -> list[Any]:
        if not self.marks:
            raise self.refusal("lacks its MARK")
        return self.pops(len(self.stack) - self.marks.pop())

    def top(self, wanted: type) -> Any:
        """The value on top, which an instruction goes on filling."""
        self.push(target := self.pop())
        if type(target) is not wanted:
            raise self.refusal(f"fills {kind(target)}", f"a {wanted.__name__}")
        return target

    # Instructions that need more than a line

    def long(self) -> None:
        count = self.take(1)[0]
        if count > 8:
            raise self.refusal(f"has a whole number of {count} bytes", "at most 8")
        self.push(int.from_bytes(self.take(count), "little", signed=True))

    def text(self) -> None:
        try:
            self.push(self.take(self.number(UINT32)).decode("utf-8"))
        except UnicodeDecodeError:
            raise self.refusal("has a string that is not UTF-8") from None

    def put(self, index: int) -> None:
        self.push(value := self.pop())
        self.memo[index] = value

    def get(self, index: int) -> None:
        if index not in self.memo:
            raise self.refusal(f"recalls value {index}, which was not stored")
        self.push(self.memo[index])

    def extend(self, values: list[Any]) -> None:
        self.top(list).extend(values)

    def set_items(self, values: list[Any]) -> None:
        target = self.top(dict)
        if len(values) % 2:
            raise self.refusal("has a key without a value")
        for key, value in zip(values[::2], values[1::2], strict=True):
            if type(key) is not str:
                raise self.refusal(f"has as a key {kind(key)}", "a string")
            if key in target:
                raise self.refusal(f"sets the key {show(key)} twice", "once")
            target[key] = value

    def build(self) -> None:
        """Gives an object attributes: here a dict, and they are dropped. torch sets `_metadata` so."""
        attributes = self.pop()
        self.top(dict)
        if type(attributes) is not dict:
            raise self.refusal(f"has as attributes {kind(attributes)}", "a dict")

    def find(self) -> None:
        name = f"{self.line()}.{self.line()}"
        if name not in self.names:
            raise self.refusal(
                f"asks for {show(name)}",
                "only what a dict of plain tensors needs",
                "if you do not trust the file, do not open it with other tools either",
            )
        self.push(Global(name))

    def call(self) -> None:
        arguments, function = self.pop(), self.pop()
        action = self.names[function.name] if isinstance(function, Global) else None
        if action is None or type(arguments) is not tuple:
            raise self.refusal(f"calls {kind(function)} with {kind(arguments)}", "a function and a tuple")
        result = action(arguments)
        if result is None:
            given = ", ".join(kind(value) for value in arguments[:8]) or "nothing"
            raise self.refusal(f"calls {function.name} with {given}", "the arguments that torch writes")
        self.push(result)


UINT8, UINT16, UINT32 = struct.Struct("<B"), struct.Struct("<H"), struct.Struct("<I")
INT32, FLOAT64 = struct.Struct("<i"), struct.Struct(">d")
STOP = ord(".")

ACTIONS: dict[int, Callable[[_Machine], None]] = {
    ord("N"): lambda m: m.push(None),  # NONE
    0x88: lambda m: m.push(True),  # NEWTRUE
    0x89: lambda m: m.push(False),  # NEWFALSE
    ord("K"): lambda m: m.push(m.number(UINT8)),  # BININT1
    ord("M"): lambda m: m.push(m.number(UINT16)),  # BININT2
    ord("J"): lambda m: m.push(m.number(INT32)),  # BININT
    0x8A: _Machine.long,  # LONG1
    ord("G"): lambda m: m.push(m.number(FLOAT64)),  # BINFLOAT
    ord("X"): _Machine.text,  # BINUNICODE
    ord("("): lambda m: m.marks.append(len(m.stack)),  # MARK
    ord(")"): lambda m: m.push(()),  # EMPTY_TUPLE
    0x85: lambda m: m.push(tuple(m.pops(1))),  # TUPLE1
    0x86: lambda m: m.push(tuple(m.pops(2))),  # TUPLE2
    0x87: lambda m: m.push(tuple(m.pops(3))),  # TUPLE3
    ord("t"): lambda m: m.push(tuple(m.pop_to_mark())),  # TUPLE
    ord("]"): lambda m: m.push([]),  # EMPTY_LIST
    ord("a"): lambda m: m.extend(m.pops(1)),  # APPEND
    ord("e"): lambda m: m.extend(m.pop_to_mark()),  # APPENDS
    ord("}"): lambda m: m.push({}),  # EMPTY_DICT
    ord("s"): lambda m: m.set_items(m.pops(2)),  # SETITEM
    ord("u"): lambda m: m.set_items(m.pop_to_mark()),  # SETITEMS
    ord("q"): lambda m: m.put(m.number(UINT8)),  # BINPUT
    ord("r"): lambda m: m.put(m.number(UINT32)),  # LONG_BINPUT
    ord("h"): lambda m: m.get(m.number(UINT8)),  # BINGET
    ord("j"): lambda m: m.get(m.number(UINT32)),  # LONG_BINGET
    ord("c"): _Machine.find,  # GLOBAL
    ord("R"): _Machine.call,  # REDUCE
    ord("b"): _Machine.build,  # BUILD
    ord("Q"): lambda m: m.push(m.persistent(m.pop())),  # BINPERSID
}
