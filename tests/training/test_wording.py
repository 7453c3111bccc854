"""Ids and labels: the published code's on request, and otherwise all that a record can teach."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mvlm_np.errors import UserError
from mvlm_np.inputs.conversation import render
from mvlm_np.inputs.tokenizer import IMAGE_TOKEN, Tokenizer, tokenize_prompt
from tests.tokenizer_jsons import VARIANTS, from_sentencepiece, variant
from tests.training.fixtures import SMALL as MODEL
from tests.training.fixtures import TWIN, large_tokenizer, load, published, read, tokenizer
from tools.training.records import Record
from tools.training.wording import IGNORED, Sample, report, sample

SMALL = {legacy: tokenizer(legacy) for legacy in (True, False)}
PAIRS = from_sentencepiece(MODEL.read_bytes())
both_modes = pytest.mark.parametrize("legacy", [True, False], ids=["legacy", "not_legacy"])


def check_published(case: Mapping[str, Any], folder: Path, tokenizer: Tokenizer) -> None:
    def made() -> Sample:
        (record,) = read(folder, case["sample"], as_published=True)
        return sample(record, tokenizer, case["version"], case["limit"], as_published=True)

    if case.get("error"):
        with pytest.raises(UserError):
            made()
        return
    found = made()
    assert found.ids == case["ids"], case["name"]
    assert found.labels == case["labels"], case["name"]
    assert (found.silent is None) == any(label != IGNORED for label in found.labels[: case["limit"]])
    if warning := case.get("mismatch_warning"):
        assert found.silent and found.silent in warning


@both_modes
def test_ids_and_labels_are_the_published_codes(legacy: bool, tmp_path: Path) -> None:
    cases, large = [*published(legacy)], large_tokenizer(legacy)
    assert len(cases) == (32 if legacy else 31)
    for case in cases:
        check_published(case, tmp_path, large)


@pytest.mark.parametrize("case", load(TWIN)["cases"], ids=lambda case: case["name"])
def test_ids_and_labels_are_the_published_rules(case: Mapping[str, Any], tmp_path: Path) -> None:
    check_published(case, tmp_path, SMALL[True])


# ---------------------------------------------------------------- what is taught


def record(*turns: str, image: bool = False, first: str = "human") -> Record:
    speakers = ("human", "gpt") if first == "human" else ("gpt", "human")
    picture = Path("cat.png") if image else None
    return Record("record 1", picture, tuple((speakers[i % 2], text) for i, text in enumerate(turns)))


def learned(found: Sample, tokenizer: Tokenizer) -> list[str]:
    """The texts that are learned, one for each stretch of labels, without the blank that comes first."""
    texts, stretch = list[str](), list[int]()
    for label in [*found.labels, IGNORED]:
        if label != IGNORED:
            stretch.append(label)
        elif stretch:
            texts.append(tokenizer.decode(stretch) + "</s>" * (stretch[-1] == tokenizer.eos_id))
            stretch = []
    assert [
        label for label, i in zip(found.labels, found.ids, strict=True) if label not in (i, IGNORED)
    ] == []
    return texts


TAUGHT = {
    "one turn": (record("What?", "A cat."), ["A cat.</s>"]),
    "several turns": (
        record("<image>\nWhat?", "A cat.", "Is it?", "42", image=True),
        ["A cat.</s>", "42</s>"],
    ),
    "an empty answer": (record("What?", "", "Is it?", "No"), ["</s>", "No</s>"]),
    "an empty question": (record("", "A cat."), ["A cat.</s>"]),
    "tokens in the text": (record("<unk>?", "</s> ends <s>"), ["</s> ends <s></s>"]),
    "the separator in the text": (
        record("A ASSISTANT: ?", "USER: a ASSISTANT: b"),
        ["USER: a ASSISTANT: b</s>"],
    ),
    "a tag in an answer": (record("What?", "An <image>.", image=True), ["An <image>.</s>"]),
}


@both_modes
@pytest.mark.parametrize("name", TAUGHT)
def test_each_answer_and_its_end_are_learned(name: str, legacy: bool) -> None:
    taught, texts = TAUGHT[name]
    found = sample(taught, SMALL[legacy], "v1")
    assert learned(found, SMALL[legacy]) == texts
    assert found.silent is None
    assert found.ids.count(IMAGE_TOKEN) == (taught.image is not None)


NOTED = {
    "a tag is missing": (
        record("What?", "A cat.", "Is it?", "No", image=True),
        record("<image>\nWhat?", "A cat.", "Is it?", "No", image=True),
        "has a picture and no <image>: the picture stands before the first question",
    ),
    "two tags": (
        record("One?", "1", "<image>And <image>two?", "2", "Three?\n<image>", "3", image=True),
        record("One?", "1", "<image>\nAnd two?", "2", "Three?", "3", image=True),
        "has one picture and <image> in several questions: the first counts",
    ),
    "an answer comes first": (
        record("Hello!", "What?", "A cat.", first="gpt"),
        record("What?", "A cat."),
        "an answer that comes first has no question and is left out",
    ),
    "a question comes last": (
        record("What?", "A cat.", "And?"),
        record("What?", "A cat."),
        "the last question has no answer and is left out",
    ),
    "neighbours": (
        Record("", None, (("human", "A"), ("human", "B"), ("gpt", "C"), ("gpt", "D"))),
        record("A\nB", "C\nD"),
        "neighbouring turns of one speaker are joined by a line break",
    ),
}


@pytest.mark.parametrize("name", NOTED)
def test_what_is_taught_otherwise_than_written_is_noted(name: str) -> None:
    written, as_if, note = NOTED[name]
    found = sample(written, SMALL[True], "v1")
    assert found == replace(sample(as_if, SMALL[True], "v1"), notes=(note,))


@pytest.mark.parametrize("turns", [("Hello!",), ("And", "?")])
def test_a_record_without_a_question_and_its_answer_teaches_nothing(turns: tuple[str, ...]) -> None:
    found = sample(record(*turns, first="gpt" if len(turns) > 1 else "human"), SMALL[True], "v1")
    assert found.silent == "it has no question with an answer"
    assert not found.ids and not found.labels


def test_what_is_too_long_is_cut_off_and_noted() -> None:
    long = record("What?", "A cat.", "Is it?", "Yes, it is one.")
    whole = sample(long, SMALL[True], "v1")
    start = len(sample(record("What?", "A cat."), SMALL[True], "v1").ids)
    cut = sample(long, SMALL[True], "v1", len(whole.ids) - 2)
    assert (cut.ids, cut.labels) == (whole.ids[:-2], whole.labels[:-2])
    assert cut.silent is None
    assert cut.notes == (f"is longer than {len(whole.ids) - 2} tokens, and what follows is cut off",)
    assert learned(sample(long, SMALL[True], "v1", start), SMALL[True]) == ["A cat.</s>"]
    assert sample(long, SMALL[True], "v1", 100).silent == "its answer lies behind the 100th token"


def test_records_that_stop_a_published_batch_are_noted() -> None:
    two = record("<image>One?", "1", "<image>Two?", "2", image=True)
    whole = sample(two, SMALL[True], "v1", as_published=True)
    assert whole.notes == ("has <image> in several turns: the published code stops at any batch with it",)
    ended = record("<image>One?", "1</s>", "<image>Two?", "2", image=True)
    silent = sample(ended, SMALL[True], "v1", as_published=True)
    assert silent.silent and silent.notes == whole.notes
    first = whole.ids.index(IMAGE_TOKEN)
    second = whole.ids.index(IMAGE_TOKEN, first + 1)
    assert sample(two, SMALL[True], "v1", second, as_published=True).notes == ()


def test_a_caption_is_learned_with_its_line_break_and_without_an_end() -> None:
    found = sample(record("Describe.", "a cat</s> <image>", image=True), SMALL[True], "plain")
    assert learned(found, SMALL[True]) == ["a cat</s> <image>\n"]
    assert found.ids[:2] == [SMALL[True].bos_id, IMAGE_TOKEN]
    several = sample(record("What?", "a cat", "More?", "no", image=True), SMALL[True], "plain")
    assert learned(several, SMALL[True]) == ["a cat\n"]
    assert several.notes == ("plain teaches its first answer alone",)
    for bad, reason in ((record("<image>", "a cat"), "picture"), (record("What?", image=True), "answer")):
        silent = sample(bad, SMALL[True], "plain").silent
        assert silent == f"it has no {reason}, and plain teaches captions of pictures"


TEXT = st.text(
    st.sampled_from("a b\n4é猫🐱:") | st.characters(codec="utf-8", max_codepoint=0x2FFF), min_size=1
)


def check_prompts(talk: Sequence[tuple[str, str]], image: bool, tokenizer: Tokenizer) -> None:
    """Each answer begins where the prompt ends that asks for it."""
    turns = [turn for pair in talk for turn in pair]
    if image:
        turns[0] = "<image>\n" + turns[0].strip()
    found = sample(record(*turns, image=image), tokenizer, "v1")
    for i in range(0, len(turns), 2):
        history = [*zip(turns[:i:2], turns[1:i:2], strict=True)]
        prompt = tokenize_prompt(render("v1", turns[i], int(image), history), tokenizer)
        assert found.ids[: len(prompt)] == prompt
        assert found.labels[len(prompt) - 1] == IGNORED != found.labels[len(prompt)]


# A picture's empty question loses its line break in the published code, and so here.
TALK = st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=3).filter(lambda talk: talk[0][0].strip())


@both_modes
@given(talk=TALK, image=st.booleans())
def test_what_comes_before_an_answer_is_the_prompt_that_asks_for_it(
    legacy: bool, talk: list[tuple[str, str]], image: bool
) -> None:
    check_prompts(talk, image, SMALL[legacy])


@pytest.mark.parametrize("name", VARIANTS)
def test_so_it_is_with_every_tokenizer_json(name: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps(variant(PAIRS, name, 0)))
    (tmp_path / "tokenizer_config.json").write_text("{}")
    made = Tokenizer.from_folder(tmp_path)
    for image in (True, False):
        for talk in ([("What?", "42"), (" Is it?\n", "\nyes"), ("é猫", " 🐱 ")], [(".", ":"), (":", " ")]):
            check_prompts(talk, image, made)


@given(talk=st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=3), image=st.booleans())
def test_where_the_published_code_teaches_all_it_teaches_the_same(
    talk: list[tuple[str, str]], image: bool
) -> None:
    turns = [turn for pair in talk for turn in pair]
    if image:
        turns[0] = "<image>\n" + turns[0].strip()
    one = record(*turns, image=image)
    assert sample(one, SMALL[True], "v1", as_published=True) == sample(one, SMALL[True], "v1")


ODD = TEXT | st.sampled_from(["", "</s>", " ASSISTANT: ", "<unk>", "a<image>b<image>"])


@both_modes
@given(
    turns=st.lists(ODD, min_size=1),
    image=st.booleans(),
    first=st.sampled_from(["human", "gpt"]),
    version=st.sampled_from(["v1", "plain"]),
)
def test_whatever_is_said_each_answer_is_learned_once(
    legacy: bool, turns: list[str], image: bool, first: str, version: str
) -> None:
    found = sample(record(*turns, image=image, first=first), SMALL[legacy], version)
    assert len(found.ids) == len(found.labels)
    assert found.ids.count(IMAGE_TOKEN) == (image and found.silent is None)
    assert (found.silent is None) == any(label != IGNORED for label in found.labels)
    if version == "v1":
        answers = turns[1::2] if first == "human" else turns[2::2]
        assert found.labels.count(SMALL[legacy].eos_id) == len(answers)
        assert found.ids.count(SMALL[legacy].unk_id) == 0


def test_an_unknown_wording_is_refused() -> None:
    with pytest.raises(UserError, match="the wording: found 'v2', wanted one of plain, v1"):
        sample(record("a", "b"), SMALL[True], "v2")


def test_what_is_not_taught_is_counted_and_named() -> None:
    good = record("a", "b")
    bad = [Record(f"record {n}", None, (("human", "a"),)) for n in range(5)]
    noted = Record("record 9", None, (*good.turns, ("human", "c")))
    records = [good, *bad, noted]
    assert report(records, [sample(r, SMALL[True], "v1") for r in records]) == [
        "5 of 7 records: teaches nothing: it has no question with an answer"
        " (record 0, record 1, record 2 and 2 more)",
        "1 of 7 records: the last question has no answer and is left out (record 9)",
    ]
    assert report([good], [sample(good, SMALL[True], "v1")]) == []
