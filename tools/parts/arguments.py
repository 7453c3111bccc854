"""What the tools' command lines have in common."""


def at_least_1(text: str) -> int:
    """argparse's type of a number of things."""
    if (value := int(text)) < 1:
        raise ValueError
    return value
