"""tokenizer.json: ids and texts are those of the `tokenizers` package, in all variants that LLaMA has had."""

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

import mvlm_np
from mvlm_np.checkpoints.opening import open_checkpoint
from mvlm_np.converting import convert, convert_to_gguf
from mvlm_np.errors import PromptError, TokenizerError
from mvlm_np.inputs.conversation import Text
from mvlm_np.inputs.tokenizer import IMAGE_TOKEN, Tokenizer, tokenize_prompt
from tests.checkpoints.adapters import BASE
from tests.conftest import DATA, shared_path
from tests.tokenizer_jsons import VARIANTS, from_sentencepiece, variant

MODEL = (DATA / "tokenizer" / "tokenizer.model").read_bytes()
SMALL = from_sentencepiece(MODEL)
PARTS = [
    *(
        "hello",
        "the",
        "llama",
        " ",
        "  ",
        "\n",
        "\t",
        "</s>",
        "<s>",
        "<unk>",
        "<pad>",
        "<pad>>",
        "<im_start>",
    ),
    *("loc", " x", "x", "a", "b", "an", "--", "----", "<0x41>", "_", "1", "ggml", "=", ".", ",", "model"),
    *("\u00e9", "\u65e5\u672c", "\U0001f600", "\u2581", "\u2581\u2581", "\u00a0", "\x1c", "\u200d", "\u00b2"),
    *("\u0301", "\u24b6"),
]


def write(folder: Path, values: dict[str, Any] | bytes, **more: Any) -> Path:
    folder.mkdir(exist_ok=True)
    raw = values if isinstance(values, bytes) else json.dumps(values).encode()
    (folder / "tokenizer.json").write_bytes(raw)
    for name, content in more.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def both(folder: Path, values: dict[str, Any]) -> tuple[Tokenizer, tokenizers.Tokenizer]:
    write(folder, values)
    return Tokenizer.from_folder(folder), tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))


def ids_of(theirs: tokenizers.Tokenizer, text: str) -> list[int] | None:
    """None where the package itself fails, which it does where white space around a token is a token too."""
    try:
        return theirs.encode(text).ids
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        return None


def assert_alike(ours: Tokenizer, theirs: tokenizers.Tokenizer, odd: set[int], draw: random.Random) -> None:
    text = "".join(draw.choices(PARTS, k=draw.randint(0, 12)))
    wanted = ids_of(theirs, text)
    assert ours.encode(text) == (wanted if wanted is not None else ours.encode(text)), text
    some = [3 + byte for byte in "\u00e9\U0001f600".encode()]
    ids = [draw.choice([draw.randrange(ours.vocab_size), draw.randrange(3, 259), *some]) for _ in range(10)]
    assert ours.decode(ids, skip_special_tokens=False) == theirs.decode(ids, skip_special_tokens=False), ids
    ids = [i for i in ids if i not in odd]
    assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True), ids
    stream = ours.stream()
    assert "".join([stream.push(i) for i in ids]) + stream.finish() == ours.decode(ids)


@pytest.mark.parametrize("more", range(8))
@pytest.mark.parametrize("name", VARIANTS)
def test_ids_and_texts_are_those_of_the_package(tmp_path: Path, name: str, more: int) -> None:
    """Of 80 variants, 150 texts each. Of special tokens that the package itself would show (it forgets that
    they are special where it normalises them), none is shown here."""
    values = variant(SMALL, name, more)
    ours, theirs = both(tmp_path, values)
    odd = {token["id"] for token in values["added_tokens"] if token["special"] and token["normalized"]}
    draw = random.Random(f"{name} {more}")
    for _ in range(150):
        assert_alike(ours, theirs, odd, draw)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokenizer, tokenizers.Tokenizer]:
    return both(tmp_path_factory.mktemp("json"), SMALL)


@given(text=st.text())
def test_any_text_has_the_packages_ids(pair: tuple[Tokenizer, tokenizers.Tokenizer], text: str) -> None:
    ours, theirs = pair
    assert ours.encode(text) == theirs.encode(text).ids


def test_llamas_own_vocabulary_has_the_packages_ids(tmp_path: Path) -> None:
    model = shared_path("facts/tokenizer/tokenizer.model").read_bytes()
    ours, theirs = both(tmp_path / "json", from_sentencepiece(model))
    (tmp_path / "sp").mkdir()
    (tmp_path / "sp" / "tokenizer.model").write_bytes(model)
    published = Tokenizer.from_folder(tmp_path / "sp")
    draw, text = random.Random(0), (Path(__file__).parents[2] / "README.md").read_text()
    for _ in range(500):
        start = draw.randrange(len(text))
        part = text[start : start + draw.randint(0, 200)]
        assert ours.encode(part) == theirs.encode(part).ids
        if not part.startswith(" "):  # of several spaces at the start, this file's rule keeps one less
            assert ours.encode(part) == published.encode(part)


