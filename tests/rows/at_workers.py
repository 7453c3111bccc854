"""What workers do in place of answering, to see what becomes of it."""

import os
import time
from typing import Any

from mvlm_np.rows.at_worker import Came
from mvlm_np.rows.row import Row


def said(rows: list[Row]) -> list[Came]:
    """The answer to each is who gave it."""
    return [(str(os.getpid()), None, 1, 1.0, 0.0) for _ in rows]


def hang(load: object, rows: list[Row], options: dict[str, Any]) -> list[Came]:
    """One of the workers does not answer until a file is there."""
    end = time.monotonic() + 120
    while os.getpid() == options["hangs"] and not options["until"].exists() and time.monotonic() < end:
        time.sleep(0.05)
    return said(rows)


def die(load: object, rows: list[Row], options: dict[str, Any]) -> list[Came]:
    """A question of which every worker dies."""
    if any(row.question == "die" for row in rows):
        os._exit(1)
    return said(rows)
