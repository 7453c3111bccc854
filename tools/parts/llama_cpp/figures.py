"""What is measured: the lines of the table, and what a round finds for each."""

from typing import NamedTuple

QUESTION = "What animal is this?"
PROMPT, NEW = 200, 32  # tokens to read, and to generate
SHORT, LONG = 200, 1900  # positions behind which they are generated


class Figure(NamedTuple):
    """One line of the table."""

    name: str
    unit: str
    more_is_better: bool = True

    def beside_a_neighbour(self) -> "Figure":
        """The same, taken while another program keeps one core busy."""
        return self._replace(name=f"{self.name}, busy neighbour")


class Measured(NamedTuple):
    """A figure in one round.

    theirs    None where llama.cpp has nothing like it
    of_limit  the part that ours reaches of what the machine can do
    """

    ours: float
    theirs: float | None = None
    of_limit: float | None = None


DECODE, DECODE_LONG = (Figure(f"decode behind {n} positions", "tokens/s") for n in (SHORT, LONG))
READ = Figure(f"prompt of {PROMPT}", "tokens/s")
ENCODE = Figure("image encode", "s", False)
VQA = Figure(f"one question about a picture, {NEW} tokens, whole process", "s", False)
MEMORY = Figure("peak memory of that", "GB", False)
FIRST = Figure("the question, never run here", "s", False)
TOGETHER = {n: Figure(f"{n} sequences together, behind {SHORT}", "times one") for n in (4, 8)}
DRAFTS = {rate: Figure(f"decode with a draft, {rate:.0%} right", "times plain") for rate in (0.6, 0.8)}
LOAD = Figure("load", "s", False)
SERVED = (
    Figure("server: first token, a new picture", "s", False),
    Figure("server: first token, a picture asked about before", "s", False),
    Figure("server: one client", "tokens/s"),
    Figure("server: 4 clients at once, in all", "tokens/s"),
)
BENCHED = {"decode": DECODE, "long": DECODE_LONG, "prompt": READ}  # what llama-bench can do

# What a round measures, in this order. Some of it gives two figures.
BESIDE = ("decode", "long", "prompt", "encode", "ask")  # beside a busy neighbour, too
ALL = (*BESIDE, "first", "together", "drafts", "load", "serve")
TUNED = (DECODE, DECODE_LONG, READ, ENCODE, VQA, LOAD)  # those that llama.cpp's best flags are sought for
