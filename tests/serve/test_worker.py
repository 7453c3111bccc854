"""The engine in its thread, with the model in the box."""

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import mvlm_np
from mvlm_np.demo import PICTURES
from mvlm_np.demo.asking import looks
from mvlm_np.errors import PromptError
from mvlm_np.generation import Settings
from mvlm_np.inputs.conversation import Message
from mvlm_np.inputs.image import open_image
from mvlm_np.model import MobileVLM
from mvlm_np.serve.caches import Prefixes
from mvlm_np.serve.engine import Engine
from mvlm_np.serve.requests import Failed, Finished, Piece, Request, Stopping
from mvlm_np.serve.worker import Worker
from tests.conftest import ROOT

DEMO = ROOT / "mvlm_np" / "demo" / "model"


@pytest.fixture(scope="module")
def model() -> MobileVLM:
    pytest.importorskip("numba")
    return mvlm_np.load(DEMO, precision="int4", backend="numba")


@pytest.fixture
def worker(model: MobileVLM) -> Iterator[Worker]:
    with Worker(Engine(model)) as worker:
        yield worker
    assert not worker.alive


def answer(worker: Worker, request: Request) -> tuple[str, Finished]:
    *pieces, finished = worker.stream(request)
    assert all(isinstance(piece, Piece) for piece in pieces)
    assert isinstance(finished, Finished)
    return "".join(piece.text for piece in pieces if isinstance(piece, Piece)), finished


def test_answers_are_those_of_ask(model: MobileVLM, worker: Worker) -> None:
    entry = json.loads((PICTURES / "questions.json").read_text("utf-8"))[0]
    picture = open_image(PICTURES / entry["picture"])
    for i, question in enumerate(entry["questions"]):
        text, finished = answer(worker, Request((Message("user", question, (picture,)),)))
        assert text == model.ask(picture, question)
        assert finished.reason == "stop"
        assert (finished.cached_tokens > 144) == (i > 0)
    status = worker.status()
    assert status.counts["finished"] == len(entry["questions"])
    assert (status.pictures.entries, status.running, status.queued) == (1, 0, 0)


def test_where_a_picture_was_looked_at_is_told_to_those_who_ask(model: MobileVLM, worker: Worker) -> None:
    picture, other = (open_image(PICTURES / name) for name in ("0.png", "1.png"))
    question = "Describe the yellow lamp."
    for pictures in ((picture,), (picture, other), ()):
        request = Request((Message("user", question, pictures),), Settings(4), look=True)
        text, finished = answer(worker, request)
        plain, without = answer(worker, replace(request, look=False))
        assert text == plain
        assert not without.looked and len(finished.looked) == len(pictures)
        assert all(looked.shape == (12, 12) and looked.sum() > 0 for looked in finished.looked)
        assert sum(looked.sum() for looked in finished.looked) < 1
        if len(pictures) == 1:
            assert np.array_equal(finished.looked[0], looks(model, model.encode_image(picture), question))


@pytest.mark.parametrize("precision, cache", [("int4", "float16"), ("int8", "int8")])
def test_what_is_cached_is_to_the_bit_what_is_computed(precision: str, cache: str) -> None:
    """Log-probabilities show every bit of the logits, of new questions, longer chats and other pictures."""
    pytest.importorskip("numba")
    model = mvlm_np.load(DEMO, precision=precision, backend="numba", cache=cache)
    first, second = (open_image(PICTURES / name) for name in ("0.png", "1.png"))

    def asked(*turns: tuple[str, str, tuple[Any, ...]]) -> Request:
        return Request(tuple(Message(*turn) for turn in turns), Settings(4), top_logprobs=3)

    what, where = (
        ("user", "Describe the yellow lamp.", (first,)),
        ("user", "How many lamps are there?", (first,)),
    )
    said = ("assistant", "a yellow lamp off, left", ())
    requests = [
        asked(what),
        asked(where),
        asked(what),
        asked(what, said, ("user", "Is it on?", ())),
        asked(what, said, ("user", "And here?", (second,))),
        asked(("user", "Describe the yellow lamp.", (second,))),
        asked(("system", "Be brief.", ()), what),
        asked(("user", "List the things.", (second, first))),
        asked(what, said, ("user", "Is it on?", ()), ("assistant", "no", ()), ("user", "Why?", (second,))),
    ]

    def chances(engine: Engine) -> list[tuple[list[Piece | Finished | Failed], int]]:
        engine.start()
        found = []
        for request in requests:
            events: list[Piece | Finished | Failed] = []
            engine.submit(request, events.append)
            while engine.step():
                pass
            assert isinstance(events[-1], Finished)
            found.append((events[:-1], events[-1].cached_tokens))
        return found

    with pytest.MonkeyPatch.context() as patch:
        warm = chances(Engine(model, prefixes=1 << 28))
        patch.setattr(Prefixes, "begin", lambda self, session, ids, owner: (0, False))
        cold = chances(Engine(model, prefixes=0, pictures=0))
    assert [events for events, _ in warm] == [events for events, _ in cold]
    cached = [count for _, count in warm]
    assert all(count > 144 for count in [*cached[1:5], cached[8]])
    assert not any(count for _, count in cold)


def test_answers_given_together_are_those_given_alone(model: MobileVLM) -> None:
    pictures = [open_image(PICTURES / f"{i}.png") for i in range(3)]
    questions = ["Describe the yellow lamp.", "List the things.", "Name the things you see."]
    requests = [
        Request((Message("user", question, (shown,)),), Settings(8), top_logprobs=0, client=question)
        for shown in pictures
        for question in questions
    ]

    def events(engine: Engine, some: list[Request]) -> list[list[Piece | Finished | Failed]]:
        heard: list[list[Piece | Finished | Failed]] = [[] for _ in some]
        for request, listener in zip(some, heard, strict=True):
            engine.submit(request, listener.append)
            engine.step()
        while engine.step():
            pass
        return [listener[:-1] for listener in heard]

    together = events(Engine(model), requests)
    assert together == [events(Engine(model), [request])[0] for request in requests]


def test_what_cannot_be_answered_is_refused_before_it_is_queued(worker: Worker) -> None:
    with pytest.raises(PromptError, match=r"^prompt: takes .* fewer than the model's"):
        list(worker.stream(Request((Message("user", "lamp " * 3000),))))
    assert worker.status().counts.get("requests", 0) == 0


def test_a_stopped_worker_takes_nothing_and_ends_what_there_is(model: MobileVLM) -> None:
    with Worker(Engine(model)) as worker:
        events = worker.stream(Request((Message("user", "List the things."),), Settings(2000)))
        next(events)
        worker.stop()
        with pytest.raises(Stopping):
            list(events)
        with pytest.raises(Stopping):
            worker.submit(Request((Message("user", "?"),)), print)
    assert not worker.alive
