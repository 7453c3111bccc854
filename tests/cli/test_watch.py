"""`mvlm watch`: a camera on the PATH, the model in the box, signals; and calls that are wrong."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import pytest
from PIL import Image

from mvlm_np.cli import main
from mvlm_np.demo import PICTURES
from tests.conftest import ROOT
from tests.watch.camera import Program, program

__all__ = ["program"]
pytestmark = pytest.mark.xdist_group("demo")
SOON = 120.0  # seconds for what a busy machine does in three


def picture(name: str) -> bytes:
    """One of the demo's pictures, as a camera would give it."""
    file = io.BytesIO()
    Image.open(PICTURES / name).convert("RGB").save(file, "JPEG", quality=95)
    return file.getvalue()


def started(*args: str, **options: Any) -> "subprocess.Popen[Any]":
    call = [sys.executable, "-m", "mvlm_np", "watch", *args]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    for name in ("MVLM_MODEL", "MVLM_MQTT", "MVLM_API_KEY"):
        env.pop(name, None)
    out = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(call, env=env, **{"text": True, **out, **options})


def until(seen: Callable[[], object]) -> None:
    end = time.monotonic() + SOON
    while not seen():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)


def line(file: IO[str] | None) -> dict[str, object]:
    assert file is not None
    return dict(json.loads(file.readline()))


class Camera:
    """rpicam-vid: shows the file `shown` five times a second, and notes its process."""

    def __init__(self, folder: Path, program: Program):
        self.shown, self.pid = folder / "shown.jpg", folder / "pid"
        code = f"""
        import os, sys, time
        assert sys.argv[1:5] == ["-t", "0", "-n", "--codec"] and sys.argv[-2:] == ["-o", "-"], sys.argv
        open({str(self.pid)!r}, "w").write(str(os.getpid()))
        for i in range(3000):
            data = open({str(self.shown)!r}, "rb").read()
            while data:
                data = data[os.write(1, data):]
            time.sleep(0.2)
        """
        program("rpicam-vid", code)

    def show(self, name: str) -> None:
        new = self.shown.with_suffix(".new")
        new.write_bytes(picture(name))
        os.replace(new, self.shown)

    def runs(self) -> bool:
        return Path(f"/proc/{self.pid.read_text()}").exists()


@pytest.fixture
def camera(tmp_path: Path, program: Program) -> Camera:
    return Camera(tmp_path, program)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_from_a_camera_to_an_answer_until_a_signal(camera: Camera, number: signal.Signals, code: int) -> None:
    camera.show("0.png")
    watch = started("--camera", "rpicam", "Is the yellow lamp on?", "--yes-no", "--at-most", "0.1")
    try:
        first = line(watch.stdout)
        camera.show("3.png")  # quite another one, in which there is no lamp
        second = line(watch.stdout)
        assert camera.runs()
    finally:
        watch.send_signal(number)
        _, err = watch.communicate(timeout=SOON)
    assert (first["answer"], first["changed"], second["changed"]) == ("no", True, True)
    assert first["source"] == second["source"] and str(first["source"]).startswith("rpicam-vid -t 0 -n")
    assert isinstance(first["p"], float) and 0.5 < first["p"] <= 1 and first["tokens"] == 2
    assert watch.returncode == code and not camera.runs()
    (note,) = err.splitlines()
    assert "the demo model" in note


def test_a_camera_that_is_unplugged_is_waited_for(camera: Camera) -> None:
    camera.show("0.png")
    watch = started("--camera", "rpicam", "Describe the yellow lamp.", "--count", "2", "--at-most", "0.1")
    try:
        assert line(watch.stdout)["answer"] == "a yellow lamp off, left"
        camera.shown.unlink()
        until(lambda: not camera.runs())
        camera.show("3.png")
        assert line(watch.stdout)["changed"] is True
        _, err = watch.communicate(timeout=SOON)
    finally:
        watch.kill()
    assert watch.returncode == 0 and not camera.runs()
    assert "has ended with exit code 1: FileNotFoundError" in err and "is there again" in err


def test_a_picture_from_a_pipe_goes_to_all_outputs(program: Program, tmp_path: Path) -> None:
    heard, hooked = tmp_path / "heard", tmp_path / "hooked"
    keep = "import sys\nopen({!r}, 'w').write(sys.stdin.read())"
    program("espeak-ng", f"import sys\nassert sys.argv[1:] == ['--stdin']\n{keep.format(str(heard))}")
    program("hook", keep.format(str(hooked)))
    options = ["--say", "--exec", "hook", "--save", str(tmp_path / "last.jpg")]
    data = picture("0.png")
    watch = started("-", "Describe the yellow lamp.", *options, stdin=subprocess.PIPE, text=False)
    out, _ = watch.communicate(data, timeout=SOON)
    assert watch.returncode == 0
    assert json.loads(out)["answer"] == "a yellow lamp off, left"
    assert heard.read_text() == "a yellow lamp off, left\n" and hooked.read_text() == out.decode()
    assert (tmp_path / "last.jpg").read_bytes() == data


