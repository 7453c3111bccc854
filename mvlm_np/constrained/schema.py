"""From a JSON schema (draft 2020-12) to the automaton that reads the texts that fit it.

A text is less free than its schema where little is lost by it: properties stand in the schema's order, others
are left out, and numbers have up to 15 digits. So it always fits. What a schema asks for and is not supported
is a SchemaError. Words that ask for nothing (`title`, `default`) and unknown ones are ignored.
"""

import json
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from decimal import Decimal
from functools import lru_cache
from typing import Any
from urllib.parse import unquote

from mvlm_np.constrained.automaton import Automaton, Nodes, TooLarge
from mvlm_np.constrained.numbers import number
from mvlm_np.constrained.texts import colon, comma, sequence, space, string
from mvlm_np.errors import SchemaError

ANY_OBJECT = {"type": "object"}  # with whatever in it
LEVELS = 3  # of objects and arrays in each other, where the schema says nothing of them
LONGEST = 500  # characters of a string that has a maxLength, which may be larger
DEEPEST = 32  # levels of a schema

# The words that ask for something, by the type of the values to which they apply.
WORDS = {
    "string": "minLength maxLength format pattern contentEncoding contentMediaType contentSchema".split(),
    "number": "minimum maximum exclusiveMinimum exclusiveMaximum multipleOf".split(),
    "boolean": [],
    "null": [],
    "array": [
        "items", "minItems", "maxItems", "uniqueItems", "prefixItems", "unevaluatedItems", "contains",
        "minContains", "maxContains",
    ],
    "object": [
        "properties", "required", "additionalProperties", "patternProperties", "propertyNames",
        "minProperties", "maxProperties", "unevaluatedProperties", "dependentRequired", "dependentSchemas",
        "dependencies",
    ],
}  # fmt: skip
SEVERAL = ("$ref", "anyOf", "oneOf", "allOf")  # what stands for other schemas
NOWHERE = ("not", "if", "$dynamicRef", "$recursiveRef")  # supported
SUPPORTED = {
    *WORDS["string"][:3], *WORDS["number"][:4], *WORDS["array"][:4], *WORDS["object"][:3],
}  # fmt: skip
FORMATS = ("password", "path", "file-path", "directory-path")  # which any string has


def compile(schema: object) -> Automaton:
    """The automaton that reads the texts that fit a schema, which is given as Python's `json` reads it.

    The last ones are kept, so that a schema that comes again is ready. SchemaError: it is no schema, nothing
    fits it, or it has something that is not supported; the error names the place.
    """
    try:
        text = json.dumps(schema, ensure_ascii=False, allow_nan=False)
        text.encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise SchemaError("schema", f"is not JSON ({error})") from None
    return _compiled(text)


@lru_cache(16)
def _compiled(text: str) -> Automaton:
    nodes = Nodes()
    end = nodes.node()
    try:
        value = Patterns(nodes, schema := json.loads(text)).value(schema, end, "schema")
        return Automaton(nodes, space(nodes, 0, value), end)
    except TooLarge as error:
        raise SchemaError("schema", f"is too large: {error}", fix="lower its maxLength or maxItems") from None
    except RecursionError:
        found = "is too large: too many parts follow each other"
        raise SchemaError("schema", found, fix="take fewer of what is under uniqueItems") from None