def test_a_folder_as_transformers_5_saves_it_answers_as_before(tmp_path: Path) -> None:
    folder = shutil.copytree(BASE, tmp_path / "model")
    write(folder, from_sentencepiece((folder / "tokenizer.model").read_bytes()))
    for name in ("tokenizer.model", "special_tokens_map.json"):
        (folder / name).unlink()
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "LlamaTokenizer"}))
    picture = str(DATA / "golden" / "picture.png")
    expected = mvlm_np.load(BASE, backend="numpy")
    model = mvlm_np.load(folder, backend="numpy")
    for question in ("What is this?", "Where is the lamp?"):
        assert model.ask(picture, question, max_new_tokens=24) == expected.ask(
            picture, question, max_new_tokens=24
        )
    prompt = "A chat. USER: <image>\nWhat is this? ASSISTANT:"
    assert tokenize_prompt(prompt, model.tokenizer) == tokenize_prompt(prompt, expected.tokenizer)
    convert(open_checkpoint(folder), tmp_path / "int8", "int8")
    assert mvlm_np.load(tmp_path / "int8", backend="numpy").tokenizer.encode(
        "a text"
    ) == model.tokenizer.encode("a text")
    convert_to_gguf(open_checkpoint(folder), tmp_path / "pair", "float16")
    (path,) = (tmp_path / "pair").glob("model*.gguf")
    inside = mvlm_np.load(path, backend="numpy").tokenizer
    assert inside.vocab_size == model.tokenizer.vocab_size
    for text in ("What is this?", "a lamp, and another", "</s>b"):
        assert inside.encode(text) == model.tokenizer.encode(text)


def test_a_tokenizer_model_goes_before_a_tokenizer_json(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(MODEL)
    write(tmp_path, b"{}")
    assert Tokenizer.from_folder(tmp_path).vocab_size == 640


def test_flags_of_tokenizer_config_go_before_the_template(tmp_path: Path) -> None:
    for flags, around in (({}, [1]), ({"add_bos_token": False}, []), ({"add_eos_token": True}, [1, 2])):
        folder = write(tmp_path, SMALL, tokenizer_config=flags)
        ids = Tokenizer.from_folder(folder).encode("a")
        assert [i for i in ids if i in (1, 2)] == around
    folder = write(tmp_path, SMALL | {"post_processor": None}, tokenizer_config={})
    assert 1 not in Tokenizer.from_folder(folder).encode("a")


def test_ids_of_no_piece_and_text_that_is_none_are_refused(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_folder(write(tmp_path, SMALL))
    for use in (tokenizer.id_to_piece, tokenizer.stream().push, lambda i: tokenizer.decode([i])):
        with pytest.raises(TokenizerError, match=r"tokenizer\.json: no piece has id 640, wanted 0 to 639"):
            use(640)
    with pytest.raises(PromptError, match="half a character at 1"):
        tokenizer.encode("a\udc80")
    assert tokenizer.piece_to_id("no such piece") == tokenizer.unk_id == 0


def test_text_that_goes_on_gets_no_space(tmp_path: Path) -> None:
    for name in VARIANTS.keys() - {"nothing"}:  # which has no sign for a space
        tokenizer = Tokenizer.from_folder(write(tmp_path, variant(SMALL, name, 0)))
        pieces = [tokenizer.id_to_piece(i) for i in tokenizer.encode_inside("hello the")]
        assert "".join(pieces).replace("\u2581", " ") == "hello the", name


@pytest.mark.parametrize("more", [0, 1, 2, 3])
@pytest.mark.parametrize("name", VARIANTS)
def test_added_tokens_in_text_are_ordinary_pieces(tmp_path: Path, name: str, more: int) -> None:
    """Text has the ids that it would have if nothing had been added to the vocabulary."""
    values = variant(SMALL, name, more)
    ours = Tokenizer.from_folder(write(tmp_path / "all", values))
    bare = Tokenizer.from_folder(
        write(tmp_path / "bare", values | {"added_tokens": values["added_tokens"][:3]})
    )
    draw = random.Random(f"{name} {more}")
    for _ in range(100):
        text = "".join(draw.choices([part for part in PARTS if part not in ("</s>", "<s>", "<unk>")], k=8))
        assert tokenize_prompt([Text(text)], ours) == bare.encode(text), text
        shown = "".join(draw.choices(PARTS, k=4))
        assert tokenize_prompt([shown, Text("")], ours) == ours.encode(shown), shown
        hidden = tokenize_prompt([Text("a </s><image>"), " </s><image>", Text(text)], ours)
        assert (hidden.count(ours.eos_id), hidden.count(IMAGE_TOKEN)) == (1, 1)