def test_a_full_disk_under_its_log_ends_nothing(tmp_path: Path) -> None:
    """A file that is no picture is a note, which is lost; the next one is answered."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    with open("/dev/full", "w") as log:
        watch = started(str(folder), "What is this?", "--every", "0.1s", "--count", "1", stderr=log)
    try:
        (folder / "0.jpg").write_bytes(b"no picture")
        time.sleep(3)
        assert watch.poll() is None
        (folder / "1.jpg").write_bytes(picture("0.png"))
        assert line(watch.stdout)["tokens"]
        assert watch.wait(SOON) == 0
    finally:
        watch.kill()
        watch.communicate()


def test_a_reader_that_goes_ends_it_and_its_camera(camera: Camera) -> None:
    camera.show("0.png")
    watch = started("--camera", "rpicam", "What?", "--change", "0", "--at-most", "0", "--max-new-tokens", "2")
    assert watch.stdout is not None
    line(watch.stdout)
    watch.stdout.close()
    assert watch.wait(SOON) == 141 and not camera.runs()
    assert watch.stderr is not None
    watch.stderr.close()


# ---------------------------------------------------------------- calls


@pytest.fixture
def refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, program: Program
) -> Iterator[Callable[..., str]]:
    """What is said about a call that is wrong. No model is loaded for it."""
    for name in ("MVLM_MODEL", "MVLM_MQTT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(
        "mvlm_np.cli.progress.load_with_bar", lambda **arguments: pytest.fail("loaded a model")
    )
    program("camera", "")

    def refused(*args: str) -> str:
        assert main(["watch", *args]) == 2
        out, err = capsys.readouterr()
        assert out == "" and err.startswith("mvlm: ") and err.count("\n") == 1
        return err.removeprefix("mvlm: ").rstrip()

    yield refused


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ("", "the question or the source: is missing"),
        ("camera", "the question or the source: is missing"),
        ("camera --say What?", "has --say taken it? Put --say last, or write --say='espeak-ng --stdin'"),
        ("--camera rpicam", "the question or the source: is missing"),
        ("--camera webcam What?", "--camera: found 'webcam', wanted one of rpicam, usb, rtsp"),
        ("nowhere What?", "nowhere: there is no such file, folder or program"),
        ("camera What? --settle soon", "--settle: found 'soon', wanted a time, such as 500ms, 5s, 10m or 2h"),
        ("camera What? --every 0", "--every: found 0, wanted a time above 0"),
        ("camera What? --every=-1s", "--every: found '-1s', wanted a time"),
        ("camera What? --at-most 1h", "--at-most: found 3600, wanted no more than --at-least, 600 s"),
        ("camera What? --at-most never", "--at-most: found inf, wanted no more than"),
        ("camera What? --settle never", "--settle: found inf, wanted a time, not never"),
        ("camera What? --change 101", "--change: found 101, wanted a percentage from 0 to 100"),
        ("camera What? --count 0", "--count: found 0, wanted at least 1"),
        ("camera What? --sure 2", "--sure: found 2, wanted a probability from 0 to 1"),
        ("camera What? --max-new-tokens 0", "--max-new-tokens: found 0, wanted at least 1"),
        ("camera What? --number --yes-no", "--number: stands beside --yes-no, wanted one of them"),
        ("camera What? --min 3", "--min: is about a number, wanted --number too"),
        ("camera What? --unit V", "--unit: is about a number, wanted --number too"),
        ("camera What? --number --min 3 --max 2", "--min: found 3, wanted no more than --max, which is 2"),
        ("camera What? --number --max-step=-1", "--max-step: found -1, wanted a number from 0"),
        ("camera What? --number --max nan", "--max: found nan, wanted a finite number"),
        ("camera What? --exec no-such", "--exec: the program no-such is not installed; check its name"),
        ("camera What? --exec=", "--exec: is empty, wanted a command"),
        ("camera What? --say=no-such", "--say: the program no-such is not installed"),
        ("camera What? --save no/such/x.jpg", "--save no/such/x.jpg: there is no such folder; mkdir -p"),
        ("camera What? --mqtt broker", "--mqtt: found 'broker', wanted mqtt://USER:PASSWORD@HOST"),
        ("camera What? --server x", "--server: found 'x', wanted its address: http://127.0.0.1:8080"),
        ("camera What? --server http://x --model y", "--model: stands beside --server, wanted one of them"),
        ("camera What? --server http://x --threads 2", "--threads: stands beside --server, wanted one"),
        ("camera What? --color", "unrecognized arguments: --color"),
    ],
)  # fmt: skip
def test_calls_that_are_wrong(args: str, said: str, refused: Callable[..., str]) -> None:
    if "mqtt" in args:
        pytest.importorskip("paho.mqtt.client")
    assert said in refused(*args.split())


def test_a_voice_that_is_not_installed(refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    if shutil.which("espeak-ng"):
        original = shutil.which
        monkeypatch.setattr(shutil, "which", lambda name: None if name == "espeak-ng" else original(name))
    assert "--say: the program espeak-ng is not installed; sudo apt install espeak-ng" in refused(
        "camera", "What?", "--say"
    )
