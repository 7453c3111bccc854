"""Who is let in, and what hostile requests get."""

import json
from typing import Any

import pytest

from mvlm_np.errors import UserError
from mvlm_np.serve.answering import Limits
from mvlm_np.serve.safety import Safety, is_loopback, keys_in
from tests.serve.fake import FakeEngine, client, said

CHAT = "/v1/chat/completions"
BODY = {"messages": [said("user", "Hi")]}


def status(headers: Any, path: str = "/v1/models", **safety: Any) -> int:
    """headers: pairs, which replace those of the test's client where they have a name of those"""
    return client(safety=Safety(**safety)).get(path, headers=headers).status_code


# ---------------------------------------------------------------- Host and Origin


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("localhost", 200),
        ("LOCALHOST:8080", 200),
        ("127.0.0.1:8080", 200),
        ("[::1]:8080", 200),
        ("192.168.1.7:8080", 200),
        ("raspberrypi", 200),
        ("pi.local", 200),
        ("pi.local.", 200),
        ("host.docker.internal:8080", 200),
        ("a.localhost", 200),
        ("pi.home.arpa", 200),
        ("mine.example.org", 200),
        ("mine.example.org:443", 200),
        ("evil.example.org", 403),
        ("localhost.evil.org", 403),
        ("evil.org.local.com", 403),
        ("127.0.0.1.evil.org", 403),
        ("mine.example.org.evil.org", 403),
        ("evil@mine.org", 403),
        ("", 403),
        ("[::1", 403),
        ("local\x00.org", 403),
    ],
)
def test_hosts(host: str, expected: int) -> None:
    assert status({"host": host}, hosts=("mine.example.org",)) == expected
    for path in ("/", "/health"):
        assert status({"host": host}, path, hosts=("mine.example.org",)) == expected


@pytest.mark.parametrize(
    ("origin", "host", "expected"),
    [
        (None, "localhost:8080", 200),
        ("http://localhost:8080", "localhost:8080", 200),
        ("http://localhost", "localhost", 200),
        ("https://pi.local", "pi.local", 200),
        ("https://pi.local:443", "pi.local", 200),
        ("https://chat.example.org", "pi.local", 200),
        ("http://localhost:3000", "localhost:8080", 403),
        ("http://evil.org", "localhost:8080", 403),
        ("http://chat.example.org", "pi.local", 403),
        ("https://chat.example.org.evil.org", "pi.local", 403),
        ("null", "localhost:8080", 403),
        ("", "localhost:8080", 403),
        ("http://localhost:x", "localhost:8080", 403),
        ("app://localhost:8080", "localhost:8080", 403),
        ("\x1ahttp://localhost:8080", "localhost:8080", 403),
        ("http://local\thost:8080", "localhost:8080", 403),
    ],
)
def test_origins(origin: str | None, host: str, expected: int) -> None:
    headers = {"host": host} | ({} if origin is None else {"origin": origin})
    engine = FakeEngine()
    web = client(engine, safety=Safety(origins=("https://chat.example.org",)))
    # As a "simple" request, which a browser sends without asking anybody.
    reply = web.post(CHAT, content=json.dumps(BODY), headers=headers | {"content-type": "text/plain"})
    assert reply.status_code == expected and len(engine.jobs) == (expected == 200)
    allowed = reply.headers.get("access-control-allow-origin")
    assert allowed == (origin if origin == "https://chat.example.org" else None)


def test_a_browser_that_asks_for_leave() -> None:
    safety = Safety(keys=("k",), origins=("https://chat.example.org",))
    asking = {
        "origin": "https://chat.example.org",
        "access-control-request-headers": "authorization,x-stainless-os",
    }
    reply = client(safety=safety).options(CHAT, headers=asking)
    assert reply.status_code == 204 and "POST" in reply.headers["access-control-allow-methods"]
    assert reply.headers["access-control-allow-headers"] == "authorization,x-stainless-os"
    foreign = client(safety=safety).options(CHAT, headers=asking | {"origin": "https://evil.org"})
    assert foreign.status_code == 403 and "access-control-allow-origin" not in foreign.headers


# ---------------------------------------------------------------- keys

