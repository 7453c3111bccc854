"""Measures a model: load, encode, prefill, decode, memory; and in the same run what the machine can do.

Each time is the median of several rounds. "limit" is the part of the machine's own rate that is
reached: of a plain float32 matrix product for prefill, of plainly reading memory for decode.

example:
  mvlm bench --model MobileVLM_V2-1.7B --json
"""

import argparse
import sys
from collections.abc import Callable
from time import perf_counter
from typing import TYPE_CHECKING, Any

from mvlm_np.cli import options

if TYPE_CHECKING:
    from mvlm_np.model import MobileVLM


def describe(parser: argparse.ArgumentParser) -> None:
    options.add_model(parser)
    parser.add_argument("--prompt", metavar="T", type=int, default=200, help="tokens to prefill (200)")
    parser.add_argument("--new", metavar="T", type=int, default=16, help="tokens to decode a round (16)")
    parser.add_argument("--rounds", metavar="N", type=int, default=5, help="rounds of each measurement (5)")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")


def run(args: argparse.Namespace) -> int:
    arguments = options.model_arguments(args)
    import json

    from mvlm_np.cli.progress import load_with_bar
    from mvlm_np.errors import UserError

    if min(args.prompt, args.new, args.rounds) < 1:
        raise UserError("--prompt, --new, --rounds", "found a number below 1", "whole numbers from 1")
    start = perf_counter()
    model = load_with_bar(**arguments)
    figures = {"load_seconds": perf_counter() - start, **measure(model, args.prompt, args.new, args.rounds)}
    if args.json:
        json.dump(figures, sys.stdout)
        print()
    else:
        for name, value in figures.items():
            print(f"{name:32} {value:12.3f}")
    return 0


def measure(model: "MobileVLM", prompt: int, new: int, rounds: int) -> dict[str, float]:
    """The figures, all of them taken in turn in each round, so that a disturbance meets all alike."""
    from statistics import median

    import numpy as np

    from mvlm_np import memory
    from mvlm_np.generation import Settings
    from mvlm_np.session import Session
    from mvlm_np.trace import Watch

    config, rng = model.config.decoder, np.random.default_rng(0)
    ids = rng.integers(3, config.vocab_size, prompt)
    model.within_context(prompt + new, Settings(0))
    x, keys = model.embed(ids.tolist(), [])
    photo = rng.integers(0, 256, (480, 640, 3), np.uint8)
    D, I = config.hidden_size, config.intermediate_size
    a, w = rng.standard_normal((prompt, D), np.float32), rng.standard_normal((I, D), np.float32)
    # BLAS reads this matrix once, with all its threads: 268 MB, more than any cache holds.
    large, one = np.ones((1 << 13, 1 << 13), np.float32), np.ones(1 << 13, np.float32)
    session = Session(model.decoder, config, model.ops)

    def prefill() -> None:
        session.cache.length = 0
        session.read(x, keys, new, Watch())

    def decode() -> None:
        session.cache.length = prompt
        for token in ids[:1].repeat(new):
            session.logits(np.array([token]), session.cache)

    works: dict[str, Callable[[], Any]] = {
        "prefill": prefill,
        "decode": decode,
        "sgemm": lambda: a @ w.T,
        "read": lambda: large @ one,
    }
    if model.vision is not None:
        works = {"encode": lambda: model.encode_image(photo)} | works
    times: dict[str, list[float]] = {name: [] for name in works}
    for name in works:
        works[name]()  # once unmeasured: compiles, and brings the weights into memory
    for _ in range(rounds):
        for name, work in works.items():
            start = perf_counter()
            work()
            times[name].append(perf_counter() - start)
    seconds = {name: median(values) for name, values in times.items()}

    decoder = model.decoder
    layers = [linear for layer in decoder.layers for linear in vars(layer).values() if callable(linear)]
    gemm_rate = 2 * a.size * I / seconds["sgemm"]
    read_rate = large.nbytes / seconds["read"]
    # Multiply-adds of one position, attention's left out, and the bytes of weights that one token reads.
    Kd = config.num_key_value_heads * config.head_dim
    per_position = config.num_hidden_layers * (2 * D * D + 2 * D * Kd + 3 * D * I)
    per_token = sum(linear.nbytes for linear in [*layers, decoder.lm_head])
    figures = {
        "prefill_tokens_per_second": prompt / seconds["prefill"],
        "prefill_limit": 2 * prompt * per_position / seconds["prefill"] / gemm_rate,
        "decode_tokens_per_second": new / seconds["decode"],
        "decode_limit": per_token * new / seconds["decode"] / read_rate,
        "sgemm_gflops": gemm_rate / 1e9,
        "read_gb_per_second": read_rate / 1e9,
        "peak_memory_gb": (memory.peak() or 0) / 1e9,
    }
    if "encode" in seconds:
        figures = {"encode_seconds": seconds["encode"]} | figures
    return figures
