"""Programs that are run beside us: a camera's, a voice, a hook."""

import contextlib
import os
import re
import shlex
import shutil
import signal
import subprocess
from collections.abc import Sequence

from mvlm_np.errors import UserError

PACKAGES = {  # of Debian and Raspberry Pi OS
    "rpicam-vid": "rpicam-apps",
    "v4l2-ctl": "v4l-utils",
    "ffmpeg": "ffmpeg",
    "espeak-ng": "espeak-ng",
    "mosquitto_pub": "mosquitto-clients",
}
SHELL = {"|", "||", "&", "&&", ";", ">", ">>", "<", "2>", "2>/dev/null"}
CREDENTIALS = re.compile(r"(?<=://)[^/\s]*@")  # user:password@ in an address
SECRETS = re.compile(r"(?i)(?<=[?&])((?:user|usr|login|pass|pwd|token|key|auth|secret)\w*)=[^&\s]*")
GRACE = 2.0  # seconds that a program has to end by itself


def words(command: str, option: str) -> list[str]:
    """A command line in parts, for a program that is there. No shell will see it.

    UserError: it is empty, its quotes do not match, it needs a shell, or there is no such program.
    """
    try:
        parts = shlex.split(command)
    except ValueError as error:
        raise UserError(option, f"found {command!r} ({error})", "a command, as in a shell") from None
    if not parts:
        raise UserError(option, "is empty", "a command, as in a shell")
    if found := [part for part in parts[1:] if part in SHELL]:
        fix = f"name one: sh -c {shlex.quote(command)}"
        raise UserError(option, f"found {found[0]!r}, for which it takes a shell", "a plain command", fix)
    require(parts[0], option)
    return parts


def require(program: str, option: str) -> None:
    """UserError: there is no such program."""
    if shutil.which(program) is None:
        package = PACKAGES.get(program)
        fix = f"sudo apt install {package}" if package else "check its name"
        raise UserError(option, f"the program {program} is not installed", fix=fix)


def end(program: subprocess.Popen[bytes]) -> None:
    """Ends a program that has a session of its own, and all that it started there."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(program.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            program.wait(GRACE)


def last_line(said: bytes) -> str:
    """What a program said last, behind a colon; or nothing."""
    lines = said.decode("utf-8", "replace").splitlines()
    line = next((line.strip() for line in reversed(lines) if line.strip()), "")
    return f": {printable(line)[:200]}" if line else ""


def printable(text: str) -> str:
    """For a note or a name: on one line, and without passwords."""
    text = SECRETS.sub(r"\1=...", CREDENTIALS.sub("", text))
    return "".join(c if c.isprintable() else " " for c in text)


def shown(command: Sequence[str]) -> str:
    """A command line for people, without passwords."""
    return printable(shlex.join(command))
