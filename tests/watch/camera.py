"""A camera for tests: pictures of a scene, a clock that somebody has to move, programs on the PATH."""

import io
import stat
import sys
import textwrap
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mvlm_np.watch.clock import Clock
from mvlm_np.watch.outputs import Event, Quiet
from mvlm_np.watch.sources import Ended, Frame

BEGIN = datetime(2026, 11, 1, 12, 0, tzinfo=UTC)
Program = Callable[[str, str], Path]


class FakeClock(Clock):
    """Time passes when somebody sleeps."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def now(self) -> float:
        return self.seconds

    def sleep(self, seconds: float) -> None:
        assert seconds >= 0
        self.seconds += seconds

    def date(self) -> datetime:
        return BEGIN + timedelta(seconds=self.seconds - 1000.0)


def scene(
    seed: int = 0, at: tuple[int, int] | None = None, light: float = 0.0, noise: float = 0.0
) -> np.ndarray:
    """uint8 (72, 96, 3): a room, in which something of 24 x 24 pixels may stand (8 % of the picture)."""
    room = np.kron(np.random.default_rng(7).uniform(60, 190, (9, 12)), np.ones((8, 8)))
    if at is not None:
        y, x = at
        room[y : y + 24, x : x + 24] = 250
    room = room + light + np.random.default_rng(seed).normal(0, noise or 1e-9, room.shape)
    return np.repeat(room.clip(0, 255).round().astype(np.uint8)[..., None], 3, axis=2)


def jpeg(pixels: np.ndarray, **options: Any) -> bytes:
    """A picture's file."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", **{"quality": 92, **options})
    return file.getvalue()


class FakeSource:
    """Gives pictures at their times: (seconds from the beginning, a picture or why there is none)."""

    name = "camera"

    def __init__(self, clock: FakeClock, frames: Iterable[tuple[float, bytes | str]], live: bool = True):
        self.clock, self.live, self.gone, self.closed = clock, live, "", False
        self._frames, self._begin = iter(frames), clock.now()
        self._coming = next(self._frames, None)

    def next(self, seconds: float) -> Frame | None:
        newest: bytes | str | None = None
        while self._coming is not None and self._begin + self._coming[0] <= self.clock.now():
            newest = self._coming[1]
            self._coming = next(self._frames, None)
        if newest is None:
            if self._coming is None:
                raise Ended
            wait = self._begin + self._coming[0] - self.clock.now()
            self.clock.sleep(min(wait, seconds))
            return None if wait > seconds else self.next(seconds - wait)
        self.gone = newest if isinstance(newest, str) else ""
        return Frame(newest) if isinstance(newest, bytes) else None

    def close(self) -> None:
        self.closed = True


class Kept(Quiet):
    """Keeps what it gets."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.pictures: list[bytes] = []
        self.presence: list[bool] = []

    def put(self, event: Event, picture: bytes) -> None:
        self.events.append(event)
        self.pictures.append(picture)

    def present(self, there: bool) -> None:
        self.presence.append(there)


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Program:
    """Makes a program in Python, found by its name before all others."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/sbin:/usr/bin:/bin")

    def make(name: str, code: str) -> Path:
        path = folder / name
        path.write_text(f"#!{sys.executable} -S\n{textwrap.dedent(code)}")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        return path

    return make
