"""`mvlm serve` as a command: what it refuses before it loads a model, and a server from start to end."""

import base64
import configparser
import http.client
import json
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mvlm_np.cli import VERBS, main
from mvlm_np.cli.calls import read
from tests.clients.served import PICTURE, PYTHON, QUESTION, ROOT, asked, serving

ESSAY = {"type": "object", "properties": {"all": {"type": "string", "minLength": 500}}, "required": ["all"]}
PLENTY = {
    "stream": True,
    "messages": [{"role": "user", "content": "Say all."}],
    "response_format": {"type": "json_schema", "json_schema": {"name": "essay", "schema": ESSAY}},
}


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Runs the command, which loads no model; its one line on stderr."""
    import mvlm_np.loading

    def load(*args: Any, **options: Any) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(mvlm_np.loading, "load", load)
    monkeypatch.delenv("MVLM_API_KEY", raising=False)

    def run(*arguments: str) -> str:
        assert main(["serve", "--port", "0", *arguments]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        return error

    return run


def test_others_need_a_key(refused: Callable[..., str], tmp_path: Path) -> None:
    for host in ("0.0.0.0", "::", "192.168.1.7"):
        assert "--api-key-file FILE sets one, and --open does without" in refused("--host", host)
    assert "cannot be read (No such file or directory)" in refused("--api-key-file", str(tmp_path / "none"))
    (tmp_path / "keys").write_text("# none\n")
    assert "holds no key" in refused("--api-key-file", str(tmp_path / "keys"))
    (tmp_path / "keys").write_bytes(b"\xff\xfe")
    assert "is not text" in refused("--api-key-file", str(tmp_path / "keys"))


def test_other_wrong_calls(refused: Callable[..., str], tmp_path: Path) -> None:
    assert "--max-tokens: found 0, wanted at least 1" in refused("--max-tokens", "0")
    assert "wanted both, or none" in refused("--cert", "c.pem")
    assert "--cert" in refused("--cert", str(tmp_path), "--key", str(tmp_path))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert f"127.0.0.1 port {port}: is in use by another program" in refused("--port", port)
    assert "cannot be had" in refused("--host", "192.0.2.1", "--open")
    assert "from 0 to 65535" in refused("--port", "70000")
    for host in ("http://camera/", "camera:", "camera/a", "*.local", "a b", "[::1"):
        assert f"--allow-fetch: found {host!r}, wanted a host" in refused("--allow-fetch", "camera", host)


def test_without_the_extra() -> None:
    for name in ("uvicorn", "starlette"):
        code = f"import sys; sys.modules['{name}'] = None; from mvlm_np.cli import main; sys.exit(main())"
        done = subprocess.run([sys.executable, "-c", code, "serve"], cwd=ROOT, capture_output=True, text=True)
        wanted = f"mvlm: mvlm serve: needs {name}, which is not installed; pip install 'mvlm-np[serve]'\n"
        assert (done.returncode, done.stderr) == (2, wanted)


@pytest.mark.parametrize("name", ["mvlm-serve", "mvlm-watch"])
def test_systemd_understands_the_units(name: str, tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    text = (ROOT / f"examples/{name}.service").read_text("utf-8")
    unit = tmp_path / f"{name}.service"
    unit.write_text(re.sub(r"(?<=ExecStart=)\S+", "/bin/true", text))  # which is there, as mvlm may not be
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", unit], capture_output=True, text=True, timeout=60
    )
    if "Failed to initialize manager" in done.stderr:
        pytest.skip("systemd-analyze needs more of a system than this container has")
    assert (done.returncode, done.stderr) == (0, "")


def test_the_unit_of_systemd_calls_what_there_is() -> None:
    unit = configparser.RawConfigParser()
    unit.read(ROOT / "examples/mvlm-serve.service")
    program, *arguments = unit["Service"]["ExecStart"].split()
    call = read(arguments, VERBS)
    assert program.endswith("/bin/mvlm") and call.verb == "serve"
    assert (call.host, str(call.api_key_file)) == ("0.0.0.0", "%d/key")
    assert unit["Service"]["DynamicUser"] == "yes" and "MemoryMax" in unit["Service"]


def get(url: str, body: Any = None, **headers: str) -> Any:
    data = None if body is None else json.dumps(body).encode()
    return urllib.request.urlopen(urllib.request.Request(url, data, headers), timeout=60)


def test_from_its_start_to_its_end(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("one\n")
    arguments = ("--name", "lamps", "--max-tokens", "900", "--api-key-file", str(tmp_path / "keys"))
    with serving(*arguments, "--cache-memory", "0", MVLM_API_KEY="two") as server:
        assert any("demo model" in line for line in server.log)
        assert json.load(get(f"{server.url}/health"))["status"] == "ok"
        assert b"<!doctype html>" in get(server.url).read().lower()
        for key in ("one", "two"):
            (model,) = json.load(get(f"{server.url}/v1/models", **{"X-Api-Key": key}))["data"]
            assert model["id"] == "lamps"
        with pytest.raises(urllib.error.HTTPError, match="401"):
            get(f"{server.url}/v1/models")
        metrics = get(f"{server.url}/metrics", **{"X-Api-Key": "one"}).read().decode()
        assert 'mvlm_cache_budget{cache="prefixes"} 0' in metrics

        stream = get(f"{server.url}/v1/chat/completions", PLENTY, **{"X-Api-Key": "one"})
        assert stream.readline().startswith(b"data: {")
        server.process.send_signal(signal.SIGTERM)
        began = time.monotonic()
        rest = stream.read()
        assert b'"error"' in rest and b"is stopping" in rest and b"[DONE]" not in rest
        assert server.process.wait(20) == 0 and time.monotonic() - began < 5
    text = "".join(server.log)
    assert "Traceback" not in text and "Say all." not in text
    assert "POST /v1/chat/completions 200" in text


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


def about(picture: Path, **more: Any) -> dict[str, Any]:
    address = "data:;base64," + base64.b64encode(picture.read_bytes()).decode()
    parts = [{"type": "image_url", "image_url": {"url": address}}, {"type": "text", "text": QUESTION}]
    return {"messages": [{"role": "user", "content": parts}]} | more


def test_a_server_that_is_killed_leaves_nothing_that_matters(tmp_path: Path) -> None:
    """Neither files, nor a port that is taken."""
    for name in ("home", "cache", "temporary"):
        (tmp_path / name).mkdir()
    folders = {"HOME": "home", "XDG_CACHE_HOME": "cache", "TMPDIR": "temporary"}
    environment = {name: str(tmp_path / folder) for name, folder in folders.items()}
    port, wanted = str(free_port()), asked()
    for _ in range(2):
        with serving("--port", port, "--allow-fetch", "camera", **environment) as server:
            whole = json.load(get(f"{server.url}/v1/chat/completions", about(PICTURE)))
            assert whole["choices"][0]["message"]["content"] == wanted
            stream = get(f"{server.url}/v1/chat/completions", PLENTY)
            assert stream.readline().startswith(b"data: {")
            server.process.kill()
            assert server.process.wait(20) == -signal.SIGKILL
            with pytest.raises((http.client.IncompleteRead, ConnectionError)):
                stream.read()
        assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("stderr", ["/dev/full", None])
def test_a_full_disk_and_no_folder_to_write_in(stderr: str | None) -> None:
    """A limit on the size of files stands for a full disk. stderr: where the log goes; None: it is closed."""
    port = free_port()
    nowhere = dict.fromkeys(("HOME", "XDG_CACHE_HOME", "TMPDIR"), "/proc/none")

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
        if stderr is None:
            os.close(2)

    command = [PYTHON, "-m", "mvlm_np", "serve", "--port", str(port)]
    kept = {name: value for name, value in os.environ.items() if name not in ("MVLM_MODEL", "MVLM_API_KEY")}
    with open(stderr or os.devnull, "w") as log:
        server = subprocess.Popen(command, cwd=ROOT, env=kept | nowhere, stderr=log, preexec_fn=limit)
    try:
        url, end = f"http://127.0.0.1:{port}", time.monotonic() + 120
        while True:
            try:
                assert json.load(get(f"{url}/health"))["status"] == "ok"
                break
            except OSError:
                assert server.poll() is None and time.monotonic() < end
                time.sleep(0.1)
        for _ in range(3):
            answer = json.load(get(f"{url}/v1/chat/completions", about(PICTURE, max_tokens=4)))
            assert answer["usage"]["completion_tokens"] == 4
            with pytest.raises(urllib.error.HTTPError, match="404"):
                get(f"{url}/nothing")
        server.terminate()
        assert server.wait(20) == 0
    finally:
        server.kill()
        server.wait(20)


def test_pictures_that_are_fetched() -> None:
    from tests.serve.test_fetching import reply, stub

    with stub(reply(PICTURE.read_bytes())) as pictures:
        address = f"http://127.0.0.1:{pictures.port}/0.png"
        ask = about(PICTURE)
        part = ask["messages"][0]["content"][0]
        part["image_url"]["url"] = address
        with serving("--allow-fetch", "127.0.0.1:1", f"127.0.0.1:{pictures.port}") as server:
            answer = json.load(get(f"{server.url}/v1/chat/completions", ask))
            part["image_url"]["url"] = f"{server.url}/health"
            with pytest.raises(urllib.error.HTTPError, match="400"):
                get(f"{server.url}/v1/chat/completions", ask)
    assert answer["choices"][0]["message"]["content"] == asked()


def test_what_the_log_says() -> None:
    with serving("--log-prompts") as server:
        with pytest.raises(urllib.error.HTTPError, match="404"):
            get(f"{server.url}/a%0aforged%1b%5b31m")
        ask = {"max_tokens": 2, "messages": [{"role": "user", "content": "Is it\n\x1b[31mred?"}]}
        assert json.load(get(f"{server.url}/v1/chat/completions", ask))["usage"]["completion_tokens"] == 2
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(20) == 0
    text = "".join(server.log)
    assert r"GET /a\nforged\x1b[31m 404" in text and r"Is it\n\x1b[31mred?" in text and "\x1b" not in text
