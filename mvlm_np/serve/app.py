"""The server's paths, and its door.

A request first passes the door (`safety`), then goes to its path. Those that ask the model are in
`answering`, in two dialects (`openai`, `ollama`); the others are short, and here.
"""

import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request as HTTPRequest
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mvlm_np.errors import UserError
from mvlm_np.serve import metrics, ollama, openai
from mvlm_np.serve.answering import Answering, Bodies, Engine, Limits
from mvlm_np.serve.dialects import Dialect, Served
from mvlm_np.serve.fetching import Fetching
from mvlm_np.serve.fields import Fields, read_json
from mvlm_np.serve.refused import Refused, refusal
from mvlm_np.serve.safety import Safety

log = logging.getLogger("mvlm_np.serve")

STUCK = (
    30.0  # seconds after which a worker that has not come round counts as stuck; work comes in slices of 0.1
)
DIALECTS = {
    "/v1/chat/completions": Dialect(openai.read, openai.Reply),
    "/api/chat": Dialect(ollama.read_chat, partial(ollama.Reply, chat=True)),
    "/api/generate": Dialect(ollama.read_generate, partial(ollama.Reply, chat=False)),
}
HEADERS = {"x-content-type-options": "nosniff", "referrer-policy": "no-referrer", "cache-control": "no-cache"}
PLAIN_PAGE = b"mvlm serve is running", "default-src 'none'"


def build(
    engine: Engine,
    served: Served,
    safety: Safety | None = None,
    limits: Limits | None = None,
    page: tuple[bytes, str] = PLAIN_PAGE,
    log_prompts: bool = False,
    fetching: Fetching | None = None,
    shared_cache: bool = True,
) -> ASGIApp:
    """The application, for any server that speaks ASGI.

    page         what stands at /, and its Content-Security-Policy
    log_prompts  the log has the texts of questions and answers
    fetching     gets pictures of which only the address is sent; None: they are refused
    shared_cache False: what was computed for a key (without keys, an address) is of use to no other
    """
    limits, counts, fetching = limits or Limits(), metrics.Counts(), fetching or Fetching()
    bodies = Bodies(limits)
    decoding = ThreadPoolExecutor(1, "pictures")  # one at a time: a photo takes 100 MB while it is decoded
    paths = _Paths(engine, served, bodies, counts, page)
    gets: dict[str, Callable[[HTTPRequest], Any]] = {
        "/": paths.page,
        "/health": paths.health,
        "/readyz": paths.health,
        "/metrics": paths.metrics,
        "/props": paths.props,
        "/v1/models": lambda request: JSONResponse(openai.models(served)),
        "/v1/models/{name:path}": paths.model,
        "/api/version": lambda request: JSONResponse({"version": ollama.VERSION}),
        "/api/tags": lambda request: JSONResponse(ollama.tags(served)),
        "/api/ps": lambda request: JSONResponse(ollama.running(served)),
    }
    common = served, bodies, fetching, decoding, limits.silence, log_prompts, shared_cache
    posts: dict[str, Any] = {path: Answering(dialect, engine, *common) for path, dialect in DIALECTS.items()}
    posts |= {"/api/show": paths.show, "/api/pull": paths.pull}
    routes = [Route(path, does, methods=["GET"]) for path, does in gets.items()]
    routes += [Route(path, does, methods=["POST"]) for path, does in posts.items()]
    handlers = {HTTPException: _as_json, UserError: _as_json, Exception: _as_json}
    return _Door(Starlette(routes=routes, exception_handlers=handlers), safety or Safety(), counts)


# ---------------------------------------------------------------- errors


async def _as_json(request: HTTPRequest, error: Exception) -> Response:
    if isinstance(error, HTTPException):  # of the routes: 404 and 405
        path, status = request.scope["path"][:200], error.status_code
        found = "there is no such path" if status == 404 else f"does not take {request.method[:20]}"
        error = Refused(path, found, status=status, headers=error.headers)
    return _reply(request.scope, refusal(error))


def _reply(scope: Scope, error: Refused) -> Response:
    """A refusal in the shape of the path's dialect."""
    of_ollama = scope["path"].startswith("/api/")
    body = ollama.error(error) if of_ollama else openai.error(error)
    status = ollama.BUSY if of_ollama and error.code == "server_busy" else error.status
    return JSONResponse(body, status, error.headers)


