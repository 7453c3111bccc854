"""Times each op but the linear layers in NumPy and in Numba, at the shapes of MobileVLM_V2-1.7B.

    python tools/bench_ops.py              all ops
    python tools/bench_ops.py attention    those whose line has the word in it
    python tools/bench_ops.py --start      the start of a program instead: both backends on a tiny model

The two take turns, so that a busy machine slows both. Given are medians and, after the slash, minima, in
milliseconds, and the quotient of the medians. "BLAS" is attention with NumPy's products and the compiled
softmax between them, which Numba's attention has to beat.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout, when run as a script

import numpy as np

from mvlm_np import backend, ops

ROOT = Path(__file__).resolve().parents[1]
V, D, I, PATCHES, TEXT, CACHE = 1024, 2048, 5632, 576, 200, 2048  # TEXT: a prompt with a picture
VISION_HEADS, HEADS = 16, 16

Case = tuple[str, str, tuple[Any, ...]]  # what the line says, op, arguments


def cases() -> Iterator[Case]:
    rng = np.random.default_rng(0)

    def a(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, dtype=np.float32)

    def heads(T: int, H: int, width: int) -> np.ndarray:
        return a(T, width).reshape(T, H, -1).transpose(1, 0, 2)

    T = PATCHES + 1
    yield "encoder", "layer_norm", (a(T, V), a(V), a(V), 1e-5)
    q, k, v = (heads(T, VISION_HEADS, V) for _ in range(3))
    yield "encoder", "attention", (q, k, v, False)
    yield "encoder", "int8_attention", (q, k, v, False)
    yield "encoder", "quick_gelu", (a(T, 4 * V),)
    yield "projector", "gelu", (a(PATCHES, D),)
    yield "projector", "adaptive_avg_pool", (a(24, 24, D), 12, 12)
    yield "projector", "depthwise_conv", (a(12, 12, D), a(D, 1, 3, 3), a(D), 1)
    keys, values = a(HEADS, CACHE + 64, D // HEADS), a(HEADS, CACHE + 64, D // HEADS)
    for what, T, S in ("prompt", TEXT, TEXT), ("token", 1, CACHE):
        yield what, "rms_norm", (a(T, D), a(D), 1e-5)
        cos, sin = ops.rope_angles(np.arange(S - T, S), D // HEADS, 10000.0)
        yield what, "rope", (heads(T, HEADS, D), cos, sin)
        yield what, "attention", (heads(T, HEADS, D), keys[:, :S], values[:, :S], True)
        yield what, "swiglu", (a(T, I), a(T, I))
    yield "token, short cache", "attention", (heads(1, HEADS, D), keys[:, :256], values[:, :256], True)
    yield (
        "token, 1 of 4 heads",
        "attention",
        (heads(1, HEADS, D), keys[::4, :CACHE], values[::4, :CACHE], True),
    )
    yield (
        "512 tokens, long cache",
        "attention",
        (heads(512, HEADS, D), keys[:, :CACHE], values[:, :CACHE], True),
    )


def blas_attention(softmax: Callable[[np.ndarray], np.ndarray]) -> Callable[..., np.ndarray]:
    """`ops.attention` with another softmax."""

    def attention(q: np.ndarray, k: np.ndarray, v: np.ndarray, causal: bool) -> np.ndarray:
        (H, T, d), (KV, S, _) = q.shape, k.shape
        grouped = (q * d**-0.5).reshape(KV, -1, d)
        out = np.empty_like(grouped)
        for head in range(KV):
            scores = grouped[head] @ k[head].T
            if causal and T > 1:
                scores.reshape(-1, T, S)[:, np.arange(S) > np.arange(S - T, S)[:, None]] = -np.inf
            np.matmul(softmax(scores), v[head], out=out[head])
        return out.reshape(H, T, d)

    return attention


def milliseconds(function: Callable[..., object], arguments: tuple[Any, ...], repeats: int = 1) -> float:
    start = perf_counter()
    for _ in range(repeats):
        function(*arguments)
    return 1000 * (perf_counter() - start) / repeats


def bench_ops(word: str, rounds: int) -> None:
    numpy, numba = backend.choose("numpy"), backend.choose("numba")
    table_row("op", "where", "shape", "NumPy, ms", "Numba, ms", "faster", "BLAS, ms")
    table_row(*["---"] * 7)
    for where, op, arguments in cases():
        shape = " × ".join(str(a.shape) for a in arguments[:2] if isinstance(a, np.ndarray) and a.ndim > 1)
        if word not in f"{op} {where}":
            continue
        rivals = [getattr(numpy, op), getattr(numba, op)]
        if op == "attention":
            rivals.append(blas_attention(numba.softmax))
        for function in rivals:
            function(*arguments)  # compiles
        repeats = [max(1, int(2 / milliseconds(function, arguments))) for function in rivals]
        turns = [
            [milliseconds(f, arguments, n) for f, n in zip(rivals, repeats, strict=True)]
            for _ in range(rounds)
        ]
        times = list(zip(*turns, strict=True))
        told = [f"{median(column):.3g} / {min(column):.3g}" for column in times]
        faster = f"{median(times[0]) / median(times[1]):.1f} ×"
        table_row(op, where, shape, *told[:2], faster, *(told[2:] or [""]))


def table_row(*cells: str) -> None:
    print(f"| {' | '.join(cells)} |", flush=True)


ANSWER = """
import sys
from time import perf_counter
times = [perf_counter()]
import mvlm_np, numpy
model = mvlm_np.load(sys.argv[1], backend=sys.argv[2])
times.append(perf_counter())
for _ in range(2):
    model.generate([1, -200, 5, 6, 7], numpy.zeros((336, 336, 3), "uint8"), max_new_tokens=24)
    times.append(perf_counter())
print(*numpy.diff(times))
"""


def bench_start(model: Path, rounds: int) -> None:
    """A program's time until the model is loaded, for an answer, and for another one."""
    table_row("backend", "import and load, s", "first answer, s", "next answer, s")
    table_row(*["---"] * 4)

    def once(chosen: str, cache: str) -> list[float]:
        command = [sys.executable, "-c", ANSWER, str(model), chosen]
        env = os.environ | {"XDG_CACHE_HOME": cache}
        done = subprocess.run(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True, check=True)
        return [float(word) for word in done.stdout.split()]

    first, numpy, numba = [], [], []
    for _ in range(rounds):
        with TemporaryDirectory() as cache:
            first.append(once("numba", cache))
            numpy.append(once("numpy", cache))
            numba.append(once("numba", cache))
    for name, times in {"NumPy": numpy, "Numba, first time": first, "Numba, compiled": numba}.items():
        table_row(name, *(f"{median(column):.2f}" for column in zip(*times, strict=True)))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("word", nargs="?", default="", help="only lines with this word")
    parser.add_argument("--rounds", type=int, help="turns for each; 15, or 3 with --start")
    parser.add_argument("--start", action="store_true", help="time the start of a program")
    parser.add_argument("--model", type=Path, default=ROOT / "tests/data/golden/ldpv2", help="for --start")
    chosen = parser.parse_args()
    if chosen.start:
        bench_start(chosen.model, chosen.rounds or 3)
    else:
        bench_ops(chosen.word, chosen.rounds or 15)


if __name__ == "__main__":
    main()
