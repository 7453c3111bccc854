"""Pictures that are fetched: from whom, within which limits, and what nobody can have the server do."""

import asyncio
import json
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mvlm_np.inputs.picture_file import Encoded
from mvlm_np.serve import fetching
from mvlm_np.serve.answering import Limits
from mvlm_np.serve.fetching import Fetching, Where, is_public
from mvlm_np.serve.pictures import Link
from mvlm_np.serve.refused import Refused
from tests.serve.fake import FakeEngine, client, in_base64, picture, url
from tests.serve.test_answering import Visit, soon

PNG = picture()
PUBLIC = "93.184.215.14"  # somebody's; nothing here ever connects to it
CHAT = "/v1/chat/completions"


def reply(body: bytes = PNG, status: str = "200 OK", kind: str | None = "image/png", *more: str) -> bytes:
    head = [f"HTTP/1.1 {status}", *([f"Content-Type: {kind}"] if kind else []), *more]
    if not any(line.lower().startswith(("content-length", "transfer-encoding")) for line in more):
        head.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*head, "", ""]).encode() + body


CHUNKED = reply(b"", "200 OK", "image/png", "Transfer-Encoding: chunked")
Says = Callable[[socket.socket], None]


def saying(data: bytes) -> Says:
    return lambda connection: connection.sendall(data)


class Stub:
    """A web server on this machine. port; heard: the requests that came; most: how many at once."""

    def __init__(self, says: Says):
        self.says = says
        self.heard: list[str] = []
        self.most = self._now = 0
        self._lock = threading.Lock()
        self._listening = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port = self._listening.getsockname()[1]
        self.tls: ssl.SSLContext | None = None
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while True:
            try:
                connection, _ = self._listening.accept()
            except OSError:
                return
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        connection.settimeout(10)
        with self._lock:
            self._now += 1
            self.most = max(self.most, self._now)
        try:
            if self.tls:
                connection = self.tls.wrap_socket(connection, server_side=True)
            with connection:
                asked = b""
                while b"\r\n\r\n" not in asked and (part := connection.recv(65536)):
                    asked += part
                self.heard.append(asked.decode("latin-1"))
                self.says(connection)
        except OSError:
            pass
        finally:
            with self._lock:
                self._now -= 1

    def close(self) -> None:
        self._listening.close()


@contextmanager
def stub(says: Says | bytes) -> Iterator[Stub]:
    made = Stub(saying(says) if isinstance(says, bytes) else says)
    try:
        yield made
    finally:
        made.close()


class Names:
    """A resolver that says what it is told, and counts how often it is asked."""

    def __init__(self, *answers: Sequence[str]):
        self.answers, self.asked = answers, list[str]()

    async def __call__(self, host: str, port: int) -> list[str]:
        self.asked.append(host)
        return [*self.answers[min(len(self.asked), len(self.answers)) - 1]]


HERE = Names(["127.0.0.1"])


def get(*urls: str, most: int = 100_000_000, **options: Any) -> list[bytes]:
    """What is fetched from addresses. Refused: something is not."""
    options = {"public": True, "seconds": 10.0} | options
    taken = 0

    def take(count: int) -> None:
        nonlocal taken
        taken += count
        if taken > most:
            raise Refused("body", "is too large", status=413)

    async def run() -> list[Encoded]:
        links = [Link(address, f"pictures[{i}]") for i, address in enumerate(urls)]
        return await Fetching(**options).all(links, take)

    found = asyncio.run(run())
    assert [one.name for one in found] == [f"pictures[{i}]" for i in range(len(urls))]
    return [one.data for one in found]


def refused(*urls: str, **options: Any) -> str:
    """Why not."""
    with pytest.raises(Refused) as error:
        get(*urls, **options)
    assert error.value.status == 400 and error.value.field and error.value.code == "invalid_image_url"
    return str(error.value)


# ---------------------------------------------------------------- from whom


