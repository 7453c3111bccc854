"""The tokenizer in a GGUF and its SentencePiece model say the same about every text."""

import json
import random
import struct
from contextlib import suppress
from typing import Any

import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st

from mvlm_np.checkpoints.checkpoint import StoredTokenizer
from mvlm_np.checkpoints.gguf import read_gguf
from mvlm_np.checkpoints.gguf_tokenizer import as_sentencepiece, read_tokenizer, tokenizer_settings
from mvlm_np.errors import NoTokenizer, TokenizerError
from mvlm_np.inputs.tokenizer import Tokenizer
from tests.checkpoints.gguf_models import VOCAB, tokenizer_model
from tests.conftest import shared_path

frequent = st.sampled_from(list("abcdet hon\n\t▁.é中😀\0<>/s"))
texts = st.text(frequent | st.characters(codec="utf-8"), max_size=40)


def processor(model: bytes) -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_proto=model)


def rebuilt(model: bytes, vocab_size: int) -> sentencepiece.SentencePieceProcessor:
    """The model after a way through a GGUF's settings."""
    tokenizer = read_tokenizer(tokenizer_settings(model, vocab_size), "test")
    return processor(as_sentencepiece(tokenizer))


def assert_alike(a: sentencepiece.SentencePieceProcessor, b: sentencepiece.SentencePieceProcessor) -> None:
    """The same pieces, kinds, scores and roles, and the same text for random ids."""
    assert a.vocab_size() == b.vocab_size()
    for i in range(a.vocab_size()):
        for ask in ("id_to_piece", "get_score", "is_control", "is_unknown", "is_byte", "is_unused"):
            assert getattr(a, ask)(i) == getattr(b, ask)(i), (i, ask)
    for role in ("bos_id", "eos_id", "unk_id", "pad_id"):
        assert getattr(a, role)() == getattr(b, role)()
    rng = random.Random(0)
    for _ in range(200):
        ids = rng.choices(range(a.vocab_size()), k=8)
        assert a.decode(ids) == b.decode(ids)


def test_all_pieces_and_roles_survive() -> None:
    assert_alike(processor(tokenizer_model()), rebuilt(tokenizer_model(), VOCAB))


@given(texts)
def test_every_text_encodes_and_decodes_alike(text: str) -> None:
    a, b = processor(tokenizer_model()), rebuilt(tokenizer_model(), VOCAB)
    assert a.encode(text) == b.encode(text)
    assert a.decode(a.encode(text)) == b.decode(b.encode(text))


def test_it_is_what_the_tokenizer_class_takes() -> None:
    found = read_tokenizer(tokenizer_settings(tokenizer_model(), VOCAB, legacy=False), "test")
    tokenizer, expected = Tokenizer(found), Tokenizer(StoredTokenizer(tokenizer_model(), legacy=False))
    for text in ("the cat</s>sat", " on a mat ", "", "é中"):
        assert tokenizer.encode(text) == expected.encode(text)


def test_the_published_tokenizer_survives_with_every_vector() -> None:
    model = shared_path("facts/tokenizer/tokenizer.model").read_bytes()
    a, b = processor(model), rebuilt(model, 32000)
    assert_alike(a, b)
    vectors = json.loads(shared_path("facts/tokenizer/llama_spm_vectors.json").read_text())
    assert len(vectors) == 47
    for vector in vectors:
        assert b.encode(vector["text"]) == vector["expected"]
    prompts = json.loads(shared_path("facts/tokenizer/mobilevlm_prompt_vectors.json").read_text())["prompts"]
    for prompt in prompts.values():
        for piece in prompt["prompt"].split("<image>"):
            assert a.encode(piece) == b.encode(piece)


def test_the_goldens_tokenizer_comes_out_of_llama_cpps_file() -> None:
    metadata = read_gguf(shared_path("goldens/v2-256/gguf/llm-F16.gguf")).metadata
    model = shared_path("goldens/v2-256/tokenizer.model").read_bytes()
    found = read_tokenizer(metadata, "golden")
    assert (found.bos, found.eos, found.unk, found.legacy) == ("<s>", "</s>", "<unk>", True)
    a, b = processor(model), processor(as_sentencepiece(found))
    assert_alike(a, b)
    for vector in json.loads(shared_path("facts/tokenizer/llama_spm_vectors.json").read_text()):
        assert a.encode(vector["text"]) == b.encode(vector["text"])
    written = tokenizer_settings(model, 640)
    assert {key: written[key] for key in metadata if key.startswith("tokenizer.")} == {
        key: value for key, value in metadata.items() if key.startswith("tokenizer.")
    }


