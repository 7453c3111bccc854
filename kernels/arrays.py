"""What kernels take: float32 arrays of the native byte order, with whole memory under them."""

import numpy as np

FLOAT32 = np.dtype(np.float32)  # comparing with it is quicker than with the type


def float32(*arrays: np.ndarray) -> bool:
    """Whether all of these are float32 arrays with something in them. What is not goes to `ops`."""
    return all(isinstance(a, np.ndarray) and a.dtype == FLOAT32 and a.size > 0 for a in arrays)


def contiguous(a: np.ndarray) -> np.ndarray:
    """The array itself if it lies in memory in C order and aligned, else a copy that does."""
    a = np.asarray(a)  # of a memory map, its array
    return a if a.flags.c_contiguous and a.flags.aligned else a.copy()


def rows_contiguous(a: np.ndarray) -> np.ndarray:
    """The same for arrays whose last axis alone must be contiguous, such as a slice of the cache."""
    a = np.asarray(a)
    return a if a.strides[-1] == a.itemsize and a.flags.aligned else a.copy()
