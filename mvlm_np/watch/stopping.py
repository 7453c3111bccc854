"""How a signal ends the work: at once where it waits or computes, and between two lines of output."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Stopped(BaseException):
    """A signal asked for the end. Like KeyboardInterrupt it is no error, and nothing that handles those."""


class Stopper:
    """Notes SIGINT and SIGTERM. `Stopped` is raised within `waiting()` only, or when that is entered next.

    So what is not in it, such as the writing of a line, is done to its end.

    signal  the number of the first signal that came, or None
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._waiting = False

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Around what may be left at any point."""
        self._waiting = True
        try:
            if self.signal is not None:
                raise Stopped
            yield
        finally:
            self._waiting = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Within it, both signals come here. A signal that is ignored (by `nohup`, say) stays so."""
        before = {
            number: signal.signal(number, self._take)
            for number in (signal.SIGINT, signal.SIGTERM)
            if signal.getsignal(number) is not signal.SIG_IGN
        }
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _take(self, number: int, frame: FrameType | None) -> None:
        again, self.signal = self.signal is not None, self.signal or number
        if self._waiting and not again:
            raise Stopped
