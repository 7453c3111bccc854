"""`mvlm batch` with a model that answers at once, as a program that can be killed."""

import sys
import time
from collections.abc import Iterable, Iterator
from types import SimpleNamespace
from typing import Any

from mvlm_np.cli import main, progress
from mvlm_np.rows import answering
from mvlm_np.rows.row import Answered, Row

TOGETHER = 4


def pretended(model: object, rows: Iterable[Row | Answered], **options: Any) -> Iterator[Answered]:
    """Answers in fours, as the real one does; each takes two milliseconds."""
    coming, ready = iter(rows), list[Answered]()
    while True:
        for row in coming:
            if isinstance(row, Answered):
                ready.append(row)
            else:
                text = f'"{row.question}"\nabout, {row.picture!r} é'
                failed = row.key.endswith("3")
                ready.append(
                    Answered(row, None, "a.png: no") if failed else Answered(row, text, None, 3, 0.1)
                )
            if len(ready) >= TOGETHER:
                break
        if not ready:
            return
        time.sleep(0.008)
        yield from ready
        ready.clear()


def loaded(**arguments: Any) -> object:
    """No model."""
    print("loaded", file=sys.stderr, flush=True)
    return SimpleNamespace(config=None)


if __name__ == "__main__":
    setattr(answering, "answer", pretended)  # noqa: B010
    setattr(progress, "load_with_bar", loaded)  # noqa: B010
    sys.exit(main(["batch", *sys.argv[1:]]))
