"""Pictures from an address, against a camera on this machine: passwords, streams, errors, floods."""

import base64
import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from mvlm_np.errors import UserError
from mvlm_np.watch.snapshots import Snapshots
from mvlm_np.watch.sources import Backoff
from tests.watch.camera import FakeClock, jpeg, scene

ROOM = jpeg(scene())
USER, PASSWORD = "me", "p@ss:w/rd"


class Handler(BaseHTTPRequestHandler):
    """/basic and /digest want a password, /stream has many pictures, /busy fails twice, /large floods."""

    failures = 0

    def do_GET(self) -> None:
        path, given = self.path.partition("?")[0], self.headers.get("Authorization", "")
        if path == "/basic" and given != f"Basic {base64.b64encode(f'{USER}:{PASSWORD}'.encode()).decode()}":
            return self.refuse('Basic realm="camera"')
        if path == "/digest" and not digest_is_right(given):
            return self.refuse('Digest realm="camera", nonce="abc", qop="auth", algorithm=MD5')
        if path in ("/403", "/404", "/503"):
            return self.send_error(int(path[1:]))
        if path == "/busy" and Handler.failures < 2:
            Handler.failures += 1
            return self.send_error(503)
        self.send_response(200)
        if path == "/stream":
            self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=x")
        self.end_headers()
        part = b"--x\r\nContent-Type: image/jpeg\r\n\r\n" + ROOM + b"\r\n"
        body = {"/stream": part, "/large": bytes(1 << 20), "/empty": b""}.get(path, ROOM)
        try:
            for _ in range(100 if path in ("/stream", "/large") else 1):
                self.wfile.write(body)
        except OSError:  # the other side has what it wants
            pass

    def refuse(self, challenge: str) -> None:
        self.send_response(401)
        self.send_header("WWW-Authenticate", challenge)
        self.end_headers()

    def log_message(self, *args: object) -> None:
        pass


def digest_is_right(given: str) -> bool:
    """RFC 7616, with MD5 and qop=auth."""
    if not given.startswith("Digest "):
        return False
    said = dict(part.strip().split("=", 1) for part in given[7:].split(","))
    said = {name: value.strip('"') for name, value in said.items()}

    def md5(text: str) -> str:
        return hashlib.md5(text.encode()).hexdigest()

    secret, what = md5(f"{USER}:camera:{PASSWORD}"), md5(f"GET:{said['uri']}")
    return said["response"] == md5(f"{secret}:abc:{said['nc']}:{said['cnonce']}:auth:{what}")


@pytest.fixture
def camera(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a camera, without http://."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    Handler.failures = 0
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield f"127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def opened(address: str) -> Snapshots:
    return Snapshots(address, 1.0, FakeClock(), Backoff(4.0))


@pytest.mark.parametrize("path", ["snap", "snap?a=1", "stream"])
def test_a_picture(camera: str, path: str) -> None:
    source = opened(f"http://{camera}/{path}")
    for _ in range(3):
        frame = source.next(1.0)
        assert frame is not None and frame.data == ROOM
    assert source.live and source.gone == "" and source.clock.now() == 1002.0


@pytest.mark.parametrize("path", ["basic", "digest", "snap"])
def test_user_and_password_are_sent_as_the_camera_wants_them(camera: str, path: str) -> None:
    source = opened(f"http://{USER}:p%40ss%3Aw%2Frd@{camera}/{path}")
    frame = source.next(1.0)
    assert frame is not None and frame.data == ROOM and source.name == f"http://{camera}/{path}"


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("basic", "answers 401 Unauthorized; put user and password into it: http://user:password@camera/"),
        ("403", "answers 403 Forbidden; check user and password"),
        ("404", "answers 404 Not Found; check the address in a browser"),
    ],
)
def test_what_waiting_does_not_mend(camera: str, path: str, message: str) -> None:
    with pytest.raises(UserError, match=f"^http://{camera}/{path}: {message}"):
        opened(f"http://{camera}/{path}").next(1.0)


def test_a_camera_that_has_worked_is_waited_for_whatever_it_says(camera: str) -> None:
    source = opened(f"http://{camera}/snap")
    assert source.next(1.0) is not None
    source._address = f"http://{camera}/404"
    assert source.next(1.0) is None and source.gone == "answers 404 Not Found"


def test_a_camera_that_fails_is_asked_again_later(camera: str) -> None:
    source = opened(f"http://{camera}/busy")
    given = [source.next(2.0) for _ in range(8)]
    assert [frame is not None for frame in given] == [False, False, False, False, False, False, True, True]
    assert source.gone == ""


def test_a_camera_that_is_not_there_is_waited_for(camera: str) -> None:
    source = opened("http://127.0.0.1:9/snap")
    assert source.next(1.0) is None and "cannot be read" in source.gone and "refused" in source.gone


def test_an_empty_answer_is_no_picture(camera: str) -> None:
    source = opened(f"http://{camera}/empty")
    assert source.next(1.0) is None and source.gone == "gives no picture"


class Ticking(FakeClock):
    """A second passes whenever it is asked."""

    def now(self) -> float:
        self.seconds += 1
        return self.seconds


def test_an_answer_has_a_largest_size_and_a_longest_time(camera: str) -> None:
    source = opened(f"http://{camera}/large")
    assert source.next(1.0) is None and source.gone == "cannot be read (a picture is larger than 32 MB)"
    source = Snapshots(f"http://{camera}/large", 1.0, Ticking())
    assert source.next(5.0) is None and source.gone == "cannot be read (a picture takes longer than 10 s)"