@pytest.mark.parametrize(
    ("address", "public"),
    [
        (PUBLIC, True),
        ("8.8.8.8", True),
        ("2606:2800:21f:cb07:6820:80da:af6b:8b2c", True),
        ("64:ff9b::5db8:d70e", True),  # that of PUBLIC behind NAT64
        ("127.0.0.1", False),
        ("127.255.255.254", False),
        ("0.0.0.0", False),
        ("0.1.2.3", False),
        ("10.0.0.1", False),
        ("172.16.0.1", False),
        ("172.31.255.255", False),
        ("192.168.1.7", False),
        ("169.254.169.254", False),
        ("100.64.0.1", False),
        ("192.0.2.1", False),
        ("198.18.0.1", False),
        ("198.51.100.1", False),
        ("203.0.113.1", False),
        ("224.0.0.1", False),
        ("239.255.255.250", False),
        ("240.0.0.1", False),
        ("255.255.255.255", False),
        ("::1", False),
        ("::", False),
        ("::ffff:127.0.0.1", False),
        ("::ffff:93.184.215.14", False),
        ("::127.0.0.1", False),
        ("fe80::1", False),
        ("fe80::1%eth0", False),
        ("fec0::1", False),
        ("fc00::1", False),
        ("fd12:3456:789a::1", False),
        ("ff02::1", False),
        ("2001:db8::1", False),
        ("2002:7f00:1::", False),  # 127.0.0.1 by 6to4
        ("2002:5db8:d70e::", False),
        ("2001:0:7f00:1::", False),  # by Teredo
        ("64:ff9b::7f00:1", False),  # 127.0.0.1 behind NAT64
        ("64:ff9b::a9fe:a9fe", False),
        ("64:ff9b:1::7f00:1", False),
        ("100::1", False),
        ("localhost", False),
        ("", False),
    ],
)
def test_which_addresses_are_public(address: str, public: bool) -> None:
    assert is_public(address) == public


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "127.1",
        "2130706433",
        "0177.0.0.1",
        "0x7f.0.0.1",
        "0x7f000001",
        "localhost",
        "localhost.",
        "LOCALHOST",
        "0",
        "0.0.0.0",
        "[::1]",
        "[::]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "[0:0:0:0:0:ffff:127.0.0.1]",
        "169.254.169.254",
        "192.168.1.7",
        "10.1",
    ],
)
def test_this_machine_and_its_neighbours_in_all_spellings(host: str) -> None:
    """By the real resolver, which takes the odd ones for 127.0.0.1."""
    with stub(reply()) as server:
        for address in (
            f"http://{host}/a.png",
            f"http://{host}:{server.port}/a.png",
            f"https://{host}/a.png",
        ):
            said = refused(address)
            assert "cannot be found, or is not public" in said or "is at port" in said
        assert server.heard == []


def test_a_name_that_leads_home() -> None:
    for answers in (["127.0.0.1"], ["192.168.1.7"], [PUBLIC, "127.0.0.1"], ["::ffff:127.0.0.1"], ["fd00::1"]):
        said = refused("http://pictures.example/a.png", resolve=Names(answers), connect=None)
        assert said == "pictures[0]: is at a host that cannot be found, or is not public"


async def nowhere(host: str, port: int) -> list[str]:
    raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")


def test_nobody_learns_which_names_there_are_in_the_house() -> None:
    unknown = refused("http://nas.local/a.png", resolve=nowhere)
    assert unknown == refused("http://nas.local/a.png", resolve=Names(["192.168.1.9"]))
    assert "not public" not in refused("http://nas.local/a.png", resolve=nowhere, hosts=["nas.local"])


def test_a_name_is_resolved_once_and_that_address_is_taken() -> None:
    """A name that says another address each time (DNS rebinding)."""
    names, connected = Names([PUBLIC], ["127.0.0.1"]), list[Any]()

    async def connect(address: Any, tls: Any, host: str) -> Any:
        connected.append((address, host))
        raise ConnectionRefusedError

    refused("http://rebinding.example/a.png", resolve=names, connect=connect)
    assert names.asked == ["rebinding.example"]
    assert connected == [((PUBLIC, 80), "rebinding.example")]


