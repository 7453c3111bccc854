"""What clients of a server wait for, in OpenAI's dialect.

    python -m tools.parts.llama_cpp.through URL

prints, as JSON: seconds to the first token of an answer about a new picture, and about one that was there
before; tokens/s of one client, and of several at once in all. The server must not have been asked before.
"""

import json
import sys
from statistics import median

from mvlm_np.cli import served
from tools.parts.llama_cpp.figures import NEW

TIMES = 3


def measure(url: str) -> list[float]:
    """Medians of a few times each."""
    served.ask(url, served.photo(0), served.NEW)  # compiles, and reads the weights into memory
    seen = [served.photo(1 + number) for number in range(served.CLIENTS)]
    cold = median(served.ask(url, picture, served.NEW).first for picture in seen)
    for picture in seen:
        served.ask(url, picture, served.NEW)
    again = median(served.ask(url, seen[-1], served.NEW).first for _ in range(TIMES))
    one = median(served.tokens_per_second([served.ask(url, seen[-1], NEW)]) for _ in range(TIMES))
    return [
        cold,
        again,
        one,
        median(served.tokens_per_second(served.together(url, seen, NEW)) for _ in range(TIMES)),
    ]


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1])))
