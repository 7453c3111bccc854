"""Where pictures come from: programs that end, hang, chatter or write something else; pipes; folders."""

import io
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mvlm_np.errors import UserError
from mvlm_np.watch import process
from mvlm_np.watch.sources import Backoff, Command, Ended, Files, Frame, Newest, Source, Stream
from tests.watch.camera import FakeClock, Program, jpeg, program, scene

__all__ = ["program"]
ROOM, GUEST = jpeg(scene()), jpeg(scene(at=(30, 40)))
SOON = 20.0  # seconds that a busy machine has for what takes a moment

CAMERA = f"""
import os, sys, time
frames = [bytes.fromhex({ROOM.hex()!r}), bytes.fromhex({GUEST.hex()!r})]
def write(data):
    while data:
        data = data[os.write(1, data):]
"""


@pytest.fixture
def opened() -> Iterator[Callable[..., Command]]:
    """Starts commands whose next try comes at once, and ends them."""
    commands: list[Command] = []

    def start(*words: str, stalled: float = SOON) -> Command:
        commands.append(Command(words, Backoff(0.01, 0.05), stalled))
        return commands[-1]

    yield start
    for command in commands:
        command.close()


def until(seen: Callable[[], object]) -> None:
    end = time.monotonic() + SOON
    while not seen():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


def first(source: Source) -> bytes:
    frames: list[Frame | None] = []
    until(lambda: frames.append(source.next(1.0)) or frames[-1])  # type: ignore[func-returns-value]
    assert frames[-1] is not None
    return frames[-1].data


def test_pictures_of_a_program(program: Program, opened: Callable[..., Command]) -> None:
    program("rpicam-vid", f"{CAMERA}\nwrite(frames[0])\ntime.sleep(60)")
    camera = opened("rpicam-vid", "-o", "-")
    assert (camera.name, camera.live) == ("rpicam-vid -o -", True)
    assert first(camera) == ROOM and camera.next(0.05) is None and camera.gone == ""


def test_only_the_newest_picture_is_given(
    program: Program, opened: Callable[..., Command], tmp_path: Path
) -> None:
    done = tmp_path / "done"
    written = "for i in range(200): write(frames[0])\nwrite(frames[1])"
    program("camera", f"{CAMERA}\n{written}\nopen({str(done)!r}, 'w')\ntime.sleep(60)")
    camera = opened("camera")
    camera.next(0)
    until(done.exists)
    until(lambda: camera._newest._data is None or camera._newest._data == GUEST)
    assert first(camera) == GUEST and camera.next(0.05) is None


def test_a_program_that_ends_is_started_again(
    program: Program, opened: Callable[..., Command], tmp_path: Path
) -> None:
    starts = tmp_path / "starts"
    code = f"open({str(starts)!r}, 'a').write('x'); write(frames[0]); sys.exit('no camera at \\n/dev/video0')"
    program("camera", f"{CAMERA}\n{code}")
    camera = opened("camera")
    for _ in range(3):
        assert first(camera) == ROOM
    until(lambda: camera.gone)
    assert camera.gone == "has ended with exit code 1: /dev/video0"
    until(lambda: len(starts.read_text()) > 3)


def test_a_program_that_hangs_is_started_again(
    program: Program, opened: Callable[..., Command], tmp_path: Path
) -> None:
    once = tmp_path / "once"
    code = (
        f"once = {str(once)!r}\nif os.path.exists(once): write(frames[1])\nopen(once, 'w')\ntime.sleep(600)"
    )
    program("camera", f"{CAMERA}\n{code}")
    camera = opened("camera", stalled=1.0)
    camera.next(0)
    until(lambda: camera.gone)
    assert camera.gone.startswith("has written no picture for 1 s")
    assert first(camera) == GUEST and camera.gone == ""


def test_a_program_that_writes_something_else_is_told_what_to_write(
    program: Program, opened: Callable[..., Command]
) -> None:
    program("camera", f"{CAMERA}\nwrite(bytes(200_000))")
    camera = opened("camera")
    camera.next(0)
    until(lambda: camera.gone)
    assert "after 200000 bytes without a JPEG" in camera.gone and "-c:v mjpeg" in camera.gone


def test_a_program_that_chatters_is_not_held_up(program: Program, opened: Callable[..., Command]) -> None:
    chatter = "for i in range(300): os.write(2, b'frame\\n' * 200)"
    program("camera", f"{CAMERA}\n{chatter}\nwrite(frames[0])\nos.write(2, b'done\\n')\ntime.sleep(60)")
    assert first(opened("camera")) == ROOM


def test_a_program_that_cannot_be_started_is_waited_for(
    program: Program, opened: Callable[..., Command]
) -> None:
    camera = opened("camera")
    camera.next(0)
    until(lambda: camera.gone)
    assert camera.gone == "cannot be started (No such file or directory)"
    program("camera", f"{CAMERA}\nwrite(frames[0])\ntime.sleep(60)")
    assert first(camera) == ROOM


