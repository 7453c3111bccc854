"""A server that only pretends: it says what a test wants it to say, in the shapes of `mvlm serve`."""

import json
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Map = list[list[float]]
LOOKED: Map = [[0.0] * 12 for _ in range(12)]
LOOKED[3][7], LOOKED[3][8], LOOKED[0][0] = 0.5, 0.25, 0.125
SECONDS = {"queued": 0.0002, "encode": 1.2345, "prefill": 0.5, "decode": 0.25}
USAGE = {"prompt_tokens": 191, "completion_tokens": 8, "prompt_tokens_details": {"cached_tokens": 35}}

Write = Callable[[bytes], None]
Say = Callable[[Write], None]  # writes a reply's body, piece by piece


def chunk(delta: dict[str, Any] | None = None, **more: Any) -> bytes:
    """A piece of a streamed answer, as the server writes it."""
    choices = (
        [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": more.pop("reason", None)}]
    )
    value = {"object": "chat.completion.chunk", "choices": choices, "usage": None} | more
    return b"data: " + json.dumps(value, ensure_ascii=False).encode() + b"\n\n"


BEGIN = chunk({"role": "assistant", "content": ""})


def end(reason: str = "stop", **ours: Any) -> bytes:
    last = chunk({}, reason=reason, mvlm={"seconds": SECONDS} | ours)
    return last + chunk(usage=USAGE) + b"data: [DONE]\n\n"


def answer(*pieces: str, reason: str = "stop", looked: Sequence[Map] = (LOOKED,)) -> Say:
    """Says an answer in these pieces. looked: a map for each photo"""
    ours = {"looked": looked} if looked else {}

    def say(write: Write) -> None:
        for part in (BEGIN, *(chunk({"content": piece}) for piece in pieces), end(reason, **ours)):
            write(part)

    return say


def cut(body: bytes, at: Sequence[int]) -> Say:
    """Says those bytes, cut at these places."""

    def say(write: Write) -> None:
        for start, stop in zip((0, *at), (*at, len(body)), strict=True):
            write(body[start:stop])

    return say


class Pretended:
    """What it says next, and what it heard."""

    def __init__(self, page: bytes, policy: str):
        self.page, self.policy = page, policy
        self.forget()

    def forget(self) -> None:
        self.say: Say = answer("yes")
        self.refuse: tuple[int, bytes] | None = None  # a status, and the body that goes with it
        self.key = ""
        self.heard: list[dict[str, Any]] = []  # bodies of the questions
        self.keys: list[str | None] = []  # that came with them
        self.go_on = threading.Event()  # for a `say` that waits for the test
        self.left = threading.Event()  # the client has gone while it was told something

    def waits(self, *before: str, after: bytes = b"", begin: bytes = BEGIN) -> Say:
        """Says these pieces, then nothing but comments until the test lets it go on to `after`."""

        def say(write: Write) -> None:
            for part in (begin, *(chunk({"content": piece}) for piece in before)):
                write(part)
            for _ in range(600):
                if self.go_on.wait(0.05):
                    write(after)
                    return
                write(b": \n\n")

        return say


@contextmanager
def pretended(page: bytes, policy: str) -> Iterator[tuple[Pretended, str]]:
    """The server, and its address."""
    server = Pretended(page, policy)
    connections: list[socket.socket] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def setup(self) -> None:
            super().setup()
            connections.append(self.connection)

        def log_message(self, *args: Any) -> None:
            pass

        def reply(self, status: int, kind: str, body: bytes, **headers: str) -> None:
            self.send_response(status)
            headers |= {"Content-Type": kind, "Content-Length": str(len(body)), "Connection": "close"}
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self) -> None:
            if self.path != "/":
                return self.reply(404, "text/plain", b"")
            headers = {"Content-Security-Policy": server.policy}
            self.reply(200, "text/html; charset=utf-8", server.page, **headers)

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            assert self.path == "/v1/chat/completions"
            server.keys.append(self.headers["Authorization"])
            if server.key and server.keys[-1] != f"Bearer {server.key}":
                return self.reply(401, "application/json", error("This server wants its key."))
            server.heard.append(json.loads(body))
            if server.refuse:
                return self.reply(server.refuse[0], "application/json", server.refuse[1])
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            try:
                server.say(self.write)
                self.wfile.write(b"0\r\n\r\n")
            except OSError:
                server.left.set()
                self.close_connection = True

        def write(self, part: bytes) -> None:
            if part:
                self.wfile.write(b"%x\r\n%s\r\n" % (len(part), part))
                self.wfile.flush()

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        http.daemon_threads = True
        thread = threading.Thread(target=http.serve_forever, daemon=True)
        thread.start()
        try:
            yield server, f"http://127.0.0.1:{http.server_port}/"
        finally:
            server.go_on.set()
            http.shutdown()
            thread.join(10)
            for connection in connections:  # a browser keeps some open, for later
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)


def error(message: str) -> bytes:
    return json.dumps({"error": {"message": message, "type": "x", "param": None, "code": None}}).encode()
