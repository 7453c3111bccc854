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
from collections.abc import Sequence
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout, when run as a script

ROOT = Path(__file__).resolve().parents[1]
ROWS = [1, 2, 3, 4, 5, 6, 8, 12, 16]

# Runs in a checkout: for each line "kind rows" it prints the seconds of a pass over all layers.
WORKER = """
import sys
from time import perf_counter
import numpy as np
from mvlm_np.kernels import pack, quantized

D, I = 2048, 5632
rng = np.random.default_rng(0)

def matrix(kind, N, K):
    if not hasattr(pack, "parts"):  # a checkout from before there was uint4
        bits = int(kind[3:])
        values, scales = pack.shapes(bits, N, K)
        numbers = rng.integers(-127, 128, values, np.int8).view(np.int8 if bits == 8 else np.uint8)
        return pack.Packed(bits, numbers, np.full(scales, 0.01, np.float16), N, K)
    made = []
    for dtype, shape in pack.parts(kind, N, K).values():
        if dtype == "float16":
            made.append(np.full(shape, 0.01, np.float16))
        else:  # a byte 0x80 is no int8 weight
            made.append(rng.integers(-127 if dtype == "int8" else 0, 128, shape, dtype))
    return pack.Packed(kind, N, K, *made)

def product(kind, K, *widths):
    return K, quantized.packed_product([matrix(kind, N, K) for N in widths], [None] * len(widths))

def layer(kind):
    return [product(kind, D, D, D, D), product(kind, D, D), product(kind, D, I, I), product(kind, I, D)]

kinds = sys.argv[1:]
layers = {kind: [layer(kind) for _ in range(5 if kind == "int8" else 10)] for kind in kinds}
for line in sys.stdin:
    kind, rows = line.split()
    rows = int(rows)
    inputs = {K: rng.standard_normal((rows, K), np.float32) for K in (D, I)}
    start = perf_counter()
    for products in layers[kind]:
        for K, product in products:
            product(inputs[K])
    print(perf_counter() - start, flush=True)
"""


class Worker:
    """A checkout at work."""

    def __init__(self, checkout: Path, kinds: Sequence[str]):
        command = [sys.executable, "-c", WORKER, *kinds]
        self.process = subprocess.Popen(
            command, cwd=checkout, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __call__(self, kind: str, rows: int) -> float:
        assert self.process.stdin and self.process.stdout
        print(kind, rows, file=self.process.stdin, flush=True)
        if not (line := self.process.stdout.readline()):
            raise SystemExit("a checkout stopped; what it said stands above")
        return 1000 * float(line)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--before", type=Path, metavar="CHECKOUT", help="another checkout to compare with")
    parser.add_argument("--rows", type=int, nargs="+", default=ROWS, metavar="N", help="numbers of rows")
    parser.add_argument(
        "--kinds", nargs="+", default=["int4", "int8"], metavar="KIND", help="int8, int4, uint4"
    )
    parser.add_argument("--rounds", type=int, default=9, metavar="N", help="turns of each measurement (9)")
    args = parser.parse_args()
    checkouts = {"before": args.before, "after": ROOT} if args.before else {"now": ROOT}
    workers = {name: Worker(checkout, args.kinds) for name, checkout in checkouts.items()}
    works = [(kind, rows) for rows in args.rows for kind in args.kinds]
    times: dict[tuple[str, str, int], list[float]] = {}
    for turn in range(-1, args.rounds):  # the first turn compiles, and brings the weights into memory
        for work in works[:: 1 if turn % 2 else -1]:
            for name in list(workers)[:: 1 if turn % 2 else -1]:
                taken = workers[name](*work)
                if turn >= 0:
                    times.setdefault((name, *work), []).append(taken)

    columns = [*checkouts, *(["ratio"] if args.before else [])]
    print("| rows |", *(f"{kind}, {column} |" for kind in args.kinds for column in columns))
    print("| --- |" + " --- |" * (len(args.kinds) * len(columns)))
    for rows in args.rows:
        cells = []
        for kind in args.kinds:
            measured = [times[name, kind, rows] for name in checkouts]
            for name, column in zip(checkouts, measured, strict=True):
                one = median(times[name, kind, args.rows[0]])
                cells.append(f"{median(column):.1f} = {median(column) / one:.2f} ×")
            if args.before:
                cells.append(f"{median(b / a for a, b in zip(*measured, strict=True)):.2f}")
            elif kind != args.kinds[0]:
                (column,), first = measured, times["now", args.kinds[0], rows]
                cells[-1] += (
                    f", {median(b / a for a, b in zip(first, column, strict=True)):.2f} of {args.kinds[0]}"
                )
        print(f"| {rows} |", " | ".join(cells), "|", flush=True)


if __name__ == "__main__":
    main()