KEYS = ("first-key", "second-key")


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ([], 401),
        ([("authorization", "Bearer first-key")], 200),
        ([("authorization", "bearer  second-key ")], 200),
        ([("x-api-key", "second-key")], 200),
        ([("authorization", "Bearer first-key"), ("x-api-key", "first-key")], 200),
        ([("authorization", "Bearer first-key"), ("x-api-key", "wrong")], 401),
        ([("authorization", "Bearer wrong"), ("authorization", "Bearer first-key")], 401),
        ([("authorization", "Bearer ")], 401),
        ([("authorization", "first-key")], 401),
        ([("authorization", "Basic first-key")], 401),
        ([("authorization", "Bearer first-ke")], 401),
        ([("authorization", "Bearer first-key-")], 401),
        ([("authorization", "Bearer FIRST-KEY")], 401),
        ([("authorization", "Bearer \xff")], 401),
        ([("x-api-key", "")], 401),
    ],
)
def test_keys(headers: Any, expected: int) -> None:
    headers = [(name, value.encode("latin-1")) for name, value in headers]
    for path in ("/v1/models", "/api/tags", "/metrics", "/props"):
        assert status(headers, path, keys=KEYS) == expected
    for path in ("/", "/health", "/readyz"):
        assert status(headers, path, keys=KEYS) == 200


def test_a_key_in_the_address_is_none() -> None:
    assert status({}, "/v1/models?api_key=first-key&key=first-key", keys=KEYS) == 401


def test_where_no_key_is_needed_any_will_do() -> None:
    assert status({"authorization": "Bearer DUMMY_KEY"}) == 200


def test_a_wrong_key_in_each_dialect() -> None:
    web = client(safety=Safety(keys=KEYS))
    reply = web.get("/v1/models")
    assert (
        reply.json()["error"]["type"] == "authentication_error"
        and reply.headers["www-authenticate"] == "Bearer"
    )
    assert isinstance(web.get("/api/tags").json()["error"], str)


def test_keys_are_told_apart_for_fairness() -> None:
    engine = FakeEngine()
    web = client(engine, safety=Safety(keys=KEYS))
    for key in KEYS:
        web.post(CHAT, json=BODY, headers={"x-api-key": key})
    first, second = (job.request.client for job in engine.jobs)
    assert first != second and not any(key in first + second for key in KEYS)


def test_caches_are_apart_by_key_where_they_are_not_shared() -> None:
    for shared, keys in ((True, KEYS), (False, KEYS), (False, ())):
        engine = FakeEngine()
        web = client(engine, safety=Safety(keys=keys), shared_cache=shared)
        for key in KEYS:
            assert web.post(CHAT, json=BODY, headers={"x-api-key": key}).status_code == 200
        owners = [job.request.owner for job in engine.jobs]
        if shared:
            assert owners == ["", ""]
        elif keys:
            assert len({*owners}) == 2 and not any(key in "".join(owners) for key in KEYS)
        else:
            assert owners == ["testclient", "testclient"]  # the address


def test_files_of_keys() -> None:
    assert keys_in("\n# mine\n one \ntwo\n", "keys") == ("one", "two")
    for text in ("", "# none\n", "two words", "schlüssel", "a\tb"):
        with pytest.raises(UserError, match=r"^keys: holds"):
            keys_in(text, "keys")


def test_loopback() -> None:
    assert all(is_loopback(host) for host in ("127.0.0.1", "127.8.0.1", "::1", "localhost"))
    assert not any(is_loopback(host) for host in ("0.0.0.0", "::", "192.168.1.7", "pi.local", ""))


# ---------------------------------------------------------------- paths and verbs


@pytest.mark.parametrize(
    "path", ["/v1/nothing", "/v1/completions", "/v1/embeddings", "/v1/responses", "/..%2f..%2fetc"]
)
def test_other_paths_are_not_found(path: str) -> None:
    reply = client().post(path, json={})
    assert (reply.status_code, reply.json()["error"]["type"]) == (404, "not_found_error")
    assert isinstance(client().get("/api/nothing").json()["error"], str)


GETS = (
    "/",
    "/health",
    "/readyz",
    "/metrics",
    "/props",
    "/v1/models",
    "/v1/models/tiny",
    "/api/tags",
    "/api/ps",
)
POSTS = (CHAT, "/api/chat", "/api/generate", "/api/show", "/api/pull")


def test_verbs() -> None:
    web = client()
    for path in GETS:
        assert web.get(path).status_code == web.head(path).status_code == 200
        assert web.head(path).content == b""
    for verb in ("DELETE", "PUT", "PATCH", "TRACE", "OPTIONS", "X" * 1000):
        for path in GETS + POSTS:
            reply = web.request(verb, path)
            assert reply.status_code == 405 and "allow" in reply.headers and reply.json()["error"]
    for path in POSTS:
        assert web.get(path).status_code == 405
    for path in GETS:
        assert web.post(path).status_code == 405


