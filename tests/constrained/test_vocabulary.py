"""Tokens that fit: whatever the logits, the answer parses, fits its schema, and ends in time."""

import json
from collections.abc import Sequence
from typing import Any

import jsonschema
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mvlm_np.answer import Reply
from mvlm_np.checkpoints.checkpoint import StoredTokenizer
from mvlm_np.constrained.schema import ANY_OBJECT, compile
from mvlm_np.constrained.vocabulary import NEVER, State, Vocabulary
from mvlm_np.errors import GenerationError, SchemaError
from mvlm_np.generation import Choice, Settings
from mvlm_np.inputs.tokenizer import Tokenizer
from tests.conftest import DATA
from tests.constrained.schemas import schemas

BYTES = [bytes([byte]) for byte in range(256)]
NASTY = [
    b'{"', b'","', b'":"', b'": "', b'"}', b'"},', b'" }', b'{}', b'}}', b'"]', b'":', b'",', b'""', b'\\"',
    b"\\\\", b"\\u", b"\\ud8", b"00", b"\n", b"\n  ", b" ", b"  ", b"\xc3", b"\xc3\xb6\xc3", b"\x9f\x98\x80",
    b"true", b"null", b"fal", b"1.5", b"-0", b"e9", b"12345", b", ", b",  ", b'a"', b"an", b"answer", b'"a":',
    b'"title": "', b"\x00",
]  # fmt: skip
END = 0  # the first token, and so on: without a text
tokens = st.lists(st.sampled_from(NASTY) | st.binary(min_size=1, max_size=5), max_size=60)


def vocabulary(more: Sequence[bytes]) -> Vocabulary:
    """Two tokens without a text, some, and all bytes; the first one ends an answer."""
    return Vocabulary([b"</s>", b"", *more, *BYTES], [END])


class Wishes:
    """Logits of a model that means ill, or nothing at all."""

    def __init__(self, kind: str, size: int, seed: int):
        self.kind, self.size, self.rng = kind, size, np.random.default_rng(seed)
        self.favourites = self.rng.permutation(size)

    def __call__(self) -> np.ndarray:
        logits = self.rng.standard_normal(self.size).astype(np.float32)
        if self.kind == "always the same":
            logits = self.favourites.astype(np.float32)
        elif self.kind == "nothing but one":
            logits[1:] = -np.inf
        return logits


def texts_of(vocabulary: Vocabulary, tokens: list[int]) -> bytes:
    return b"".join(vocabulary.texts[token] for token in tokens)


@given(
    schemas(),
    tokens,
    st.integers(0, 40),
    st.sampled_from(["anything", "always the same", "nothing but one"]),
    st.sampled_from(
        [{}, {"temperature": 1.5}, {"temperature": 3.0, "top_k": 2}, {"temperature": 1.0, "top_p": 0.4}]
    ),
    st.integers(0, 2**32),
)
@settings(max_examples=200)
def test_whatever_the_logits_the_answer_fits_and_ends_in_time(
    schema: Any, more: list[bytes], room: int, kind: str, how: dict[str, Any], seed: int
) -> None:
    words = vocabulary(more)
    state = words.begin(compile(schema), 10**9)
    budget, wishes = state.fewest + room, Wishes(kind, len(words.texts), seed)
    assert 1 <= state.fewest < NEVER
    choice = Choice(Settings(budget, seed=seed, **how), lambda tokens: False, state)
    while not choice.ended:
        choice.take(wishes())
    assert len(choice.tokens) <= budget
    text = texts_of(words, choice.tokens)
    jsonschema.validate(json.loads(text), schema, jsonschema.Draft202012Validator)
    assert state.complete


@given(schemas(), tokens, st.integers(0, 2**32), st.integers(0, 30))
def test_the_mask_has_exactly_the_tokens_after_which_the_answer_can_end_in_time(
    schema: Any, more: list[bytes], seed: int, room: int
) -> None:
    words, automaton = vocabulary(more), compile(schema)
    state, rng = words.begin(automaton, 10**9), np.random.default_rng(seed)
    at = 1
    for _ in range(10):
        if state.ended:
            return
        remaining = state.fewest + room
        mask = state.mask(max(remaining, 1))
        for token, text in enumerate(words.texts):
            other = automaton.after(text, at) if text else 0
            allowed = other > 0 and fewest(words, schema, other) < remaining
            if token == END:
                allowed = bool(automaton.accepting[at])
            assert mask[token] == allowed, text
        token = int(rng.choice(np.flatnonzero(mask)))
        state.take(token)
        at = automaton.after(words.texts[token], at)


def fewest(words: Vocabulary, schema: Any, at: int) -> int:
    """What a state that has come there says."""
    state = words.begin(compile(schema), 10**9)
    state._state = at
    return state.fewest


@given(schemas(), tokens)
def test_no_answer_is_shorter_than_bytes_and_longer_than_it_could_be(schema: Any, more: list[bytes]) -> None:
    """`fewest` is of the shortest text: more tokens never make it more, and bytes alone give its length."""
    least = vocabulary([]).begin(compile(schema), 10**9).fewest
    state = vocabulary(more).begin(compile(schema), 10**9)
    assert state.fewest <= least
    longest = max(map(len, [b"1", *more]))
    assert state.fewest * longest >= least
    while not state.ended and state.fewest:  # each step on the way takes one off
        before = state.fewest
        mask = state.mask(before)
        state.take(int(np.flatnonzero(mask)[0]))
        assert state.fewest < before


