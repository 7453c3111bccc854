"""What stands for GELU where erf, exp or tanh are slow or missing."""

from collections.abc import Callable
from math import sqrt

import numpy as np

from mvlm_np import ops

Function = Callable[[np.ndarray], np.ndarray]

QUICK_SLOPE = 1.702  # of CLIP's own, x * sigmoid(1.702 x)
SLOPES = (
    1.5,
    2 * sqrt(2 / np.pi),
    1.6,
    1.7,
    1.75,
    2.0,
)  # the second is the tanh form's without its cubic term


def _rational(p: float, *terms: float) -> Function:
    """erf for x >= 0: 1 - (a1 t + a2 t^2 + ...) exp(-x^2) with t = 1 / (1 + p x)."""

    def erf(x: np.ndarray) -> np.ndarray:
        t = 1 / (1 + p * x)
        return 1 - t * np.polyval(terms[::-1], t) * np.exp(-x * x)

    return erf


def _power(n: int, *terms: float) -> Function:
    """erf for x >= 0: 1 - 1 / (1 + a1 x + a2 x^2 + ...)^n."""
    return lambda x: 1 - 1 / (1 + x * np.polyval(terms[::-1], x)) ** n


def _second_degree(x: np.ndarray) -> np.ndarray:
    return -0.2888 * (np.minimum(x, 1.769) - 1.769) ** 2 + 1


# erf for x >= 0, under the names of their sources: Abramowitz and Stegun, Handbook of Mathematical Functions,
# 7.1.25 to 7.1.28, and I-BERT (arXiv 2101.01321). Errors: 2.5e-5, 1.5e-7, 5e-4, 3e-7, and 0.1, near 0.
ERF: dict[str, Function] = {
    "Abramowitz and Stegun's 7.1.25": _rational(0.47047, 0.3480242, -0.0958798, 0.7478556),
    "Abramowitz and Stegun's 7.1.26": _rational(
        0.3275911, 0.254829592, -0.284496736, 1.421413741, -1.453152027, 1.061405429
    ),
    "Abramowitz and Stegun's 7.1.27": _power(4, 0.278393, 0.230389, 0.000972, 0.078108),
    "Abramowitz and Stegun's 7.1.28": _power(
        16, 0.0705230784, 0.0422820123, 0.0092705272, 0.0001520143, 0.0002765672, 0.0000430638
    ),
    "I-BERT's polynomial of second degree": _second_degree,
}

# Without exp.
HARD: dict[str, Function] = {
    "x * clip(1.702 x + 3, 0, 6) / 6": lambda x: x * np.clip(1.702 * x + 3, 0, 6) / 6,
    "x * clip(x + 3, 0, 6) / 6": lambda x: x * np.clip(x + 3, 0, 6) / 6,
    "x * clip(0.2 * 1.702 x + 0.5, 0, 1)": lambda x: x * np.clip(0.2 * 1.702 * x + 0.5, 0, 1),
}

# (entries, reach) -> whether lines join them.
TABLES = {
    (16, 4): True,
    (32, 4): True,
    (64, 4): True,
    (32, 8): True,
    (64, 8): True,
    (128, 8): True,
    (256, 8): True,
    (255, 8): False,
}


def gelu_by(erf: Function) -> Function:
    """GELU with an erf that is made for x >= 0."""

    def gelu(x: np.ndarray) -> np.ndarray:
        y = x.astype(np.float64) / sqrt(2)
        return (x / 2 * (1 + np.sign(y) * erf(np.abs(y)))).astype(x.dtype)

    return gelu


def sigmoid_gelu(slope: float) -> Function:
    return lambda x: x * ops.sigmoid((slope * x).astype(x.dtype))


def table(act: Function, entries: int, reach: float, joined: bool) -> Function:
    """An activation read off a table of evenly spread values; beyond it, 0 and x."""
    at = np.linspace(-reach, reach, entries)
    values = act(at)

    def read(x: np.ndarray) -> np.ndarray:
        nearest = x if joined else at[np.rint((x.clip(-reach, reach) + reach) / (at[1] - at[0])).astype(int)]
        inside = np.interp(nearest, at, values)
        return np.where(x < -reach, 0, np.where(x > reach, x, inside)).astype(x.dtype)

    return read
