"""What `tests.fuzz` needs to know of a reader."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Target:
    """A reader under test.

    read        what it makes of a file: tensors, which are then read too, or anything; UserError refuses it
    seeds       files to start from, the first of which is a good one
    wrap        makes a file of what the fuzzer invents
    words       are worth inventing
    instrument  packages in which coverage is looked at; they are imported by `read`, not before
    """

    read: Callable[[Path], Iterable[object]]
    seeds: Callable[[], list[bytes]]
    wrap: Callable[[bytes], bytes] = bytes
    words: tuple[bytes, ...] = ()
    instrument: tuple[str, ...] = ("mvlm_np.checkpoints", "mvlm_np.inputs")
