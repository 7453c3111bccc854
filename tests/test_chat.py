"""Conversations: histories in several shapes, streams that cross, and what does not fit the context."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mvlm_np
from mvlm_np.batch import Batch
from mvlm_np.chat import Chat, without_oldest
from mvlm_np.errors import PromptError
from mvlm_np.model import MobileVLM
from tests.conftest import ROOT
from tests.golden_sets import cases
from tools.make_checkpoint import make_checkpoint

CAT = ROOT / "examples" / "chelsea.jpg"
SHORT: dict[str, Any] = {"max_new_tokens": 12}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> MobileVLM:
    path = tmp_path_factory.mktemp("models") / "tiny"
    make_checkpoint("tiny", path)
    return mvlm_np.load(path, backend="numpy")


# ---------------------------------------------------------------- histories


def test_chat_messages_are_the_same_history_as_pairs(model: MobileVLM) -> None:
    pairs = [("What is it?", "A cat."), ("Sure?", "Yes.")]
    messages = [
        {"role": role, "content": text}
        for pair in pairs
        for role, text in zip(("user", "assistant"), pair, strict=True)
    ]
    expected = model.ask(CAT, "What colour?", history=pairs, **SHORT)
    assert model.ask(CAT, "What colour?", history=messages, **SHORT) == expected
    chat = model.chat(CAT, history=messages)
    assert chat.ask("What colour?", **SHORT) == expected
    assert chat.history == [*pairs, ("What colour?", expected)]


def test_a_history_is_not_changed_for_its_owner(model: MobileVLM) -> None:
    history = [("What?", "A cat.")]
    model.chat(history=history).ask("And?", **SHORT)
    assert history == [("What?", "A cat.")]


# ---------------------------------------------------------------- streams that cross


def test_a_stream_ends_where_the_next_one_begins(model: MobileVLM) -> None:
    alone = model.ask(CAT, "two", **SHORT)
    chat = model.chat(CAT)
    one = chat.stream("one", **SHORT)
    first = next(one)
    two = chat.stream("two", **SHORT)
    begun = next(two)
    assert first and list(one) == []
    assert begun + "".join(two) == alone
    assert chat.history == [("two", alone)]
    assert chat.ask("three", **SHORT) == model.ask(CAT, "three", history=[("two", alone)], **SHORT)


def test_a_stream_that_was_not_begun_says_nothing_later(model: MobileVLM) -> None:
    chat = model.chat()
    waiting = chat.stream("one", **SHORT)
    answer = chat.ask("two", **SHORT)
    assert list(waiting) == []
    assert chat.history == [("two", answer)]


def test_a_question_that_is_refused_leaves_the_open_stream_alone(model: MobileVLM) -> None:
    chat = model.chat()
    one = chat.stream("one", **SHORT)
    first = next(one)
    with pytest.raises(PromptError):
        chat.stream("word " * 5000)
    assert first + "".join(one) == model.ask(None, "one", **SHORT)


def test_two_streams_of_a_model_do_not_meet(model: MobileVLM) -> None:
    expected = [model.ask(CAT, question, **SHORT) for question in ("one", "two")]
    streams = [model.stream(CAT, question, **SHORT) for question in ("one", "two")]
    said = ["", ""]
    while len(done := [next(stream, None) for stream in streams]) and any(done):
        said = [text + (piece or "") for text, piece in zip(said, done, strict=True)]
    assert said == expected


# ---------------------------------------------------------------- the end of the context


def full(model: MobileVLM, **options: Any) -> Chat:
    """A chat whose turns leave less than a quarter of the context."""
    context = model.config.decoder.max_position_embeddings
    chat = model.chat(**options)
    n = 0
    while True:
        turn = (f"Question {n}?", "word " * 20)
        length = chat._prompt("And now?", [*chat.history, turn])[1]
        if context - length < 12:
            return chat
        chat.history.append(turn)
        n += 1


def test_a_full_conversation_goes_on_without_its_oldest_turns(
    model: MobileVLM, caplog: pytest.LogCaptureFixture
) -> None:
    chat = full(model, image=CAT)
    before = list(chat.history)
    with caplog.at_level(logging.WARNING):
        answer = chat.ask("And now?", max_new_tokens=600)
    kept = chat.history[:-1]
    dropped = len(before) - len(kept)
    assert kept == before[dropped:] != []
    assert caplog.messages == [
        f"the conversation fills the model's context: its {dropped} oldest turns are forgotten"
    ]
    context = model.config.decoder.max_position_embeddings
    with_one_more = chat._prompt("And now?", before[dropped - 1 :])[1]
    assert len(chat.prompt_ids) + 143 <= context // 2 < with_one_more
    assert answer == model.ask(CAT, "And now?", history=kept, max_new_tokens=600)


def test_what_still_fits_with_its_answer_is_kept(model: MobileVLM, caplog: pytest.LogCaptureFixture) -> None:
    chat = full(model)
    before = list(chat.history)
    chat.ask("And now?", max_new_tokens=4)
    assert chat.history[:-1] == before
    assert caplog.messages == []


def test_a_question_too_long_for_any_history_costs_none(model: MobileVLM) -> None:
    chat = full(model)
    before = list(chat.history)
    with pytest.raises(PromptError, match=r"takes \d+ positions"):
        chat.ask("word " * 5000)
    assert chat.history == before


def test_a_history_that_was_given_to_one_question_is_read_or_refused(model: MobileVLM) -> None:
    history = full(model).history
    with pytest.raises(PromptError, match="shorten the question or the history"):
        model.ask(None, "And now?", history=[*history, *history], **SHORT)


def test_pictures_move_on_from_a_turn_that_is_dropped() -> None:
    history = [("Like <image>?", "As <image>."), ("And?", "No."), ("Hm <image>", "")]
    assert without_oldest(history) == [("<image>\n<image>\nAnd?", "No."), ("Hm <image>", "")]
    assert without_oldest(history[:1]) == []
    assert without_oldest(history[1:]) == history[2:]


# ---------------------------------------------------------------- pictures


def test_too_many_pictures_are_refused_before_one_is_read(model: MobileVLM) -> None:
    each, context = 144, model.config.decoder.max_position_embeddings
    most = (context - len(model.tokenizer.encode("A chat between a curious human."))) // each - 1
    missing: list[Any] = ["nowhere.jpg"] * 60
    asks: list[Callable[[Any], Any]] = [
        model.chat,
        lambda images: model.trace(images, "?"),
        lambda images: model.ask(images, "?"),
    ]
    for ask in asks:
        with pytest.raises(PromptError, match=r"^pictures: found 60, .* wanted at most \d+; ask") as error:
            ask(missing)
        found = int(str(error.value).split("at most ")[1].split(";")[0])
        assert most <= found <= context // each
    with pytest.raises(PromptError, match=r"prompt: takes \d+ positions"):
        model.generate([1, *[-200] * 60], missing)
    rng = np.random.default_rng(0)
    some: list[Any] = [rng.integers(0, 256, (8, 8, 3), np.uint8) for _ in range(found)]
    assert isinstance(model.ask(some, "", max_new_tokens=1), str)


# ---------------------------------------------------------------- several end tokens


def test_either_of_two_end_tokens_ends_an_answer(tmp_path: Path) -> None:
    import json
    import shutil

    folder = cases("own/ldpv2")[0].folder
    model = mvlm_np.load(folder)
    ids = model.generate([1, 5, 6], max_new_tokens=12)
    second = next(id for id in ids[1:] if id not in ids[:1])
    shutil.copytree(folder, tmp_path / "model")
    path = tmp_path / "model" / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token_id": [2, second]}))
    both = mvlm_np.load(tmp_path / "model")
    assert both.config.decoder.end_tokens == (2, second)
    assert both.generate([1, 5, 6], max_new_tokens=12) == ids[: ids.index(second) + 1]


# ---------------------------------------------------------------- several together


def test_turns_that_share_a_batch_are_what_they_are_alone(model: MobileVLM) -> None:
    asked = [(CAT, "What is it?"), (None, "Who are you?"), (CAT, "What colour is it?")]
    batch = Batch()
    chats = [model.chat(image) for image, _ in asked]
    turns = [chat.join(batch, question, **SHORT) for chat, (_, question) in zip(chats, asked, strict=True)]
    grown = [""] * len(turns)
    while batch.members:
        batch.step()
        for i, turn in enumerate(turns):
            assert turn.text.startswith(grown[i])
            grown[i] = turn.text
    for chat, turn, (image, question) in zip(chats, turns, asked, strict=True):
        alone = model.chat(image)
        assert turn.text == alone.ask(question, **SHORT)
        assert chat.history == [(question, turn.text)] == alone.history
        assert chat.answer_ids == turn.tokens == alone.answer_ids
        assert turn.member.error is None
    assert chats[0].join(batch, "And?", max_new_tokens=0).text == ""
    assert batch.members == []
    assert chats[0].history[1:] == [("And?", "")]


def test_a_turn_leaves_its_batch_when_the_next_one_begins(model: MobileVLM) -> None:
    batch, chat = Batch(), model.chat()
    first = chat.join(batch, "one", **SHORT)
    batch.step()
    second = chat.join(batch, "two", **SHORT)
    assert batch.members == [second.member]
    batch.step()
    alone = model.ask(None, "three", **SHORT)
    assert chat.ask("three", **SHORT) == alone
    assert batch.members == []
    assert len(first.tokens) == len(second.tokens) == 1
    assert chat.history == [("three", alone)]


def test_a_fork_of_a_conversation_goes_its_own_way(model: MobileVLM) -> None:
    chat = model.chat(CAT)
    chat.ask("What is it?", **SHORT)
    batch = Batch()
    forks = [chat.fork() for _ in range(3)]
    turns = [fork.join(batch, question, **SHORT) for fork, question in zip(forks, "abc", strict=True)]
    while batch.members:
        batch.step()
    for question, turn in zip("abc", turns, strict=True):
        assert turn.text == model.ask(CAT, question, history=chat.history, **SHORT)
    assert len(chat.history) == 1
    assert [len(fork.history) for fork in forks] == [2, 2, 2]