class Patterns:
    """Makes the pattern of each part of a schema.

    Methods take a part, the node that follows, and the part's place, for errors. As all patterns, these are
    built from their ends; see `automaton`.

    depth   how many objects and arrays of the text are open
    within  the places of the parts of which the one at hand is a part
    """

    def __init__(self, nodes: Nodes, root: object):
        self.nodes, self.root = nodes, root
        self.depth = 0
        self.within: list[str] = []

    # ------------------------------------------------------------ a value of whatever kind

    def value(self, schema: object, then: int, where: str) -> int:
        """A value that fits the schema."""
        if len(self.within) == DEEPEST:
            raise SchemaError(
                where, f"is too deep, or refers to itself; at most {DEEPEST} levels are supported"
            )
        self.within.append(where)
        part = self.checked(schema, where)
        if "$ref" in part:
            node = self.value(self.referred(part["$ref"], where), then, f"{where} = {part['$ref']}")
        elif several := next((word for word in SEVERAL if word in part), None):
            node = self.alternatives(several, part, then, where)
        elif "enum" in part or "const" in part:
            node = self.constants(part, then, where)
        else:
            node = self.nodes.any_of(
                [self.typed(name, part, then, where) for name in self.types(part, where)]
            )
        self.within.pop()
        return node

    def checked(self, schema: object, where: str) -> Mapping[str, Any]:
        """As an object. SchemaError: it is none, or has words that are not supported, alone or together."""
        if schema is True:
            return {}
        if schema is False:
            raise SchemaError(where, "is false: nothing fits it")
        if not isinstance(schema, dict):
            raise SchemaError(where, f"found {reprlib.repr(schema)}", "a JSON schema, which is an object")
        for word in NOWHERE:
            if word in schema:
                raise SchemaError(f"{where}.{word}", "is not supported")
        if "enum" in schema:
            listed(schema, "enum", where)
        asking = {*SEVERAL, "type", "enum", "const"}.union(*WORDS.values())
        for word in SEVERAL:
            if word in schema and (beside := [other for other in schema if other in asking - {word}]):
                raise SchemaError(f"{where}.{word}", f"is not supported together with {beside[0]}")
        return schema

    def types(self, schema: Mapping[str, Any], where: str) -> list[str]:
        """The types that a value may have; if none is named, those of which the schema says something."""
        known = [*WORDS, "integer"]
        if "type" not in schema:
            meant = [name for name, words in WORDS.items() if any(word in schema for word in words)]
            return meant or [name for name in WORDS if self.depth < LEVELS or name not in ("array", "object")]
        names = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
        if not names or not all(isinstance(name, str) and name in known for name in names):
            found = f"found {reprlib.repr(schema['type'])}"
            raise SchemaError(f"{where}.type", found, f"one or more of {', '.join(known)}")
        return [name for name in dict.fromkeys(names) if name != "integer" or "number" not in names]

    def typed(self, name: str, schema: Mapping[str, Any], then: int, where: str) -> int:
        """A value of one type."""
        for word in WORDS["number" if name == "integer" else name]:
            if word in schema and word not in SUPPORTED:
                raise SchemaError(f"{where}.{word}", "is not supported")
        if name in ("boolean", "null"):
            words = ("true", "false") if name == "boolean" else ("null",)
            return self.nodes.any_of([self.nodes.literal(word, then) for word in words])
        if name in ("number", "integer"):
            return self.number(schema, name == "integer", then, where)
        build = {"string": self.string, "array": self.array, "object": self.object}[name]
        return build(schema, then, where)

    # ------------------------------------------------------------ what stands for other schemas

    def referred(self, reference: object, where: str) -> object:
        """What a reference stands for."""
        if not isinstance(reference, str) or not reference.startswith("#"):
            found = f"found {reprlib.repr(reference)}"
            raise SchemaError(f"{where}.$ref", found, "a place in this schema, such as #/$defs/Name")
        target = self.root
        for name in unquote(reference).split("/")[1:]:
            name = name.replace("~1", "/").replace("~0", "~")  # JSON pointers, RFC 6901
            if isinstance(target, dict) and name in target:
                target = target[name]
            elif isinstance(target, list) and name.isdecimal() and int(name) < len(target):
                target = target[int(name)]
            else:
                raise SchemaError(f"{where}.$ref", f"there is no {reprlib.repr(reference)} in the schema")
        return target

    def followed(self, schema: object, where: str) -> Mapping[str, Any]:
        """A schema, or what it refers to."""
        for _ in range(DEEPEST):
            part = self.checked(schema, where)
            if "$ref" not in part:
                return part
            schema = self.referred(part["$ref"], where)
        raise SchemaError(f"{where}.$ref", "refers to itself")

    def alternatives(self, word: str, schema: Mapping[str, Any], then: int, where: str) -> int:
        """anyOf; oneOf, if no value fits two of its schemas; allOf with one."""
        schemas, where = listed(schema, word, where), f"{where}.{word}"
        if word == "allOf" and len(schemas) > 1:
            raise SchemaError(where, f"found {len(schemas)} schemas", "one, as more are not supported")
        if word == "oneOf":
            self.require_apart(schemas, where)
        return self.nodes.any_of([self.value(part, then, f"{where}[{i}]") for i, part in enumerate(schemas)])

    def require_apart(self, schemas: Sequence[object], where: str) -> None:
        """SchemaError: a value may fit two of these, as far as their types and constants tell."""
        types, constants = set[str](), set[tuple[str, object]]()
        for i, schema in enumerate(schemas):
            part = self.followed(schema, f"{where}[{i}]")
            mine = {"number" if name == "integer" else name for name in self.types(part, f"{where}[{i}]")}
            scalars = [value for value in constants_of(part) or [] if not isinstance(value, list | dict)]
            if scalars:
                named = {(type_of(value), value) for value in scalars}
                clash = bool(named & constants or {name for name, _ in named} & types)
                constants |= named
            else:
                clash = bool(mine & types or mine & {name for name, _ in constants})
                types |= mine
            if clash:
                raise SchemaError(
                    f"{where}[{i}]", "a value may fit it and another one, too", fix="take anyOf"
                )

    # ------------------------------------------------------------ scalars

    def constants(self, schema: Mapping[str, Any], then: int, where: str) -> int:
        """One of some values, each spelled in one way."""
        if beside := [word for words in WORDS.values() for word in words if word in schema]:
            raise SchemaError(f"{where}.{beside[0]}", "is not supported together with enum or const")
        types = self.types(schema, where) if "type" in schema else [*WORDS]
        values = [
            value
            for value in constants_of(schema) or []
            if type_of(value) in types or ("integer" in types and is_whole(value))
        ]
        if not values:
            raise SchemaError(where, f"no value fits enum, const and the type {', '.join(types)}")
        return self.nodes.any_of([self.nodes.literal(spelled(value), then) for value in values])

    def number(self, schema: Mapping[str, Any], whole: bool, then: int, where: str) -> int:
        """A number within bounds."""
        bounds = {word: bound(schema, word, where) for word in WORDS["number"][:4]}
        low, high, above, below = bounds.values()
        open_low = above is not None and (low is None or above >= low)
        open_high = below is not None and (high is None or below <= high)
        low, high = above if open_low else low, below if open_high else high
        node = number(self.nodes, then, low, high, open_low, open_high, whole)
        if node is None:
            given = " and ".join(f"{word} {schema[word]}" for word in bounds if word in schema)
            raise SchemaError(where, f"no {'whole ' * whole}number of up to 15 digits fits {given}")
        return node

    def string(self, schema: Mapping[str, Any], then: int, where: str) -> int:
        """A string of some length."""
        if "format" in schema and schema["format"] not in FORMATS:
            raise SchemaError(f"{where}.format", f"{reprlib.repr(schema['format'])} is not supported")
        least, most = counts(schema, "Length", where)
        return string(self.nodes, then, least, None if most is None else min(most, max(least, LONGEST)))

    # ------------------------------------------------------------ arrays and objects

    @contextmanager
    def opened(self) -> Iterator[None]:
        self.depth += 1
        yield
        self.depth -= 1

    def space(self, then: int) -> int:
        return space(self.nodes, self.depth, then)

    def array(self, schema: Mapping[str, Any], then: int, where: str) -> int:
        """An array of some length, whose items fit one schema."""
        least, most = counts(schema, "Items", where)
        with self.opened():
            close = self.space(self.nodes.literal("]", then))
            if schema.get("uniqueItems", False) is not False:
                begin = self.different(schema, close, least, most, where)
            else:

                def item(after: int) -> int:
                    return self.value(schema.get("items", True), after, f"{where}.items")

                begin = sequence(self.nodes, self.depth, item, close, least, most)
            return self.nodes.literal("[", self.space(begin))

    def different(
        self, schema: Mapping[str, Any], close: int, least: int, most: int | None, where: str
    ) -> int:
        """The items of uniqueItems: each of some strings at most once, in any order; then `close`."""
        values = constants_of(self.followed(schema.get("items", True), f"{where}.items"))
        if schema["uniqueItems"] is not True or not values or not all(isinstance(v, str) for v in values):
            raise SchemaError(f"{where}.uniqueItems", "is supported only where items are an enum of strings")
        strings = list(dict.fromkeys(values))
        if least > len(strings):
            found = f"found {least}, which is more than there are different items, {len(strings)}"
            raise SchemaError(f"{where}.minItems", found)
        made: dict[frozenset[str], int] = {}

        def one_of(left: frozenset[str]) -> int:
            possible = [value for value in strings if value in left]
            literals = [self.nodes.literal(spelled(value), behind(left - {value})) for value in possible]
            return self.nodes.any_of(literals)

        def behind(left: frozenset[str]) -> int:
            if left not in made:
                found = len(strings) - len(left)
                goes_on = left and (most is None or found < most)
                edges = comma(self.nodes, self.depth, one_of(left)) if goes_on else []
                made[left] = self.nodes.node(edges, [close] if found >= least else [])
            return made[left]

        begin = [one_of(frozenset(strings))] if most != 0 else []
        return self.nodes.any_of([*begin, *([close] if least == 0 else [])])

    def object(self, schema: Mapping[str, Any], then: int, where: str) -> int:
        """An object with the properties that the schema names; if it names none, with any."""
        properties, required = schema.get("properties", {}), schema.get("required", [])
        others = schema.get("additionalProperties", True)
        if not isinstance(properties, dict):
            raise SchemaError(
                f"{where}.properties", f"found {reprlib.repr(properties)}", "an object of schemas"
            )
        if not isinstance(required, list) or not all(isinstance(name, str) for name in required):
            raise SchemaError(f"{where}.required", f"found {reprlib.repr(required)}", "a list of names")
        for name in required:
            if name not in properties and others is False:
                found = f"{reprlib.repr(name)} is none of the properties, and others are not allowed"
                raise SchemaError(f"{where}.required", found)
        properties = {**properties, **{name: others for name in required if name not in properties}}
        with self.opened():
            close = self.space(self.nodes.literal("}", then))
            if properties:
                begin = self.members(properties, required, close, where)
            elif others is False:
                begin = close
            else:

                def member(after: int) -> int:
                    value = self.value(others, after, f"{where}.additionalProperties")
                    return string(self.nodes, colon(self.nodes, value))

                begin = sequence(self.nodes, self.depth, member, close, 0, None)
            return self.nodes.literal("{", self.space(begin))

    def members(self, properties: Mapping[str, Any], required: Sequence[str], close: int, where: str) -> int:
        """The properties in order, without some of those that are not required; then `close`."""
        first = after = close  # what follows where no property stands so far, and where one does
        following: list[int] = []  # what follows a comma
        may_close = True
        for name, schema in reversed([*properties.items()]):
            value = self.value(schema, after, f"{where}.properties.{name}")
            begin = self.nodes.literal(spelled(name), colon(self.nodes, value))
            optional = name not in required
            may_close = may_close and optional
            first = self.nodes.any_of([begin, *([first] if optional else [])])
            following = [begin, *(following if optional else [])]
            edges = comma(self.nodes, self.depth, self.nodes.any_of(following))
            after = self.nodes.node(edges, [close] if may_close else [])
        return first


