"""When an answer ends, and what of it may be shown before it does."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mvlm_np.answer import Answer, Reply, ends_answer
from mvlm_np.checkpoints.checkpoint import StoredTokenizer
from mvlm_np.generation import Settings
from mvlm_np.inputs.tokenizer import Tokenizer
from tests.conftest import DATA

TOKENIZER = Tokenizer(StoredTokenizer((DATA / "tokenizer" / "tokenizer.model").read_bytes()))
tokens = st.lists(st.integers(0, TOKENIZER.vocab_size - 1), max_size=40)


stop_strings = st.lists(
    st.sampled_from(["</s>", "###", "\n", "e", "th", "the", "he", "ab", "b#", "ab##", " "]), max_size=4
)


def pieces(ids: list[int], *stops: str) -> list[str]:
    answer = Answer(TOKENIZER, *stops)
    return [*(answer.push(token) for token in ids), answer.finish()]


def before_first(text: str, stops: list[str]) -> str:
    """What a text is before the stop string that is complete first, read letter by letter."""
    for end in range(len(text) + 1):
        if found := [stop for stop in stops if text[:end].endswith(stop)]:
            return text[: end - max(map(len, found))].strip()
    return text.strip()


@given(tokens, stop_strings)
def test_pieces_add_up_to_the_text_before_the_first_stop_string(ids: list[int], stops: list[str]) -> None:
    assert "".join(pieces(ids, *stops)) == before_first(TOKENIZER.decode(ids), stops)


@given(st.text(alphabet="abe#\n ", max_size=20), stop_strings)
def test_stop_strings_are_never_shown_even_in_part(text: str, stops: list[str]) -> None:
    ids = TOKENIZER.encode(text)
    wanted, answer, shown = before_first(TOKENIZER.decode(ids), stops), Answer(TOKENIZER, *stops), ""
    for token in ids:
        shown += answer.push(token)
        assert wanted.startswith(shown)
    assert shown + answer.finish() == answer.text == wanted
    assert answer.stopped == any(stop in TOKENIZER.decode(ids) for stop in stops)


@given(tokens)
def test_no_piece_ends_within_a_character(ids: list[int]) -> None:
    whole = TOKENIZER.decode(ids).strip()
    shown = ""
    for piece in pieces(ids, "###"):
        shown += piece
        assert whole.startswith(shown)


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


def logits_of(token: int) -> np.ndarray:
    return (np.arange(TOKENIZER.vocab_size) == token).astype(np.float32)


@given(tokens, stop_strings, st.integers(0, 8))
def test_a_reply_ends_by_rule_by_text_or_by_length(ids: list[int], stops: list[str], most: int) -> None:
    ended = ends_answer(TOKENIZER, "</s>", (TOKENIZER.eos_id,))
    reply = Reply(TOKENIZER, Settings(most), ended, "</s>", *stops)
    for n, token in enumerate(ids):
        text = TOKENIZER.decode(ids[:n])
        stopped = n > 0 and (ended(ids[:n]) or any(stop in text for stop in ["</s>", *stops]))
        assert reply.ended == (stopped or n == most)
        if reply.ended:
            assert reply.reason == ("stop" if stopped else "length")
            assert reply.text == before_first(text, ["</s>", *stops])
            return
        assert reply.take(logits_of(token)) == token
    assert reply.tokens == ids
