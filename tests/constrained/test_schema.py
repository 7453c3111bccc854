"""What a compiled schema reads: all of it fits, by the judgement of jsonschema."""

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mvlm_np.constrained.automaton import Automaton
from mvlm_np.constrained.schema import ANY_OBJECT, LONGEST, compile
from mvlm_np.errors import SchemaError, UserError
from tests.constrained.schemas import schemas


def reads(schema: object, text: str | bytes) -> bool:
    automaton = compile(schema)
    return bool(automaton.accepting[automaton.after(text.encode() if isinstance(text, str) else text)])


def some_text(automaton: Automaton, rng: np.random.Generator, most: int = 3000) -> bytes | None:
    """A text that it reads, byte by byte at random; None: it became too long."""
    state, text = 1, b""
    while len(text) < most:
        ways = np.flatnonzero(automaton.table[state])
        if automaton.accepting[state] and (not ways.size or rng.random() < 0.3):
            return text
        byte = rng.choice(np.flatnonzero(automaton.classes == rng.choice(ways)))
        text += bytes([byte])
        state = automaton.after(text[-1:], state)
    return None


@given(schemas(), st.integers(0, 2**32))
def test_whatever_it_reads_parses_and_fits(schema: Any, seed: int) -> None:
    jsonschema.Draft202012Validator.check_schema(schema)
    automaton, rng = compile(schema), np.random.default_rng(seed)
    for _ in range(10):
        if (text := some_text(automaton, rng)) is not None:
            jsonschema.validate(json.loads(text), schema, jsonschema.Draft202012Validator)


