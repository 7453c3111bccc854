"""How much faster many questions are answered by `model.batch` than by `ask`, one after another.

    python tools/bench_batch.py FOLDER                    eight questions a picture, 16 tokens each
    python tools/bench_batch.py FOLDER --questions 1      a question a picture

Both run in this process, with one loaded model, in alternation; each round has pictures of its own. Given are
the medians of the seconds, and the median of the rounds' ratios. Answers that differ end it with an error.
"""

import argparse
import sys
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout, when run as a script

import mvlm_np
from mvlm_np.model import MobileVLM

QUESTIONS = [
    "Is there a lamp in the picture?",
    "What is in the middle?",
    "How many people are there?",
    "What colour is the car?",
    "Where was this taken?",
    "Is it day or night?",
    "What does the sign say?",
    "Is the door open?",
]


def measure(model: MobileVLM, questions: int, tokens: int, rounds: int) -> list[tuple[float, float]]:
    """Seconds of `ask` and of `batch` for all questions about as many pictures as make eight, each round."""
    rng, taken = np.random.default_rng(0), []
    for number in range(rounds + 1):
        photos = [rng.integers(0, 256, (480, 640, 3), np.uint8) for _ in range(len(QUESTIONS) // questions)]
        rows = [(photo, question) for photo in photos for question in QUESTIONS[:questions]]
        start = perf_counter()
        alone = [model.ask(*row, max_new_tokens=tokens) for row in rows]
        between = perf_counter()
        together = [row.answer for row in model.batch(rows, max_new_tokens=tokens)]
        end = perf_counter()
        if alone != together:
            raise SystemExit(f"the answers differ: {alone} and {together}")
        if number:  # the first round compiles, and brings the weights into memory
            taken.append((between - start, end - between))
    return taken


def main() -> None:
    """Prints what the round's medians are."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("--questions", type=int, default=len(QUESTIONS), choices=(1, 2, 4, 8))
    parser.add_argument("--tokens", type=int, default=16, help="of each answer, at most (16)")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    taken = measure(mvlm_np.load(args.model), args.questions, args.tokens, args.rounds)
    alone, together = (median(seconds) for seconds in zip(*taken, strict=True))
    ratio = median(a / b for a, b in taken)
    print(
        f"ask {alone:.2f} s, batch {together:.2f} s for {len(QUESTIONS)} questions: {ratio:.2f} times as fast"
    )


if __name__ == "__main__":
    main()
