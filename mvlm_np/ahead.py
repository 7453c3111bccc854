"""What will be needed later is computed in a thread, while other work goes on."""

from collections.abc import Callable
from contextlib import suppress
from threading import Thread
from typing import Generic, TypeVar

T = TypeVar("T")


class Ahead(Generic[T]):
    """What a function returns, computed from now on in a thread of its own.

    Errors show where and when the result is asked for: of several, threads do not change which one is told.
    """

    def __init__(self, compute: Callable[[], T]):
        self._compute = compute
        self._found: list[T] = []
        self._thread = Thread(target=self._run, name="ahead")
        with suppress(RuntimeError):  # no more threads are to be had
            self._thread.start()

    def _run(self) -> None:
        with suppress(Exception):
            self._found.append(self._compute())

    def result(self) -> T:
        """Waits for it. What has failed, or was lost in a fork, is computed again here, and raises here."""
        if self._thread.ident:
            self._thread.join()
        return self._found[0] if self._found else self._compute()
