"""What SOURCE and --camera mean, and what is said about those that mean nothing."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from mvlm_np.errors import UserError
from mvlm_np.watch.cameras import command, open_source
from mvlm_np.watch.snapshots import Snapshots
from mvlm_np.watch.sources import Command, Files, Source
from tests.watch.camera import FakeClock, Program, jpeg, program, scene

__all__ = ["program"]


def opened(text: str, camera: str | None = None) -> Source:
    return open_source(text, camera, 1.0, FakeClock())


def test_what_each_source_is(tmp_path: Path, program: Program) -> None:
    picture = tmp_path / "a photo.jpg"
    picture.write_bytes(jpeg(scene()))
    picture.chmod(0o777)  # as on a stick
    script = program("camera.sh", "")
    kinds = {
        str(tmp_path): Files,
        f"file://{tmp_path}": Files,
        str(picture): Files,
        str(script): Command,
        "camera.sh": Command,
        "camera.sh -o -": Command,
        f"{script} 'two words'": Command,
        "http://me:secret@camera/snap.jpg?pwd=secret&n=1": Snapshots,
        "HTTPS://camera/": Snapshots,
    }
    sources = {text: opened(text) for text in kinds}
    assert {text: type(source) for text, source in sources.items()} == kinds
    assert not any("secret" in source.name for source in sources.values())
    assert sources[f"{script} 'two words'"].name == f"{script} 'two words'"


def test_an_rtsp_address_needs_no_camera(program: Program) -> None:
    program("ffmpeg", "")
    source = opened("rtsp://me:secret@camera/1")
    assert isinstance(source, Command) and "rtsp://camera/1" in source.name and "secret" not in source.name


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nothing", "nothing: there is no such file, folder or program; check its name"),
        ("no/such.jpg", "no/such.jpg: there is no such file, folder or program"),
        ("no-such-camera -o -", "SOURCE: the program no-such-camera is not installed"),
        ("ffmpeg -i x", "SOURCE: the program ffmpeg is not installed; sudo apt install ffmpeg"),
        ("echo 'x", r"SOURCE: found \"echo 'x\" \(No closing quotation\)"),
        ("echo x | cat", r"SOURCE: found '\|', for which it takes a shell, .* sh -c 'echo x \| cat'"),
        (" ", "SOURCE: is empty, wanted a command"),
        ("ftp://me:pw@host/x", "^ftp://host/x: is an address of another kind, wanted http, https or rtsp"),
        ("http://", "http://: is no address, wanted"),
        ("http://host:port/", "is no address .*, wanted http://camera"),
        ("/dev/null", "/dev/null: is a device; a camera: mvlm watch --camera usb /dev/null"),
        ("text.txt", "text.txt: is no picture that Pillow can read"),
        ("film.mp4", "film.mp4: is a video"),
        ("pipe", "pipe: is neither a file nor a folder; mvlm watch - ... < pipe reads it"),
    ],
)
def test_what_is_no_source(
    text: str, message: str, tmp_path: Path, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    program("echo", "")
    Path("text.txt").write_text("What is this?")
    Path("film.mp4").write_bytes(b"\0\0\0\x18ftypmp42" + bytes(100))
    os.mkfifo("pipe")
    with pytest.raises(UserError, match=message):
        opened(text)


def test_the_commands_of_the_usual_cameras(program: Program) -> None:
    for name in ("rpicam-vid", "v4l2-ctl", "ffmpeg"):
        program(name, "")
    assert command("rpicam", "")[0] == "rpicam-vid" and command("rpicam", "1")[-4:] == [
        "--camera",
        "1",
        "-o",
        "-",
    ]
    assert "--device=/dev/null" in command("usb", "/dev/null")
    rtsp = command("rtsp", "rtsp://camera/1")
    assert rtsp[rtsp.index("-i") + 1] == "rtsp://camera/1" and rtsp[-1] == "-"
    assert all(isinstance(opened("rtsp://x/" if c == "rtsp" else "", c), Command) for c in ("rpicam", "rtsp"))


def test_the_older_name_of_the_raspberry_pis_program(program: Program) -> None:
    program("libcamera-vid", "")
    assert command("rpicam", "")[0] == "libcamera-vid"


@pytest.mark.parametrize(
    ("camera", "which", "message"),
    [
        ("rpicam", "front", "--camera rpicam: found 'front', wanted a camera's number"),
        (
            "rpicam",
            "",
            "--camera rpicam: the program rpicam-vid is not installed; sudo apt install rpicam-apps",
        ),
        ("usb", "", "--camera usb: the program v4l2-ctl is not installed; sudo apt install v4l-utils"),
        ("rtsp", "", "--camera rtsp: found '', wanted its address"),
        ("rtsp", "rtsp://x/", "--camera rtsp: the program ffmpeg is not installed; sudo apt install ffmpeg"),
        ("webcam", "", "--camera: found 'webcam', wanted one of rpicam, usb, rtsp"),
    ],
)
def test_cameras_that_are_none(
    camera: str, which: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match=message):
        command(camera, which)


def test_a_usb_camera_that_is_not_there(program: Program) -> None:
    program("v4l2-ctl", "")
    with pytest.raises(UserError, match="there is no /dev/no-video; v4l2-ctl --list-devices"):
        command("usb", "/dev/no-video")


def test_v4l2_ctl_knows_the_options() -> None:
    if shutil.which("v4l2-ctl") is None:
        pytest.skip("needs v4l2-ctl: apt-get install v4l-utils")
    known = subprocess.run(["v4l2-ctl", "--help-all"], capture_output=True, text=True).stdout
    options = [part.partition("=")[0] for part in command("usb", "/dev/null")[1:]]
    assert options and all(f"{option} " in known or f"{option}\n" in known for option in options)


def test_ffmpeg_knows_the_options() -> None:
    """Nothing listens at port 9, and that is all it finds wrong."""
    if shutil.which("ffmpeg") is None:
        pytest.skip("needs ffmpeg: apt-get install ffmpeg")
    done = subprocess.run(command("rtsp", "rtsp://127.0.0.1:9/"), capture_output=True, text=True, timeout=60)
    assert done.returncode != 0 and "Connection refused" in done.stderr and "ption" not in done.stderr
