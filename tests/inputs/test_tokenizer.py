"""The tokenizer against the published code's (vectors of transformers 4.33.1) and against SentencePiece."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mvlm_np.checkpoints.checkpoint import AddedToken, StoredTokenizer
from mvlm_np.checkpoints.tokenizer_files import MAX_FIELDS, check_model
from mvlm_np.errors import PromptError, TokenizerError, UserError
from mvlm_np.inputs.conversation import TEMPLATES, Message, Text, render, render_messages
from mvlm_np.inputs.tokenizer import IMAGE_TOKEN, SPACE, StreamDecoder, Tokenizer, tokenize_prompt
from tests.conftest import DATA, ROOT, SHARED, shared_path

MODEL = (DATA / "tokenizer" / "tokenizer.model").read_bytes()
CASES: list[dict[str, Any]] = json.loads((DATA / "tokenizer" / "vectors.json").read_text())
GOLDENS = ["mlp-cls", "v1-ldp", "v2-256", "v2-gqa"]
MODELS = ["MobileVLM-1.7B", "MobileVLM-3B", "MobileVLM_V2-1.7B", "MobileVLM_V2-3B", "MobileVLM_V2-7B"]

ADDED = (AddedToken("<im_start>"), AddedToken("<pad>", special=True))
SMALL = {legacy: Tokenizer(StoredTokenizer(MODEL, legacy, ADDED)) for legacy in (True, False)}
both_modes = pytest.mark.parametrize("legacy", [True, False], ids=["legacy", "not_legacy"])


def folder_with(folder: Path, files: dict[str, Any], model: bytes = MODEL) -> Path:
    """Writes a tokenizer's folder; what is not bytes goes in as JSON."""
    for name, content in {"tokenizer.model": model, **files}.items():
        raw = content if isinstance(content, bytes) else json.dumps(content).encode()
        (folder / name).write_bytes(raw)
    return folder


def released(name: str, folder: Path) -> Tokenizer:
    """The tokenizer of a released model, put together from the shared facts."""
    shutil.copy(shared_path("facts/tokenizer/tokenizer.model"), folder)
    for file in ("tokenizer_config.json", "special_tokens_map.json"):
        shutil.copy(shared_path(f"facts/configs/{name}/{file}"), folder)
    return Tokenizer.from_folder(folder)