def test_the_first_of_several_addresses_that_answers() -> None:
    with stub(reply()) as server, socket.create_server(("127.0.0.1", 0)) as closed:
        free = closed.getsockname()[1]
        closed.close()
        ports = {"127.0.0.2": free}

        async def connect(address: Any, tls: Any, host: str) -> Any:
            return await fetching.connect((address[0], ports.get(address[0], address[1])), tls, host)

        names = Names(["127.0.0.2", "127.0.0.1"])
        options: dict[str, Any] = {"hosts": ["two.example"], "resolve": names, "connect": connect}
        assert get(f"http://two.example:{server.port}/", **options) == [PNG]


def test_listed_hosts() -> None:
    with stub(reply()) as server:
        here = f"127.0.0.1:{server.port}"
        for hosts in (["127.0.0.1"], [here], ["other", "127.0.0.1"]):
            assert get(f"http://{here}/a.png", hosts=hosts, public=False) == [PNG]
        for hosts in (["127.0.0.2"], ["127.0.0.1:1"], [f"localhost:{server.port}"], ["0.0.1"]):
            said = refused(f"http://{here}/a.png", hosts=hosts, public=False)
            assert said == "pictures[0]: is at a host from which nothing is fetched"
        spelled = f"http://CAMERA.local.:{server.port}/a.png"
        assert get(spelled, hosts=["Camera.Local"], public=False, resolve=HERE) == [PNG]
        # The others are still what they are.
        assert "not public" in refused("http://127.1/a.png", hosts=["127.0.0.1"])
        assert "nothing is fetched" in refused("http://example.org/a.png", hosts=[here], public=False)
        assert len(server.heard) == 4


def test_a_listed_host_of_ipv6() -> None:
    where = Where.of(Link("http://[::1]:8080/a", "p"))
    assert (where.host, where.port, where.header) == ("::1", 8080, "[::1]:8080")
    for host in ("::1", "[::1]", "[::1]:8080"):
        assert where.is_listed(frozenset([host]))
    assert not where.is_listed(frozenset(["[::1]:80", "::2"]))


def test_other_ports_of_public_hosts_are_left_alone() -> None:
    for port in (22, 25, 8080, 443):
        assert f"is at port {port}" in refused(f"http://example.org:{port}/", resolve=Names([PUBLIC]))


@pytest.mark.parametrize(
    "address",
    [
        "http://",
        "http:///a.png",
        "http://a b/",
        "http://a\tb/",
        "http://exa\nmple.org/",
        "http://example.org/\r\nX-Evil: 1",
        "http://example.org\\@127.0.0.1/",
        "http://127.0.0.1\\.example.org/",
        "http://user@example.org/",
        "http://user:password@example.org/",
        "http://example.org@127.0.0.1/",
        "http://127.0.0.1#@example.org/",
        "http://example.org:port/",
        "http://example.org:99999/",
        "http://[::1/",
        "http://[::1%25eth0]/",
        "http://①②⑦.⓪.⓪.①/",
        "http://ｌｏｃａｌｈｏｓｔ/",
        "http://exa\u00admple.org/",
        "http://example\u3002org/",
        "http://example.org%2f@127.0.0.1/",
        "http://%6c%6f%63%61%6c%68%6f%73%74/",
        "http://example.org\x00.evil/",
        "http://example.org/" + "a" * 3000,
    ],
)
def test_addresses_that_two_programs_might_read_in_two_ways(address: str) -> None:
    """None is even looked up; or it is one without any doubt, like the one with a #."""
    names = Names(["127.0.0.1"])
    assert len(refused(address, resolve=names, connect=None)) < 300
    assert names.asked == (["127.0.0.1"] if "#" in address else [])


# ---------------------------------------------------------------- what is sent, and what may come


def test_what_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    with stub(reply()) as server:
        address = f"http://camera:{server.port}/ä b.png?q=ü&x=%20#part"
        assert get(address.replace(" ", "%20"), hosts=["camera"], resolve=HERE) == [PNG]
        (heard,) = server.heard
        assert heard.startswith("GET /%C3%A4%20b.png?q=%C3%BC&x=%20 HTTP/1.1\r\n")
        assert f"\r\nHost: camera:{server.port}\r\n" in heard
        assert not any(word in heard for word in ("Authorization", "Cookie", "Referer"))


