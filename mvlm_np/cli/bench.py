"""Measures a model: load, encode, prefill, decode, memory; and in the same run what the machine can do.

Each time is the median of several rounds, in which everything takes turns. "of the limit" is the part of
the machine's own rate that is reached: of multiplying bytes in registers where weights are packed, of
a plain float32 matrix product where they are not, and of plainly reading memory for decode. --neighbour
measures everything a second time in each round while another program keeps one of the cores busy, as on a
board that has other work to do. --together decodes several sequences that share each reading of the weights:
tokens/s of all of them, and how many times that of the first number asked for. --speculate measures decoding
with a draft instead, of the shape of JackFram/llama-68m and random weights: how fast it is if this or that
share of what it drafts is right. --serve measures `mvlm serve` instead, as its clients see it.

examples:
  mvlm bench --model mtgv/MobileVLM_V2-1.7B --json
  mvlm bench --model FOLDER --neighbour
  mvlm bench --model FOLDER --together 1 2 4 8
  mvlm bench --model FOLDER --speculate --new 64
  mvlm bench --model FOLDER --serve
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from math import prod
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING, Any

from mvlm_np.cli import options
from mvlm_np.cli import start as cold_start
from mvlm_np.cli.calls import whole
from mvlm_np.cli.neighbour import neighbour
from mvlm_np.cli.together import COUNTS, MOST, Together
from mvlm_np.precisions import MEANING

if TYPE_CHECKING:
    from mvlm_np.model import MobileVLM


GROUPS = 20_000  # of products of bytes, which take a fraction of a second


def describe(parser: argparse.ArgumentParser) -> None:
    options.add_model(parser)
    parser.add_argument("--prompt", metavar="T", type=whole, default=200, help="tokens to prefill (200)")
    parser.add_argument("--new", metavar="T", type=whole, default=32, help="tokens to decode a round (32)")
    parser.add_argument("--rounds", metavar="N", type=whole, default=5, help="rounds of each measurement (5)")
    parser.add_argument("--neighbour", action="store_true", help="measure beside a busy program, too")
    parser.add_argument(
        "--together", metavar="N", type=whole, nargs="*", help="decode N sequences at a time, too (1 4 8)"
    )
    parser.add_argument("--speculate", action="store_true", help="measure decoding with a draft instead")
    parser.add_argument("--serve", action="store_true", help="measure `mvlm serve` and its clients instead")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.add_argument(
        "--start", action="store_true", help="measure what `mvlm ask` does before the first layer"
    )
    parser.add_argument("--image", metavar="PICTURE", help="for --start (a drawing that is in the box)")


def run(args: argparse.Namespace) -> int:
    arguments = options.model_arguments(args)
    import json

    from mvlm_np import backend
    from mvlm_np.cli.progress import load_with_bar
    from mvlm_np.errors import UserError

    if args.start:
        return cold_start.run(args, arguments)
    if args.new < 2 or min(args.prompt, args.rounds) < 1:
        raise UserError("--prompt, --new, --rounds", "found too small a number", "at least 1, 2 and 1")
    if args.together is not None:
        args.together = args.together or list(COUNTS)
        if not 1 <= min(args.together) <= max(args.together) <= MOST:
            raise UserError("--together", f"found {args.together}", f"numbers from 1 to {MOST}")
    if args.serve:
        from mvlm_np.cli import served

        figures = served.measure(arguments, args.new, args.rounds)
        if args.json:
            json.dump(figures, sys.stdout)
            print()
        else:
            served.show(figures)
        return 0
    start = perf_counter()
    backend.choose(args.backend)  # what a first load would import
    imported = perf_counter()
    model = load_with_bar(**arguments)
    figures = {"import_seconds": imported - start, "load_seconds": perf_counter() - imported}
    if args.speculate:
        from mvlm_np.cli import speculate

        figures |= speculate.measure(model, args.prompt, args.new, args.rounds)
    else:
        figures |= measure(model, args.prompt, args.new, args.rounds, args.neighbour, args.together or ())
    if args.json:
        json.dump(figures, sys.stdout)
        print()
    elif args.speculate:
        speculate.show(figures)
    else:
        _print(figures, args.prompt)
    return 0


def measure(
    model: "MobileVLM",
    prompt: int,
    new: int,
    rounds: int,
    with_neighbour: bool = False,
    counts: Sequence[int] = (),
) -> dict[str, Any]:
    """The figures, all of them taken in turn in each round, so that a disturbance meets all alike.

    Those that end in _limit are parts of the machine's rate that `limits_of` names: "read", "dot" or "sgemm".
    `neighbour` holds the same figures beside a busy program, if that was asked for; `together` the tokens/s
    of several sequences, by their number, for the numbers in `counts`.
    """
    import numpy as np

    from mvlm_np import backend, memory
    from mvlm_np.generation import Settings
    from mvlm_np.prompt_limits import within_context

    config, rng = model.config.decoder, np.random.default_rng(0)
    within_context(prompt + new, Settings(0), model.config)
    ids = rng.integers(3, config.vocab_size, prompt).tolist()
    photo = rng.integers(0, 256, (480, 640, 3), np.uint8)
    question = question_of(model, prompt)
    works: dict[str, Callable[[], Any]] = {
        "prefill": lambda: model.generate(ids, max_new_tokens=1),
        "decode": lambda: decode(model, question, new),
    }
    if model.vision is not None:
        works = {"encode": lambda: model.encode_image(photo)} | works
    for work in works.values():
        work()  # once unmeasured: compiles, and brings the weights into memory
    peak = memory.peak()  # before the machine's rates are measured, which takes memory too

    D, I = config.hidden_size, config.intermediate_size
    a, w = rng.standard_normal((prompt, D), np.float32), rng.standard_normal((I, D), np.float32)
    # 268 MB, more than any cache holds.
    large, one = np.ones((1 << 13, 1 << 13), np.float32), np.ones(1 << 13, np.float32)
    machine: dict[str, Callable[[], Any]] = {"sgemm": lambda: a @ w.T, "sgemv": lambda: large @ one}
    limits = backend.limits()
    if limits is not None:
        machine |= {"read": lambda: limits.read(large.reshape(-1)), "dot": lambda: limits.multiply(GROUPS)}
    for work in machine.values():
        work()
    together = Together(model, counts, ids, new)
    for count in counts:
        together.step(count)
    quiet, beside = dict[str, list[float]](), dict[str, list[float]]()
    for _ in range(rounds):
        _time(works | machine, quiet)
        together.measure()
        if with_neighbour:
            with neighbour():
                _time(works, beside)
    taken = _medians(quiet)

    rates = {"sgemm": 2 * a.size * I / taken["sgemm"], "read": large.nbytes / taken["sgemv"]}
    if limits is not None:
        rates["read"] = max(rates["read"], large.nbytes / taken["read"])
        rates["dot"] = limits.operations(GROUPS) / taken["dot"]
    limits_of = {"decode": "read", "prefill": _product(model.decoder.layers[0].o_proj, rates)}
    figures: dict[str, Any] = _speeds(taken, prompt) | {
        "bits_per_weight": bits_per_weight(model),
        "prefill_limit": decoder_operations(config, prompt) / taken["prefill"] / rates[limits_of["prefill"]],
        "decode_limit": bytes_of_a_token(model, prompt + new / 2) / taken["decode"] / rates["read"],
        "peak_memory_gb": (peak or 0) / 1e9,
        "read_gb_per_second": rates["read"] / 1e9,
        "sgemm_gflops": rates["sgemm"] / 1e9,
    }
    if limits is not None:
        figures["dot_gops"] = rates["dot"] / 1e9
    if model.vision is not None:
        limits_of["encode"] = _product(model.vision.layers[0].out_proj, rates)
        reached = encoder_operations(model.config) / taken["encode"] / rates[limits_of["encode"]]
        figures["encode_limit"] = reached
    if counts:
        figures["together"] = together.tokens_per_second()
    if with_neighbour:
        figures["neighbour"] = _speeds(_medians(beside), prompt)
    return figures | {"limits_of": limits_of}


def _time(works: dict[str, Callable[[], Any]], seconds: dict[str, list[float]]) -> None:
    """Adds the seconds that each takes; decoding tells them itself."""
    for name, work in works.items():
        start = perf_counter()
        result = work()
        seconds.setdefault(name, []).append(result if name == "decode" else perf_counter() - start)


def _medians(seconds: dict[str, list[float]]) -> dict[str, float]:
    return {name: median(values) for name, values in seconds.items()}


def _speeds(taken: dict[str, float], prompt: int) -> dict[str, float]:
    """The figures that say how fast we are, from seconds."""
    speeds = {
        "prefill_tokens_per_second": prompt / taken["prefill"],
        "decode_tokens_per_second": 1 / taken["decode"],
    }
    return {"encode_seconds": taken["encode"]} | speeds if "encode" in taken else speeds


# ---------------------------------------------------------------- works


def question_of(model: "MobileVLM", positions: int) -> str:
    """A question whose prompt takes about that many positions, or as few as there can be."""
    chat, question = model.chat(), "Describe in detail everything that you know about this photo"
    list(chat.stream(question, max_new_tokens=0))
    count = [len(model.tokenizer.encode(question + more)) for more in ("", " photo")]
    return question + " photo" * max(0, (positions - len(chat.prompt_ids)) // (count[1] - count[0]))


def decode(model: "MobileVLM", question: str, new: int) -> float:
    """Seconds that a token takes in `model.stream`: decoder, lm_head, sampling, tokenizer.

    The clock starts with the first step of the decoder after the prompt, and runs to the end of the answer.
    """
    from mvlm_np.errors import GenerationError
    from mvlm_np.trace import Watch

    begun: list[float] = []  # when each step of the decoder began

    class Clock(Watch):
        def phase(self, name: str, steps: int | None = None) -> Any:
            if name == "decode":
                begun.append(perf_counter())
            return super().phase(name, steps)

    for _ in model.stream(None, question, max_new_tokens=new, watch=Clock()):
        pass
    end = perf_counter()
    if not begun:
        raise GenerationError("decode", "the answer ends at once", "tokens to time", "take another --prompt")
    return (end - begun[0]) / len(begun)


# ---------------------------------------------------------------- what they take


def _product(linear: Any, rates: dict[str, float]) -> str:
    """Which of the machine's rates limits products with weights like these."""
    from mvlm_np.linear import Quantized

    return "dot" if isinstance(linear, Quantized) and "dot" in rates else "sgemm"


