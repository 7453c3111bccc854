"""The server as a process has it: an address to listen on, uvicorn behind it, and an orderly end.

uvicorn has no limit on the time that a client takes to send a request or to read a reply, and at its end it
waits for replies that are not finished. Both are mended here.
"""

import asyncio
import errno
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType
from typing import Any

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from mvlm_np.errors import UserError

CONNECTIONS = 64  # at a time, at most
TO_SEND = 35.0  # seconds for a request; a slow body has got its 408 by then
TO_READ = 30.0  # seconds for which a client may read nothing of a reply
TO_END = 4.0  # seconds that replies have at the end
HEADER = 16_384  # bytes of a request's line and header
FULL = b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 5\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
BEING_SENT = (h11.IDLE, h11.SEND_BODY)  # states of a client whose request is not complete


@dataclass(frozen=True)
class Certificate:
    """What TLS needs: a chain of certificates, and its key, in PEM files."""

    chain: str
    key: str

    def check(self) -> None:
        """UserError: they cannot be used."""
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(self.chain, self.key, password="")
        except (OSError, ssl.SSLError) as error:
            reason = error.strerror or "no certificate in PEM, or not this key's"
            wanted = "a certificate and its key without a password, in PEM"
            raise UserError(f"--cert {self.chain} --key {self.key}", reason, wanted) from None


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens; port 0 takes a free one. UserError: this address cannot be had."""
    try:
        addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        return socket.create_server((host, port), family=addresses[0][0], backlog=128)
    except OSError as error:
        where = f"{host} port {port}"
        if error.errno == errno.EADDRINUSE:
            found, fix = "is in use by another program", "choose another with --port"
        else:
            found, fix = f"cannot be had ({error.strerror})", "name an address of this machine as --host"
        raise UserError(where, found, fix=fix) from None


def run(
    app: ASGIApp,
    listening: socket.socket,
    stop: Callable[[], object],
    certificate: Certificate | None = None,
) -> None:
    """Serves until SIGTERM or SIGINT comes; a second one ends it at once.

    stop  called at the end, before anything is waited for: has all replies end soon
    """
    config = uvicorn.Config(
        app,
        http=_Connection,
        ws="none",
        lifespan="off",
        loop="asyncio",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        h11_max_incomplete_event_size=HEADER,
        timeout_graceful_shutdown=int(TO_END) + 1,
        ssl_certfile=certificate.chain if certificate else None,
        ssl_keyfile=certificate.key if certificate else None,
    )
    Server(config, stop).run(sockets=[listening])


class Server(uvicorn.Server):
    """`run` has the arguments."""

    def __init__(self, config: uvicorn.Config, stop: Callable[[], object]):
        super().__init__(config)
        self._stop = stop

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # uvicorn's own would raise the signal again at the end, which then looks like a crash.
        self.force_exit = self.should_exit
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await asyncio.to_thread(self._stop)
        late = asyncio.get_running_loop().call_later(TO_END, self._hang_up)
        await super().shutdown(sockets)
        late.cancel()

    def _hang_up(self) -> None:
        for connection in list(self.server_state.connections):
            connection.transport.abort()


class _Connection(H11Protocol):
    """uvicorn's connection, with limits on its time and on how many there are."""

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options)
        self._sending, self._reading = _Timer(self, TO_SEND), _Timer(self, TO_READ)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > CONNECTIONS:
            transport.write(FULL)
            transport.close()
        else:
            self._sending.start()

    def data_received(self, data: bytes) -> None:
        self._sending.start()
        super().data_received(data)
        if self.conn.their_state not in BEING_SENT:
            self._sending.stop()

    def pause_writing(self) -> None:
        self._reading.start()
        super().pause_writing()

    def resume_writing(self) -> None:
        self._reading.stop()
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._sending.stop()
        self._reading.stop()
        super().connection_lost(exc)


class _Timer:
    """Breaks a connection off, unless it is stopped in time. To start one that runs does nothing."""

    def __init__(self, connection: H11Protocol, seconds: float):
        self._connection, self._seconds = connection, seconds
        self._handle: asyncio.TimerHandle | None = None

    def start(self) -> None:
        if self._handle is None:
            abort = self._connection.transport.abort
            self._handle = self._connection.loop.call_later(self._seconds, abort)

    def stop(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
