"""An engine that knows its answers, and helpers for tests that speak HTTP without a socket."""

import base64
import io
import json
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import Image
from starlette.testclient import TestClient

from mvlm_np.serve.app import build
from mvlm_np.serve.dialects import Served
from mvlm_np.serve.requests import CacheStatus, Event, Failed, Finished, Listener, Piece, Request, Status

SERVED = Served("tiny", context=2048, sees=True, max_tokens=100, fingerprint="mvlm-0-abc", since=1e9, size=5)
FINISHED = Finished("stop", 191, 35, 2, {"queued": 0.0, "encode": 0.5, "prefill": 0.25, "decode": 0.125})
ANSWER = (Piece("a "), Piece("cat"), FINISHED)


@dataclass
class FakeJob:
    request: Request
    listener: Listener
    cancelled: threading.Event = field(default_factory=threading.Event)
    ahead: int = 0


class FakeEngine:
    """Says the same events to each request. What `submit` raises is `refuses`.

    holds  only the first `holds` events are said; the rest never comes
    """

    def __init__(
        self,
        events: Sequence[Event] = ANSWER,
        refuses: Exception | None = None,
        holds: int | None = None,
        idle_seconds: float = 0.01,
    ):
        self.events, self.refuses, self.holds, self.idle_seconds = events, refuses, holds, idle_seconds
        self.jobs: list[FakeJob] = []
        self.ahead = 0
        self.submitted = threading.Event()

    def submit(self, request: Request, listener: Listener, unread: Any = None) -> FakeJob:
        if self.refuses:
            raise self.refuses
        job = FakeJob(request, listener, ahead=self.ahead)
        self.jobs.append(job)
        threading.Thread(target=self._say, args=(job,), daemon=True).start()
        self.submitted.set()
        return job

    def _say(self, job: FakeJob) -> None:
        for event in self.events[: self.holds]:
            job.listener(event)

    def cancel(self, job: FakeJob) -> None:
        job.cancelled.set()

    def stop(self) -> None:
        from mvlm_np.serve.requests import Stopping

        for job in self.jobs:
            job.listener(Failed(Stopping()))

    def status(self) -> Status:
        counts = {"requests": len(self.jobs), "finished": 0}
        return Status(
            1, 2, self.idle_seconds, counts, {"decode": 0.5}, CacheStatus(3, 4, 5, 6, 7), CacheStatus()
        )

    @property
    def request(self) -> Request:
        """The last one."""
        return self.jobs[-1].request


def client(engine: FakeEngine | None = None, **options: Any) -> TestClient:
    """A client of the application, in this process."""
    app = build(engine or FakeEngine(), options.pop("served", SERVED), **options)
    return TestClient(app, base_url="http://localhost:8080", raise_server_exceptions=False)


def picture(size: tuple[int, int] = (8, 6), format: str = "PNG", colour: str = "red") -> bytes:
    """A picture's file."""
    out = io.BytesIO()
    Image.new("RGB", size, colour).save(out, format)
    return out.getvalue()


def in_base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def url(data: bytes) -> str:
    return "data:image/png;base64," + in_base64(data)


def said(role: str, *content: Any) -> dict[str, Any]:
    """A message in OpenAI's dialect: texts, and pictures as bytes."""
    parts = [
        {"type": "text", "text": part}
        if isinstance(part, str)
        else {"type": "image_url", "image_url": {"url": url(part)}}
        for part in content
    ]
    return {"role": role, "content": content[0] if len(parts) == 1 and isinstance(content[0], str) else parts}


def chunks(text: str) -> list[Any]:
    """The events of a stream in OpenAI's dialect; the last one is "[DONE]" if the stream is whole."""
    found = []
    for event in text.split("\n\n"):
        if event.startswith("data: "):
            data = event.removeprefix("data: ")
            found.append(data if data == "[DONE]" else json.loads(data))
        else:
            assert event in ("", ": "), event
    return found


def lines(text: str) -> list[Any]:
    return [json.loads(line) for line in text.splitlines()]


def until(true: Any, seconds: float = 10.0) -> None:
    """Waits until something is true. AssertionError: it did not become so."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)
