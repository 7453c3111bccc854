"""Progress bars on stderr for whatever takes longer than two seconds."""

import io
import logging
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from time import time
from typing import TYPE_CHECKING, Any, Self, TextIO

import numpy as np

from mvlm_np.trace import Watch

if TYPE_CHECKING:
    from tqdm import tqdm

DELAY = 1.5  # seconds of work before a bar appears


def bar(title: str, total: int | None, **options: Any) -> "tqdm":
    """A bar that appears once the work has taken `DELAY`, and vanishes at its end."""
    # Into a file or a pipe, a line every five seconds is enough.
    pace = 0.1 if sys.stderr.isatty() else 5
    shown = {"delay": DELAY, "mininterval": pace, "leave": False, "file": sys.stderr}
    return _tqdm()(desc=title, total=total, **shown, **options)


@cache
def _tqdm() -> Any:
    from tqdm import tqdm

    # tqdm's own lock is one between processes: from Python 3.14 on it starts one, which complains after
    # Ctrl-C.
    tqdm.set_lock(threading.RLock())
    return tqdm


class LateBar:
    """The same bar for work that is mostly done before it would appear.

    tqdm takes longer to import than all else that the command line needs, so it waits for the bar.
    """

    def __init__(self, title: str, total: int | None, **options: Any):
        self.title, self.total, self.options = title, total, options
        self.n, self._start = 0, time()
        self._bar: tqdm | None = None

    def update(self, n: int = 1) -> None:
        """n steps more are done."""
        self.n += n
        if self._bar is None and time() - self._start >= DELAY:
            self._bar = bar(self.title, self.total, **self.options)
            self._bar.start_t = self._bar.last_print_t = self._start
        if self._bar is not None:
            self._bar.total = self.total
            self._bar.update(self.n - self._bar.n)

    def close(self) -> None:
        """Removes the bar."""
        if self._bar is not None:
            self._bar.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class Bars:
    """Bars that show the time left, one after another: each begins when it is first called by its title."""

    def __init__(self) -> None:
        self._title = ""
        self._bar: tqdm | None = None

    def __call__(self, title: str, done: float, total: float) -> None:
        if title != self._title or self._bar is None:
            if self._bar is not None:
                self._bar.close()
            shown = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}, {remaining} left"
            self._title = title
            self._bar = bar(title, None, initial=done, bar_format=shown)
            self._bar.total = total
        self._bar.update(done - self._bar.n)
        if done >= total:
            self._bar.close()


@contextmanager
def counting_bytes(title: str) -> Iterator[Callable[[int, int], None]]:
    """A bar over bytes, moved on by calling what this yields with the bytes done and the bytes in all."""
    with LateBar(title, None, unit="B", unit_scale=True) as progress:

        def count(done: int, total: int) -> None:
            progress.total = total
            progress.update(done - progress.n)

        yield count


def load_with_bar(**arguments: Any) -> Any:
    """`mvlm_np.load` under a progress bar; what the user should know about the files goes to stderr."""
    import mvlm_np

    say_what_is_compiled()
    say_notes()
    with counting_bytes("load") as count:
        model = mvlm_np.load(**arguments, progress=count)
    for note in model.notes:
        print(f"mvlm: note: {note}", file=sys.stderr)
    return model


def lose_what_cannot_be_said() -> None:
    """From now on, a full disk under stderr ends nothing: for programs that run for months, with a log."""
    sys.stderr = Lossy(sys.stderr)


class Lossy(io.TextIOBase):
    """A stream to a disk that may be full: what cannot be written is lost."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def write(self, text: str) -> int:
        with suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            self._stream.flush()

    def isatty(self) -> bool:
        return self._stream.isatty()

    def fileno(self) -> int:
        return self._stream.fileno()


def say_what_is_compiled() -> None:
    """From now on, the first kernel that has to be compiled is announced, on stderr."""
    log = logging.getLogger("mvlm_np.kernels.code.compile")
    if not log.handlers:
        log.addHandler(_Announcement())
        log.setLevel(logging.INFO)


def say_notes() -> None:
    """From now on, notes on pictures, forgotten turns and calibrations are told on stderr."""
    for name in ("mvlm_np.inputs.image", "mvlm_np.chat", "mvlm_np.calibrating.layers"):
        log = logging.getLogger(name)
        if not log.handlers:
            log.addHandler(_Note())


class _Note(logging.Handler):
    """Says what was logged. It is logged before an answer begins, so no bar stands in the way."""

    def emit(self, record: logging.LogRecord) -> None:
        print(f"mvlm: note: {record.getMessage()}", file=sys.stderr)


class _Announcement(logging.Handler):
    """Tells once why the first answer takes its time."""

    said = False

    def emit(self, record: logging.LogRecord) -> None:
        if not self.said:
            self.said = True
            if getattr(record, "kept", True):
                after = "later starts load it (`mvlm warmup` compiles everything ahead)"
            else:
                after = "it cannot be kept, so every start does (`mvlm doctor` says why)"
            _tqdm().write(f"mvlm: compiling what this answer needs for this CPU; {after}", file=sys.stderr)


class ProgressWatch(Watch):
    """Turns the stages of a run into bars: each phase has one, and each stage moves it on.

    count_tokens  show a bar for the generated tokens too, where the answer itself is not shown as it grows
    """

    def __init__(self, count_tokens: int | None = None):
        super().__init__()
        self._bar: LateBar | None = None
        self._tokens: LateBar | None = None
        self._count_tokens = count_tokens

    def __call__(self, name: str, array: np.ndarray) -> None:
        if self._bar is not None and ".hidden_states." in name:
            self._bar.update()

    @contextmanager
    def phase(self, name: str, steps: int | None = None) -> Iterator[None]:
        with super().phase(name, steps):
            if name == "decode":
                if self._count_tokens and self._tokens is None:  # now, so that its rate is that of tokens
                    self._tokens = LateBar("decode", self._count_tokens)
                yield
                if self._tokens is not None:
                    self._tokens.update()
                return
            with LateBar(name, steps) as self._bar:
                yield
            self._bar = None

    def count(self, what: str, n: int = 1) -> None:
        super().count(what, n)
        if what == "accepted" and self._tokens is not None:  # a token without a step of its own
            self._tokens.update(n)

    def close(self) -> None:
        """Removes the bar of the generated tokens."""
        if self._tokens is not None:
            self._tokens.close()