FITTING = [
    ({"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "number"}}}, [
        '{"a":"x","b":1}', '{"a": "größe \\"q\\" 😀", "b": -2.5e3}', '{\n  "a": "",\n  "b": 0\n}', "{}",
    ]),
    (ANY_OBJECT, ['{"title": [1, {"x": null}], "": true}']),
    ({"enum": ["on", "off", "o"]}, ['"on"', '"o"']),
]  # fmt: skip


@pytest.mark.parametrize("schema, text", [(schema, text) for schema, texts in FITTING for text in texts])
@given(tokens, st.randoms())
def test_an_answer_that_fits_by_itself_is_not_changed(
    schema: Any, text: str, more: list[bytes], random: Any
) -> None:
    """Cut into tokens at random, each of which is the model's likeliest in its place."""
    words = vocabulary(more)
    wanted, rest = [], text.encode()
    while rest:
        possible = [i for i, piece in enumerate(words.texts) if piece and rest.startswith(piece)]
        wanted.append(random.choice(possible))
        rest = rest[len(words.texts[wanted[-1]]) :]
    state = words.begin(compile(schema), 500)
    choice = Choice(Settings(500), lambda tokens: False, state)
    for token in wanted:
        logits = np.full(len(words.texts), -1, np.float32)
        logits[token] = 1
        assert choice.take(logits) == token
    assert choice.ended and state.ended


def test_the_likeliest_token_that_is_allowed_is_taken() -> None:
    words = vocabulary([b"nul", b"{", b"tr"])
    choice = Choice(Settings(20), lambda tokens: False, words.begin(compile({"type": "boolean"}), 20))
    logits = np.zeros(len(words.texts), np.float32)
    logits[[2, 3, 4, 5]] = 9, 8, 7, 6
    assert words.texts[choice.take(logits)] == b"tr"


def test_a_budget_that_is_too_small_is_refused_and_the_smallest_one_suffices() -> None:
    schema = {"type": "object", "properties": {"answer": {"type": "boolean"}}, "required": ["answer"]}
    words = vocabulary([b'{"', b"answer", b'":', b"true"])
    with pytest.raises(
        GenerationError, match=r"^max_new_tokens: found 4, wanted at least 5, which the shortest"
    ):
        words.begin(compile(schema), 4)
    state = words.begin(compile(schema), 5)
    for remaining in range(5, 0, -1):
        (token,) = np.flatnonzero(state.mask(remaining))
        state.take(int(token))
    assert state.ended


def test_a_number_ends_by_the_end_token_and_what_cannot_go_on_ends_by_itself() -> None:
    words = vocabulary([])
    state = words.begin(compile({"type": "integer", "minimum": 10, "maximum": 19}), 9)
    for digit in b"1", b"5":
        assert not state.mask(9)[END]
        state.take(words.texts.index(digit))
    assert state.ended  # no third digit fits
    state = words.begin(compile({"type": "integer"}), 9)
    state.take(words.texts.index(b"1"))
    assert state.complete and not state.ended
    assert state.mask(9)[END]
    assert not state.mask(9)[1]
    state.take(END)
    assert state.ended


def test_tokens_that_cannot_spell_an_answer_are_told() -> None:
    words = Vocabulary([b"", b"a", b"{", b":"], [0])
    with pytest.raises(SchemaError, match="the model's tokens cannot spell an answer that fits it"):
        words.begin(compile({"properties": {"a": {}}, "required": ["a"]}), 99)
    words = Vocabulary([b"", b"tru", b"e", b"t", b"r", b"u"], [0])
    assert words.begin(compile({"type": "boolean"}), 99).fewest == 2


def test_a_token_that_ends_answers_is_never_text() -> None:
    words = Vocabulary([*BYTES, b"{}"], [256, 300])
    state: State = words.begin(compile({"type": "object"}), 5)
    assert not state.mask(5)[256]


def test_damaged_logits_are_told_and_a_model_that_allows_nothing_gets_any_answer() -> None:
    words = vocabulary([])
    choice = Choice(Settings(9), lambda tokens: False, words.begin(compile({"const": 1}), 9))
    with pytest.raises(GenerationError, match="NaN or infinity"):
        choice.take(np.full(len(words.texts), np.nan, np.float32))
    logits = np.full(len(words.texts), -np.inf, np.float32)
    logits[1] = 0
    assert words.texts[choice.take(logits)] in (b"1", b" ", b"\n")


TOKENIZER = Tokenizer(StoredTokenizer((DATA / "tokenizer" / "tokenizer.model").read_bytes()))


@given(schemas(), st.integers(0, 2**32), st.integers(0, 30))
def test_the_text_that_is_shown_is_the_whole_answer(schema: Any, seed: int, room: int) -> None:
    """With a tokenizer's pieces: bytes, spaces at the start, and stop strings within strings."""
    ids = range(TOKENIZER.vocab_size)
    words = Vocabulary([TOKENIZER.piece_bytes(i) for i in ids], [TOKENIZER.eos_id])
    state = words.begin(compile(schema), 10**9)
    how, rng = Settings(state.fewest + room, temperature=1.0, top_k=0, seed=seed), np.random.default_rng(seed)
    reply = Reply(TOKENIZER, how, lambda tokens: True, "a", '"', "</s>", constraint=state)
    while not reply.ended:
        reply.take(2 * rng.standard_normal(TOKENIZER.vocab_size))
    assert reply.reason == "stop"
    jsonschema.validate(json.loads(reply.text), schema, jsonschema.Draft202012Validator)
    assert reply.text == texts_of(words, reply.tokens).decode().strip()
