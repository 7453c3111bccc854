"""Threads that share out the steps of a kernel, and sleep when there is nothing to share.

A decoding step launches some 150 kernels of 0.1 to 1 ms. Numba's own threads cost up to a tenth of that time
at each launch, or burn the cores while they wait (docs/decisions/0002-threads-and-cache.md). These spin for
some 50 microseconds after a job, so that the next one of the same step finds them awake, then sleep.

Steps are handed out in ever smaller pieces to whoever is free: a thread that the system takes its core from,
or one on a slow core, holds up nobody. What a step computes may not depend on who runs it, so no result
depends on the number of threads.

The protocol is in `code.threads`.
"""

import atexit
import os
import threading

from mvlm_np import cores
from mvlm_np.kernels.machine_code import machine_code
from mvlm_np.kernels.pool import new_pool


class Team:
    """The threads of this process: the caller's, and workers that start with the first job worth sharing."""

    def __init__(self):
        self.size = len(cores.usable()[0])
        self.alone = new_pool(1)
        self._begin()
        os.register_at_fork(after_in_child=self._begin)  # a forked child inherits no threads
        atexit.register(self.dismiss)

    def _begin(self):
        self._pool, self._workers, self._busy = None, [], threading.Lock()

    def resize(self, size):
        """From now on, `size` threads share each job, the caller's included."""
        with self._busy:
            self._end()
            self.size = size

    def run(self, kernel, steps, least, args):
        """Runs a compiled kernel with the workers; without them while another Python thread has them."""
        if steps <= least or self.size == 1 or not self._busy.acquire(blocking=False):
            kernel(self.alone, steps, least, *args)
            return
        try:
            if self._pool is None:
                self._hire()
            kernel(self._pool, steps, least, *args)
        finally:
            self._busy.release()

    def _hire(self):
        pool = new_pool(self.size)
        work = machine_code("threads.work")
        for i in range(1, self.size):
            worker = threading.Thread(target=work, args=(pool,), name=f"mvlm-{i}", daemon=True)
            worker.start()
            self._workers.append(worker)
        self._pool = pool

    def dismiss(self):
        """Ends the workers. The next job starts others."""
        with self._busy:
            self._end()

    def _end(self):
        if self._pool is not None:
            machine_code("threads.dismiss")(self._pool)
            for worker in self._workers:
                worker.join()
        self._pool, self._workers = None, []


TEAM = Team()