def test_stories_vocabulary_is_that_of_llama2_c() -> None:
    """tok512.bin: u32 longest, then score f32, length u32 and text of each piece, spaces as spaces."""
    found = read_tokenizer(read_gguf(shared_path("weights/stories260K_f16.gguf")).metadata, "stories")
    ours, data, at = processor(as_sentencepiece(found)), shared_path("weights/tok512.bin").read_bytes(), 4
    theirs: list[tuple[str, float]] = []
    while at < len(data):
        score, length = struct.unpack_from("<fI", data, at)
        theirs.append((data[at + 8 : at + 8 + length].decode(), score))
        at += 8 + length
    assert len(theirs) == ours.vocab_size() == 512
    for i in range(259, 512):
        assert (ours.id_to_piece(i).replace("▁", " "), ours.get_score(i)) == theirs[i]
    table = {text: (score, i) for i, (text, score) in enumerate(theirs) if i >= 259}
    for text in ("Once upon a time, there was a little girl named Lily.", "She's 3!", "  two  spaces", "x"):
        assert ours.encode(text) == merged([*" ", *text], table)


def merged(parts: list[str], table: dict[str, tuple[float, int]]) -> list[int]:
    """Byte-pair encoding as llama2.c does it: the best pair is merged until there is none."""
    while True:
        pairs = [
            (table["".join(parts[i : i + 2])][0], -i)
            for i in range(len(parts) - 1)
            if "".join(parts[i : i + 2]) in table
        ]
        if not pairs:
            return [table[part][1] for part in parts]
        at = -max(pairs)[1]
        parts[at : at + 2] = ["".join(parts[at : at + 2])]


# -- Rules of the settings -----------------------------------------------------------------------------


def settings(**changes: Any) -> dict[str, Any]:
    return tokenizer_settings(tokenizer_model(), VOCAB) | {
        f"tokenizer.ggml.{k}": v for k, v in changes.items()
    }


def test_a_file_without_a_tokenizer_has_none() -> None:
    with pytest.raises(NoTokenizer, match=r"^test: holds no tokenizer; put the model's "):
        read_tokenizer({"general.name": "x"}, "test")


def test_the_dummy_prefix_follows_add_space_prefix() -> None:
    for prefix in (True, False):
        found = read_tokenizer(settings(add_space_prefix=prefix), "test")
        assert (
            found
            and processor(as_sentencepiece(found)).encode("the", out_type=str)[0].startswith("▁") is prefix
        )


def test_flags_and_legacy_are_carried() -> None:
    found = read_tokenizer(settings(add_bos_token=False, add_eos_token=True), "test")
    assert (found.add_bos, found.add_eos, found.legacy) == (False, True, True)
    found = read_tokenizer(tokenizer_settings(tokenizer_model(), VOCAB, legacy=False), "test")
    assert found and found.legacy is False


def test_added_and_padding_tokens_fill_the_vocabulary() -> None:
    written = tokenizer_settings(tokenizer_model(), VOCAB + 3, {"<pic>": VOCAB + 1, "</s>": 2})
    assert written["tokenizer.ggml.tokens"][VOCAB:] == [f"[PAD{VOCAB}]", "<pic>", f"[PAD{VOCAB + 2}]"]
    assert written["tokenizer.ggml.token_type"][VOCAB:] == [5, 4, 5]
    assert written["tokenizer.ggml.token_type"][2] == 3  # </s> stays what it is
    found = read_tokenizer(written, "test")
    assert VOCAB + 1 in processor(as_sentencepiece(found)).encode("the <pic> shows")


def test_user_defined_tokens_with_spaces_are_found_in_text() -> None:
    changed = settings()
    changed["tokenizer.ggml.tokens"][-1], changed["tokenizer.ggml.token_type"][-1] = "  two", 4
    found = read_tokenizer(changed, "test")
    assert VOCAB - 1 in processor(as_sentencepiece(found)).encode("a  two")


@pytest.mark.parametrize("vocab_size, added", [(VOCAB - 1, None), (VOCAB, {"<pic>": VOCAB})])
def test_more_tokens_than_rows_are_refused(vocab_size: int, added: dict[str, int] | None) -> None:
    with pytest.raises(TokenizerError, match=f"more tokens than the model, wanted at most {vocab_size}"):
        tokenizer_settings(tokenizer_model(), vocab_size, added)


@pytest.mark.parametrize("field, message", [
    (b"\x12\x02\x18\x01", "of type 1, wanted 2: BPE"),  # trainer_spec.model_type = unigram
    (b"\x1a\x03\x12\x01x", "normalises text"),  # normalizer_spec.precompiled_charsmap
    (b"\x1a\x02\x20\x01", "normalises text"),  # normalizer_spec.remove_extra_whitespaces
])  # fmt: skip
def test_models_that_llama_cpp_would_read_differently_are_not_written(field: bytes, message: str) -> None:
    with pytest.raises(TokenizerError, match=message):
        tokenizer_settings(tokenizer_model() + field, VOCAB)  # protobuf joins a message in two parts


@pytest.mark.parametrize(
    "model", [b"", b"\x0a", b"\x0a\xff", b"\x0a\x02\x08\x01", b"\x08\x01", b"\x80" * 12, b"\x0b"]
)
def test_what_is_not_a_sentencepiece_model_is_not_written(model: bytes) -> None:
    with pytest.raises(TokenizerError):
        tokenizer_settings(model, VOCAB)


@given(st.binary(max_size=60))
def test_any_bytes_are_a_tokenizer_error_or_a_model(noise: bytes) -> None:
    with suppress(TokenizerError):
        tokenizer_settings(tokenizer_model()[:200] + noise, VOCAB)
