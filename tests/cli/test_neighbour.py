"""The busy neighbour of a measurement: it is there, on one CPU, and it is never left behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mvlm_np import cores
from mvlm_np.cli.neighbour import neighbour


def runs(process: int) -> bool:
    """Whether there is a process of this id that has not ended."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def test_it_runs_on_one_cpu_and_ends_with_the_block() -> None:
    with neighbour() as process:
        assert runs(process)
        assert os.sched_getaffinity(process) == {cores.usable()[0][-1]}
    assert not runs(process)
    with pytest.raises(KeyboardInterrupt), neighbour() as process:
        raise KeyboardInterrupt
    assert not runs(process)


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_it_ends_when_its_starter_does(end: signal.Signals) -> None:
    code = """
import time
from mvlm_np.cli.neighbour import neighbour
with neighbour() as process:
    print(process, flush=True)
    time.sleep(600)
"""
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as starter:
        assert starter.stdout is not None
        process = int(starter.stdout.readline())
        assert runs(process)
        starter.send_signal(end)
    for _ in range(1000):  # it looks for its starter every few milliseconds, if it is given a core
        if not runs(process):
            return
        time.sleep(0.1)
    os.kill(process, signal.SIGKILL)
    pytest.fail(f"the neighbour survived its starter's {end.name}")
