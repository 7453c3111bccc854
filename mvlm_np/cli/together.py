"""How fast several sequences are decoded together, measured."""

from collections.abc import Sequence
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mvlm_np.model import MobileVLM

COUNTS = (1, 4, 8)  # of sequences, unless others are asked for
MOST = 64  # each takes memory of its own


class Together:
    """Sequences that have read the same prompt (ids), each in a cache of its own.

    counts  how many of them are decoded at a time; there may be none
    new     tokens that each of them then gets
    """

    def __init__(self, model: "MobileVLM", counts: Sequence[int], ids: list[int], new: int):
        self.new, self.seconds = new, {count: list[float]() for count in counts}
        if counts:
            from mvlm_np.trace import Watch

            self.x, self.at = model.embed(ids, [])
            first = model.session()
            first.prefill(self.x, self.at, new, Watch())
            self.sessions = [first, *(first.fork() for _ in range(max(counts) - 1))]

    def measure(self) -> None:
        """Takes the time once more."""
        for count, seconds in self.seconds.items():
            seconds.append(self.step(count))

    def step(self, count: int) -> float:
        """Seconds of a step in which `count` sequences get one token each."""
        from mvlm_np.batch import Batch
        from mvlm_np.generation import Choice, Settings

        batch = Batch()
        for session in self.sessions[:count]:
            choice = Choice(Settings(self.new), lambda tokens: False)
            batch.join(session, self.x, self.at, choice, self.new)
        start = perf_counter()
        while batch.members:
            batch.step()
        return (perf_counter() - start) / self.new

    def tokens_per_second(self) -> dict[int, float]:
        """Of all sequences together, by their number; by the median of all measurements."""
        return {count: count / median(seconds) for count, seconds in self.seconds.items()}
