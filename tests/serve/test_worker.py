"""The engine in its thread, with the model in the box."""

import json
from collections.abc import Iterator

import pytest

import mvlm_np
from mvlm_np.demo import PICTURES
from mvlm_np.errors import PromptError
from mvlm_np.generation import Settings
from mvlm_np.inputs.conversation import Message
from mvlm_np.inputs.image import open_image
from mvlm_np.model import MobileVLM
from mvlm_np.serve.engine import Engine
from mvlm_np.serve.requests import Finished, Piece, Request, Stopping
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
