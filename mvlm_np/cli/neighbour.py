"""A busy neighbour: another program that wants one core all the time, to measure beside it."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from mvlm_np import cores

# It ends by itself when the program that started it is gone, however that ended. It is started as a whole
# program of its own, since a thread or a fork would share what is measured. Arguments: CPU, its starter's id.
_SPIN = """
import os, sys
os.sched_setaffinity(0, {int(sys.argv[1])})
print(flush=True)
while os.getppid() == int(sys.argv[2]):
    for _ in range(100_000):
        pass
"""


@contextmanager
def neighbour() -> Iterator[int]:
    """While the block runs, another program keeps one of the cores busy that we compute on. Gives its id.

    It stays on the last of them and has the usual priority, so it gets about half of that core. A
    session of its own keeps the keyboard's Ctrl-C from it: the block's end is its end.
    """
    command = [sys.executable, "-S", "-c", _SPIN, str(cores.usable()[0][-1]), str(os.getpid())]
    with subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()  # it has begun
            yield process.pid
        finally:
            process.kill()
