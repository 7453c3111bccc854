"""The server on a socket of this machine: its limits on time and number, and its end."""

import json
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from mvlm_np.errors import UserError
from mvlm_np.serve import server
from mvlm_np.serve.answering import Limits
from mvlm_np.serve.app import build
from mvlm_np.serve.server import Certificate, listen
from tests.serve.fake import ANSWER, SERVED, FakeEngine, said, until

HI = {"messages": [said("user", "Hi")]}


class Running:
    def __init__(self, port: int, uvicorn_server: uvicorn.Server, thread: threading.Thread):
        self.port, self.server, self.thread = port, uvicorn_server, thread

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=20)

    def stop(self) -> float:
        """Seconds until it has ended."""
        began = time.monotonic()
        self.server.should_exit = True
        self.thread.join(30)
        assert not self.thread.is_alive()
        return time.monotonic() - began


@contextmanager
def running(engine: FakeEngine, **limits: Any) -> Iterator[Running]:
    """The application on a port of the system's choice, in a thread of this process."""
    made: list[uvicorn.Server] = []
    original = server.Server

    class Kept(original):  # type: ignore[misc, valid-type]
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            made.append(self)

    server.Server = Kept  # type: ignore[assignment, misc]
    app, listening = build(engine, SERVED, limits=Limits(**limits)), listen("127.0.0.1", 0)
    port = listening.getsockname()[1]
    thread = threading.Thread(target=server.run, args=(app, listening, engine.stop), daemon=True)
    try:
        thread.start()
        until(lambda: made and made[0].started)
        yield Running(port, made[0], thread)
    finally:
        server.Server = original  # type: ignore[misc]
        made[0].should_exit = True
        thread.join(30)


def request(
    body: Any = None, path: str = "/v1/chat/completions", verb: str = "POST", **headers: str
) -> bytes:
    data = b"" if body is None else json.dumps(body).encode()
    lines = [f"{verb} {path} HTTP/1.1", "host: localhost", f"content-length: {len(data)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + data


def read_to_end(connection: socket.socket) -> bytes:
    found = b""
    while part := connection.recv(65536):
        found += part
    return found


def broken_off(connection: socket.socket) -> bool:
    """Waits for the server to hang up, in one way or the other."""
    try:
        while connection.recv(65536):
            pass
    except ConnectionError:
        pass
    return True


def test_a_request_and_its_reply() -> None:
    with running(FakeEngine()) as here, here.connect() as connection:
        connection.sendall(request(HI, connection="close"))
        reply = read_to_end(connection)
        assert (
            reply.startswith(b"HTTP/1.1 200 OK") and b'"a cat"' in reply and b"server:" not in reply.lower()
        )


def test_a_client_that_hangs_up_cancels_its_work() -> None:
    for stream in (False, True):
        engine = FakeEngine(holds=1)
        with running(engine) as here:
            with here.connect() as connection:
                connection.sendall(request(HI | {"stream": stream}))
                until(lambda engine=engine: engine.jobs)
                assert not engine.jobs[0].cancelled.is_set()
            assert engine.jobs[0].cancelled.wait(5)


@pytest.mark.parametrize(
    "sent", [b"", b"GET / HT", request(HI)[:-5], request(verb="GET", path="/health") + b"GE"]
)
def test_a_request_that_does_not_come_to_its_end(sent: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "TO_SEND", 0.3)
    with running(FakeEngine()) as here, here.connect() as connection:
        connection.sendall(sent)
        began = time.monotonic()
        assert broken_off(connection) and time.monotonic() - began < 10


def test_a_header_that_drips(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "TO_SEND", 0.5)
    with running(FakeEngine()) as here, here.connect() as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nhost: localhost\r\n")
        with pytest.raises(ConnectionError):
            for i in range(200):
                connection.sendall(f"x-{i}: y\r\n".encode())
                time.sleep(0.05)


def test_a_body_that_drips() -> None:
    with running(FakeEngine(), to_send=0.3) as here, here.connect() as connection:
        connection.sendall(request(HI)[:-5])
        assert connection.recv(65536).startswith(b"HTTP/1.1 408")


def test_a_large_header_is_refused() -> None:
    with running(FakeEngine()) as here, here.connect() as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nhost: localhost\r\nx: " + b"y" * 40_000)
        assert connection.recv(65536).startswith(b"HTTP/1.1 4")


def test_a_body_without_end_is_refused() -> None:
    with running(FakeEngine(), body=100_000) as here, here.connect() as connection:
        connection.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n"
        )
        part = b"2710\r\n" + b"x" * 10_000 + b"\r\n"
        for _ in range(20):
            connection.sendall(part)
        assert connection.recv(65536).startswith(b"HTTP/1.1 413")


