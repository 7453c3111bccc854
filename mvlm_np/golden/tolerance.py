"""How far a healthy candidate may lie from the golden, stage by stage and precision by precision."""

from collections.abc import Mapping
from typing import NamedTuple

from mvlm_np.golden.format import Golden

CLASSES = ("float32", "float16", "bf16", "int8", "int4")


class Bound(NamedTuple):
    """What a healthy stage stays under.

    rms       of |candidate - golden| / |golden|, Euclidean norms over the whole stage
    relative  of the largest difference, as a part of the golden's largest magnitude
    """

    rms: float
    relative: float


def bounds(golden: Golden, kind: str = "float32") -> Mapping[str, Bound]:
    """The bound of every stage for candidates of a class (one of `CLASSES`)."""
    # PROVISIONAL: figures come with the derivation
    loose = {"float32": 5e-5, "float16": 2e-2, "bf16": 1e-1, "int8": 2e-1, "int4": 1.0}[kind]
    return {name: Bound(loose, loose) for name in golden.stages}
