"""Where pictures come from: a program's output, our own input, an address, a folder, a file.

Of several pictures that have come in the meantime only the newest is given. A camera that is not there is
waited for; `Source.gone` says what is wrong with it.
"""

import os
import selectors
import subprocess
import threading
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from time import monotonic
from typing import IO, Protocol

from mvlm_np.errors import UserError
from mvlm_np.watch.clock import Clock
from mvlm_np.watch.jpeg import MOST, Splitter
from mvlm_np.watch.process import end, last_line, shown

PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")  # of a folder, by name
READ = 1 << 16  # bytes at a time
STALLED = 30.0  # seconds without a picture, after which a program is started again
TAIL = 2000  # bytes of what a program says that are kept
NO_JPEG = "let it write JPEGs: -c:v mjpeg -f image2pipe - (ffmpeg), --codec mjpeg -o - (rpicam-vid)"


class Ended(Exception):
    """No more pictures will come."""


@dataclass(frozen=True)
class Frame:
    """A picture's file in memory, and its path where it has one."""

    data: bytes
    file: str | None = None


class Source(Protocol):
    """Pictures, one after another.

    name  for people, without a password
    live  whether pictures come all the time, changed or not; else a new one is something new
    gone  what is wrong, while there are none; "" when all is well
    """

    name: str
    live: bool
    gone: str

    def next(self, seconds: float) -> Frame | None:
        """The newest picture that was not given before. None: none came within that time, or `gone` is new.

        Ended: there will be none. UserError: waiting does not help.
        """

    def close(self) -> None:
        """Ends what was started for it."""


class Backoff:
    """How long to wait before the next try: 1 s, then twice as long each time, up to a minute."""

    def __init__(self, first: float = 1.0, longest: float = 60.0):
        self.first, self.longest = first, longest
        self._next = first

    def failed(self) -> float:
        """Seconds until the next try."""
        seconds, self._next = self._next, min(2 * self._next, self.longest)
        return seconds

    def worked(self) -> None:
        """The next failure is a first one again."""
        self._next = self.first


# ---------------------------------------------------------------- streams of JPEGs


class Newest:
    """Holds the newest picture, between the thread that reads a stream and the one that looks at pictures."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._data: bytes | None = None
        self._ended = self._woken = False

    def put(self, data: bytes) -> None:
        """Replaces what has not been taken."""
        with self._changed:
            self._data = data
            self._changed.notify_all()

    def end(self) -> None:
        """Nothing will be put any more."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def wake(self) -> None:
        """Who waits need not wait any longer, though nothing is there."""
        with self._changed:
            self._woken = True
            self._changed.notify_all()

    def take(self, seconds: float) -> bytes | None:
        """What is new, once it is there; None after that time. Ended: nothing will be."""
        with self._changed:
            self._changed.wait_for(lambda: self._data is not None or self._ended or self._woken, seconds)
            data, self._data, self._woken = self._data, None, False
            if data is None and self._ended:
                raise Ended
            return data


class Stream:
    """JPEGs that somebody pipes into us."""

    live = True

    def __init__(self, file: IO[bytes], name: str = "-"):
        """UserError: it is a terminal."""
        if file.isatty():
            raise UserError(name, "is a terminal", "JPEGs", "pipe them in: ffmpeg ... | mvlm watch - ...")
        self.name, self.gone = name, ""
        self._file, self._newest, self._frames = file, Newest(), 0
        threading.Thread(target=self._read, name="watch-source", daemon=True).start()

    def next(self, seconds: float) -> Frame | None:
        """See `Source`."""
        try:
            data = self._newest.take(seconds)
        except Ended:
            if not self._frames:
                raise UserError(self.name, "the input ended", "JPEGs in it", NO_JPEG) from None
            raise
        return None if data is None else Frame(data)

    def close(self) -> None:
        """See `Source`. The thread is left where it waits for input; it ends with us."""

    def _read(self) -> None:
        split = Splitter()
        while data := os.read(self._file.fileno(), READ):
            for frame in split.push(data)[-1:]:
                self._frames += 1
                self._newest.put(frame)
        self._newest.end()


