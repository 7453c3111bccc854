"""From the body of a request to its reply, for paths that ask the model something.

All that can be refused is refused before the first byte of the reply. As soon as the client has gone, its
work is cancelled, wherever it is.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol, TypeVar

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from mvlm_np.errors import UserError
from mvlm_np.serve.dialects import Answer, Call, Dialect, Reply, Served
from mvlm_np.serve.fetching import Fetching
from mvlm_np.serve.fields import read_json
from mvlm_np.serve.pictures import decode
from mvlm_np.serve.refused import Refused, refusal
from mvlm_np.serve.requests import Event, Failed, Finished, Listener, Request, Status

log = logging.getLogger("mvlm_np.serve")
T = TypeVar("T")


class Engine(Protocol):
    """What is asked of `worker.Worker`, from any thread."""

    def submit(self, request: Request, listener: Listener, unread: Callable[[], int]) -> Any: ...
    def cancel(self, job: Any) -> None: ...
    def status(self) -> Status: ...


@dataclass(frozen=True)
class Limits:
    """Of what clients may do.

    body     bytes of a request's body
    bodies   bytes of all bodies that are held at a time
    to_send  seconds that a client has for sending a body
    silence  seconds after which a stream says that it is alive
    """

    body: int = 20_000_000
    bodies: int = 80_000_000
    to_send: float = 30.0
    silence: float = 5.0


class Gone(Exception):
    """The client has hung up."""


@dataclass
class Body:
    """A request's body, and how many bytes are held for that request, with those that are fetched for it."""

    data: bytearray
    held: int = 0


class Bodies:
    """Reads bodies, within limits."""

    def __init__(self, limits: Limits):
        self._limits, self._held = limits, 0

    @asynccontextmanager
    async def read(self, scope: Scope, receive: Receive) -> AsyncIterator[Body]:
        """A body, which counts as held until the end of the context.

        Refused: it is too large, or comes too slowly. Gone: the client left before its end.
        """
        length = Headers(scope=scope).get("content-length", "0")
        if len(length) > 18 or int(length) > self._limits.body:
            raise self._too_large()
        body = Body(bytearray())
        try:
            try:
                async with asyncio.timeout(self._limits.to_send):
                    await self._fill(body, receive)
            except TimeoutError:
                found = f"has not come within {self._limits.to_send:g} s"
                raise Refused("body", found, status=408, code="timeout") from None
            yield body
        finally:
            self._held -= body.held
            body.data = bytearray()  # whoever has the body still may have it until the answer's end

    def take(self, body: Body, count: int) -> None:
        """Counts some more bytes as held for a request. Refused: it, or all together, would hold too many."""
        body.held += count
        self._held += count
        if body.held > self._limits.body:
            raise self._too_large()
        if self._held > self._limits.bodies:
            wait = {"retry-after": "5"}
            raise Refused("server", "reads too many requests at once", status=503, headers=wait)

    async def _fill(self, body: Body, receive: Receive) -> None:
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise Gone
            part = message.get("body", b"")
            self.take(body, len(part))
            body.data += part
            more = message.get("more_body", False)

    def _too_large(self) -> Refused:
        fix = "send smaller pictures; the model sees 336 x 336"
        return Refused("body", "is too large", f"at most {self._limits.body:,} bytes", fix, status=413)


class Listening:
    """A request's jobs in the engine, and their events as they come.

    The engine's thread says them; they are heard in the thread of the loop in which this was made.
    """

    def __init__(self, engine: Engine):
        self._engine, self._loop = engine, asyncio.get_running_loop()
        self._heard: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()
        self.jobs: list[Any] = []
        self._closed = False

    def submit(self, requests: Sequence[Request]) -> None:
        """From any thread. UserError: one is refused, and all are."""
        for i, request in enumerate(requests):
            job = self._engine.submit(request, partial(self._hear, i), self._heard.qsize)
            self.jobs.append(job)
            if self._closed:  # the client left meanwhile
                self._engine.cancel(job)

    def close(self) -> None:
        """Cancels what is not finished. To cancel what is, does nothing.

        Jobs know this listener, and are forgotten here, so that both are freed at once.
        """
        self._closed = True
        for job in self.jobs:
            self._engine.cancel(job)
        self.jobs = []

    def _hear(self, i: int, event: Event) -> None:
        with suppress(RuntimeError):  # the loop has been closed: nobody listens any more
            self._loop.call_soon_threadsafe(self._heard.put_nowait, (i, event))

    async def events(self, silence: float | None = None) -> AsyncIterator[tuple[int, Event | None]]:
        """(number of the job, event), until each job is finished or one has failed.

        silence: after so many seconds without an event comes None in its place
        """
        open_jobs = len(self.jobs)
        while open_jobs:
            try:
                async with asyncio.timeout(silence):
                    i, event = await self._heard.get()
            except TimeoutError:
                yield -1, None
                continue
            yield i, event
            if isinstance(event, Failed):
                return
            open_jobs -= isinstance(event, Finished)