def test_a_client_that_never_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    from mvlm_np.serve.requests import Piece

    monkeypatch.setattr(server, "TO_READ", 0.3)
    engine = FakeEngine([Piece("x" * 1_000_000)] * 30)
    with running(engine) as here, here.connect() as connection:
        connection.sendall(request(HI | {"stream": True}))
        until(lambda: engine.jobs)
        assert engine.jobs[0].cancelled.wait(10)
        until(lambda: not here.server.server_state.connections)


def test_too_many_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "CONNECTIONS", 3)
    with running(FakeEngine()) as here:
        held = [here.connect() for _ in range(3)]
        until(lambda: len(here.server.server_state.connections) == 3)
        with here.connect() as one_more:
            assert read_to_end(one_more).startswith(b"HTTP/1.1 503")
        for connection in held:
            connection.close()
        until(lambda: not here.server.server_state.connections)
        with here.connect() as connection:
            connection.sendall(request(verb="GET", path="/health", connection="close"))
            assert read_to_end(connection).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("dialect", ["/v1/chat/completions", "/api/chat"])
def test_its_end_tells_open_streams(dialect: str) -> None:
    engine = FakeEngine(ANSWER, holds=1)
    with running(engine) as here, here.connect() as stream, here.connect() as whole, here.connect() as idle:
        stream.sendall(request(HI | {"stream": True, "model": "tiny"}, dialect))
        whole.sendall(request(HI | {"stream": False, "model": "tiny"}, dialect))
        idle.sendall(request(verb="GET", path="/health"))
        until(lambda: len(engine.jobs) == 2)
        assert here.stop() < 5
        said = read_to_end(stream)
        assert b"is stopping" in said and b"[DONE]" not in said
        assert read_to_end(whole).startswith(b"HTTP/1.1 503")
    assert all(job.cancelled.is_set() for job in engine.jobs)


def test_its_end_waits_for_nobody(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """A client that sends half a request, and an engine that does not stop."""
    monkeypatch.setattr(server, "TO_END", 0.5)
    engine = FakeEngine(holds=1)
    monkeypatch.setattr(engine, "stop", lambda: None)
    with running(engine) as here, here.connect() as half, here.connect() as stream:
        half.sendall(request(HI)[:-5])
        stream.sendall(request(HI | {"stream": True}))
        until(lambda: engine.jobs)
        assert here.stop() < 5
    assert "Traceback" not in caplog.text


def test_an_address_that_is_taken() -> None:
    taken = listen("127.0.0.1", 0)
    with taken, pytest.raises(UserError, match="is in use by another program; choose another with --port"):
        listen("127.0.0.1", taken.getsockname()[1])
    with pytest.raises(UserError, match="cannot be had"):
        listen("192.0.2.1", 0)
    with pytest.raises(UserError, match="cannot be had"):
        listen("no such host", 0)


def test_tls(tmp_path: Path) -> None:
    chain, key = tmp_path / "chain.pem", tmp_path / "key.pem"
    made = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-days",
        "2",
        "-subj",
        "/CN=localhost",
    ]
    try:
        subprocess.run([*made, "-keyout", key, "-out", chain], check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("needs openssl to make a certificate")
    certificate = Certificate(str(chain), str(key))
    certificate.check()
    for wrong in (
        Certificate(str(key), str(chain)),
        Certificate(str(chain), "nothing"),
        Certificate(str(chain), str(chain)),
    ):
        with pytest.raises(UserError, match="--cert"):
            wrong.check()
    engine, listening = FakeEngine(), listen("127.0.0.1", 0)
    port = listening.getsockname()[1]
    arguments = (build(engine, SERVED), listening, engine.stop, certificate)
    threading.Thread(target=server.run, args=arguments, daemon=True).start()
    trusted = ssl.create_default_context(cafile=str(chain))
    trusted.check_hostname = False
    plain = socket.create_connection(("127.0.0.1", port), timeout=20)
    with trusted.wrap_socket(plain, server_hostname="localhost") as connection:
        connection.sendall(request(HI, connection="close"))
        assert b'"a cat"' in read_to_end(connection)
