"""Watching a run: the arrays it computes, the phases it goes through, the time they take.

The forward pass calls `watch(name, array)` at each stage and knows nothing of who listens. The base
class listens to nothing; `Recorder` keeps every array (`model.trace`, goldens), and the command line's
watcher turns the same calls into a progress bar.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import perf_counter

import numpy as np

Trace = Callable[[str, np.ndarray], None]
Stages = dict[str, np.ndarray]  # the arrays of a run, by the names of the goldens


class Watch:
    """Sees a run. Subclasses override what they need; this one only measures the phases.

    seconds  {phase: seconds spent in it}, of "preprocess", "encode", "project", "prefill", "decode"
    counts   {what: how many}, of "drafted" and "accepted" tokens; see `speculation`
    everything  whether to compute what no answer depends on too, such as the encoder's last block
    """

    everything = False

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.counts: dict[str, int] = {}

    def __call__(self, name: str, array: np.ndarray) -> None:
        """Stage `name` has been computed. Copy what you keep; what you write to it, the next stage sees."""

    @contextmanager
    def phase(self, name: str, steps: int | None = None) -> Iterator[None]:
        """Around a phase of about `steps` stages; "decode" is entered once a step of the decoder."""
        start = perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + perf_counter() - start

    def count(self, what: str, n: int = 1) -> None:
        """There were n more of something."""
        self.counts[what] = self.counts.get(what, 0) + n

    def within(self, prefix: str) -> Trace:
        """The same watch for a part of the model that does not know where it stands."""
        return lambda name, array: self(f"{prefix}.{name}", array)


class Recorder(Watch):
    """Keeps a copy of every array under its stage name."""

    everything = True

    def __init__(self) -> None:
        super().__init__()
        self.arrays: dict[str, np.ndarray] = {}

    def __call__(self, name: str, array: np.ndarray) -> None:
        self.arrays[name] = np.array(array)


def ignore(name: str, array: np.ndarray) -> None:
    """The trace of a part that is run on its own and not watched."""
