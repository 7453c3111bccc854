"""What all rounds found, as a table or as JSON."""

import json
import sys
from collections.abc import Mapping, Sequence
from statistics import median

from tools.parts.llama_cpp.figures import DECODE, DECODE_LONG, LONG, SHORT, Figure, Measured

Rounds = Mapping[Figure, Sequence[Measured]]


def print_table(found: Rounds, bytes_leave: float, commands: Mapping[str, str]) -> None:
    """bytes_leave: what `kept` would be, if only bytes counted; commands: llama.cpp's, by their figures."""
    print("| | unit | llama.cpp | mvlm-np | times better | of the limit |")
    print("| --- | --- | --- | --- | --- | --- |")
    for figure, rounds in found.items():
        cells = [figure.name, figure.unit]
        for values in (column(rounds, "theirs"), column(rounds, "ours")):
            cells.append(f"{median(values):.3g} ({min(values):.3g}–{max(values):.3g})" if values else "–")
        times, limit = ratio(figure, rounds), column(rounds, "of_limit")
        cells += [f"{times:.2f}" if times else "–", f"{median(limit):.0%}" if limit else ""]
        print(f"| {' | '.join(cells)} |")
    count = max(map(len, found.values()))
    print(f"\nMedians of {count} rounds, and the range. Times better: the quotient of the medians.", end="")
    if (part := kept(found)) is not None:
        print(f" Behind {LONG} positions we keep {part:.0%} of the rate behind {SHORT};", end="")
        print(f" the bytes to be read leave {bytes_leave:.0%}.", end="")
    print(" llama.cpp's commands:\n")
    for command in commands.values():
        print(f"    {command}")


def print_json(found: Rounds, bytes_leave: float, commands: Mapping[str, str]) -> None:
    """The figures of every round; arguments as for `print_table`."""
    rows = [
        {"figure": figure.name, "unit": figure.unit, "ratio": ratio(figure, rounds)}
        | {name: column(rounds, name) for name in ("ours", "theirs", "of_limit")}
        for figure, rounds in found.items()
    ]
    long = {"kept": kept(found), "bytes_leave": bytes_leave}
    json.dump({"figures": rows, "long_context": long, "commands": commands}, sys.stdout, indent=1)
    print()


def column(rounds: Sequence[Measured], name: str) -> list[float]:
    """ours, theirs, or of_limit in all rounds; empty where there is none."""
    return [value for measured in rounds if (value := getattr(measured, name)) is not None]


def ratio(figure: Figure, rounds: Sequence[Measured]) -> float | None:
    """How many times better ours is, by the medians; None where llama.cpp has nothing like it."""
    if not (theirs := column(rounds, "theirs")):
        return None
    quotient = median(column(rounds, "ours")) / median(theirs)
    return quotient if figure.more_is_better else 1 / quotient


def kept(found: Rounds) -> float | None:
    """The part of our decoding rate that a long context leaves; the bytes alone would leave `bytes_leave`."""
    if not found.keys() >= {DECODE, DECODE_LONG}:
        return None
    long, short = (median(column(found[figure], "ours")) for figure in (DECODE_LONG, DECODE))
    return long / short
