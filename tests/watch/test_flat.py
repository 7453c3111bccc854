"""A watch runs for months: after ten thousand pictures it takes no more memory than after two thousand."""

import gc
import io
import os
import random
import threading
import time
from collections.abc import Iterator

import pytest

from mvlm_np.watch import readings, sources
from mvlm_np.watch.asking import Reply
from mvlm_np.watch.gate import Gate
from mvlm_np.watch.jpeg import Splitter
from mvlm_np.watch.loop import Loop, Pace
from mvlm_np.watch.notes import Notes
from mvlm_np.watch.outputs import Lines
from mvlm_np.watch.sources import Backoff, Command
from mvlm_np.watch.stopping import Stopper
from tests.watch.camera import FakeClock, FakeSource, Program, jpeg, program, scene

__all__ = ["program"]
PICTURES = 10_000
WARM = 2_000
# What a picture leaves, if anything keeps it: its file of 3 kB, or its cells, 3 kB. One in ten would show.
BOUND = 3_000 * (PICTURES - WARM) // 10


def resident() -> int:
    """Bytes of this process in memory."""
    gc.collect()
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_ten_thousand_pictures_leave_nothing() -> None:
    """Every tenth look sees a change, and some see no picture at all."""
    drawn = random.Random(4)
    seen = [jpeg(scene(seed=i, noise=4, at=at)) for i in range(20) for at in (None, (30, 40))]
    marks = []

    def frames() -> Iterator[tuple[float, bytes | str]]:
        for i in range(PICTURES):
            if i == WARM:
                marks.append(resident())
            at = 2 * drawn.randrange(20) + (i // 10) % 2
            yield i / 4, b"damaged" if i % 97 == 0 else "unplugged" if i % 101 == 0 else seen[at]

    class Model:
        asked = 0

        def ask(self, data: bytes) -> Reply:
            self.asked += 1
            return Reply(f"answer {self.asked} " * 20, 9, 0.5)

    class Nowhere(io.StringIO):
        def write(self, text: str) -> int:
            return len(text)

    clock, model = FakeClock(), Model()
    Loop(
        FakeSource(clock, frames()), Gate(settle=0.5), model, readings.text, [Lines(Nowhere())],
        Pace(at_most=1.0), clock=clock, stopper=Stopper(), notes=Notes(clock),
    ).run()  # fmt: skip
    assert model.asked > PICTURES // 20
    assert resident() - marks[0] < BOUND


def test_ten_thousand_pictures_of_a_program_leave_nothing(
    program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody takes most of them; now and then the program ends, and is started again."""
    picture = jpeg(scene()[:24, :24])
    code = f"""
import os
data = bytes.fromhex({picture.hex()!r}) * 50
for i in range(20):
    at = 0
    while at < len(data):
        at += os.write(1, data[at:])
os.write(2, b"frame" * 2000)
"""
    program("camera", code)
    written = 0

    class Counting(Splitter):
        def push(self, data: bytes) -> list[bytes]:
            nonlocal written
            frames = super().push(data)
            written += len(frames)
            return frames

    monkeypatch.setattr(sources, "Splitter", Counting)
    marks: list[int] = []
    camera, taken, threads = Command(["camera"], Backoff(0.01, 0.01)), 0, threading.active_count()
    end = time.monotonic() + 120
    try:
        while written < PICTURES and time.monotonic() < end:
            taken += camera.next(0.01) is not None
            if written >= WARM and not marks:
                marks.append(resident())
        assert resident() - marks[0] < BOUND
    finally:
        camera.close()
    assert written >= PICTURES and taken and threading.active_count() <= threads
