"""Where answers go: lines, voices, programs, a file; and what happens when one of them fails."""

import io
import json
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from mvlm_np.errors import ImageError, UserError
from mvlm_np.watch import process
from mvlm_np.watch.clock import Clock
from mvlm_np.watch.notes import Notes
from mvlm_np.watch.outputs import Event, Exec, Lines, Program, Save, Say
from mvlm_np.watch.pictures import as_jpeg
from mvlm_np.watch.stopping import Stopped, Stopper
from tests.watch.camera import Program as Make
from tests.watch.camera import jpeg, program, scene

__all__ = ["program"]
ROOM = jpeg(scene())
EVENT = Event("2026-11-01T12:00:00+00:00", "camera", True, "A »cat«", 0.9, 3, 1.5, None, "A »cat«")


def test_a_line_is_json_and_there_at_once() -> None:
    flushed: list[str] = []

    class File(io.StringIO):
        def flush(self) -> None:
            flushed.append(self.getvalue())

    Lines(File()).put(EVENT, ROOM)
    assert flushed[-1].endswith("\n") and "»" in flushed[-1]
    line = json.loads(flushed[-1])
    assert list(line) == ["time", "source", "changed", "answer", "p", "tokens", "seconds", "file"]
    assert json.loads(replace(EVENT, answer=None, reason="why").json())["reason"] == "why"
    assert json.loads(replace(EVENT, answer=12, text="12").json()).get("text") is None
    assert "\n" not in replace(EVENT, answer="two\nlines", text="two\nlines").json()


def made(kind: type[Program], path: Path, patience: float = 20.0) -> Program:
    return kind([str(path)], Stopper(), Notes(Clock()), patience)


def test_a_program_gets_json_on_its_input_and_nothing_in_its_call(program: Make, tmp_path: Path) -> None:
    got = tmp_path / "got"
    hook = program(
        "hook", f"import sys\nopen({str(got)!r}, 'a').write(f'{{sys.argv[1:]}}{{sys.stdin.read()}}')"
    )
    event = replace(EVENT, answer='$(reboot) "; rm -rf *')
    made(Exec, hook).put(event, ROOM)
    assert got.read_text() == f"[]{event.json()}\n"


def test_a_voice_gets_the_answer_unless_it_is_not_believed(program: Make, tmp_path: Path) -> None:
    got = tmp_path / "got"
    say = made(Say, program("voice", f"import sys\nopen({str(got)!r}, 'a').write(sys.stdin.read())"))
    for answer in ("A cat", 21.5, None, "no"):
        say.put(replace(EVENT, answer=answer), ROOM)
    assert got.read_text() == "A cat\n21.5\nno\n"


def test_a_program_that_fails_is_noted_once_and_tried_again(
    program: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = tmp_path / "good"
    code = f"import os, sys\nos.path.exists({str(good)!r}) or sys.exit('no sound card')"
    hook = program("hook", code)
    output = made(Exec, hook)
    for _ in range(3):
        output.put(EVENT, ROOM)
    good.touch()
    output.put(EVENT, ROOM)
    hook.unlink()
    output.put(EVENT, ROOM)
    assert capsys.readouterr().err.splitlines() == [
        f"mvlm: note: {hook}: ended with exit code 1: no sound card",
        f"mvlm: note: {hook}: works again",
        f"mvlm: note: {hook}: cannot be started (No such file or directory)",
    ]


def test_a_program_that_does_not_read_is_no_harm(program: Make, capsys: pytest.CaptureFixture[str]) -> None:
    output = made(Exec, program("hook", "import os\nos.close(0)"))
    output.put(replace(EVENT, answer="x" * 200_000), ROOM)
    assert capsys.readouterr().err == ""


def test_a_program_that_does_not_end_is_ended(
    program: Make, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "GRACE", 0.2)
    deaf = "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\ntime.sleep(600)"
    made(Exec, program("hook", deaf), patience=0.5).put(EVENT, ROOM)
    assert "took longer than 0.5 s, and was ended" in capsys.readouterr().err


def test_a_signal_ends_a_program(program: Make, tmp_path: Path) -> None:
    stopper, pid = Stopper(), tmp_path / "pid"
    code = f"""
    import os, signal, time
    open({str(pid)!r}, "w").write(str(os.getpid()))
    os.kill(os.getppid(), signal.SIGTERM)
    time.sleep(600)
    """
    with stopper.listening(), pytest.raises(Stopped):
        Say([str(program("voice", code))], stopper, Notes(Clock())).put(EVENT, ROOM)
    assert stopper.signal == signal.SIGTERM and not Path(f"/proc/{pid.read_text()}").exists()


def test_the_real_voice_speaks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if shutil.which("espeak-ng") is None:
        pytest.skip("needs espeak-ng: apt-get install espeak-ng")
    wave = tmp_path / "said.wav"
    Say(["espeak-ng", "--stdin", "-w", str(wave)], Stopper(), Notes(Clock())).put(EVENT, ROOM)
    assert wave.read_bytes().startswith(b"RIFF") and wave.stat().st_size > 10_000
    assert capsys.readouterr().err == ""


def test_the_last_picture_is_kept_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "last.jpg"
    save = Save(path, Notes(Clock()))
    save.put(EVENT, ROOM)
    save.put(EVENT, ROOM + b"2")
    assert path.read_bytes() == ROOM + b"2" and [*tmp_path.iterdir()] == [path]
    path.unlink()
    path.mkdir()  # which no file replaces
    save.put(EVENT, ROOM)
    assert "cannot be written (Is a directory)" in capsys.readouterr().err and [*tmp_path.iterdir()] == [path]
    with pytest.raises(UserError, match="there is no such folder; mkdir -p"):
        Save(tmp_path / "no" / "last.jpg", Notes(Clock()))


def test_a_picture_as_a_small_jpeg() -> None:
    assert as_jpeg(ROOM, 96) is ROOM
    large = Image.open(io.BytesIO(as_jpeg(ROOM, 48)))
    assert (large.format, large.size) == ("JPEG", (48, 36))
    assert len(as_jpeg(ROOM, 96, most=100)) != len(ROOM)
    file = io.BytesIO()
    Image.fromarray(scene()).convert("RGBA").save(file, "PNG")
    assert Image.open(io.BytesIO(as_jpeg(file.getvalue(), 1280))).size == (96, 72)
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    width, height = Image.open(io.BytesIO(as_jpeg(jpeg(scene(), exif=exif), 90))).size
    assert width < height == 90
    with pytest.raises(ImageError):
        as_jpeg(b"", 90)


def test_nothing_of_a_program_reaches_standard_output(
    program: Make, capfd: pytest.CaptureFixture[str]
) -> None:
    """Where lines of JSON go."""
    made(Exec, program("hook", "print('noise')")).put(EVENT, ROOM)
    assert capfd.readouterr() == ("", "")
