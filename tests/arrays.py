"""Arrays for tests, drawn or made up. Free of torch, so that kernels can be tested where there is none."""

from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

U = 2.0**-24  # unit roundoff of float32: the largest relative error of one correctly rounded operation
TINY = float(np.finfo(np.float32).tiny)
seeds = st.integers(0, 2**32 - 1)
sizes = st.integers(1, 40)


@st.composite
def floats32(draw: Any, *shape: int, largest: float = 1e3) -> np.ndarray:
    """Read-only float32 of this shape, of magnitudes from denormal to `largest`, often with many zeros."""
    rng = np.random.default_rng(draw(seeds))
    low, high = sorted(draw(st.tuples(*[st.sampled_from([-45.0, -20.0, -3.0, 0.0, 45.0])] * 2)))
    x = rng.standard_normal(shape) * 10 ** np.minimum(rng.uniform(low, high, shape), np.log10(largest / 10))
    x[rng.random(shape) < draw(st.sampled_from([0, 0, 0.3, 1]))] = 0
    return frozen(x.astype(np.float32))


def any_floats(largest: float) -> st.SearchStrategy[np.ndarray]:
    """Read-only float32 of any shape whose single values Hypothesis picks, up to this magnitude."""
    largest = float(np.float32(largest))
    values = st.floats(-12, 12, width=32) | st.floats(-largest, largest, width=32)
    return arrays(np.float32, array_shapes(max_dims=3, max_side=6), elements=values).map(frozen)


def frozen(array: np.ndarray) -> np.ndarray:
    """The array as the model meets its weights: read-only, like the file they are mapped from."""
    array.setflags(write=False)
    return array


def examples(dtype: type) -> dict[str, tuple[Any, ...]]:
    """Arguments for every public function of ops, its arrays of this type and read-only."""
    rng = np.random.default_rng(1)

    def a(*shape: int) -> np.ndarray:
        return frozen(rng.standard_normal(shape).astype(dtype))

    elementwise = {
        name: (a(3, 5),)
        for name in ("sigmoid", "quick_gelu", "silu", "gelu", "relu", "hardsigmoid", "hardswish", "softmax")
    }
    return elementwise | {
        "layer_norm": (a(3, 5), a(5), a(5), 1e-5),
        "rms_norm": (a(3, 5), a(5), 1e-6),
        "swiglu": (a(3, 5), a(3, 5)),
        "split_heads": (a(3, 8), 2),
        "merge_heads": (a(2, 3, 4),),
        "attention": (a(4, 3, 6), a(2, 5, 6), a(2, 5, 6), True),
        "int8_attention": (a(2, 3, 40), a(2, 35, 40), a(2, 35, 40), False),
        "rope": (a(2, 3, 8), a(3, 4), a(3, 4)),
        "matmul": (a(3, 5), a(4, 5)),
        "patches": (a(3, 7, 9), 2),
        "depthwise_conv": (a(5, 6, 4), a(4, 1, 3, 3), a(4), 2),
        "adaptive_avg_pool": (a(5, 6, 4), 2, 7),
    }
