"""What lies where in the memory that the threads of a pool share."""

import numpy as np

# Places in a pool, one cache line each but for the description of the job, which changes as one.
EPOCH, OPEN, ACTIVE, SLEEPING, NEXT, FUNCTION = range(0, 48, 8)
DATA, STEPS, LEAST, THREADS, QUIT = range(FUNCTION + 1, FUNCTION + 6)


def new_pool(threads: int) -> np.ndarray:
    """The state of a pool of `threads` threads, the caller's included."""
    pool = np.zeros(FUNCTION + 8, np.int64)
    pool[THREADS] = threads
    return pool