def test_headers_of_all_replies() -> None:
    for reply in (
        client().get("/"),
        client().get("/nothing"),
        client().post(CHAT),
        client().get("/", headers={"host": "evil.org"}),
    ):
        assert reply.headers["x-content-type-options"] == "nosniff"
        assert reply.headers["referrer-policy"] == "no-referrer"


def test_the_page_brings_its_policy() -> None:
    reply = client(page=(b"<!doctype html><p>page", "default-src 'none'; script-src 'sha256-x'")).get("/")
    assert reply.headers["content-security-policy"].startswith("default-src 'none'")
    assert reply.headers["content-type"].startswith("text/html") and reply.text.endswith("page")
    assert client().get("/").headers["content-type"].startswith("text/plain")


# ---------------------------------------------------------------- bodies


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"text"',
        b"7",
        b"\xff\xfe\xfd",
        b"{'messages': []}",
        b'{"messages": NaN}',
        b'{"temperature": Infinity, "messages": []}',
        b'{"temperature": -Infinity, "messages": []}',
        b'{"temperature": 1e999, "messages": []}',
        b'{"seed": ' + b"9" * 100_000 + b"}",
        b'{"messages": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"messages": [{"role": "user", "content": "a"}]}{}',
    ],
)
def test_bodies_that_are_no_request(body: bytes) -> None:
    engine = FakeEngine()
    web = client(engine)
    for path in POSTS[:4]:
        reply = web.post(path, content=body)
        assert reply.status_code == 400 and reply.json()["error"]
        assert "Traceback" not in reply.text and ".py" not in reply.text and len(reply.text) < 1000
    assert engine.jobs == []


def test_deep_schemas_and_metadata_harm_nobody() -> None:
    deep: Any = {}
    for _ in range(900):
        deep = {"a": deep}
    assert client().post(CHAT, json=BODY | {"metadata": deep}).status_code == 200


@pytest.mark.parametrize(
    "kind", [None, "text/plain", "application/x-www-form-urlencoded", "multipart/form-data"]
)
def test_json_is_read_whatever_it_calls_itself(kind: str | None) -> None:
    headers = {"content-type": kind} if kind else {}
    assert client().post(CHAT, content=json.dumps(BODY), headers=headers).status_code == 200


def test_large_bodies() -> None:
    web = client(limits=Limits(body=1000))
    large = json.dumps(BODY | {"user": "x" * 1000}).encode()
    for path in POSTS:
        whole = web.post(path, content=large)
        parts = web.post(path, content=(large[i : i + 100] for i in range(0, len(large), 100)))
        liar = web.post(path, content=b"{}", headers={"content-length": "9" * 30})
        assert whole.status_code == parts.status_code == liar.status_code == 413
        assert whole.json() == parts.json() and "1,000 bytes" in whole.text
    assert web.post(CHAT, json=BODY).status_code == 200


def test_many_large_bodies_at_once() -> None:
    web = client(limits=Limits(body=1000, bodies=500))
    reply = web.post(CHAT, json=BODY | {"user": "x" * 600})
    assert reply.status_code == 503 and reply.headers["retry-after"] == "5"
    assert web.post(CHAT, json=BODY).status_code == 200  # nothing of the refused one counts any more


# ---------------------------------------------------------------- health and metrics


@pytest.mark.parametrize("path", ["/health", "/readyz"])
def test_health(path: str) -> None:
    assert client().get(path).json() == {"status": "ok", "running": 1, "queued": 2, "idle_seconds": 0.01}
    stuck = client(FakeEngine(idle_seconds=1e3)).get(path)
    assert (stuck.status_code, stuck.json()["status"]) == (503, "stuck")


def test_metrics() -> None:
    web = client()
    web.get("/v1/models")
    for i in range(5):
        web.get(f"/nothing-{i}")
    web.get("/v1/models", headers={"host": "evil.org"})
    reply = web.get("/metrics")
    assert reply.headers["content-type"].startswith("text/plain; version=0.0.4")
    text = reply.text.splitlines()
    for line in (
        'mvlm_http_replies_total{path="/v1/models",status="200"} 1',
        'mvlm_http_replies_total{path="other",status="404"} 5',
        'mvlm_http_replies_total{path="other",status="403"} 1',
        "mvlm_queued 2",
        "mvlm_requests_total 0",
        'mvlm_seconds_total{part="decode"} 0.5',
        'mvlm_cache_bytes{cache="pictures"} 4',
        'mvlm_cache_hits_total{cache="pictures"} 6',
    ):
        assert line in text
    names = [line.split()[2] for line in text if line.startswith("# TYPE")]
    assert len(names) == len(set(names))
