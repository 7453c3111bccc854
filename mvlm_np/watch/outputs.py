"""Where answers go: JSON lines, a voice, a program of one's own, a file. MQTT is in `mqtt`."""

import json
import os
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Protocol

from mvlm_np.errors import UserError
from mvlm_np.watch.notes import Notes
from mvlm_np.watch.process import end, last_line, shown
from mvlm_np.watch.stopping import Stopper

PATIENCE = 60.0  # seconds that a program has for one answer


@dataclass(frozen=True)
class Event:
    """A question that was asked, and its answer.

    time     ISO 8601, when the picture was there
    source   for people
    changed  whether it was asked because something had changed; else because it was time
    answer   text, number, "yes" or "no"; None: see `reason`
    p        the probability that the model gave to the answer
    tokens   of the answer
    seconds  that it took
    file     the picture's path, if it has one
    text     what the model said
    reason   why there is no answer
    """

    time: str
    source: str
    changed: bool
    answer: str | int | float | None
    p: float | None
    tokens: int
    seconds: float
    file: str | None
    text: str
    reason: str | None = None

    def json(self) -> str:
        """On one line; what is said already, or is not so, is left out."""
        fields = asdict(self)
        if self.text == str(self.answer):
            del fields["text"]
        if self.reason is None:
            del fields["reason"]
        return json.dumps(fields, ensure_ascii=False)


class Output(Protocol):
    """Takes answers. What goes wrong with one of them is a note, and the next one is tried again."""

    def put(self, event: Event, picture: bytes) -> None:
        """The next answer, and the picture's file."""

    def present(self, there: bool) -> None:
        """Whether pictures come, whenever that changes."""

    def close(self) -> None:
        """The last one was the last."""


class Quiet:
    """What most outputs do about a camera that goes and comes, and at the end: nothing."""

    def present(self, there: bool) -> None:
        """See `Output`."""

    def close(self) -> None:
        """See `Output`."""


class Lines(Quiet):
    """A line of JSON each, which is there as soon as it is written."""

    def __init__(self, file: IO[str]):
        self._file = file

    def put(self, event: Event, picture: bytes) -> None:
        """See `Output`."""
        print(event.json(), file=self._file, flush=True)


class Program(Quiet, ABC):
    """A program that is started for each answer, which it gets on its standard input.

    The next picture is looked at when it has ended, so that no two voices speak at once. After a minute it is
    ended.
    """

    def __init__(self, command: Sequence[str], stopper: Stopper, notes: Notes, patience: float = PATIENCE):
        self._command, self._stopper, self._notes, self._patience = command, stopper, notes, patience

    def put(self, event: Event, picture: bytes) -> None:
        """See `Output`."""
        if given := self.given(event):
            self._notes.say(shown(self._command), self._run(given.encode()), well="works again")

    @abstractmethod
    def given(self, event: Event) -> str:
        """What the program reads; "" for an answer that it does not get."""

    def _run(self, given: bytes) -> str:
        """Returns what went wrong."""
        try:
            program = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,  # ours is for JSON lines
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
        except OSError as error:
            return f"cannot be started ({error.strerror})"
        with program:
            try:
                with self._stopper.waiting():
                    said = program.communicate(given, self._patience)[1]
            except subprocess.TimeoutExpired:
                return f"took longer than {self._patience:g} s, and was ended"
            finally:
                end(program)
        return f"ended with exit code {program.returncode}{last_line(said)}" if program.returncode else ""


class Say(Program):
    """Reads answers out. One that is not to be believed is not read out."""

    def given(self, event: Event) -> str:
        """See `Program`."""
        return "" if event.answer is None else f"{event.answer}\n"


class Exec(Program):
    """Hands answers to a program as JSON."""

    def given(self, event: Event) -> str:
        """See `Program`."""
        return f"{event.json()}\n"


class Save(Quiet):
    """Keeps the picture that was asked about last, in a file that is whole at all times."""

    def __init__(self, path: Path, notes: Notes):
        """UserError: its folder is not there."""
        if not path.parent.is_dir():
            raise UserError(f"--save {path}", "there is no such folder", fix=f"mkdir -p {path.parent}")
        self._path, self._notes = path, notes

    def put(self, event: Event, picture: bytes) -> None:
        """See `Output`."""
        part = self._path.with_name(f".{self._path.name}.part")
        try:
            part.write_bytes(picture)
            os.replace(part, self._path)
        except OSError as error:
            part.unlink(missing_ok=True)
            self._notes.say(f"--save {self._path}", f"cannot be written ({error.strerror})")
        else:
            self._notes.say(f"--save {self._path}", "", well="is written again")
