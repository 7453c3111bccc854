"""When an answer ends, and what of it may be shown before it does."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mvlm_np.answer import Answer, ends_answer
from mvlm_np.checkpoints.checkpoint import StoredTokenizer
from mvlm_np.inputs.tokenizer import Tokenizer
from tests.conftest import DATA

TOKENIZER = Tokenizer(StoredTokenizer((DATA / "tokenizer" / "tokenizer.model").read_bytes()))
tokens = st.lists(st.integers(0, TOKENIZER.vocab_size - 1), max_size=40)


def pieces(ids: list[int], stop: str) -> list[str]:
    answer = Answer(TOKENIZER, stop)
    return [*(answer.push(token) for token in ids), answer.finish()]


@given(tokens, st.sampled_from(["</s>", "###", "\n", "e", "th"]))
def test_pieces_add_up_to_the_stripped_text_before_the_stop_string(ids: list[int], stop: str) -> None:
    assert "".join(pieces(ids, stop)) == TOKENIZER.decode(ids).partition(stop)[0].strip()


@given(tokens)
def test_no_piece_ends_within_a_character(ids: list[int]) -> None:
    whole = TOKENIZER.decode(ids).strip()
    shown = ""
    for piece in pieces(ids, "###"):
        shown += piece
        assert whole.startswith(shown)


@given(st.text(alphabet="ab#", max_size=20))
def test_a_stop_string_is_never_shown_even_in_part(text: str) -> None:
    shown = "".join(pieces(TOKENIZER.encode(text), "###"))
    assert shown == text.partition("###")[0].strip()


def test_what_might_be_a_stop_string_is_shown_at_the_end() -> None:
    assert pieces(TOKENIZER.encode("a ##"), "###")[-1] == " ##"


@pytest.mark.parametrize("stop", ["</s>", "###", "\n"])
def test_the_end_of_sequence_ends_every_answer(stop: str) -> None:
    ended = ends_answer(TOKENIZER, stop, (TOKENIZER.eos_id, 9))
    assert ended([5, 6, TOKENIZER.eos_id])
    assert ended([5, 6, 9])
    assert not ended([5, TOKENIZER.eos_id, 6])


def test_a_stop_string_ends_an_answer_by_its_ids_and_by_its_text() -> None:
    ended = ends_answer(TOKENIZER, "###", (TOKENIZER.eos_id,))
    by_ids = TOKENIZER.encode("###")[1:]
    assert ended([5, *by_ids])
    one_at_a_time = [TOKENIZER.piece_to_id("#")] * 3
    assert ended([5, *one_at_a_time]) == ("###" in TOKENIZER.decode(one_at_a_time[-len(by_ids) :]))
    assert not ended([*by_ids, 5, 5, 5, 5])