@pytest.mark.parametrize(
    ("said", "wanted"),
    [
        (reply(), ""),
        (reply(kind="IMAGE/JPEG; charset=x"), ""),
        (b"HTTP/1.0 200 OK\r\nContent-Type: image/png\r\n\r\n" + PNG, ""),
        (
            reply(
                b"1\r\n" + PNG[:1] + b"\r\n%x\r\n" % (len(PNG) - 1) + PNG[1:] + b"\r\n0\r\n\r\n",
                "200 OK",
                "image/png",
                "Transfer-Encoding: chunked",
            ),
            "",
        ),
        (b"HTTP/1.1 100 Continue\r\n\r\n" + reply(), ""),
        (reply(b"", "301 Moved", None, "Location: http://127.0.0.1/"), "only says that"),
        (reply(b"", "302 Found", None, "Location: file:///etc/passwd"), "only says that"),
        (reply(b"", "307 Temporary Redirect", "image/png", "Location: /b.png"), "elsewhere"),
        (reply(b"", "304 Not Modified"), "elsewhere"),
        (reply(status="404 Not Found"), "answers with status 404"),
        (reply(status="401 Unauthorized"), "answers with status 401"),
        (reply(status="206 Partial Content"), "answers with status 206"),
        (reply(kind="text/html"), "no picture by its Content-Type"),
        (reply(kind="application/json"), "no picture by its Content-Type"),
        (reply(kind=None), "no picture by its Content-Type"),
        (reply(PNG, "200 OK", "image/png", "Content-Encoding: gzip"), "is compressed once more"),
        (reply(PNG, "200 OK", "image/png", "Content-Length: 10000001"), "is too large"),
        (reply(PNG, "200 OK", "image/png", "Content-Length: " + "9" * 20), "is too large"),
        (reply(PNG, "200 OK", "image/png", f"Content-Length: {len(PNG) + 5}"), "broke off, or is not HTTP"),
        (reply(PNG, "200 OK", "image/png", "Content-Length: -1"), "broke off, or is not HTTP"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "broke off, or is not HTTP"),
        (b"220 mail ESMTP\r\n", "broke off, or is not HTTP"),
        (b"+OK redis\r\n\r\n", "broke off, or is not HTTP"),
        (b"", "broke off, or is not HTTP"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"y" * 40_000, "broke off, or is not HTTP"),
        (b"HTTP/1.1 100 Continue\r\n\r\n" * 3000, "broke off, or is not HTTP"),
        (b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n", "broke off, or is not HTTP"),
    ],
)
def test_replies(said: bytes, wanted: str) -> None:
    with stub(said) as server:
        address = f"http://127.0.0.1:{server.port}/a.png"
        if not wanted:
            assert get(address, hosts=["127.0.0.1"]) == [PNG]
        else:
            assert wanted in refused(address, hosts=["127.0.0.1"])
        assert len(server.heard) == 1


def endless(before: bytes, part: bytes) -> Says:
    def say(connection: socket.socket) -> None:
        connection.sendall(before)
        for _ in range(1000):
            connection.sendall(part)

    return say


@pytest.mark.parametrize(
    ("before", "part"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Type: image/png\r\n\r\n", b"x" * 65536),
        (CHUNKED, b"10000\r\n" + b"x" * 65536 + b"\r\n"),
        (CHUNKED, b"10000;" + b"x" * 65536 + b"\r\n"),
    ],
)
def test_a_picture_without_end(before: bytes, part: bytes) -> None:
    with stub(endless(before, part)) as server:
        said = refused(f"http://127.0.0.1:{server.port}/", hosts=["127.0.0.1"])
        assert "is too large" in said or "is not HTTP" in said


def drips(connection: socket.socket) -> None:
    connection.sendall(reply(bytes(1000))[:-900])
    for _ in range(100):
        time.sleep(0.05)
        connection.sendall(b"x")


def silent(connection: socket.socket) -> None:
    connection.recv(1)


async def slow(host: str, port: int) -> list[str]:
    await asyncio.sleep(60)
    return ["127.0.0.1"]


def test_a_picture_that_takes_long() -> None:
    for says in (drips, silent):
        with stub(says) as server:
            address = f"http://127.0.0.1:{server.port}/" + "?" * (says is drips)
            began = time.monotonic()
            said = refused(address, hosts=["127.0.0.1"], seconds=0.4)
            assert said == "pictures[0]: has not come within 0.4 s" and time.monotonic() - began < 5
    assert "has not come within" in refused("http://slow.example/", resolve=slow, seconds=0.2)


def test_a_resolver_that_hangs_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    go_on = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: go_on.wait(30))
    began = time.monotonic()
    said = refused(
        "http://example.org/", seconds=0.2
    )  # the loop ends, too, which waits for threads of its own
    assert "has not come within" in said and time.monotonic() - began < 5
    go_on.set()


