"""docs/watch.md: its commands run, with a camera that is none; its blocks for others are sound."""

import configparser
import json
import re
import shlex
import shutil
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

import mvlm_np
from mvlm_np.cli import calls, main, watch
from mvlm_np.demo import MODEL, PICTURES
from tests.conftest import ROOT
from tests.watch.camera import Program, program
from tests.watch.test_mqtt import Broker, mosquitto

__all__ = ["mosquitto", "program"]
pytestmark = pytest.mark.xdist_group("demo")
PAGE = (ROOT / "docs" / "watch.md").read_text("utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
COMMANDS = [line for kind, block in BLOCKS for line in block.splitlines() if line.startswith("mvlm watch")]
UNIT = (ROOT / "examples" / "mvlm-watch.service").read_text("utf-8")


@pytest.fixture(scope="module")
def model() -> mvlm_np.MobileVLM:
    return mvlm_np.load(MODEL, backend="numpy")


class Handler(BaseHTTPRequestHandler):
    """A camera's snapshots, and a server that has an answer."""

    def do_GET(self) -> None:
        self.reply((PICTURES / "0.png").read_bytes())

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        choice = {"message": {"content": "Yes"}, "logprobs": {"content": [{"token": "Yes", "logprob": -0.1}]}}
        self.reply(json.dumps({"choices": [choice], "usage": {"completion_tokens": 1}}).encode())

    def reply(self, body: bytes) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_the_page_has_commands() -> None:
    assert len(COMMANDS) >= 12 and all("watch" in command for command in COMMANDS)


@pytest.fixture
def here(
    tmp_path: Path, program: Program, model: mvlm_np.MobileVLM, monkeypatch: pytest.MonkeyPatch
) -> Program:
    """The current folder: the programs that the page names are there, and the model is loaded."""
    from PIL import Image

    Image.open(PICTURES / "0.png").convert("RGB").save(tmp_path / "0.jpg", quality=95)
    show = f"""
    import os, time
    data = open({str(tmp_path / "0.jpg")!r}, "rb").read()
    for i in range(600):
        rest = data
        while rest:
            rest = rest[os.write(1, rest):]
        time.sleep(0.1)
    """
    for name in ("rpicam-vid", "v4l2-ctl", "ffmpeg"):
        program(name, show)
    for name in ("espeak-ng", "on-answer"):
        program(name, f"import sys\nopen({str(tmp_path / name)!r}, 'w').write(sys.stdin.read())")
    for name in ("piper", "aplay"):
        program(name, "import sys\nsys.stdin.read()")
    (tmp_path / "pictures").mkdir()
    shutil.copy(tmp_path / "0.jpg", tmp_path / "pictures")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MVLM_MODEL", str(MODEL))
    monkeypatch.delenv("MVLM_MQTT", raising=False)
    monkeypatch.setattr("mvlm_np.cli.progress.load_with_bar", lambda **arguments: model)
    exists = Path.exists
    monkeypatch.setattr("os.path.exists", lambda path: str(path) == "/dev/video0" or exists(Path(path)))
    return program


def run(command: str, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """What a command of the page prints first."""
    args = shlex.split(command)[2:]
    assert main(["watch", "--count=1", "--max-new-tokens=8", *args]) == 0
    out, err = capsys.readouterr()
    assert "note" not in err
    return dict(json.loads(out))


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_run(
    command: str, here: Program, server: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bin = tmp_path / "bin" / "on-answer"
    for old, new in {
        "user:password@camera/snapshot": f"user:password@{server}/snapshot",
        "127.0.0.1:8080": server,
        "/usr/local/bin/on-answer": str(bin),
        "/var/tmp/last.jpg": str(tmp_path / "last.jpg"),
    }.items():
        command = command.replace(old, new)
    line = run(command, capsys)
    assert {"time", "source", "changed", "answer", "p", "tokens", "seconds", "file"} <= line.keys()
    assert line["changed"] is True and "password" not in json.dumps(line)
    if "--say" in command and "piper" not in command:
        assert (tmp_path / "espeak-ng").read_text() == f"{line['answer']}\n"
    if "--exec" in command:
        assert json.loads((tmp_path / "on-answer").read_text()) == line and (tmp_path / "last.jpg").exists()
    if "--yes-no" in command:
        assert line["answer"] in ("yes", "no", None)


def test_home_assistant_gets_the_gate(
    here: Program,
    mosquitto: Broker,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (command,) = [command for command in COMMANDS if "--name Gate" in command]
    monkeypatch.setenv("MVLM_MQTT", mosquitto.address)
    line = run(command, capsys)
    config = json.loads(mosquitto.retained("homeassistant/device/mvlm_gate/config"))
    answer = config["components"]["answer"]
    assert answer["default_entity_id"] in PAGE and config["device"]["name"] == "Gate"
    state = json.loads(mosquitto.retained(answer["state_topic"]))
    assert state == {"state": line["answer"], **line}
    assert mosquitto.retained(config["availability_topic"]) == b"offline"  # it has ended
    assert mosquitto.retained(config["components"]["picture"]["image_topic"])[:2] == b"\xff\xd8"


def test_the_automation_is_one() -> None:
    yaml = pytest.importorskip("yaml")
    (block,) = [block for kind, block in BLOCKS if kind == "yaml"]
    found = yaml.safe_load(block)
    assert {"alias", "triggers", "conditions", "actions"} == found.keys()


def test_the_example_line_has_the_fields_of_a_line() -> None:
    (block,) = [block for kind, block in BLOCKS if kind == "json"]
    assert list(json.loads(block)) == [
        "time",
        "source",
        "changed",
        "answer",
        "p",
        "tokens",
        "seconds",
        "file",
    ]


def test_the_unit_starts_what_it_says() -> None:
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read_string(UNIT)
    start = shlex.split(unit["Service"]["ExecStart"])
    args = calls.read(start[1:], {"watch": ""})
    watch.check(args)
    assert (args.camera, args.yes_no, args.name, args.question) == (
        "rpicam",
        True,
        "Gate",
        "Is the gate open?",
    )


def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("needs systemd-analyze, which a system without systemd has not")
    path = tmp_path / "mvlm-watch.service"
    path.write_text(re.sub(r"(?m)^ExecStart=\S+", "ExecStart=/bin/true", UNIT))
    done = subprocess.run(["systemd-analyze", "verify", path], capture_output=True, text=True)
    assert "mvlm-watch" not in done.stderr, done.stderr
