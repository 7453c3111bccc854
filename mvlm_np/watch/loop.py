"""Looks, asks when it is time to, and hands answers on; until it is stopped."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

from mvlm_np.errors import ImageError
from mvlm_np.watch.asking import Asker, NotNow, Reply
from mvlm_np.watch.clock import Clock
from mvlm_np.watch.gate import Gate, thumbnail
from mvlm_np.watch.notes import Notes
from mvlm_np.watch.outputs import Event, Output
from mvlm_np.watch.readings import Reader, Reading
from mvlm_np.watch.sources import Backoff, Ended, Frame, Source
from mvlm_np.watch.stopping import Stopper

LOOK = 0.25  # seconds between two looks at a picture, at least
WAIT = 1.0  # seconds after which a source that gives nothing is asked what is wrong with it


@dataclass(frozen=True)
class Pace:
    """When to ask.

    at_most   seconds from one question to the next, whatever changes
    at_least  seconds after which a question is asked although nothing has changed
    count     questions in all; None: no end
    """

    at_most: float = 5.0
    at_least: float = 600.0
    count: int | None = None


class Loop:
    """A watch at work.

    sure          answers to which the model gives a smaller probability are not believed
    only_changes  answers that are those of the time before are not handed on
    """

    def __init__(
        self,
        source: Source,
        gate: Gate,
        asker: Asker,
        reader: Reader,
        outputs: Sequence[Output],
        pace: Pace,
        *,
        sure: float = 0.0,
        only_changes: bool = False,
        clock: Clock,
        stopper: Stopper,
        notes: Notes,
    ):
        self.source, self.gate, self.asker, self.reader, self.outputs = source, gate, asker, reader, outputs
        self.pace, self.sure, self.only_changes = pace, sure, only_changes
        self.clock, self.stopper, self.notes = clock, stopper, notes
        self.asked = 0  # questions so far
        self._asked_at = self._next_at = self._looked_at = -inf
        self._there = True
        self._said: list[object] = []  # the last answer that was handed on
        self._backoff = Backoff()

    def run(self) -> None:
        """Until the source ends, or all questions are asked. Stopped: a signal came."""
        frame = again = None
        while not self._complete:
            try:
                with self.stopper.waiting():
                    new = self._next() or again
            except Ended:
                if frame is not None:
                    self._ask_last(frame)
                return
            self._say_whether_there()
            again = None
            if new is None or (changed := self._look(new)) is None:
                continue
            frame, now = new, self.clock.now()
            due = self.asked > 0 and now - self._asked_at >= self.pace.at_least
            if now >= self._next_at and (changed or due) and not self._ask(frame, changed):
                again = None if self.source.live else frame

    @property
    def _complete(self) -> bool:
        return self.pace.count is not None and self.asked >= self.pace.count

    def _next(self) -> Frame | None:
        """The next picture. One that will not come again is only taken when it may be asked about."""
        self._sleep_until(self._looked_at + LOOK if self.source.live else self._next_at)
        return self.source.next(WAIT)

    def _ask_last(self, frame: Frame) -> None:
        """A change that the end of the pictures cut off is asked about, too."""
        while self.gate.open and not self._complete:
            with self.stopper.waiting():
                self._sleep_until(self._next_at)
            if self._ask(frame, True):
                return

    def _sleep_until(self, then: float) -> None:
        self.clock.sleep(max(then - self.clock.now(), 0.0))

    def _say_whether_there(self) -> None:
        gone = self.source.gone
        self.notes.say(self.source.name, gone and f"{gone}; waiting for it", well="is there again")
        if self._there != (not gone):
            self._there = not gone
            for output in self.outputs:
                output.present(self._there)

    def _look(self, frame: Frame) -> bool | None:
        """Whether something has changed. None: it is no picture."""
        self._looked_at = self.clock.now()
        try:
            cells = thumbnail(frame.data)
        except ImageError as error:
            self._skip(frame, error)
            return None
        self.notes.say("pictures", "", well="can be read again")
        return self.gate.look(cells, self._looked_at)

    def _skip(self, frame: Frame, error: ImageError) -> None:
        where = f"{frame.file}: " if frame.file else ""
        self.notes.say("pictures", f"{where}{error}; waiting for the next one")

    def _ask(self, frame: Frame, changed: bool) -> bool:
        """Whether there was an answer, or never will be to this picture."""
        date, start = self.clock.date(), self.clock.now()
        try:
            with self.stopper.waiting():
                reply = self.asker.ask(frame.data)
        except ImageError as error:
            self._skip(frame, error)
            return True
        except NotNow as error:
            self.notes.say("the answer", f"{error}; trying again")
            self._next_at = self.clock.now() + self._backoff.failed()
            return False
        self.notes.say("the answer", "", well="comes again")
        self._backoff.worked()
        self.gate.asked()
        self.asked, self._asked_at, self._next_at = self.asked + 1, start, start + self.pace.at_most
        self._hand_on(reply, frame, changed, date.isoformat(timespec="seconds"), self.clock.now() - start)
        return True

    def _hand_on(self, reply: Reply, frame: Frame, changed: bool, time: str, seconds: float) -> None:
        reading = self._read(reply)
        if self.only_changes and self._said == [reading.value]:
            return
        self._said = [reading.value]
        event = Event(
            time=time,
            source=self.source.name,
            changed=changed,
            answer=reading.value,
            p=None if reply.p is None else float(f"{reply.p:.4g}"),  # of a caption, it is small
            tokens=reply.tokens,
            seconds=round(seconds, 2),
            file=frame.file,
            text=reply.text,
            reason=reading.reason,
        )
        for output in self.outputs:
            output.put(event, frame.data)

    def _read(self, reply: Reply) -> Reading:
        if reply.p is not None and reply.p < self.sure:
            return Reading(None, f"p {reply.p:.2f} is less than {self.sure:g}")
        return self.reader(reply.text)
