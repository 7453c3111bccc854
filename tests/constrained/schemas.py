"""Schemas at random, of what is supported."""

from typing import Any

from hypothesis import strategies as st

names = st.sampled_from(["a", "b c", "größe", 'q"', "title", "$ref", "\\", "\n"]) | st.text(max_size=4)
scalars = st.none() | st.booleans() | st.integers(-99, 99) | st.floats(-9, 9) | st.text(max_size=5)


@st.composite
def strings(draw: st.DrawFn) -> dict[str, Any]:
    least, words = draw(st.integers(0, 4)), draw(st.sampled_from(["", "min", "max", "minmax"]))
    lengths = {"minLength": least} if "min" in words else {}
    return {"type": "string"} | lengths | ({"maxLength": least + 2} if "max" in words else {})


@st.composite
def numbers(draw: st.DrawFn) -> dict[str, Any]:
    bounds = st.integers(-200, 200) | st.decimals(-99, 99, places=3).map(float)
    low, high = sorted([draw(bounds), draw(bounds)])
    words = {
        draw(st.sampled_from(["minimum", "exclusiveMinimum"])): low,
        draw(st.sampled_from(["maximum", "exclusiveMaximum"])): high + 2,
    }
    kept = {word: value for word, value in words.items() if draw(st.booleans())}
    return {"type": draw(st.sampled_from(["number", "integer"]))} | kept


@st.composite
def arrays(draw: st.DrawFn, items: st.SearchStrategy[Any]) -> dict[str, Any]:
    least, more = draw(st.integers(0, 3)), draw(st.none() | st.integers(0, 2))
    most = {} if more is None else {"maxItems": least + more}
    return {"type": "array", "items": draw(items), "minItems": least} | most


@st.composite
def objects(draw: st.DrawFn, values: st.SearchStrategy[Any]) -> dict[str, Any]:
    properties = draw(st.dictionaries(names, values, max_size=4))
    required = [name for name in properties if draw(st.booleans())]
    others = draw(st.sampled_from([{}, {"additionalProperties": False}]))
    return {"type": "object", "properties": properties, "required": required} | others


def schemas() -> st.SearchStrategy[Any]:
    """Flat ones, and such as are nested a little."""
    types = [{"type": "boolean"}, {"type": "null"}, {"type": ["string", "null"]}, {"$ref": "#/$defs/x"}]
    simple = st.one_of(
        strings(),
        numbers(),
        st.sampled_from(types),
        st.lists(scalars, min_size=1, max_size=4).map(lambda values: {"enum": values}),
        scalars.map(lambda value: {"const": value}),
    )
    several = st.lists(simple, min_size=1, max_size=3).map(lambda each: {"anyOf": each})
    values = st.recursive(simple | several, lambda inner: arrays(inner) | objects(inner), max_leaves=3)
    defs = {"$defs": {"x": {"enum": ["x", "xy", 3]}}}
    return objects(values).map(lambda schema: schema | defs)
