"""Drafts on real decoders: n-grams, a draft model, and answers with them beside plain ones, bit for bit."""

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import mvlm_np
from mvlm_np import decoder, drafts
from mvlm_np.chat import Chat
from mvlm_np.cli import main
from mvlm_np.drafts import LENGTHS, DraftModel, Ngrams, draft_for
from mvlm_np.errors import GenerationError, UserError
from mvlm_np.generation import Drafted, Settings, probabilities, warp
from mvlm_np.model import MobileVLM
from mvlm_np.speculation import MOST, Pace
from mvlm_np.trace import Watch
from tests.conftest import ROOT
from tools.make_checkpoint import make_checkpoint

CAT = str(ROOT / "examples" / "chelsea.jpg")
GREEDY = Settings(8)
QUESTIONS = ("What is it?", "What is what is what is what is it?", "And what is it not?")


@pytest.fixture(scope="module")
def model(tiny: Path) -> MobileVLM:
    """In int4 and with kernels: exact."""
    pytest.importorskip("numba")
    return mvlm_np.load(tiny, precision="int4", backend="numba")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> MobileVLM:
    """Another model with the same tokens, in float32."""
    folder = tmp_path_factory.mktemp("models") / "small"
    make_checkpoint("tiny", folder, seed=7, layers=1)
    return mvlm_np.load(folder, backend="numpy")


# ---------------------------------------------------------------- n-grams


def ngrams(ids: list[int], n: int) -> list[int]:
    draft = Ngrams()
    draft.begin(np.array(ids), GREEDY, 100)
    return [drafted.token for drafted in draft.propose(np.array(ids), n)]


@pytest.mark.parametrize(
    "ids, n, expected",
    [
        ([1, 2, 3, 4, 5, 1, 2], 2, [3, 4]),
        ([1, 2, 3, 4, 5, 1, 2], 9, [3, 4, 5, 1, 2, 3, 4, 5, 1]),  # what is drafted goes on like the text
        ([7, 1, 2, 3, 8, 1, 2, 4, 7, 1, 2], 1, [3]),  # three tokens before two
        ([1, 2, 3, 1, 2, 4, 1, 2], 1, [4]),  # the last of several places
        ([5, 5, 5], 3, [5, 5, 5]),
        ([1, 2, 3, 4, 5, 6, 2], 3, []),  # one token alone says too little
        ([1, 2, 3, -1, -1, 4, 1, 2], 5, [3]),  # nobody drafts a picture
        ([1, 2, -1, -1, 1, 2], 5, []),
        ([1], 3, []),
    ],
)
def test_what_followed_the_last_tokens_is_drafted(ids, n, expected):
    assert ngrams(ids, n) == expected


@given(st.lists(st.integers(0, 3), min_size=1, max_size=40), st.integers(1, 40), st.integers(1, MOST))
def test_a_text_that_grows_is_looked_up_like_a_whole_one(ids, first, n):
    """Whole: the longest n-gram at the end, at the last place where it stood before, searched plainly."""
    draft = Ngrams()
    draft.begin(np.array(ids[:first]), GREEDY, 100)
    for stop in range(min(first, len(ids)), len(ids) + 1):
        found = draft.propose(np.array(ids[:stop]), n)
        text, expected = ids[:stop], list[int]()
        for length in LENGTHS:
            places = [i for i in range(length, stop) if text[i - length : i] == text[stop - length :]]
            if places and stop >= length:
                expected = [(text[places[-1] :] * n)[i] for i in range(n)]
                break
        assert found == [Drafted(token) for token in expected]


# ---------------------------------------------------------------- draft models


def test_a_draft_model_drafts_its_own_answer_to_the_text_without_pictures(small: MobileVLM) -> None:
    draft, rng, settings = DraftModel(small, 0.1), np.random.default_rng(0), Settings(60)
    for ids in ([1, -1, -1, 7, 8, 9], [1, -1, -1, 7, 8, 9, 4, 4], [1, 5]):  # shorter: another prompt
        draft.begin(np.array(ids), settings, small.config.decoder.vocab_size)
        for _ in range(4):
            n = int(rng.integers(1, MOST + 1))
            drafted = [d.token for d in draft.propose(np.array(ids), n)]
            assert drafted == small.generate([i for i in ids if i >= 0], max_new_tokens=n)[: len(drafted)]
            assert len(drafted) == n
            # Some are accepted, then something else follows.
            ids = [*ids, *drafted[: int(rng.integers(n + 1))], int(rng.integers(3, 500))]