async def while_connected(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """The result of some work. Gone: the client left before, and the work was cancelled."""

    async def leaves() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    working, leaving = asyncio.create_task(work), asyncio.create_task(leaves())
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise Gone
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


@dataclass(frozen=True)
class Answering:
    """The endpoint of a dialect's path, as an application of ASGI.

    decoding      has the threads in which pictures are decoded
    silence       seconds after which a stream says that it is alive
    log_prompts   the log has the texts of questions and answers
    shared_cache  what was computed for one client may be of use to others
    """

    dialect: Dialect
    engine: Engine
    served: Served
    bodies: Bodies
    fetching: Fetching
    decoding: ThreadPoolExecutor
    silence: float
    log_prompts: bool
    shared_cache: bool

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        listening = Listening(self.engine)
        try:
            async with self.bodies.read(scope, receive) as body:
                call = await while_connected(receive, self._ask(scope, body, listening))
            reply = self.dialect.reply(call, self.served)
            if not call.answers:
                await JSONResponse(reply.nothing())(scope, receive, send)
            elif call.stream:
                await while_connected(receive, self._stream(scope, send, listening, reply, call.answers))
            else:
                answers = await while_connected(receive, self._collect(scope, listening, call.answers))
                await JSONResponse(reply.whole(answers))(scope, receive, send)
        except Gone:
            _note(scope, "the client left")
        finally:
            listening.close()

    async def _ask(self, scope: Scope, body: Body, listening: Listening) -> Call:
        """Queues what a body asks for. The call is returned without its messages, which are large."""
        call = await asyncio.to_thread(lambda: self.dialect.read(read_json(body.data), self.served))
        if self.log_prompts:
            log.info("asked: %r", [(message.role, message.text) for message in call.messages])
        files = await self.fetching.all(call.pictures, partial(self.bodies.take, body))
        loop = asyncio.get_running_loop()
        pictures = await loop.run_in_executor(self.decoding, decode, files) if files else []
        requests = call.requests(pictures, **self._whose(scope))
        try:
            await asyncio.to_thread(listening.submit, requests)
        except UserError as error:
            raise refusal(error) from None
        return replace(call, messages=())

    def _whose(self, scope: Scope) -> dict[str, Any]:
        """The fields of `Request` that follow from who asks."""
        key, address = scope["state"]["key"], (scope.get("client") or [""])[0]
        low_priority = Headers(scope=scope).get("x-priority", "").lower() == "low"
        owner = "" if self.shared_cache else key or address
        return {"client": f"{address} {key}", "owner": owner, "low_priority": low_priority}

    async def _collect(self, scope: Scope, listening: Listening, n: int) -> list[Answer]:
        """The whole answers. Refused: one of them failed."""
        answers = [Answer() for _ in range(n)]
        async for i, event in listening.events():
            if isinstance(event, Failed):
                raise refusal(event.error, late=True)
            if event:
                answers[i].add(event)
        self._done(scope, answers)
        return answers

    async def _stream(self, scope: Scope, send: Send, listening: Listening, reply: Reply, n: int) -> None:
        """Sends the reply as it comes. A failure is its last part, for its status has been sent before."""

        async def body(part: bytes | None, more: bool = True) -> None:
            if part or not more:
                await send({"type": "http.response.body", "body": part or b"", "more_body": more})

        headers = [(b"content-type", reply.media_type.encode()), (b"x-accel-buffering", b"no")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await body(b"".join(reply.first(i, job.ahead) for i, job in enumerate(listening.jobs)))
        answers = [Answer() for _ in range(n)]
        async for i, event in listening.events(self.silence):
            if event is None:
                await body(reply.ping)
            elif isinstance(event, Failed):
                _note(scope, f"failed: {event.error}")
                await body(reply.failure(refusal(event.error, late=True)), more=False)
                return
            else:
                answers[i].add(event)
                await body(reply.last(i, event) if isinstance(event, Finished) else reply.piece(i, event))
        self._done(scope, answers)
        await body(reply.end([answer.finished for answer in answers if answer.finished]), more=False)

    def _done(self, scope: Scope, answers: Sequence[Answer]) -> None:
        finished = [answer.finished for answer in answers if answer.finished]
        prompt, new = finished[0].prompt_tokens, sum(one.completion_tokens for one in finished)
        _note(scope, f"{prompt} tokens read, {finished[0].cached_tokens} of them before, {new} written")
        if self.log_prompts:
            log.info("answered: %r", [answer.text for answer in answers])


def _note(scope: Scope, words: str) -> None:
    """For the line that the log gets about a request."""
    scope["state"]["note"] = words