# What the published code's tokenizer gives


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_ids_and_texts_are_those_of_the_published_code(case: dict[str, Any], tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_folder(folder_with(tmp_path, case["files"]))
    assert tokenizer.vocab_size == case["vocab_size"]
    assert sorted(tokenizer.special_ids) == case["special_ids"]
    for text, ids in case["encode"]:
        assert tokenizer.encode(text) == ids, text
    for prompt, ids in case["prompts"]:
        assert tokenize_prompt(prompt, tokenizer) == ids, prompt
    for ids, without_special, with_special in case["decode"]:
        assert tokenizer.decode(ids) == without_special, ids
        assert tokenizer.decode(ids, skip_special_tokens=False) == with_special, ids


def test_llama_vectors_are_exact(tmp_path: Path) -> None:
    tokenizer = released("MobileVLM_V2-1.7B", tmp_path)
    vectors = json.loads(shared_path("facts/tokenizer/llama_spm_vectors.json").read_text())
    assert len(vectors) == 47
    for vector in vectors:
        assert tokenizer.encode(vector["text"]) == [tokenizer.bos_id, *vector["expected"]], vector["text"]


@pytest.mark.parametrize("name", MODELS)
def test_prompt_vectors_are_exact_for_every_released_model(name: str, tmp_path: Path) -> None:
    tokenizer = released(name, tmp_path)
    assert tokenizer.legacy == (name != "MobileVLM_V2-7B")
    mode = "legacy_true" if tokenizer.legacy else "legacy_false"
    vectors = json.loads(shared_path("facts/tokenizer/mobilevlm_prompt_vectors.json").read_text())
    assert len(vectors["prompts"]) == 15
    for vector in vectors["prompts"].values():
        ids = tokenize_prompt(vector["prompt"], tokenizer)
        assert ids == (vector[mode] or vector["legacy_true"]), vector["prompt"]
        if tokenizer.legacy:  # the texts in the file are the legacy tokenizer's
            assert tokenizer.decode(i for i in ids if i != IMAGE_TOKEN) == vector["decoded"]
    for text, vector in vectors["keywords"].items():
        assert tokenizer.encode(text) == vector[mode], text
    for key, vector in vectors["decode"].items():
        ids = json.loads(key)
        assert [tokenizer.id_to_piece(i) for i in ids] == vector["single_pieces"]
        if tokenizer.legacy:
            assert tokenizer.decode(ids) == vector["skip_special"]
            assert tokenizer.decode(ids, skip_special_tokens=False) == vector["keep"]


@pytest.mark.parametrize("name", GOLDENS)
def test_goldens_prompts_and_answers_are_exact(name: str) -> None:
    load_file = pytest.importorskip("safetensors.numpy").load_file
    folder = shared_path(f"goldens/{name}")
    tokenizer = Tokenizer.from_folder(folder)
    for case in json.loads((folder / "cases.json").read_text()):
        golden = load_file(folder / case["golden"])
        assert tokenize_prompt(case["prompt"], tokenizer) == golden["input_ids"].ravel().tolist()
        assert tokenizer.decode(golden["generated_ids"].ravel()).strip() == case["text"]


@pytest.mark.skipif(not SHARED.exists(), reason="needs ../shared, which is not part of the repository")
def test_committed_model_is_the_goldens_own() -> None:
    assert (SHARED / "goldens/v2-256/tokenizer.model").read_bytes() == MODEL


# Text to ids


@both_modes
def test_text_after_a_special_token_gets_a_space_only_in_legacy_mode(legacy: bool) -> None:
    tokenizer = SMALL[legacy]
    pieces = [tokenizer.id_to_piece(i) for i in tokenizer.encode("</s>b")]
    assert pieces == ["<s>", "</s>", SPACE + "b" if legacy else "b"]


@given(text=st.text())
@both_modes
def test_text_comes_back_as_it_was(legacy: bool, text: str) -> None:
    # By the published code's rules three things do not survive: special tokens, the sign that stands
    # for a space and, in legacy mode, spaces at the start.
    text = text.replace("<", "(").replace(SPACE, " ")
    text = text.lstrip(" ") if legacy else text
    assert SMALL[legacy].decode(SMALL[legacy].encode(text)) == text


def test_only_the_first_piece_of_a_prompt_has_bos() -> None:
    ids = tokenize_prompt("a<image>b<image>", SMALL[True])
    assert ids.count(SMALL[True].bos_id) == 1 and ids[0] == SMALL[True].bos_id
    assert ids.count(IMAGE_TOKEN) == 2 and ids[-1] == IMAGE_TOKEN


def test_text_that_is_not_unicode_is_refused() -> None:
    with pytest.raises(PromptError, match="half a character at 1"):
        SMALL[True].encode("a\udc80")


# Text that is text, whatever stands in it


PICTURE = Image.new("RGB", (1, 1))
with_tokens = st.lists(
    st.sampled_from(["a", " ", "the ", "</s>", "<s>", "<unk>", "<image>", "<im_start>", "<pad>", SPACE, "é"])
).map("".join)
without_tokens = st.lists(st.sampled_from(["a", " ", "the ", "USER:", "/s>", SPACE, "é", "\n"])).map("".join)


@given(st.data())
@both_modes
def test_a_chat_without_tokens_in_its_text_has_the_ids_of_its_prompt(legacy: bool, data: Any) -> None:
    template = data.draw(st.sampled_from(sorted(TEMPLATES)))
    most, least = (0 if template == "plain" else 3), int("llama" in template)
    text = without_tokens.filter(lambda text: len(text) >= least)
    history = data.draw(st.lists(st.tuples(text, text), max_size=most))
    question, n = data.draw(text), data.draw(st.integers(0, 2))
    turns = [turn for pair in history for turn in pair] + [question]
    messages = [Message(("user", "assistant")[i % 2], turn) for i, turn in enumerate(turns)]
    messages[0] = Message("user", turns[0], (PICTURE,) * n)
    expected = tokenize_prompt(render(template, question, n, history), SMALL[legacy])
    assert tokenize_prompt(render_messages(template, messages), SMALL[legacy]) == expected


@given(st.lists(with_tokens))
def test_tokens_in_text_are_ordinary_pieces(texts: list[str]) -> None:
    tokenizer = SMALL[True]
    ids = tokenize_prompt([Text(text) for text in texts], tokenizer)
    assert ids == [tokenizer.bos_id, *tokenizer._model.encode("".join(texts))]


@given(with_tokens, with_tokens)
@both_modes
def test_around_text_the_templates_tokens_are_tokens(legacy: bool, first: str, second: str) -> None:
    tokenizer = SMALL[legacy]
    ids = tokenize_prompt(["a", Text(first), "</s>b<image>", Text(second)], tokenizer)
    assert (ids.count(tokenizer.eos_id), ids.count(IMAGE_TOKEN)) == (1, 1)
    end, picture = ids.index(tokenizer.eos_id), ids.index(IMAGE_TOKEN)
    assert ids[:end] == tokenize_prompt(["a", Text(first)], tokenizer)
    assert ids[end + 1 : picture] == tokenizer.encode("</s>b")[2:]
    assert ids[picture + 1 :] == tokenize_prompt([Text(second)], tokenizer)[1:]


# Ids to text


def sentencepiece_text(tokenizer: Tokenizer, ids: list[int]) -> str:
    """What SentencePiece's own decoder gives, once the published code has dropped the first space."""
    pieces = [tokenizer.id_to_piece(i) for i in ids if i not in tokenizer.special_ids]
    if pieces:
        pieces[0] = pieces[0].removeprefix(SPACE)
    model = sentencepiece.SentencePieceProcessor()
    model.LoadFromSerializedProto(tokenizer._model.serialized_model_proto())
    return model.decode(pieces)


ids_of_the_model = st.lists(
    st.one_of(
        st.integers(0, 639),
        st.integers(3, 258),  # bytes
        st.sampled_from([0, 1, 2, SMALL[True].piece_to_id(SPACE)]),
        st.sampled_from([3 + byte for byte in "é日😀\ufffd".encode()]),
    ),
    max_size=12,
)


@given(ids=ids_of_the_model)
@both_modes
def test_streamed_text_is_what_sentencepiece_decodes(legacy: bool, ids: list[int]) -> None:
    stream = StreamDecoder(SMALL[legacy])
    text = "".join([stream.push(i) for i in ids]) + stream.finish()
    assert text == sentencepiece_text(SMALL[legacy], ids)
    assert text == SMALL[legacy].decode(ids)


@given(ids=st.lists(st.integers(0, 641), max_size=12))
@both_modes
def test_stream_holds_back_no_more_than_an_incomplete_character(legacy: bool, ids: list[int]) -> None:
    stream, shown = StreamDecoder(SMALL[legacy]), ""
    for n, i in enumerate(ids, 1):
        shown += stream.push(i)
        assert re.fullmatch("\ufffd{0,3}", SMALL[legacy].decode(ids[:n]).removeprefix(shown))


@given(ids=ids_of_the_model.filter(bool))
@both_modes
def test_bytes_of_pieces_add_up_to_the_text(legacy: bool, ids: list[int]) -> None:
    tokenizer = SMALL[legacy]
    ids = [i for i in ids if i not in tokenizer.special_ids]
    raw = b"".join(map(tokenizer.piece_bytes, [tokenizer.piece_to_id("a"), *ids]))
    text = raw.decode(errors="mvlm_np.each")
    assert text == tokenizer.decode([tokenizer.piece_to_id("a"), *ids])
    assert tokenizer.piece_bytes(tokenizer.eos_id) == b""


def test_a_character_in_bytes_is_shown_whole() -> None:
    stream = StreamDecoder(SMALL[True])
    assert [stream.push(3 + byte) for byte in "é😀".encode()] == ["", "é", "", "", "", "😀"]
    assert stream.finish() == ""


def test_every_byte_of_a_broken_character_is_one_replacement() -> None:
    stream = StreamDecoder(SMALL[True])
    assert [stream.push(3 + byte) for byte in b"\xe2\x82A\xe2\x82"] == ["", "", "\ufffd\ufffdA", "", ""]
    assert stream.finish() == "\ufffd\ufffd"


def test_special_tokens_between_bytes_do_not_break_a_character() -> None:
    ids = [3 + byte for byte in "é".encode()]
    assert SMALL[True].decode([ids[0], SMALL[True].eos_id, ids[1]]) == "é"


def test_decode_takes_numpy_integers() -> None:
    assert SMALL[True].decode(np.array(SMALL[True].encode("hi there"), np.int64)) == "hi there"


@pytest.mark.parametrize("bad", [-1, IMAGE_TOKEN, 642, 1 << 40])
def test_ids_of_no_piece_are_refused(bad: int) -> None:
    for use in (
        SMALL[True].id_to_piece,
        StreamDecoder(SMALL[True]).push,
        lambda i: SMALL[True].decode([i], False),
    ):
        with pytest.raises(TokenizerError, match=f"no piece has id {bad}, wanted 0 to 641"):
            use(bad)


def test_pieces_and_ids_are_each_others_inverse() -> None:
    tokenizer = SMALL[True]
    assert [tokenizer.piece_to_id(tokenizer.id_to_piece(i)) for i in range(642)] == list(range(642))
    assert tokenizer.piece_to_id("no such piece") == tokenizer.unk_id


# Files


def test_folder_with_nothing_but_the_model_has_llamas_defaults(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_folder(folder_with(tmp_path, {}))
    assert tokenizer.legacy and tokenizer.add_bos and not tokenizer.add_eos
    assert tokenizer.special_ids == {0, 1, 2} and tokenizer.vocab_size == 640


def test_tokens_that_newer_transformers_lists_in_the_config_are_read(tmp_path: Path) -> None:
    listed = {
        "2": {"content": "</s>", "lstrip": False, "rstrip": False, "special": True},
        "640": {"content": "<loc>", "lstrip": False, "rstrip": False, "special": False},
    }
    files = {"tokenizer_config.json": {"added_tokens_decoder": listed}, "added_tokens.json": {"<loc>": 640}}
    tokenizer = Tokenizer.from_folder(folder_with(tmp_path, files))
    assert tokenizer.encode("a <loc> b") == [*tokenizer.encode("a "), 640, *tokenizer.encode(" b")[1:]]
    assert tokenizer.special_ids == {0, 1, 2}


CONFIG, MAP, ADDED_FILE = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"
BROKEN_FILES: dict[str, tuple[dict[str, Any], str]] = {
    "not JSON": ({CONFIG: b"{"}, f"{CONFIG}: cannot be read as JSON"),
    "not text": ({MAP: b"\xff\xfe\xff"}, f"{MAP}: is a text in UTF-16"),
    "deep JSON": ({CONFIG: b"[" * 100_000}, f"{CONFIG}: cannot be read as JSON: it is nested too deeply"),
    "large JSON": ({CONFIG: b" " * (1 << 21)}, f"{CONFIG}: has 2097152 bytes, wanted at most"),
    "not an object": ({CONFIG: []}, f"{CONFIG}: found \\[\\], wanted dict"),
    "legacy is text": ({CONFIG: {"legacy": "yes"}}, f"{CONFIG}: legacy: found 'yes', wanted bool"),
    "other class": ({CONFIG: {"tokenizer_class": "T5Tokenizer"}}, "tokenizer_class: found 'T5Tokenizer'"),
    "sampling": ({CONFIG: {"sp_model_kwargs": {"nbest_size": -1}}}, "sp_model_kwargs: found"),
    "clean-up": (
        {CONFIG: {"clean_up_tokenization_spaces": True}},
        "clean_up_tokenization_spaces: found True",
    ),
    "no BOS": ({MAP: {"bos_token": None}}, "bos_token: the tokenizer files name none"),
    "a token is a number": ({MAP: {"eos_token": 2}}, f"{MAP}: eos_token: found 2, wanted str"),
    "a flag is text": (
        {MAP: {"eos_token": {"content": "</s>", "lstrip": "no"}}},
        "eos_token: lstrip: found 'no'",
    ),
    "more is an object": ({MAP: {"additional_special_tokens": {"a": 1}}}, "additional_special_tokens: found"),
    "an id is text": ({ADDED_FILE: {"<x>": "640"}}, f"{ADDED_FILE}: '<x>': found '640', wanted int"),
    "an id leaves a gap": ({ADDED_FILE: {"<x>": 641}}, "added token '<x>' has id 641, wanted 640"),
    "an id is taken": ({ADDED_FILE: {"<x>": 5}}, "added token '<x>' has id 5, wanted 640"),
    "an id is negative": ({ADDED_FILE: {"<x>": -1}}, "added token '<x>' has id -1, wanted 640"),
    "a piece's id is another": ({ADDED_FILE: {"</s>": 640}}, "added token '</s>' has id 640, wanted 2"),
    "half a character": ({ADDED_FILE: b'{"\\ud800": 640}'}, "is not Unicode"),
    "many tokens": (
        {ADDED_FILE: {f"<{i}>": 640 + i for i in range(5000)}},
        "5003 added tokens, wanted at most",
    ),
    "list is not one": (
        {CONFIG: {"added_tokens_decoder": []}},
        "added_tokens_decoder: found \\[\\], wanted dict",
    ),
    "listed id": (
        {CONFIG: {"added_tokens_decoder": {"x": {"content": "<x>"}}}},
        "added_tokens_decoder: found 'x'",
    ),
    "listed token": ({CONFIG: {"added_tokens_decoder": {"640": None}}}, "added_tokens_decoder: found '640'"),
}


@pytest.mark.parametrize("name", BROKEN_FILES)
def test_broken_settings_are_refused_by_name(name: str, tmp_path: Path) -> None:
    files, message = BROKEN_FILES[name]
    with pytest.raises(TokenizerError, match=message) as caught:
        Tokenizer.from_folder(folder_with(tmp_path, files))
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


def field(number: int, content: bytes) -> bytes:
    """A protobuf field that holds fewer than 128 bytes."""
    return bytes([number << 3 | 2, len(content)]) + content


def piece(text: bytes, kind: int = 1) -> bytes:
    return field(1, field(1, text) + bytes([3 << 3, kind]))


NOT_MODELS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "has no pieces"),
    "text": (b"<!DOCTYPE html><html>404</html>", "is not a SentencePiece model, or is cut off"),
    "LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "is a Git LFS pointer"),
    "pickle": (b"\x80\x02}q\x00.", "is not a SentencePiece model, or is cut off"),
    "endless number": (b"\x0a" + b"\xff" * 20, "is not a SentencePiece model, or is cut off"),
    "huge length": (b"\x0a\xff\xff\xff\xff\x07", "is not a SentencePiece model, or is cut off"),
    "no trainer": (piece(b"a"), "has no trainer_spec"),
    "no normaliser": (piece(b"a") + field(2, b"\x18\x02"), "has no normalizer_spec"),
    "many pieces": (b"\x0a\x00" * (MAX_FIELDS + 1), f"has more than {MAX_FIELDS} fields"),
    "broken inside": (MODEL + field(1, b"\x0a\x7f"), "is not a SentencePiece model"),
    "empty piece": (MODEL + piece(b""), "piece must not be empty"),
    "same piece twice": (MODEL + piece(b"same") * 2, "same is already defined"),
    "two unknowns": (MODEL + piece(b"<unk2>", 2), "unk is already defined"),
    "piece with NUL": (MODEL + piece(b"a\0b"), "null character"),
    "piece not UTF-8": (MODEL + piece(b"\xff\xfe"), "a piece is not UTF-8"),
    "byte 256": (MODEL + piece(b"<0x100>", 6), "byte piece <0x100> is invalid"),
    "no byte fallback": (MODEL + field(2, b"\x98\x02\x00"), "although `byte_fallback` is false"),
    "normaliser table": (MODEL + field(3, field(2, b"\xff" * 100)), "is not a SentencePiece model"),
    "denormaliser": (MODEL + field(5, field(1, b"x")), "has a denormalizer_spec, wanted none"),
}


