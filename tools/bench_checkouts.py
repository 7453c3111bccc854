"""Times two checkouts of this project on the same model in alternation: did a change make anything slower?

    git worktree add ../before HEAD~1
    python tools/bench_checkouts.py ../before . V2-1.7B-int4 --rounds 15

Or two models with one checkout: what does a precision cost?

    python tools/bench_checkouts.py . . V2-symmetric V2-int4

Each checkout is loaded once in a process of its own, and the two take turns; loading is timed in processes of
its own. A ratio is the median of the rounds' ratios, the second checkout's time by the first one's. Nothing
else should run beside it.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from statistics import median

WORKS = ("encode", "prompt", "decode")

# Runs in a checkout: prints the seconds of loading, then those of each work that it is told.
WORKER = """
import resource, sys
from time import perf_counter
import numpy as np
import mvlm_np
from mvlm_np import backend
from mvlm_np.cli.bench import decode, question_of

backend.choose("auto")
start = perf_counter()
model = mvlm_np.load(sys.argv[1])
print(perf_counter() - start, flush=True)
rng = np.random.default_rng(0)
ids = rng.integers(3, model.config.decoder.vocab_size, 200).tolist()
photo = rng.integers(0, 256, (480, 640, 3), np.uint8)
question = question_of(model, 200)

def timed(work):
    start = perf_counter()
    work()
    return perf_counter() - start

works = {
    "encode": lambda: timed(lambda: model.encode_image(photo)),
    "prompt": lambda: timed(lambda: model.generate(ids, max_new_tokens=1)),
    "decode": lambda: decode(model, question, 24),
    "peak": lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
}
for line in sys.stdin:
    print(works[line.strip()](), flush=True)
"""


class Worker:
    """A checkout at work."""

    def __init__(self, checkout: Path, model: Path):
        command = [sys.executable, "-c", WORKER, str(model)]
        self.process = subprocess.Popen(
            command, cwd=checkout, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdin and self.process.stdout
        self.stdin, self.stdout = self.process.stdin, self.process.stdout
        self.load = self._answer()

    def __call__(self, work: str) -> float:
        print(work, file=self.stdin, flush=True)
        return self._answer()

    def _answer(self) -> float:
        line = self.stdout.readline()
        if not line:
            raise SystemExit("a checkout stopped; what it said stands above")
        return float(line)

    def close(self) -> None:
        self.stdin.close()
        self.process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkouts", type=Path, nargs=2, metavar="CHECKOUT")
    parser.add_argument(
        "model", type=Path, nargs="+", metavar="MODEL", help="a model folder, or one for each checkout"
    )
    parser.add_argument("--rounds", type=int, default=15, metavar="N", help="rounds of each measurement (15)")
    parser.add_argument("--json", action="store_true", help="print all times as JSON")
    args = parser.parse_args()
    if len(args.model) > 2:
        parser.error("more than two models")
    models = [model.resolve() for model in (args.model * 2)[:2]]

    seconds: dict[str, list[list[float]]] = {name: [[], []] for name in ("load", *WORKS)}
    for r in range(args.rounds):
        for i in (0, 1) if r % 2 == 0 else (1, 0):
            worker = Worker(args.checkouts[i], models[i])
            seconds["load"][i].append(worker.load)
            worker.close()
    workers = [Worker(*pair) for pair in zip(args.checkouts, models, strict=True)]
    for worker in workers:
        for work in WORKS:
            worker(work)  # once unmeasured: compiles, and brings the weights into memory
    peaks = [worker("peak") for worker in workers]
    for r in range(args.rounds):
        for work in WORKS:
            for i in (0, 1) if r % 2 == 0 else (1, 0):
                seconds[work][i].append(workers[i](work))
    for worker in workers:
        worker.close()

    if args.json:
        print(json.dumps({"seconds": seconds, "peak_gb": peaks}))
        return
    print(f"{'':8}{'first, ms':>12}{'second, ms':>12}{'ratio':>8}")
    for name, (first, second) in seconds.items():
        ratio = median(b / a for a, b in zip(first, second, strict=True))
        print(f"{name:8}{1e3 * median(first):12.1f}{1e3 * median(second):12.1f}{ratio:8.3f}")
    print(f"{'peak, GB':8}{peaks[0]:12.3f}{peaks[1]:12.3f}{peaks[1] / peaks[0]:8.3f}")


if __name__ == "__main__":
    main()
