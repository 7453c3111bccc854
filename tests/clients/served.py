"""A server with the model in the box, in a process of its own. Needs nothing but the standard library."""

import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PICTURE = ROOT / "mvlm_np/demo/pictures/0.png"
QUESTION = "Describe the picture."
PYTHON = os.environ.get("MVLM_PYTHON", sys.executable)  # the one that has mvlm-np; clients live in another


class Server:
    """A running server. url: its address; log: the lines that it has written so far."""

    def __init__(self, process: "subprocess.Popen[str]", url: str, log: list[str]):
        self.process, self.url, self.log = process, url, log


@contextmanager
def serving(*arguments: str, **environment: str) -> Iterator[Server]:
    """`mvlm serve` with these arguments, on a free port. AssertionError: it did not start."""
    command = [PYTHON, "-m", "mvlm_np", "serve", "--port", "0", *arguments]
    kept = {name: value for name, value in os.environ.items() if name not in ("MVLM_MODEL", "MVLM_API_KEY")}
    process = subprocess.Popen(
        command, cwd=ROOT, env=kept | environment, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    log: list[str] = []
    ready = threading.Event()

    def read() -> None:
        assert process.stderr
        for line in process.stderr:
            log.append(line)
            if " answers at " in line:
                ready.set()
        ready.set()

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        ready.wait(120)
        found = re.search(r" answers at (\S+);", "".join(log))
        assert found, "".join(log)
        yield Server(process, found[1], log)
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(20)
            raise
        reader.join(20)


def asked() -> str:
    """What `mvlm ask` answers to the same question."""
    command = [PYTHON, "-m", "mvlm_np", "ask", str(PICTURE), QUESTION]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=300)
    return done.stdout.removesuffix("\n")
