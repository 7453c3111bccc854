"""What the tools' command lines have in common."""

from argparse import ArgumentTypeError


def at_least_1(text: str) -> int:
    """argparse's type of a number of things."""
    if not text.isdecimal() or (value := int(text)) < 1:
        raise ArgumentTypeError(f"found {text!r}, wanted a whole number, at least 1")
    return value


def share(text: str) -> float:
    """argparse's type of a part of a whole."""
    if not 0 <= (value := float(text)) <= 1:
        raise ArgumentTypeError(f"found {text}, wanted a share from 0 to 1, as 0.95 for 95 %")
    return value