# ---------------------------------------------------------------- words of a schema


def listed(schema: Mapping[str, Any], word: str, where: str) -> list[Any]:
    """A word's list, which must not be empty."""
    if not isinstance(schema[word], list) or not schema[word]:
        found = f"found {reprlib.repr(schema[word])}"
        raise SchemaError(f"{where}.{word}", found, "a list that is not empty")
    return schema[word]


def constants_of(schema: Mapping[str, Any]) -> list[Any] | None:
    """The values among which enum and const let choose; None: there is neither."""
    if "const" not in schema:
        return schema.get("enum")
    const = schema["const"]
    among = [(type_of(value), value) for value in schema.get("enum", [const])]
    return [const] if (type_of(const), const) in among else []


def bound(schema: Mapping[str, Any], word: str, where: str) -> Decimal | None:
    """A number's bound."""
    if word not in schema:
        return None
    if type_of(schema[word]) != "number":
        raise SchemaError(f"{where}.{word}", f"found {reprlib.repr(schema[word])}", "a number")
    return Decimal(str(schema[word]))


def counts(schema: Mapping[str, Any], what: str, where: str) -> tuple[int, int | None]:
    """minLength and maxLength, or minItems and maxItems; without a word 0 and None."""
    for word in (f"min{what}", f"max{what}"):
        if word in schema and not (is_whole(schema[word]) and schema[word] >= 0):
            raise SchemaError(
                f"{where}.{word}", f"found {reprlib.repr(schema[word])}", "a whole number from 0"
            )
    least, most = int(schema.get(f"min{what}", 0)), schema.get(f"max{what}")
    if most is not None and most < least:
        raise SchemaError(f"{where}.max{what}", f"found {most}", f"at least min{what}, which is {least}")
    return least, None if most is None else int(most)


# ---------------------------------------------------------------- JSON values


def spelled(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def type_of(value: object) -> str:
    """The type of a JSON value; of a whole number, too, it is "number"."""
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int | float):
        return "number"
    return {str: "string", type(None): "null", list: "array", dict: "object"}[type(value)]


def is_whole(value: object) -> bool:
    return type_of(value) == "number" and value % 1 == 0  # type: ignore[operator]
