"""The one thread that owns an engine, and with it the model and its threads."""

import logging
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from threading import Event as Flag
from threading import Thread

from mvlm_np import memory
from mvlm_np.serve.engine import Engine
from mvlm_np.serve.job import Job
from mvlm_np.serve.requests import Event, Failed, Finished, Listener, Request, Status

LOG = logging.getLogger(__name__)

IDLE = 1.0  # seconds after which an idle worker looks round
PAUSED = 0.02  # the same where all answers wait for their readers


class Worker:
    """Steps an engine in a thread of its own.

    with Worker(Engine(model)) as worker:
        for event in worker.stream(Request((Message("user", "What is this?", (picture,)),))):
            ...

    ready  set when the engine has started; an error that it met meanwhile is `error`
    """

    def __init__(self, engine: Engine):
        self.engine, self.ready = engine, Flag()
        self.error: Exception | None = None
        self._wake = Flag()
        self._thread = Thread(target=self._run, name="mvlm-serve", daemon=True)

    def start(self) -> None:
        """Begins; requests are taken at once, and answered when the engine has started."""
        self._thread.start()

    def stop(self, timeout: float | None = None) -> None:
        """Ends all requests with `Failed(Stopping())`, and the thread when its current slice is over."""
        self.engine.stop()
        self._wake.set()
        if self._thread.ident is not None:
            self._thread.join(timeout)

    def __enter__(self) -> "Worker":
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def submit(self, request: Request, listener: Listener, unread: Callable[[], int] = lambda: 0) -> Job:
        """See `Engine.submit`."""
        job = self.engine.submit(request, listener, unread)
        self._wake.set()
        return job

    def cancel(self, job: Job) -> None:
        """See `Engine.cancel`."""
        self.engine.cancel(job)
        self._wake.set()

    def status(self) -> Status:
        """See `Engine.status`."""
        return self.engine.status()

    def stream(self, request: Request) -> Iterator[Event]:
        """The events of a request as they come, for a thread that may wait for them.

        `Failed` is raised as its error. An iterator that is closed early gives the request up.
        """
        events: SimpleQueue[Event] = SimpleQueue()
        job = self.submit(request, events.put, events.qsize)
        try:
            while True:
                event = events.get()
                if isinstance(event, Failed):
                    raise event.error
                yield event
                if isinstance(event, Finished):
                    return
        finally:
            self.cancel(job)

    def _run(self) -> None:
        engine = self.engine
        try:
            engine.start()
        except Exception as error:
            LOG.exception("the engine did not start")
            self.error = error
            engine.stop()
        self.ready.set()
        ended = engine.ended
        while not engine.stopped:
            self._wake.clear()
            worked = engine.step()
            if ended != engine.ended:
                # Else what is free lies between what caches keep, and the process grows for hours.
                ended = engine.ended
                memory.give_back()
            if not worked:
                self._wake.wait(PAUSED if engine.is_busy else IDLE)