class Command:
    """JPEGs that a program writes. When it ends, or writes none for a while, it is started again.

    command  the program and its arguments, which no shell sees
    """

    live = True

    def __init__(self, command: Sequence[str], backoff: Backoff | None = None, stalled: float = STALLED):
        self.name, self.gone = shown(command), ""
        self._command, self._backoff, self._stalled = list(command), backoff or Backoff(), stalled
        self._newest, self._closed = Newest(), threading.Event()
        self._thread: threading.Thread | None = None

    def next(self, seconds: float) -> Frame | None:
        """See `Source`. The program is started by the first call."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._keep_running, name="watch-source", daemon=True)
            self._thread.start()
        data = self._newest.take(seconds)
        return None if data is None else Frame(data)

    def close(self) -> None:
        """See `Source`."""
        self._closed.set()
        if self._thread is not None:
            self._thread.join()

    def _keep_running(self) -> None:
        while not self._closed.is_set():
            self.gone = self._run()
            self._newest.wake()  # so that what is wrong is noticed
            self._closed.wait(self._backoff.failed())

    def _run(self) -> str:
        """Runs the program once. Returns what was wrong with it."""
        try:
            program = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,  # Ctrl-C is meant for us, and we end it
            )
        except OSError as error:
            return f"cannot be started ({error.strerror})"
        with program:
            try:
                return self._read(program)
            finally:
                end(program)

    def _read(self, program: subprocess.Popen[bytes]) -> str:
        split, said, since = Splitter(), b"", monotonic()
        assert program.stdout is not None and program.stderr is not None
        with selectors.DefaultSelector() as selector:
            selector.register(program.stdout, selectors.EVENT_READ)
            selector.register(program.stderr, selectors.EVENT_READ)
            while not self._closed.is_set():
                for key, _ in selector.select(0.2):
                    data = os.read(key.fd, READ)
                    if not data:
                        selector.unregister(key.fileobj)
                    elif key.fileobj is program.stderr:
                        said = (said + data)[-TAIL:]
                    for frame in split.push(data)[-1:] if key.fileobj is program.stdout else []:
                        self._newest.put(frame)
                        self._backoff.worked()
                        self.gone, since = "", monotonic()
                strange = f" after {split.strange} bytes without a JPEG" if split.strange > READ else ""
                fix = f"; {NO_JPEG}" if strange else ""
                if program.stdout.fileno() not in selector.get_map():
                    return f"has ended{strange}{self._code(program)}{last_line(said)}{fix}"
                if monotonic() - since > self._stalled:
                    return f"has written no picture for {self._stalled:g} s{strange}{last_line(said)}{fix}"
        return ""

    def _code(self, program: subprocess.Popen[bytes]) -> str:
        try:
            return f" with exit code {program.wait(1.0)}"
        except subprocess.TimeoutExpired:
            return ""


# ---------------------------------------------------------------- what is looked at from time to time


class Polled(ABC):
    """A source that is looked at every few seconds."""

    live = False

    def __init__(self, name: str, every: float, clock: Clock):
        self.name, self.every, self.clock, self.gone = name, every, clock, ""
        self._due = clock.now()

    def next(self, seconds: float) -> Frame | None:
        """See `Source`."""
        self.clock.sleep(min(max(self._due - self.clock.now(), 0.0), seconds))
        if self.clock.now() < self._due:
            return None
        self._due = self.clock.now() + self.every
        return self._look()

    @abstractmethod
    def _look(self) -> Frame | None:
        """What is there now; None for nothing new."""

    def close(self) -> None:  # noqa: B027 - nothing is held open
        """See `Source`."""


class Files(Polled):
    """The newest picture in a folder, or a file that is written anew from time to time.

    A picture is given when two looks have found it the same, so that it is whole.
    """

    def __init__(self, path: str, every: float, clock: Clock):
        super().__init__(path, every, clock)
        self._seen: tuple[int, int, str] | None = None
        self._given: tuple[int, int, str] | None = None

    def _look(self) -> Frame | None:
        try:
            found = self._newest()
            self.gone = ""
            if found in (None, self._given) or found != self._seen:
                self._seen = found
                return None
            self._given, path = found, found[2]
            if found[1] > MOST:
                raise OSError(0, f"larger than {MOST >> 20} MB")
            with open(path, "rb") as file:
                return Frame(file.read(MOST), path)
        except OSError as error:
            self.gone = f"cannot be read ({error.strerror})"
            return None

    def _newest(self) -> tuple[int, int, str] | None:
        """(time of the last change, size, path) of the newest picture."""
        if not os.path.isdir(self.name):
            stat = os.stat(self.name)
            return stat.st_mtime_ns, stat.st_size, self.name
        newest = None
        with os.scandir(self.name) as entries:
            for entry in entries:
                if entry.name.lower().endswith(PICTURES) and entry.name[0] != "." and entry.is_file():
                    stat = entry.stat()
                    found = stat.st_mtime_ns, stat.st_size, entry.path
                    newest = found if newest is None else max(newest, found)
        return newest