def test_all_pictures_of_a_request_have_the_time_of_one() -> None:
    with stub(silent) as server:
        urls = [f"http://127.0.0.1:{server.port}/{i}" for i in range(9)]
        began = time.monotonic()
        refused(*urls, hosts=["127.0.0.1"], seconds=0.5)
        assert time.monotonic() - began < 5 and server.most == fetching.EACH


def test_a_request_that_waits_for_others_pictures_is_not_told_that_its_own_is_late() -> None:
    async def both(address: str) -> str:
        ours = fetching.Fetching(hosts=["127.0.0.1"], seconds=0.5)
        ours._places = asyncio.Semaphore(fetching.EACH)
        one = [Link(f"{address}/{i}", f"pictures[{i}]") for i in range(fetching.EACH)]
        first = asyncio.create_task(ours.all(one, lambda n: None))
        await asyncio.sleep(0.1)
        ours.seconds = 0.2
        with pytest.raises(Refused) as error:
            await ours.all([Link(f"{address}/x", "pictures[0]")], lambda n: None)
        with pytest.raises(Refused):
            await first
        assert error.value.status == 503 and "retry-after" in error.value.headers
        return str(error.value)

    with stub(silent) as server:
        assert asyncio.run(both(f"http://127.0.0.1:{server.port}")) == "server: is fetching too many pictures"


def test_names_that_hang_are_not_looked_up_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    go_on = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: go_on.wait(30))
    lookups = threading.BoundedSemaphore(2)
    monkeypatch.setattr(fetching, "LOOKUPS", lookups)
    before = threading.active_count()
    for _ in range(2):
        assert "has not come within" in refused("http://example.org/", seconds=0.1)
    assert "cannot be found" in refused("http://example.org/", seconds=0.1)
    assert threading.active_count() <= before + 2
    go_on.set()
    for _ in range(2):  # both have ended before the next test
        assert lookups.acquire(timeout=20)


def test_an_address_that_swallows_everything_leaves_time_for_the_next() -> None:
    async def connect(address: fetching.Address, *rest: Any) -> Any:
        if address[0] == "192.0.2.1":
            await asyncio.sleep(60)
        return await fetching.connect(address, *rest)

    async def resolve(host: str, port: int) -> list[str]:
        return ["192.0.2.1", "127.0.0.1"]

    with stub(reply()) as server:
        address = f"http://camera:{server.port}/"
        assert get(address, hosts=["camera"], resolve=resolve, connect=connect, seconds=3) == [PNG]


