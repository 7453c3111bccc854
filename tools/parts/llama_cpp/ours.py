"""What a process of ours measures.

    python -m tools.parts.llama_cpp.ours WHAT FOLDER IMAGE

prints it as JSON. WHAT is one of the first functions below; they take a model's folder and a picture.
"""

import json
import sys
from collections.abc import Callable
from statistics import median
from time import perf_counter

import numpy as np

import mvlm_np
from mvlm_np.cli import bench, served, speculate
from mvlm_np.cli.together import Together
from mvlm_np.drafts import draft_for
from mvlm_np.errors import UserError
from mvlm_np.kernels import limits
from tools.parts.llama_cpp import through
from tools.parts.llama_cpp.figures import DRAFTS, LONG, NEW, PROMPT, SHORT, TOGETHER


def decode(folder: str, image: str, positions: int = SHORT) -> list[float]:
    """Tokens per second, and the part of the rate of reading memory."""
    model = mvlm_np.load(folder)
    question = bench.question_of(model, positions - NEW // 2)  # compiles, and reads the weights into memory
    before, seconds, after = read_rate(), bench.decode(model, question, NEW), read_rate()
    return [1 / seconds, bench.bytes_of_a_token(model, positions) / seconds / median((before, after))]


def long(folder: str, image: str) -> list[float]:
    """`decode` behind a long context."""
    return decode(folder, image, LONG)


def prompt(folder: str, image: str) -> list[float]:
    """Tokens per second, and the part of the rate of multiplying bytes."""
    model = mvlm_np.load(folder)
    ids = [1, *range(100, 100 + PROMPT - 1)]
    model.generate(ids, max_new_tokens=1)  # compiles
    before = dot_rate()
    seconds = timed(lambda: model.generate(ids, max_new_tokens=1))
    operations = bench.decoder_operations(model.config.decoder, PROMPT)
    return [PROMPT / seconds, operations / seconds / median((before, dot_rate()))]


def encode(folder: str, image: str) -> list[float]:
    """Seconds, and the part of the rate of multiplying bytes."""
    model = mvlm_np.load(folder)
    model.encode_image(image)  # compiles
    before = dot_rate()
    seconds = timed(lambda: model.encode_image(image))
    return [seconds, bench.encoder_operations(model.config) / seconds / median((before, dot_rate()))]


def together(folder: str, image: str) -> list[float]:
    """Tokens per second of several sequences, divided by those of one."""
    ids = [1, *range(100, 100 + SHORT - NEW // 2 - 1)]
    sequences = Together(mvlm_np.load(folder), (1, *TOGETHER), ids, NEW)
    for count in sequences.seconds:
        sequences.step(count)  # compiles
    for _ in range(2):
        sequences.measure()
    rates = sequences.tokens_per_second()
    return [rates[count] / rates[1] for count in TOGETHER]


def drafts(folder: str, image: str) -> list[float]:
    """How many times faster than plain decoding, for each share that is right; nothing without drafts."""
    model = mvlm_np.load(folder)
    try:
        draft_for(model, "ngrams")
    except UserError:
        return []
    ids = np.random.default_rng(0).integers(3, model.config.decoder.vocab_size, SHORT).tolist()
    measured, small = speculate.Measured(model, ids, 2 * NEW), speculate.llama_68m(model)
    cost = small.decoder.nbytes / model.decoder.nbytes
    each = [None, *(speculate.Controlled(small, cost, measured.answer, rate) for rate in DRAFTS)]
    rounds = [[measured.decode(draft)[0] for draft in each] for _ in range(3)][1:]  # the first one warms up
    plain, *seconds = map(median, zip(*rounds, strict=True))
    return [plain / taken for taken in seconds]


def load(folder: str, image: str) -> list[float]:
    """Seconds."""
    mvlm_np.load(folder)  # imports the engine
    return [timed(lambda: mvlm_np.load(folder), 1)]


def serve(folder: str, image: str) -> list[float]:
    """What `through.measure` gives."""
    with served.serving([f"--model={folder}"]) as server:
        return through.measure(server.url)


WORKS = {work.__name__: work for work in (decode, long, prompt, encode, together, drafts, load, serve)}


def timed(work: Callable[[], object], times: int = 3) -> float:
    """Seconds that it takes, the median of some times."""
    seconds = []
    for _ in range(times):
        start = perf_counter()
        work()
        seconds.append(perf_counter() - start)
    return median(seconds)


def read_rate() -> float:
    """Bytes a second of plainly reading memory."""
    large = np.ones(1 << 26, np.float32)  # 268 MB, more than any cache holds
    limits.read(large)  # compiles
    return large.nbytes / timed(lambda: limits.read(large))


def dot_rate() -> float:
    """Operations a second of multiplying bytes in registers."""
    limits.multiply(1)  # compiles
    return limits.operations(bench.GROUPS) / timed(lambda: limits.multiply(bench.GROUPS))


if __name__ == "__main__":
    what, *arguments = sys.argv[1:]
    print(json.dumps(WORKS[what](*arguments)))
