"""How a tool ends: what is wrong is one line, and the exit code says which kind of end it was."""

import os
import sys
from collections.abc import Callable

from mvlm_np.errors import UserError


def ended(name: str, work: Callable[[], int | None], stopped: str = "stopped") -> int:
    """The exit code of a tool that does `work`, which returns its own, or None for 0.

    2: what it was given is wrong; 130: Ctrl-C, of which the line `stopped` is said; 141: the reader of its
    output has gone, as `| head` goes.
    """
    try:
        code = work()
        sys.stdout.flush()  # here, where a reader that has gone is caught
        return code or 0
    except UserError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{name}: {stopped}", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