def test_a_draft_model_draws_by_the_chances_that_it_names(small: MobileVLM) -> None:
    settings = Settings(8, 0.7, top_k=5, seed=3)
    ids = [1, 7, 8, 9]
    draft = DraftModel(small, 0.1)
    draft.begin(np.array(ids), settings, 500)
    for token, chances in draft.propose(np.array(ids), 4):
        session = small.session()
        x, at = small.embed(ids, [])
        logits = session.prefill(x, at, 0, Watch())[:500]
        assert chances is not None
        # float32 by BLAS, whose rounding depends on the number of rows: some 1e-6 of logits of size 1
        np.testing.assert_allclose(chances, probabilities(warp(logits[None], settings)[0]), atol=1e-4)
        assert len(chances) == 500 and chances[token] > 0
        ids.append(token)


def test_a_draft_model_stays_within_its_own_context_and_ids(small: MobileVLM) -> None:
    context, vocabulary = small.config.decoder.max_position_embeddings, small.config.decoder.vocab_size
    draft = DraftModel(small, 0.1)
    draft.begin(np.array([1]), Settings(context), vocabulary + 8)
    assert len(draft.propose(np.ones(context - 2, np.int64), 5)) == 2
    assert draft.propose(np.ones(context, np.int64), 5) == []
    assert draft.propose(np.array([1, vocabulary]), 5) == []
    assert draft.propose(np.array([-1, -1]), 5) == []


def test_a_damaged_draft_model_is_named(small: MobileVLM) -> None:
    draft = DraftModel(small, 0.1)
    draft.begin(np.array([1]), GREEDY, 500)
    draft._session.weights = replace(small.decoder, norm=small.decoder.norm * np.float32(np.nan))
    with pytest.raises(GenerationError, match=r"^draft: "):
        draft.propose(np.array([1, 5]), 3)


# ---------------------------------------------------------------- answers with a draft


@pytest.mark.parametrize("cache", ["float32", "float16", "int8"])
@pytest.mark.parametrize("past", [1, 15, 40])
def test_a_row_has_the_same_bits_whatever_is_computed_with_it(tiny: Path, cache: str, past: int) -> None:
    """What all else here rests on, in both precisions that take a draft."""
    pytest.importorskip("numba")
    tokens = np.random.default_rng(past).integers(3, 500, past + MOST + 1)
    for precision in ("int4", "int8"):
        exact = mvlm_np.load(tiny, precision=precision, backend="numba", cache=cache)
        session, x = exact.session(), exact.decoder.embed_tokens(tokens)
        session.prefill(x[:past], tokens[:past], MOST + 1, Watch())
        alone = np.concatenate(
            [session.logits(tokens[i : i + 1], session.cache) for i in range(past, len(tokens))]
        )
        for rows in range(2, MOST + 2):
            session.cache.length = past
            assert np.array_equal(session.logits(tokens[past : past + rows], session.cache), alone[:rows])


class Cheap(DraftModel):
    """The models here are of one size, at which no draft is worth its cost."""

    def __init__(self, model: MobileVLM, cost: float):
        super().__init__(model, 0.05)


@pytest.fixture(autouse=True)
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drafts, "DraftModel", Cheap)


def test_a_draft_model_costs_what_it_reads(model: MobileVLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drafts, "DraftModel", DraftModel)
    draft = draft_for(model, model)
    assert isinstance(draft, DraftModel) and draft.cost == 1
    assert Pace(draft.cost).tokens() == 0  # so that it is not asked


DRAFTS = ["ngrams", "small", "itself"]


@pytest.fixture(params=DRAFTS)
def draft(request: pytest.FixtureRequest, model: MobileVLM, small: MobileVLM) -> MobileVLM | str:
    choices: dict[str, MobileVLM | str] = {"ngrams": "ngrams", "small": small, "itself": model}
    return choices[request.param]