# ---------------------------------------------------------------- the door


class _Door:
    """Lets in what `safety` lets in, answers browsers that ask before they ask, counts and logs."""

    def __init__(self, app: ASGIApp, safety: Safety, counts: metrics.Counts):
        self._app, self._safety, self._counts = app, safety, counts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status, headers = time.perf_counter(), 0, Headers(scope=scope)
        shown, foreign = dict(HEADERS), headers.get("origin") in self._safety.origins
        if foreign:
            shown |= {"access-control-allow-origin": headers["origin"], "vary": "origin"}

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                given = MutableHeaders(scope=message)
                for name, value in shown.items():
                    given.setdefault(name, value)
            await send(message)

        state = scope["state"] = {"key": "", "note": ""}
        asks_leave = foreign and scope["method"] == "OPTIONS"
        try:
            # A browser that asks for leave brings no key yet.
            state["key"] = self._safety.check("/" if asks_leave else scope["path"], headers)
            app = _leave(headers) if asks_leave else self._app
        except Refused as error:
            app, state["note"] = _reply(scope, error), str(error)
        try:
            await app(scope, receive, sending)
        finally:
            self._counts.add(scope["path"], status)
            client, seconds = (scope.get("client") or ("?",))[0], time.perf_counter() - began
            words = (client, scope["method"], scope["path"], status or "-", f"{seconds:.2f} s", state["note"])
            log.info("%s", " ".join(str(word) for word in words if word))


def _leave(headers: Headers) -> Response:
    """What a browser wants to hear before it sends another site's request."""
    asked = headers.get("access-control-request-headers", "")
    allowed = {
        "access-control-allow-methods": "GET, POST",
        "access-control-allow-headers": asked,
        "access-control-max-age": "600",
    }
    return Response(status_code=204, headers=allowed)


# ---------------------------------------------------------------- paths that do not ask the model


class _Paths:
    def __init__(
        self,
        engine: Engine,
        served: Served,
        bodies: Bodies,
        counts: metrics.Counts,
        page: tuple[bytes, str],
    ):
        self._engine, self._served, self._bodies = engine, served, bodies
        self._counts, self._page = counts, page

    async def page(self, request: HTTPRequest) -> Response:
        content, policy = self._page
        kind = "text/html" if content.startswith(b"<") else "text/plain"
        return Response(content, media_type=kind, headers={"content-security-policy": policy})

    async def health(self, request: HTTPRequest) -> Response:
        """Also `/readyz`: the model is loaded before anybody can ask."""
        status = self._engine.status()
        well = status.idle_seconds < STUCK
        said = {
            "status": "ok" if well else "stuck",
            "running": status.running,
            "queued": status.queued,
            "idle_seconds": round(status.idle_seconds, 3),
        }
        return JSONResponse(said, 200 if well else 503)

    async def metrics(self, request: HTTPRequest) -> Response:
        return Response(metrics.text(self._engine.status(), self._counts), media_type=metrics.TYPE)

    async def props(self, request: HTTPRequest) -> Response:
        """What clients of llama.cpp's server look for."""
        return JSONResponse(
            {
                "default_generation_settings": {"n_ctx": self._served.context},
                "total_slots": 1,
                "model_alias": self._served.name,
                "modalities": {"vision": self._served.sees, "audio": False},
            }
        )

    async def model(self, request: HTTPRequest) -> Response:
        openai.require_model(request.path_params["name"], self._served)
        return JSONResponse(openai.model(self._served))

    async def show(self, request: HTTPRequest) -> Response:
        ollama.require_model(await self._body(request), self._served)
        return JSONResponse(ollama.show(self._served))

    async def pull(self, request: HTTPRequest) -> Response:
        """Nothing is downloaded. A client that wants the model that is here may have it."""
        body = await self._body(request)
        ollama.require_model(body, self._served)
        if body.get("stream") is False:
            return JSONResponse({"status": "success"})
        return Response(ollama.line({"status": "success"}), media_type=ollama.Reply.media_type)

    async def _body(self, request: HTTPRequest) -> Fields:
        async with self._bodies.read(request.scope, request.receive) as body:
            return read_json(body.data)