def test_neighbours_with_public_addresses_are_private(monkeypatch: pytest.MonkeyPatch) -> None:
    class Probe:
        def __init__(self, *kind: Any):
            pass

        def __enter__(self) -> "Probe":
            return self

        def __exit__(self, *error: object) -> None:
            pass

        def connect(self, address: tuple[str, int]) -> None:
            self.there = address[0]

        def getsockname(self) -> tuple[str, ...]:
            return ("2a02:810:1:2300::17", "0") if ":" in self.there else ("93.184.216.34", "0")

    monkeypatch.setattr(fetching.socket, "socket", Probe)
    assert fetching.is_near("2a02:810:1:2300::1") and fetching.is_near("2a02:810:1:23ff::1")
    assert not fetching.is_near("2a02:810:1:2400::1")
    assert fetching.is_near("93.184.216.34") and not fetching.is_near("93.184.216.35")

    monkeypatch.undo()
    monkeypatch.setattr(fetching, "is_near", lambda address: address == "2a02:810:1:2300::1")

    async def home(host: str, port: int) -> list[str]:
        return ["2a02:810:1:2300::1"]

    assert "or is not public" in refused("http://router.example/", public=True, resolve=home)


def test_three_at_once_and_each_address_once() -> None:
    pictures = {f"/{i}": picture((8 + i, 6)) for i in range(6)}

    with stub(reply()) as server:

        def say(connection: socket.socket) -> None:
            path = server.heard[-1].split()[1]
            time.sleep(0.05)
            connection.sendall(reply(pictures.get(path, PNG)))

        server.says = say
        address = f"http://127.0.0.1:{server.port}"
        assert get(*[f"{address}/same"] * 5, hosts=["127.0.0.1"]) == [PNG] * 5
        assert len(server.heard) == 1
        found = get(*[f"{address}/{i}" for i in range(6)], hosts=["127.0.0.1"])
        assert len(found) == 6 and server.most <= 3


def test_what_has_come_is_counted_as_it_comes() -> None:
    with stub(reply(b"x" * 50_000)) as server, pytest.raises(Refused) as error:
        get(*[f"http://127.0.0.1:{server.port}/{i}" for i in range(3)], hosts=["127.0.0.1"], most=120_000)
    assert error.value.status == 413