def state(chat: Chat) -> tuple[Any, ...]:
    return chat.answer_ids, chat.history, chat.session.ids.tolist(), chat.session.cache.length


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_a_chat_with_a_draft_is_the_plain_chat(
    model: MobileVLM, draft: MobileVLM | str, temperature: float
) -> None:
    """Token by token and turn by turn, whatever is drafted; draws too, where the draft does not draw."""
    plain, drafting = model.chat(CAT), model.chat(CAT, draft=draft, watch=(watch := Watch()))
    for seed, question in enumerate(QUESTIONS):
        settings: dict[str, Any] = {"max_new_tokens": 40, "temperature": temperature, "seed": seed}
        if temperature and draft != "ngrams":
            continue
        assert list(drafting.stream(question, **settings)) == list(plain.stream(question, **settings))
        assert state(drafting) == state(plain)
    assert watch.counts.get("drafted", 0) > 0 or temperature


def test_a_draft_that_is_right_is_accepted(model: MobileVLM) -> None:
    watch = Watch()
    chat = model.chat(draft=model, watch=watch)
    answer = chat.ask(QUESTIONS[0], max_new_tokens=40)
    assert answer == model.ask(None, QUESTIONS[0], max_new_tokens=40)
    assert watch.counts["accepted"] == watch.counts["drafted"] > 0.7 * len(chat.answer_ids)


@pytest.mark.parametrize("taken", [1, 2, 5])
def test_a_stream_that_is_abandoned_leaves_the_chat_as_a_plain_one(
    model: MobileVLM, draft: MobileVLM | str, taken: int
) -> None:
    chats = [model.chat(CAT), model.chat(CAT, draft=draft)]
    for chat in chats:
        stream = chat.stream(QUESTIONS[1], max_new_tokens=40)
        for _ in range(taken):
            next(stream)
        del stream
    assert state(chats[0]) == state(chats[1])
    assert chats[0].ask(QUESTIONS[2], max_new_tokens=9) == chats[1].ask(QUESTIONS[2], max_new_tokens=9)
    assert state(chats[0]) == state(chats[1])


def test_forks_of_a_chat_draft_each_for_itself(model: MobileVLM, draft: MobileVLM | str) -> None:
    """Draws of a draft model are those of its own seed, whoever else draws meanwhile."""
    settings: dict[str, Any] = {"max_new_tokens": 30, "temperature": 1.0, "seed": 4}

    def forks() -> tuple[Chat, Chat]:
        chat = model.chat(draft=draft)
        chat.ask(QUESTIONS[0], max_new_tokens=9)
        return chat, chat.fork()

    alone = [chat.ask(question, **settings) for chat, question in zip(forks(), QUESTIONS[1:], strict=True)]
    streams = [
        chat.stream(question, **settings) for chat, question in zip(forks(), QUESTIONS[1:], strict=True)
    ]
    said = ["", ""]
    while any(pieces := [next(stream, "") for stream in streams]):
        said = [text + piece for text, piece in zip(said, pieces, strict=True)]
    assert said == alone


def test_generate_takes_a_draft_up_to_the_end_of_the_context(
    model: MobileVLM, draft: MobileVLM | str
) -> None:
    context = model.config.decoder.max_position_embeddings
    ids = [1, *np.resize(np.arange(7, 30), context - 21).tolist()]
    plain = model.generate(ids, max_new_tokens=50)
    assert model.generate(ids, max_new_tokens=50, draft=draft) == plain
    assert len(plain) <= 20


def test_beams_do_without_a_draft(model: MobileVLM, draft: MobileVLM | str) -> None:
    settings: dict[str, Any] = {"max_new_tokens": 8, "num_beams": 3}
    watch = Watch()
    answer = model.ask(None, QUESTIONS[1], draft=draft, watch=watch, **settings)
    assert answer == model.ask(None, QUESTIONS[1], **settings)
    assert watch.counts == {}


def test_sampling_with_a_draft_model_repeats(model: MobileVLM, small: MobileVLM) -> None:
    settings: dict[str, Any] = {"max_new_tokens": 30, "temperature": 1.0, "seed": 5}
    answers = [model.ask(None, QUESTIONS[0], draft=small, **settings) for _ in range(2)]
    assert answers[0] == answers[1]


# ---------------------------------------------------------------- what is refused


