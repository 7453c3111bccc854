"""Requests whose client leaves, dawdles or comes in number; and pictures, one at a time."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest

from mvlm_np.serve.answering import Limits
from mvlm_np.serve.app import build
from tests.serve.fake import SERVED, FakeEngine, picture, said, until

CHAT = "/v1/chat/completions"
HI = {"messages": [said("user", "Hi")]}


class Visit:
    """A request to the application as a server would hand it over. The client stays until `leave`."""

    def __init__(self, app: Any, body: Any, path: str = CHAT, parts: int = 1):
        data = json.dumps(body).encode()
        cuts = [data[i : i + len(data) // parts + 1] for i in range(0, len(data), len(data) // parts + 1)]
        self.to_come = [{"type": "http.request", "body": part, "more_body": True} for part in cuts]
        self.to_come[-1]["more_body"] = False
        self.gone = asyncio.Event()
        self.sent: list[Any] = []
        headers = [(b"host", b"localhost")]
        scope = {"type": "http", "method": "POST", "path": path, "headers": headers, "client": ("1.2.3.4", 5)}
        scope |= {"query_string": b"", "root_path": "", "scheme": "http", "http_version": "1.1"}
        self.task = asyncio.create_task(app(scope, self.receive, self.send))

    async def receive(self) -> Any:
        if self.to_come:
            return self.to_come.pop(0)
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        self.sent.append(message)

    def leave(self) -> None:
        self.gone.set()

    @property
    def status(self) -> int:
        return int(self.sent[0]["status"])


async def soon(true: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not true():
            await asyncio.sleep(0.005)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("path", "holds"), [(CHAT, 0), (CHAT, 1), ("/api/chat", 1), ("/api/generate", 0)])
def test_a_client_that_leaves_cancels_its_work(stream: bool, path: str, holds: int) -> None:
    engine = FakeEngine(holds=holds)

    async def run() -> None:
        visit = Visit(build(engine, SERVED), HI | {"model": "tiny", "prompt": "Hi", "stream": stream}, path)
        await soon(lambda: engine.jobs)
        assert not engine.jobs[0].cancelled.is_set()
        visit.leave()
        await asyncio.wait_for(visit.task, 10)
        await soon(engine.jobs[0].cancelled.is_set)

    asyncio.run(run())


def test_a_client_that_leaves_while_it_sends_has_asked_nothing() -> None:
    engine = FakeEngine()

    async def run() -> None:
        visit = Visit(build(engine, SERVED), HI)
        visit.to_come[0]["more_body"] = True
        visit.leave()
        await asyncio.wait_for(visit.task, 10)
        assert visit.sent == [] and engine.jobs == []

    asyncio.run(run())


def test_a_client_that_leaves_while_its_work_is_queued() -> None:
    """`submit` runs in a thread, which nothing stops: what it has queued is cancelled afterwards."""
    import threading

    let_go = threading.Event()

    class Slow(FakeEngine):
        def submit(self, request: Any, listener: Any, unread: Any = None) -> Any:
            self.submitted.set()
            let_go.wait(10)
            return super().submit(request, listener)

    engine = Slow(holds=0)

    async def run() -> None:
        visit = Visit(build(engine, SERVED), HI)
        await soon(engine.submitted.is_set)
        visit.leave()
        await asyncio.wait_for(visit.task, 10)
        let_go.set()
        await soon(lambda: engine.jobs and engine.jobs[0].cancelled.is_set())

    asyncio.run(run())


def test_one_of_several_answers_that_is_refused_takes_the_others_along() -> None:
    from mvlm_np.serve.requests import Busy

    class Full(FakeEngine):
        def submit(self, request: Any, listener: Any, unread: Any = None) -> Any:
            if self.jobs:
                raise Busy(3, 1.0)
            return super().submit(request, listener)

    engine = Full(holds=0)

    async def run() -> None:
        visit = Visit(build(engine, SERVED), HI | {"n": 2})
        await asyncio.wait_for(visit.task, 10)
        assert visit.status == 429 and engine.jobs[0].cancelled.is_set()

    asyncio.run(run())


def test_a_body_that_does_not_come() -> None:
    async def run() -> None:
        visit = Visit(build(FakeEngine(), SERVED, limits=Limits(to_send=0.1)), HI)
        visit.to_come[0]["more_body"] = True
        await asyncio.wait_for(visit.task, 10)
        assert visit.status == 408
        assert json.loads(visit.sent[1]["body"])["error"]["type"] == "invalid_request_error"

    asyncio.run(run())


def test_a_body_in_many_parts() -> None:
    engine = FakeEngine()

    async def run() -> None:
        visit = Visit(
            build(engine, SERVED), {"messages": [said("user", picture((50, 40)), "What?")]}, parts=200
        )
        await asyncio.wait_for(visit.task, 10)
        assert visit.status == 200 and engine.request.messages[0].pictures[0].size == (50, 40)

    asyncio.run(run())


def test_pictures_are_decoded_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    import threading
    import time

    from mvlm_np.serve import pictures

    inside, most, lock = 0, 0, threading.Lock()
    original = pictures.open_image

    def slow(encoded: Any) -> Any:
        nonlocal inside, most
        with lock:
            inside += 1
            most = max(most, inside)
        time.sleep(0.02)
        with lock:
            inside -= 1
        return original(encoded)

    monkeypatch.setattr(pictures, "open_image", slow)
    engine = FakeEngine()

    async def run() -> None:
        app = build(engine, SERVED)
        visits = [Visit(app, {"messages": [said("user", picture(), "What?")]}) for _ in range(6)]
        # Meanwhile the others get their replies.
        health = Visit(app, {}, "/health")
        await asyncio.wait_for(health.task, 10)
        assert inside < 2
        await asyncio.wait_for(asyncio.gather(*(visit.task for visit in visits)), 10)
        assert {visit.status for visit in visits} == {200}

    asyncio.run(run())
    assert (most, len(engine.jobs)) == (1, 6)


def test_many_at_once_each_get_their_own() -> None:
    from mvlm_np.serve.requests import Piece
    from tests.serve.fake import FINISHED

    class Echo(FakeEngine):
        def _say(self, job: Any) -> None:
            for event in (Piece(job.request.messages[0].text), FINISHED):
                job.listener(event)

    async def run() -> None:
        app = build(Echo(), SERVED)
        visits = [Visit(app, {"messages": [said("user", f"number {i}")], "n": 1 + i % 3}) for i in range(60)]
        await asyncio.wait_for(asyncio.gather(*(visit.task for visit in visits)), 30)
        for i, visit in enumerate(visits):
            choices = json.loads(visit.sent[1]["body"])["choices"]
            assert [choice["message"]["content"] for choice in choices] == [f"number {i}"] * (1 + i % 3)

    asyncio.run(run())


def test_prompts_are_in_the_log_only_if_wanted(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "mvlm_np.serve")
    for wanted in (False, True):
        caplog.clear()

        async def run(wanted: bool = wanted) -> None:
            app = build(FakeEngine(), SERVED, log_prompts=wanted)
            await Visit(app, {"messages": [said("user", "my secret", picture())]}).task

        asyncio.run(run())
        assert "200" in caplog.text and "191 tokens read" in caplog.text
        assert ("my secret" in caplog.text) == ("cat" in caplog.text) == wanted
        assert "iVBOR" not in caplog.text


def test_until_waits() -> None:
    with pytest.raises(AssertionError):
        until(lambda: False, 0.01)