floats = st.floats(-999, 999).map(lambda x: round(x, 3))
values = st.recursive(
    st.none() | st.booleans() | st.integers(-999, 999) | floats | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


def depth(value: object) -> int:
    if not isinstance(value, dict | list):
        return 0
    return 1 + max(map(depth, value.values() if isinstance(value, dict) else value), default=0)


@given(st.dictionaries(st.text(), values, max_size=4), st.booleans(), st.sampled_from([None, 1, 2, 4]))
def test_any_object_is_any_object_of_three_levels_however_it_is_written(
    value: dict[str, Any], ascii: bool, indent: int | None
) -> None:
    text = json.dumps(value, ensure_ascii=ascii, indent=indent)
    assert reads(ANY_OBJECT, text) == (depth(value) <= 3)
    assert reads(ANY_OBJECT, json.dumps(value, separators=(",", ":"))) == (depth(value) <= 3)


@given(st.text(), st.booleans(), st.integers(0, 12), st.integers(0, 12))
@example("\U0001f600", True, 1, 0)
@example("\ue000\ud7ff\uffff\U0010ffff\x7f\x00\u2028", True, 7, 0)
def test_a_strings_length_counts_characters(text: str, ascii: bool, least: int, more: int) -> None:
    schema = {"type": "string", "minLength": least, "maxLength": least + more}
    assert reads(schema, json.dumps(text, ensure_ascii=ascii)) == (least <= len(text) <= least + more)
    assert reads({"minLength": least}, json.dumps(text, ensure_ascii=ascii)) == (least <= len(text))


@given(st.binary(max_size=6))
@example(b"\xed\xa0\x80")  # half a pair of surrogates
@example(b"\xc0\x80")  # longer than it must be
@example(b"\xf4\x90\x80\x80")  # beyond Unicode
@example(b"\\ud800\\u0041")
@example(b"\\uDBff\\udFFF")
@example(b"\\udc00")
@example(b"\\x41")
@example(b"\t")
def test_a_string_is_what_json_says(inside: bytes) -> None:
    quoted = b'"' + inside + b'"'
    try:
        json.loads(quoted.decode()).encode()  # half a pair of surrogates is no text
        right = True
    except ValueError:
        right = False
    assert reads({"type": "string"}, quoted) == right


def test_a_long_max_length_is_kept_by_shorter_strings() -> None:
    schema = {"type": "string", "maxLength": 10**9}
    assert reads(schema, json.dumps("x" * LONGEST))
    assert not reads(schema, json.dumps("x" * (LONGEST + 1)))


PERSON = {
    "type": "object",
    "title": "Person",
    "properties": {
        "name": {"type": "string", "description": "as on the badge"},
        "age": {"anyOf": [{"type": "integer", "minimum": 0}, {"type": "null"}], "default": None},
        "mood": {"$ref": "#/$defs/Mood"},
        "tags": {"type": "array", "items": {"type": "string"}, "maxItems": 2},
    },
    "required": ["name", "mood"],
    "$defs": {"Mood": {"enum": ["good", "goodish", 'so "so"'], "title": "Mood", "type": "string"}},
}


@pytest.mark.parametrize("text, right", [
    ('{"name":"A","mood":"good"}', True),
    ('{ "name": "A", "age": 3, "mood": "goodish", "tags": [] }', True),
    (
        '{\n  "name": "A",\n  "age": null,\n  "mood": "so \\"so\\"",\n  "tags": [\n    "x",\n    "y"\n  ]\n}',
        True,
    ),
    ('{"name":"A"}', False),
    ('{"name":"A","mood":"bad"}', False),
    ('{"mood":"good","name":"A"}', False),
    ('{"name":"A","mood":"good","tags":["x","y","z"]}', False),
    ('{"name":"A","mood":"good","more":1}', False),
    ('{"name":"A","age":-1,"mood":"good"}', False),
    ('{"name":"A","mood":"good",}', False),
    ('{"name":"A",,"mood":"good"}', False),
    ('{"name":"A","mood":"good"}x', False),
    ('{"name":"A","name":"A","mood":"good"}', False),
    ("", False),
])  # fmt: skip
def test_an_object_as_pydantic_describes_it(text: str, right: bool) -> None:
    assert reads(PERSON, text) == right


@pytest.mark.parametrize("schema, yes, no", [
    (True, ["[1]"], ["tru"]),
    ({}, ['{"a": [1, null]}'], [""]),
    ({"type": ["integer", "null"]}, ["3", "null"], ["3.5", "true"]),
    ({"type": ["number", "integer"], "minimum": 2}, ["2", "2.5"], ["1", "1e5"]),
    ({"const": "on"}, ['"on"'], ['"off"', "on"]),
    ({"enum": [1, "1", None, True, 2.5, [1], {"a": 1}]},
     ["1", '"1"', "null", "true", "2.5", "[1]", '{"a": 1}'], ["2", "false"]),
    ({"enum": ["a", 1, 2.0, True], "type": "integer"}, ["1", "2.0"], ['"a"', "true"]),
    ({"enum": ["a", "b"], "const": "b"}, ['"b"'], ['"a"']),
    ({"oneOf": [{"const": "a"}, {"const": "b"}, {"type": "integer"}]}, ['"a"', '"b"', "3"], ['"c"']),
    ({"allOf": [{"type": "boolean"}]}, ["true", "false"], ["1"]),
    ({"items": {"type": "integer"}, "minItems": 1}, ["[1]", "[1,2, 3]"], ["[]", "[true]"]),
    ({"type": "array", "maxItems": 0}, ["[]"], ["[1]"]),
    ({"type": "array", "items": {"enum": ["a", "b", "c"]}, "uniqueItems": True, "minItems": 1},
     ['["a"]', '["c", "a"]', '["b","c","a"]'], ["[]", '["a","a"]', '["d"]']),
    ({"type": "object", "additionalProperties": {"type": "integer"}}, ["{}", '{"a":1,"b":2}'], ['{"a":"b"}']),
    ({"type": "object", "additionalProperties": False}, ["{}"], ['{"a":1}']),
    ({"required": ["x"]}, ['{"x":[]}'], ["{}"]),
    ({"properties": {"a": {}, "b": {}, "c": {}}, "required": []},
     ["{}", '{"a":1}', '{"b":1}', '{"a":1,"c":1}'], ['{"c":1,"a":1}', '{"a":1,}']),
    ({"properties": {"größe\n": {"type": "null"}}, "required": ["größe\n"]}, ['{"größe\\n":null}'], ["{}"]),
    ({"properties": {"a": {"$ref": "#/properties/b~1c"}, "b/c": {"const": 1}}}, ['{"a":1}'], ['{"a":2}']),
    ({"type": "string", "x-unknown": 1, "examples": [3], "nullable": True, "format": "password"},
     ['"a"'], ["null"]),
    ({"type": "integer", "maxLength": 3, "pattern": "x", "minimum": -1, "exclusiveMaximum": 1},
     ["-1", "0"], ["1", "-2"]),
    ({"type": "array", "items": {"type": "array", "items": {"type": "object"}}},
     ['[[{"a":1}]]'], ['[[{"a":[]}]]']),
])  # fmt: skip
def test_what_schemas_read(schema: object, yes: list[str], no: list[str]) -> None:
    assert [text for text in yes if not reads(schema, text)] == []
    assert [text for text in no if reads(schema, text)] == []


@pytest.mark.parametrize("schema, told", [
    (5, "schema: found 5, wanted a JSON schema, which is an object"),
    (False, "schema: is false: nothing fits it"),
    ({"type": "text"}, "schema.type: found 'text', wanted one or more of string, number,"),
    ({"type": []}, "schema.type: found []"),
    ({"type": "string", "pattern": "^a"}, "schema.pattern: is not supported"),
    ({"type": "string", "format": "date"}, "schema.format: 'date' is not supported"),
    ({"type": "string", "minLength": -1}, "schema.minLength: found -1, wanted a whole number from 0"),
    ({"type": "string", "minLength": True}, "schema.minLength: found True, wanted a whole number"),
    ({"type": "string", "minLength": 3, "maxLength": 2},
     "schema.maxLength: found 2, wanted at least minLength"),
    ({"type": "number", "multipleOf": 1}, "schema.multipleOf: is not supported"),
    ({"type": "number", "minimum": "3"}, "schema.minimum: found '3', wanted a number"),
    ({"type": "number", "exclusiveMinimum": True}, "schema.exclusiveMinimum: found True, wanted a number"),
    ({"type": "integer", "exclusiveMinimum": 1, "maximum": 1.5},
     "schema: no whole number of up to 15 digits fits maximum 1.5 and exclusiveMinimum 1"),
    ({"enum": []}, "schema.enum: found [], wanted a list that is not empty"),
    ({"enum": "abc"}, "schema.enum: found 'abc', wanted a list"),
    ({"enum": [1, 2], "type": "string"}, "schema: no value fits enum, const and the type string"),
    ({"enum": [1], "const": True}, "schema: no value fits enum"),
    ({"enum": ["a"], "maxLength": 3}, "schema.maxLength: is not supported together with enum or const"),
    ({"not": {}}, "schema.not: is not supported"),
    ({"anyOf": [{"type": "null"}], "type": "string"}, "schema.anyOf: is not supported together with type"),
    ({"anyOf": []}, "schema.anyOf: found []"),
    ({"oneOf": [{"type": "integer"}, {"type": "number"}]},
     "schema.oneOf[1]: a value may fit it and another one"),
    ({"oneOf": [{"type": "string"}, {"const": "a"}]}, "schema.oneOf[1]: a value may fit it"),
    ({"oneOf": [{"const": 1}, {"const": 1.0}]}, "schema.oneOf[1]: a value may fit it"),
    ({"allOf": [{}, {}]}, "schema.allOf: found 2 schemas, wanted one"),
    ({"$ref": "#/$defs/A"}, "schema.$ref: there is no '#/$defs/A' in the schema"),
    ({"$ref": "other.json"}, "schema.$ref: found 'other.json', wanted a place in this schema"),
    ({"$ref": "#"}, "or refers to itself; at most 32 levels are supported"),
    ({"items": {"$ref": "#"}}, "or refers to itself"),
    ({"oneOf": [{"$ref": "#/$defs/a"}], "$defs": {"a": {"$ref": "#/$defs/a"}}},
     "schema.oneOf[0].$ref: refers to itself"),
    ({"properties": {"a": {"properties": {"b": {"type": "integer", "multipleOf": 2}}}}},
     "schema.properties.a.properties.b.multipleOf: is not supported"),
    ({"properties": {"a": {"$ref": "#/$defs/x"}}, "$defs": {"x": {"pattern": "a"}}},
     "schema.properties.a = #/$defs/x.pattern: is not supported"),
    ({"properties": []}, "schema.properties: found [], wanted an object of schemas"),
    ({"properties": {"a": 3}}, "schema.properties.a: found 3, wanted a JSON schema"),
    ({"type": "object", "required": "a"}, "schema.required: found 'a', wanted a list of names"),
    ({"required": ["a"], "additionalProperties": False}, "schema.required: 'a' is none of the properties"),
    ({"type": "object", "minProperties": 1}, "schema.minProperties: is not supported"),
    ({"type": "array", "uniqueItems": True}, "schema.uniqueItems: is supported only where items are an enum"),
    ({"items": {"enum": ["a"]}, "uniqueItems": True, "minItems": 2},
     "schema.minItems: found 2, which is more than"),
    ({"items": [{"type": "string"}]}, "schema.items: found [{'type': 'string'}], wanted a JSON schema"),
    ({"type": "array", "maxItems": 10**6}, "schema: is too large: "),
    ({"items": {"enum": [f"v{i}" for i in range(1000)]}, "uniqueItems": True}, "schema: is too large: "),
    ({"type": "string", "minLength": 10**9}, "schema: is too large: "),
    ({"enum": ["\ud800"]}, "schema: is not JSON"),
    ({"const": float("nan")}, "schema: is not JSON"),
    ({"const": {1, 2}}, "schema: is not JSON"),
])  # fmt: skip
def test_what_cannot_be_kept_is_told_with_its_place(schema: object, told: str) -> None:
    with pytest.raises(SchemaError, match=re.escape(told)) as caught:
        compile(schema)
    assert "\n" not in str(caught.value)


def test_schemas_that_unfold_without_end_are_refused() -> None:
    twice: dict[str, Any] = {"0": {"type": "null"}}
    for i in range(30):
        twice[str(i + 1)] = {"anyOf": [{"$ref": f"#/$defs/{i}"}, {"$ref": f"#/$defs/{i}"}]}
    with pytest.raises(SchemaError, match="is too"):
        compile({"$ref": "#/$defs/29", "$defs": twice})
    nested: dict[str, Any] = {"type": "null"}
    for _ in range(40):
        nested = {"items": nested}
    with pytest.raises(SchemaError, match="is too deep"):
        compile(nested)
    with pytest.raises(SchemaError, match="is not JSON"):
        for _ in range(100_000):
            nested = {"items": nested}
        compile(nested)


def test_a_schema_that_comes_again_is_not_compiled_again() -> None:
    assert compile({"type": "null", "title": "again"}) is compile({"type": "null", "title": "again"})


def test_a_schema_file_that_is_not_there_is_not_called_a_download(tmp_path: Path) -> None:
    from mvlm_np.checkpoints.json_files import read_json

    with pytest.raises(UserError, match=r"nofile\.json: cannot be read .*; check its name, or "):
        read_json(tmp_path / "nofile.json", UserError)
