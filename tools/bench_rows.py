"""How the time of the products grows with the rows of activations that share a pass over the weights.

    python tools/bench_rows.py                       this checkout
    python tools/bench_rows.py --before ../before    and another one, in alternation

The products of ten decoder layers of MobileVLM_V2-1.7B (five in int8), one after the other: so many weights
that each pass reads them from memory. Given are medians in milliseconds, with how many times one row's that
is, and the median of the rounds' ratios. Nothing else should run beside it.
"""

import argparse
import subprocess
import sys
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout, when run as a script

ROOT = Path(__file__).resolve().parents[1]
ROWS = [1, 2, 3, 4, 5, 6, 8, 12, 16]

# Runs in a checkout: for each line "bits rows" it prints the seconds of a pass over all layers.
WORKER = """
import sys
from time import perf_counter
import numpy as np
from mvlm_np.kernels import pack, quantized

D, I = 2048, 5632
rng = np.random.default_rng(0)

def matrix(bits, N, K):
    (_, values), (_, scales) = pack.parts(f"int{bits}", N, K).values()
    # A byte 0x80 is no int8 weight.
    found = rng.integers(0, 256, values, np.uint8) if bits == 4 else rng.integers(-127, 128, values, np.int8)
    return pack.Packed(f"int{bits}", N, K, found, np.full(scales, 0.01, np.float16))

def product(bits, K, *widths):
    return K, quantized.packed_product([matrix(bits, N, K) for N in widths], [None] * len(widths))

def layer(bits):
    return [product(bits, D, D, D, D), product(bits, D, D), product(bits, D, I, I), product(bits, I, D)]

layers = {bits: [layer(bits) for _ in range(40 // bits)] for bits in (4, 8)}
for line in sys.stdin:
    bits, rows = map(int, line.split())
    inputs = {K: rng.standard_normal((rows, K), np.float32) for K in (D, I)}
    start = perf_counter()
    for products in layers[bits]:
        for K, product in products:
            product(inputs[K])
    print(perf_counter() - start, flush=True)
"""


class Worker:
    """A checkout at work."""

    def __init__(self, checkout: Path):
        command = [sys.executable, "-c", WORKER]
        self.process = subprocess.Popen(
            command, cwd=checkout, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __call__(self, bits: int, rows: int) -> float:
        assert self.process.stdin and self.process.stdout
        print(bits, rows, file=self.process.stdin, flush=True)
        if not (line := self.process.stdout.readline()):
            raise SystemExit("a checkout stopped; what it said stands above")
        return 1000 * float(line)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--before", type=Path, metavar="CHECKOUT", help="another checkout to compare with")
    parser.add_argument("--rows", type=int, nargs="+", default=ROWS, metavar="N", help="numbers of rows")
    parser.add_argument("--rounds", type=int, default=9, metavar="N", help="turns of each measurement (9)")
    args = parser.parse_args()
    checkouts = {"before": args.before, "after": ROOT} if args.before else {"now": ROOT}
    workers = {name: Worker(checkout) for name, checkout in checkouts.items()}
    works = [(bits, rows) for bits in (4, 8) for rows in args.rows]
    times: dict[tuple[str, int, int], list[float]] = {}
    for turn in range(-1, args.rounds):  # the first turn compiles, and brings the weights into memory
        for work in works:
            for name in list(workers)[:: 1 if turn % 2 else -1]:
                taken = workers[name](*work)
                if turn >= 0:
                    times.setdefault((name, *work), []).append(taken)

    columns = [*checkouts, *(["ratio"] if args.before else [])]
    print("| rows |", *(f"int{bits}, {column} |" for bits in (4, 8) for column in columns))
    print("| --- |" + " --- |" * (2 * len(columns)))
    for rows in args.rows:
        cells = []
        for bits in (4, 8):
            measured = [times[name, bits, rows] for name in checkouts]
            for name, column in zip(checkouts, measured, strict=True):
                one = median(times[name, bits, args.rows[0]])
                cells.append(f"{median(column):.1f} = {median(column) / one:.2f} ×")
            if args.before:
                cells.append(f"{median(b / a for a, b in zip(*measured, strict=True)):.2f}")
        print(f"| {rows} |", " | ".join(cells), "|", flush=True)


if __name__ == "__main__":
    main()