def decoder_operations(config: Any, T: int) -> int:
    """Of the matrix products of a prompt of T positions; attention, 1 % of them, is left out."""
    D, KVd = config.hidden_size, config.num_key_value_heads * config.head_dim
    layer = 2 * D * D + 2 * D * KVd + 3 * D * config.intermediate_size
    return 2 * (T * config.num_hidden_layers * layer + config.vocab_size * D)


def encoder_operations(config: Any) -> int:
    """Of the matrix products of one picture, in patches and blocks; the projector takes 2 % more."""
    v = config.vision
    V, T = v.hidden_size, v.grid**2 + 1
    patches = 3 * v.patch_size**2 * V
    layer = 4 * V * V + 2 * V * v.intermediate_size + 2 * T * V  # the last part is attention
    return 2 * T * (patches + config.vision_layers * layer)


def bytes_of_a_token(model: "MobileVLM", positions: float) -> float:
    """The weights and the cache, which decoding a token reads once."""
    return model.decoder.nbytes + model.session().cache.bytes_per_position * positions


def bits_per_weight(model: "MobileVLM") -> dict[str, dict[str, Any]]:
    """The matrices that a token reads, by the type in which they are kept: how many, and bits a weight."""
    found = dict[str, list[Any]]()
    for linear in model.decoder.linear:
        found.setdefault(linear.kind, []).append(linear)
    return {
        kind: {
            "matrices": len(layers),
            "bits": 8 * sum(layer.nbytes for layer in layers) / sum(prod(layer.shape) for layer in layers),
        }
        for kind, layers in found.items()
    }


