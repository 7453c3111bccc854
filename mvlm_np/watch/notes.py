"""What a person should know meanwhile, a line each on stderr."""

import re
import sys

from mvlm_np.watch.clock import Clock
from mvlm_np.watch.process import printable

QUIET = 600.0  # seconds in which nothing is said twice


class Notes:
    """Says what is wrong once, so that a camera that fails every second for a week fills no disk."""

    def __init__(self, clock: Clock):
        self._clock = clock
        self._wrong: dict[str, str] = {}  # by topic, what is wrong now; "": nothing is
        self._said: dict[str, tuple[str, float]] = {}  # by topic, what was said of that last, and when
        self._quiet: set[str] = set()  # topics of which it was not said, as it had been so lately

    def say(self, topic: str, text: str, well: str = "") -> None:
        """What is wrong with a topic, or "" that nothing is any more: then `well` is said.

        Texts that differ in their numbers alone are the same.
        """
        kind, now = re.sub("[0-9]+", "0", text), self._clock.now()
        if kind == self._wrong.get(topic, ""):
            return
        self._wrong[topic] = kind
        if text:
            last, when = self._said.get(topic, ("", 0.0))
            if kind == last and now - when < QUIET:
                self._quiet.add(topic)
                return
            self._said[topic] = kind, now
        elif not well or topic in self._quiet:
            return
        self._quiet.discard(topic)
        print(f"mvlm: note: {topic}: {printable(text or well)}", file=sys.stderr, flush=True)