@pytest.mark.parametrize("stubborn", [False, True])
def test_all_that_a_program_started_ends_with_us(
    program: Program,
    opened: Callable[..., Command],
    tmp_path: Path,
    stubborn: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A shell and what it runs; the stubborn one ignores SIGTERM."""
    monkeypatch.setattr(process, "GRACE", 0.3)
    deaf = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)" if stubborn else ""
    pids = tmp_path / "pids"
    program(
        "inner",
        f"{CAMERA}\n{deaf}\nopen({str(pids)!r}, 'w').write(f'{{os.getpid()}}')\n"
        "write(frames[0])\ntime.sleep(600)",
    )
    camera = opened("sh", "-c", "inner | cat; true")
    assert first(camera) == ROOM
    pid = int(pids.read_text())
    camera.close()
    until(lambda: not alive(pid))


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and waits for its parent does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_program_that_was_never_asked_for_is_not_started() -> None:
    Command(["camera"]).close()


def test_waiting_times_grow_to_a_bound_and_begin_anew() -> None:
    wait = Backoff()
    assert [wait.failed() for _ in range(8)] == [1, 2, 4, 8, 16, 32, 60, 60]
    wait.worked()
    assert wait.failed() == 1


# ---------------------------------------------------------------- our own input


def pipe(data: bytes) -> io.BufferedReader:
    out, into = os.pipe()
    os.write(into, data)
    os.close(into)
    return os.fdopen(out, "rb")


def test_pictures_that_are_piped_in() -> None:
    with pipe(ROOM + GUEST) as file:
        source = Stream(file)
        assert first(source) == GUEST
        with pytest.raises(Ended):
            source.next(SOON)


@pytest.mark.parametrize("data", [b"", b"no picture", ROOM[:-2]])
def test_an_input_without_pictures_is_an_error(data: bytes) -> None:
    with pipe(data) as file, pytest.raises(UserError, match=r"^-: the input ended, wanted JPEGs"):
        Stream(file).next(SOON)


def test_a_terminal_is_no_camera() -> None:
    class Terminal(io.BytesIO):
        def isatty(self) -> bool:
            return True

    with pytest.raises(UserError, match="is a terminal, wanted JPEGs; pipe them in"):
        Stream(Terminal())


def test_what_is_there_is_taken_before_the_end() -> None:
    newest = Newest()
    newest.put(b"1")
    newest.put(b"2")
    newest.end()
    assert newest.take(0) == b"2"
    with pytest.raises(Ended):
        newest.take(0)


# ---------------------------------------------------------------- files


def write(path: Path, data: bytes, second: int) -> None:
    path.write_bytes(data)
    os.utime(path, (second, second))


def test_the_newest_picture_in_a_folder_is_given_once(tmp_path: Path) -> None:
    clock = FakeClock()
    files = Files(str(tmp_path), 2.0, clock)
    assert files.next(10.0) is None and files.gone == "" and not files.live
    write(tmp_path / "b.JPG", ROOM, 100)
    write(tmp_path / "a.png", GUEST, 90)
    for name in (".hidden.jpg", "notes.txt", "new.jpg.part"):
        write(tmp_path / name, b"", 200)
    (tmp_path / "folder.jpg").mkdir()
    assert files.next(10.0) is None  # it may be half written
    assert files.next(10.0) == Frame(ROOM, str(tmp_path / "b.JPG"))
    assert [files.next(10.0) for _ in range(3)] == [None] * 3
    assert clock.now() == 1000.0 + 5 * 2.0
    write(tmp_path / "c.jpg", GUEST, 300)
    assert [files.next(10.0), files.next(10.0)] == [None, Frame(GUEST, str(tmp_path / "c.jpg"))]


def test_a_look_is_not_sooner_than_wanted(tmp_path: Path) -> None:
    clock = FakeClock()
    files = Files(str(tmp_path), 60.0, clock)
    files.next(1.0)
    assert files.next(1.0) is None and clock.now() == 1001.0


def test_a_picture_that_still_grows_is_waited_for(tmp_path: Path) -> None:
    path, files = tmp_path / "a.jpg", Files(str(tmp_path / "a.jpg"), 1.0, FakeClock())
    for length in (10, 100, 1000):
        write(path, ROOM[:length], length)
        assert files.next(1.0) is None
    write(path, ROOM, 2000)
    assert files.next(1.0) is None and files.next(1.0) == Frame(ROOM, str(path))
    write(path, GUEST, 3000)
    assert files.next(1.0) is None and files.next(1.0) == Frame(GUEST, str(path))


def test_a_folder_that_goes_is_waited_for(tmp_path: Path) -> None:
    folder = tmp_path / "stick"
    files = Files(str(folder), 1.0, FakeClock())
    assert files.next(1.0) is None
    assert files.gone == "cannot be read (No such file or directory)"
    folder.mkdir()
    write(folder / "a.jpg", ROOM, 1)
    assert files.next(1.0) is None and files.gone == "" and files.next(1.0) is not None


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    with path.open("wb") as file:
        file.truncate(33 << 20)
    files = Files(str(path), 1.0, FakeClock())
    assert [files.next(1.0), files.next(1.0)] == [None, None] and "larger than 32 MB" in files.gone