# ---------------------------------------------------------------- the table


def _print(figures: dict[str, Any], prompt: int) -> None:
    limits = {
        "read": f"reading memory, {figures['read_gb_per_second']:.1f} GB/s",
        "sgemm": f"a float32 product, {figures['sgemm_gflops']:.0f} GFLOPS",
        "dot": f"multiplying bytes in registers, {figures.get('dot_gops', 0):.0f} GOPS",
    }

    def line(name: str, figure: str, unit: str, work: str = "") -> None:
        text = f"{name:24} {figures[figure]:9.2f} {unit:9}"
        if work:
            text += f" {figures[f'{work}_limit']:5.0%} of {limits[figures['limits_of'][work]]}"
        print(text.rstrip())
        if figure in figures.get("neighbour", ()):
            print(f"{'  with a busy neighbour':24} {figures['neighbour'][figure]:9.2f} {unit}")

    line("import", "import_seconds", "s")
    line("load", "load_seconds", "s")
    if "encode_seconds" in figures:
        line("image encode", "encode_seconds", "s", "encode")
    line(f"prompt of {prompt}", "prefill_tokens_per_second", "tokens/s", "prefill")
    line("decode", "decode_tokens_per_second", "tokens/s", "decode")
    for count, speed in figures.get("together", {}).items():
        times = speed / next(iter(figures["together"].values()))
        print(f"{f'decode, {count} together':24} {speed:9.2f} tokens/s {times:5.2f} ×")
    line("peak memory", "peak_memory_gb", "GB")
    for kind, about in figures["bits_per_weight"].items():
        count = about["matrices"]
        meaning = f", {MEANING[kind]}" if kind in MEANING else ""
        matrices = f"{count} matri{'x' if count == 1 else 'ces'}"
        print(f"{kind:24} {about['bits']:9.3f} bits a weight, {matrices}{meaning}")