# ---------------------------------------------------------------- TLS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """One for pictures.example, signed by itself, and its key."""
    folder = tmp_path_factory.mktemp("tls")
    chain, key = folder / "chain.pem", folder / "key.pem"
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    made += ["-subj", "/CN=pictures.example", "-addext", "subjectAltName=DNS:pictures.example"]
    try:
        subprocess.run([*made, "-keyout", key, "-out", chain], check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("openssl is not installed")
    return chain, key


def test_the_certificate_is_that_of_the_name(certificate: tuple[Path, Path]) -> None:
    chain, key = certificate
    trusting = ssl.create_default_context(cafile=str(chain))
    with stub(reply()) as server:
        server.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        server.tls.load_cert_chain(chain, key)

        def address(host: str) -> str:
            return f"https://{host}:{server.port}/a.png"

        hosts = ["pictures.example", "other.example", "127.0.0.1"]
        options: dict[str, Any] = {"hosts": hosts, "resolve": HERE}
        assert get(address("pictures.example"), **options, tls=trusting) == [PNG]
        for host, context in (
            ("other.example", trusting),
            ("127.0.0.1", trusting),
            ("pictures.example", None),
        ):
            given = options | ({"tls": context} if context else {})
            assert "no certificate that holds for its name" in refused(address(host), **given)
        assert len(server.heard) == 1
    with stub(reply()) as plain:  # which waits for a request in clear
        said = refused(f"https://pictures.example:{plain.port}/", **options, tls=trusting, seconds=0.5)
        assert "has not come" in said


# ---------------------------------------------------------------- by HTTP


def body(*addresses: str) -> dict[str, Any]:
    parts = [{"type": "image_url", "image_url": {"url": address}} for address in addresses]
    return {"messages": [{"role": "user", "content": [*parts, {"type": "text", "text": "What?"}]}]}


def test_off_by_default() -> None:
    engine = FakeEngine()
    with stub(reply()) as server:
        answer = client(engine).post(CHAT, json=body(f"http://127.0.0.1:{server.port}/a.png"))
        assert answer.status_code == 400 and engine.jobs == [] and server.heard == []
        assert answer.json()["error"]["message"] == (
            "messages[0].content[0].image_url.url: is a URL of http:, "
            "wanted data:image/jpeg;base64,... with the picture's file; send the picture itself"
        )


def test_a_fetched_picture_is_one_like_any_other() -> None:
    engine, yellow = FakeEngine(), picture((9, 5), "JPEG", "yellow")
    with stub(reply(yellow, "200 OK", "image/jpeg")) as server:
        web = client(engine, fetching=Fetching(hosts=["127.0.0.1"]))
        address = f"HTTP://127.0.0.1:{server.port}/a.jpg"
        assert web.post(CHAT, json=body(url(PNG), f" {address}\n", url(PNG))).status_code == 200
    first, second, third = engine.request.messages[0].pictures
    assert first.size == third.size == (8, 6) and second.size == (9, 5)
    assert np.asarray(second)[2, 4, 2] < 9  # it is yellow


@pytest.mark.parametrize(
    ("said", "wanted"),
    [
        (reply(b"<svg xmlns='http://www.w3.org/'/>", "200 OK", "image/svg+xml"), "is a drawing (SVG)"),
        (reply(b"#!/bin/sh"), "is no picture"),
        (reply(b"{}", "500 Oh no"), "answers with status 500"),
    ],
)
def test_what_is_fetched_and_no_picture_is_told(said: bytes, wanted: str) -> None:
    engine = FakeEngine()
    with stub(said) as server:
        web = client(engine, fetching=Fetching(hosts=["127.0.0.1"]))
        answer = web.post(CHAT, json=body(url(PNG), f"http://127.0.0.1:{server.port}/a"))
    error = answer.json()["error"]
    assert answer.status_code == 400 and wanted in error["message"] and engine.jobs == []
    assert error["param"] == error["message"].partition(":")[0] == "messages[0].content[1].image_url.url"


@pytest.mark.parametrize(
    "address",
    [
        "file:///etc/passwd",
        "ftp://127.0.0.1/a.png",
        "gopher://127.0.0.1/",
        "data:text/html,<p>",
        "/etc/passwd",
        "//127.0.0.1/a.png",
        "http:/127.0.0.1/a.png",
        "http:127.0.0.1",
        "httpx://127.0.0.1/",
        "jar:http://127.0.0.1/!/",
        "",
    ],
)
def test_other_schemes_stay_what_they_are(address: str) -> None:
    web = client(fetching=Fetching(public=True, hosts=["127.0.0.1"]))
    answer = web.post(CHAT, json=body(address))
    assert answer.status_code == 400 and "send the picture itself" in answer.json()["error"]["message"]


def test_what_is_fetched_counts_with_the_body() -> None:
    with stub(reply(b"x" * 3000)) as server:
        address = f"http://127.0.0.1:{server.port}/"
        fetcher = Fetching(hosts=["127.0.0.1"])
        two = body(address + "1", address + "2")
        large = client(limits=Limits(body=5000), fetching=fetcher).post(CHAT, json=two)
        many = client(limits=Limits(bodies=2000), fetching=fetcher).post(CHAT, json=body(address))
    assert (large.status_code, many.status_code) == (413, 503)


def test_a_client_that_leaves_ends_the_fetching() -> None:
    engine = FakeEngine()
    gone = threading.Event()

    def say(connection: socket.socket) -> None:
        if connection.recv(1) == b"":
            gone.set()

    async def run(address: str) -> None:
        from mvlm_np.serve.app import build
        from tests.serve.fake import SERVED

        visit = Visit(build(engine, SERVED, fetching=Fetching(hosts=["127.0.0.1"])), body(address))
        await soon(lambda: server.heard)
        visit.leave()
        await asyncio.wait_for(visit.task, 5)

    with stub(say) as server:
        asyncio.run(run(f"http://127.0.0.1:{server.port}/"))
        assert gone.wait(5) and engine.jobs == []


def test_ollamas_dialect_takes_files_alone() -> None:
    web = client(fetching=Fetching(public=True, hosts=["127.0.0.1"]))
    asked = {"model": "tiny", "prompt": "What?", "images": ["http://127.0.0.1/a.png", in_base64(PNG)]}
    answer = web.post("/api/generate", content=json.dumps(asked))
    assert answer.status_code == 400 and "images[0]: is not base64" in answer.json()["error"]
