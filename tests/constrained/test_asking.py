"""Answers that fit a schema, from the model in the box, in every way in which it can be asked."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

import mvlm_np
from mvlm_np import demo
from mvlm_np.batch import Batch
from mvlm_np.cli import main
from mvlm_np.errors import GenerationError, SchemaError
from mvlm_np.model import MobileVLM

PICTURE = str(demo.PICTURES / "0.png")
QUESTION = "Describe the yellow lamp."
# What a camera's recorder asks of a scene, and an AI task of a home: texts, bounded numbers, lists, choices.
SCENE = {
    "type": "object",
    "title": "Scene",
    "properties": {
        "title": {"type": "string", "description": "some words"},
        "confidence": {"type": "number", "minimum": 0.0, "maximum": 1.0},
        "threat": {"type": "integer", "minimum": 0, "maximum": 3},
        "lamp": {"$ref": "#/$defs/Lamp"},
        "concerns": {"anyOf": [{"type": "array", "items": {"type": "string"}}, {"type": "null"}]},
        "seen": {"type": "array", "items": {"type": "string", "minLength": 5}, "minItems": 2, "maxItems": 4},
    },
    "required": ["title", "confidence", "threat", "lamp", "concerns", "seen"],
    "additionalProperties": False,
    "$defs": {"Lamp": {"type": "string", "enum": ["on", "off", "not there"]}},
}


@pytest.fixture(scope="module")
def model() -> MobileVLM:
    return mvlm_np.load(demo.MODEL)


def checked(text: str, schema: Any) -> Any:
    answer = json.loads(text)
    jsonschema.validate(answer, schema, jsonschema.Draft202012Validator)
    return answer


@pytest.mark.parametrize("settings", [
    {}, {"temperature": 1.0, "seed": 1}, {"temperature": 5.0, "top_k": 0, "seed": 2},
    {"frequency_penalty": 2.0, "repeat_penalty": 3.0},
], ids=str)  # fmt: skip
def test_an_answer_fits_and_ends_in_time(model: MobileVLM, settings: dict[str, Any]) -> None:
    with pytest.raises(GenerationError, match="wanted at least") as told:
        model.ask(PICTURE, QUESTION, schema=SCENE, max_new_tokens=20, **settings)
    least = int(str(told.value).split("at least ")[1].split(",")[0])
    for room in (0, 20):
        answer = model.ask(PICTURE, QUESTION, schema=SCENE, max_new_tokens=least + room, **settings)
        checked(answer, SCENE)


def test_pieces_chats_batches_and_drafts_give_the_same_answer() -> None:
    model = mvlm_np.load(demo.MODEL, precision="int8", backend="numba")  # of which batches change no bit
    properties = {"colour": {"type": "string", "maxLength": 30}, "on": {"type": "boolean"}}
    schema = {"type": "object", "properties": properties, "required": ["colour", "on"]}
    expected = model.ask(PICTURE, QUESTION, schema=schema, max_new_tokens=90)
    checked(expected, schema)
    assert "".join(model.stream(PICTURE, QUESTION, schema=schema, max_new_tokens=90)) == expected
    chat, batch = model.chat(PICTURE, draft="ngrams"), Batch()
    turns = [
        model.chat(PICTURE).join(batch, QUESTION, schema=each, max_new_tokens=90) for each in (schema, None)
    ]
    while batch.members:
        batch.step()
    assert turns[0].text == expected and turns[0].reason == "stop"
    assert turns[1].text == model.ask(PICTURE, QUESTION, max_new_tokens=90)
    assert chat.ask(QUESTION, schema=schema, max_new_tokens=90) == expected
    assert chat.history == [(QUESTION, expected)]
    again = chat.ask("Is it on?", max_new_tokens=90)  # the next turn is free
    assert again and chat.history[1] == ("Is it on?", again)


def test_an_answer_that_fits_by_itself_is_the_model_s_own(model: MobileVLM) -> None:
    """A schema of one constant leaves the model its spaces alone; of any string, all but its quotes."""
    own = model.ask(PICTURE, QUESTION)
    quoted = json.loads(model.ask(PICTURE, QUESTION, schema={"type": "string", "maxLength": len(own)}))
    assert isinstance(quoted, str) and len(quoted) <= len(own)
    assert json.loads(model.ask(PICTURE, QUESTION, schema={"const": own})) == own


def test_what_cannot_be_is_told_before_anything_is_computed(
    model: MobileVLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model, "encode_images", lambda *_: pytest.fail("a picture was encoded"))
    with pytest.raises(SchemaError, match=r"^schema\.pattern: is not supported"):
        model.ask(PICTURE, QUESTION, schema={"type": "string", "pattern": "a"})
    with pytest.raises(GenerationError, match=r"^max_new_tokens: found 1, wanted at least 2, which"):
        model.ask(PICTURE, QUESTION, schema={"type": "string"}, max_new_tokens=1)
    with pytest.raises(GenerationError, match=r"^num_beams: found 2, wanted 1 where a schema is given"):
        model.ask(PICTURE, QUESTION, schema={"type": "string"}, num_beams=2)


def test_the_command_line_takes_a_schema_or_its_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    schema = {"type": "object", "properties": {"on": {"type": "boolean"}}, "required": ["on"]}
    file = tmp_path / "schema.json"
    file.write_text(json.dumps(schema))
    for given in (json.dumps(schema), str(file)):
        assert main(["ask", PICTURE, QUESTION, "--schema", given]) == 0
        checked(capsys.readouterr().out, schema)
    for given, told in {
        '{"type": "string", "pattern": "a"}': "schema.pattern: is not supported",
        '{"type": ': "--schema: is not JSON: ",
        str(tmp_path / "none.json"): "none.json: ",
        str(tmp_path): f"{tmp_path}: ",
    }.items():
        assert main(["ask", PICTURE, QUESTION, "--schema", given]) == 2
        out, error = capsys.readouterr()
        assert not out and told in error and error.count("\n") == 1