@pytest.mark.parametrize("name", NOT_MODELS)
@both_modes
def test_files_that_are_no_model_are_refused_by_the_rule_they_break(legacy: bool, name: str) -> None:
    model, message = NOT_MODELS[name]
    with pytest.raises(TokenizerError, match=f"^a/tokenizer.model: .*{message}"):
        Tokenizer(StoredTokenizer(model, legacy, where="a/tokenizer.model"))


def test_missing_odd_and_huge_files_are_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.model"
    with pytest.raises(
        TokenizerError, match=r"tokenizer.model: is missing, and tokenizer.json is too, wanted one"
    ):
        Tokenizer.from_folder(tmp_path)
    os.mkfifo(path)  # reading it would wait for ever
    with pytest.raises(TokenizerError, match="is not a regular file"):
        Tokenizer.from_folder(tmp_path)
    path.unlink()
    with open(path, "wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(TokenizerError, match="has 1099511627776 bytes, wanted at most"):
        Tokenizer.from_folder(tmp_path)
    path.unlink()
    path.mkdir()
    with pytest.raises(TokenizerError, match="is not a regular file"):
        Tokenizer.from_folder(tmp_path)


def test_a_link_that_leads_nowhere_is_an_error(tmp_path: Path) -> None:
    # An interrupted download leaves such links; silently taking defaults would change the ids.
    (folder_with(tmp_path, {}) / CONFIG).symlink_to(tmp_path / "nowhere")
    with pytest.raises(TokenizerError, match=f"{CONFIG}: is a link to .*, which is not there"):
        Tokenizer.from_folder(tmp_path)


@given(length=st.integers(0, len(MODEL) - 1))
def test_a_model_that_is_cut_off_anywhere_is_refused(length: int) -> None:
    with pytest.raises(TokenizerError):
        check_model(MODEL[:length], "tokenizer.model")


def test_a_model_that_is_cut_off_between_two_pieces_is_refused() -> None:
    at = 0
    while at < len(MODEL):
        with pytest.raises(TokenizerError, match=r"has no (pieces|trainer_spec|normalizer_spec)"):
            check_model(MODEL[:at], "tokenizer.model")
        at += 2 + MODEL[at + 1]  # each field here is shorter than 128 bytes


@given(
    patches=st.lists(st.tuples(st.integers(0, len(MODEL) - 1), st.integers(0, 255)), min_size=1, max_size=20),
    legacy=st.booleans(),
)
def test_a_damaged_model_is_refused_or_usable(patches: list[tuple[int, int]], legacy: bool) -> None:
    model = bytearray(MODEL)
    for at, byte in patches:
        model[at] = byte
    try:
        tokenizer = Tokenizer(StoredTokenizer(bytes(model), legacy))
    except TokenizerError:
        return
    ids = tokenizer.encode("A text, with ünicode\n and </s> inside 😀")
    assert all(0 <= i < tokenizer.vocab_size for i in ids)
    assert isinstance(tokenizer.decode(ids), str)


HOSTILE = """
import resource, sys
from pathlib import Path
from mvlm_np.checkpoints.checkpoint import StoredTokenizer
from mvlm_np.errors import TokenizerError
from mvlm_np.inputs.tokenizer import Tokenizer

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

start = peak()
for path in sorted(Path(sys.argv[1]).iterdir()):
    try:
        Tokenizer(StoredTokenizer(path.read_bytes())).encode("a text")
    except TokenizerError:
        pass
print((peak() - start) // 1024)
"""


def test_hostile_models_print_nothing_and_take_little_memory(tmp_path: Path) -> None:
    """In a process of its own, since SentencePiece is C++: before 0.2.3 some of these crashed it."""
    rng = np.random.default_rng(0)
    for name, (model, _) in NOT_MODELS.items():
        (tmp_path / name).write_bytes(model)
    (tmp_path / "as many pieces as may be").write_bytes(
        MODEL + b"".join(piece(b"%07x" % i) for i in range(MAX_FIELDS - 640))
    )
    (tmp_path / "8 MB of fields of no meaning").write_bytes(b"\x7a\x00" * (4 << 20))
    for i in range(40):  # tables of a plausible size, whose entries lead anywhere
        table = rng.integers(0, 256, 1024, np.uint8) * rng.integers(0, 2, 1024, np.uint8)
        spec = (1024).to_bytes(4, "little") + table.tobytes() + b"abc\0"
        body = b"\x12" + bytes([0x80 | len(spec) & 127, len(spec) >> 7]) + spec
        (tmp_path / f"table {i}").write_bytes(
            MODEL + b"\x1a" + bytes([0x80 | len(body) & 127, len(body) >> 7]) + body
        )
    run = subprocess.run(
        [sys.executable, "-c", HOSTILE, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=100
    )
    assert (run.returncode, run.stderr) == (0, "")
    assert int(run.stdout) < 200, "megabytes"


def test_every_refusal_is_a_user_error() -> None:
    assert issubclass(TokenizerError, UserError) and issubclass(PromptError, UserError)
