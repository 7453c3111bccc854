from string import ascii_letters

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mvlm_np.checkpoints.checkpoint import StoredTokenizer
from mvlm_np.inputs.conversation import render
from mvlm_np.inputs.tokenizer import Tokenizer
from tools.parts.made_up_tokenizer import tokenizer_model

SIZES = (64, 512, 32000)
FULL = Tokenizer(StoredTokenizer(tokenizer_model(32000)))


@pytest.mark.parametrize("size", SIZES)
def test_it_has_exactly_as_many_pieces_as_asked_for(size: int) -> None:
    assert Tokenizer(StoredTokenizer(tokenizer_model(size))).vocab_size == size


@given(st.text(st.characters(exclude_characters="\u2581", exclude_categories=["Cs"])))
def test_every_text_comes_back(text: str) -> None:
    ids = FULL.encode(text)
    # The tokens that mean something are not text; SentencePiece drops a space at the start.
    if not any(token in text for token in ("<s>", "</s>", "<unk>")):
        assert FULL.decode(ids).strip() == text.strip()


@pytest.mark.parametrize("size", SIZES)
def test_a_prompt_needs_no_unknown_piece(size: int) -> None:
    tokenizer = Tokenizer(StoredTokenizer(tokenizer_model(size)))
    prompt = render("v1", "What is it?", 0)
    assert tokenizer.unk_id not in tokenizer.encode(prompt)
    assert tokenizer.decode(tokenizer.encode(prompt)) == prompt


def test_every_id_has_a_text() -> None:
    assert all(isinstance(FULL.decode([i]), str) for i in range(FULL.vocab_size))


def test_words_take_a_few_tokens_as_with_a_learnt_tokenizer() -> None:
    prompt = render("v1", "What is the person wearing?", 0)
    letters = sum(c in ascii_letters for c in prompt)
    assert letters / 4 < len(FULL.encode(prompt)) < letters * 2 / 3