def test_only_what_computes_exactly_takes_a_draft(tiny: Path, model: MobileVLM, small: MobileVLM) -> None:
    def exact(model: MobileVLM) -> bool:
        return decoder.exact(model.decoder, model.config.decoder, model.ops)

    assert exact(model)
    for how in (("int4", "numpy"), ("float32", "numba")):
        other = mvlm_np.load(tiny, precision=how[0], backend=how[1])
        assert not exact(other)
        for draft in ("ngrams", small):
            with pytest.raises(UserError, match=r"^draft: .*, wanted int8 or int4 .*; load it "):
                other.ask(None, "What?", draft=draft)
        assert draft_for(other, None) is draft_for(other, "none") is None
    odd = replace(model.config.decoder, num_attention_heads=8, num_key_value_heads=8)
    assert not decoder.exact(model.decoder, odd, model.ops)  # heads of 8


@pytest.mark.parametrize("wrong", ["ngram", "", 3, True, ["ngrams"], Path("ngrams")])
def test_what_is_no_draft_is_told(model: MobileVLM, wrong: Any) -> None:
    with pytest.raises(UserError, match=r'^draft: found .*, wanted "ngrams", a loaded model, or None$'):
        model.ask(None, "What?", draft=wrong)
    with pytest.raises(UserError, match=r"^draft: found "):
        model.generate([1, 5], draft=wrong)


def test_a_draft_model_has_the_same_tokens(
    model: MobileVLM, small: MobileVLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = small.tokenizer
    monkeypatch.setattr(theirs, "_pieces", [*theirs._pieces[:70], "other", *theirs._pieces[71:]])
    with pytest.raises(UserError, match=r"^draft: token 70 is 'other', wanted '.*' as in the model; take "):
        model.chat(draft=small)
    monkeypatch.setattr(theirs, "_pieces", model.tokenizer._pieces[:400])
    monkeypatch.setattr(theirs, "vocab_size", 400)
    with pytest.raises(UserError, match=r"^draft: token 400 is missing, wanted '.*' as in the model; take "):
        model.chat(draft=small)


# ---------------------------------------------------------------- the command


def test_ask_and_chat_draft_and_say_how_much(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("numba")
    common = ["--model", str(tiny), "--precision", "int4-symmetric", "--backend", "numba"]
    common += ["--max-new-tokens", "30"]

    def ask(*more: str) -> dict[str, Any]:
        assert main(["ask", CAT, QUESTIONS[1], "--json", *common, *more]) == 0
        return dict(json.loads(capsys.readouterr().out))

    plain = ask()
    assert plain["drafted_tokens"] == plain["accepted_tokens"] == 0
    for draft in ("ngrams", str(tiny)):
        found = ask("--draft", draft)
        assert found["ids"] == plain["ids"]
        assert 0 <= found["accepted_tokens"] <= found["drafted_tokens"] > 0
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{QUESTIONS[1]}\n\n"))
    assert main(["chat", CAT, *common, "--draft", str(tiny)]) == 0
    assert capsys.readouterr().out == plain["text"] + "\n"


def test_a_draft_that_cannot_be_is_one_line(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    possible, damaged = "; without a model: --draft ngrams", str(tmp_path)
    for draft, told in (
        ("ngrams", "wanted int8 or int4 weights and compiled kernels; load it with"),
        ("ngram", f"--draft: ngram: does not exist, wanted a model folder or a GGUF file{possible}"),
        ("owner/small", f"download it: mvlm pull owner/small{possible}"),
        ("", possible),
        (damaged, f"--draft: {damaged}: holds no model"),
    ):
        for verb in (["ask", "What?"], ["chat"]):
            assert main([*verb, "--model", str(tiny), "--backend", "numpy", "--draft", draft]) == 2
            out, err = capsys.readouterr()
            assert told in err and (possible in err) == (possible in told)
            assert out == "" and len(err.splitlines()) == 1 and "Traceback" not in err


def test_bench_measures_drafts(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("numba")
    common = ["bench", "--speculate", "--rounds", "1", "--prompt", "8", "--new", "6", "--model", str(tiny)]
    assert main([*common, "--precision", "int4", "--backend", "numba", "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert [line["rate"] for line in figures["speculation"]] == sorted({0.0, 0.6, 0.8, 1.0} | {0.2, 0.4, 0.9})
    assert figures["step_times"].keys() == {"2", "4"}
    assert main([*common, "--precision", "int4", "--backend", "numba"]) == 0
    assert "x plain" in capsys.readouterr().out
    assert main(common) == 2
