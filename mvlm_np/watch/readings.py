"""What of an answer is wanted: its text, a number that may be believed, or yes or no."""

import re
from collections.abc import Callable
from dataclasses import dataclass

WORDS = "zero one two three four five six seven eight nine ten eleven twelve".split()
# Digits with their marks; not in a name (A12). What follows another number directly has no sign (3-4).
NUMBER = re.compile(r"(?<![A-Za-z0-9_])([-−–]?)([.,][0-9]+|[0-9]+(?:[.,'’][0-9]+)*)")
PLAIN = re.compile("[0-9]*([.,][0-9]+)?")
TWO_WAYS = re.compile("[1-9][0-9]{0,2},[0-9]{3}")  # 1,234
GROUPED = re.compile("[0-9]{1,3}(?P<mark>[.,'])[0-9]{3}((?P=mark)[0-9]{3})*((?!(?P=mark))[.,][0-9]+)?")
LONGEST = 30  # characters of a number
AGAIN = 3  # so often in a row, a value too far from the last one is believed all the same


@dataclass(frozen=True)
class Reading:
    """What an answer says.

    value   text, a number, "yes" or "no"; None: it is not to be believed
    reason  why not
    """

    value: str | int | float | None
    reason: str | None = None


Reader = Callable[[str], Reading]  # of an answer's text


def text(answer: str) -> Reading:
    """The answer as it is."""
    return Reading(answer)


def yes_no(answer: str) -> Reading:
    """By the answer's first word."""
    first = first_word(answer)
    if first in ("yes", "no"):
        return Reading(first)
    return Reading(None, f"the answer begins neither with yes nor with no: {short(answer)}")


class Number:
    """The one number in an answer, if it is likely.

    least, most  its bounds, both included
    step         how far it may be from the last one that was believed. A value that is farther off is
                 believed when it has come three times running, each within a step of the one before: a meter
                 that moved on while nobody looked does not stay unread for ever
    """

    def __init__(self, least: float | None = None, most: float | None = None, step: float | None = None):
        self.least, self.most, self.step = least, most, step
        self._last: float | None = None
        self._off: list[float] = []  # values running that were too far off

    def __call__(self, answer: str) -> Reading:
        reading = number(answer)
        value = reading.value
        if not isinstance(value, int | float):
            return reading
        if self.least is not None and value < self.least:
            return Reading(None, f"{value} is less than {self.least:g}")
        if self.most is not None and value > self.most:
            return Reading(None, f"{value} is more than {self.most:g}")
        if self.step is not None and self._last is not None and abs(value - self._last) > self.step:
            if self._off and abs(value - self._off[-1]) > self.step:
                self._off = []
            self._off.append(value)
            if len(self._off) < AGAIN:
                return Reading(None, f"{value} is more than {self.step:g} away from {self._last:g}")
        self._last, self._off = value, []
        return reading


def number(answer: str) -> Reading:
    """The one number in an answer: 21, −3.5, 1,234.5 or 21,5; a small one in words if there is nothing else.

    A comma before three digits may be either mark, so with 1,234 alone there is no reading.
    """
    word = answer.strip(" .!").lower()
    if word in WORDS:
        return Reading(WORDS.index(word))
    values = {_value(sign, digits) for sign, digits in NUMBER.findall(answer)}
    if not values:
        return Reading(None, f"there is no number in the answer: {short(answer)}")
    if len(values) > 1:
        return Reading(None, f"there are several numbers in the answer: {short(answer)}")
    (value,) = values
    if value is None:
        return Reading(None, f"the number can be read in two ways, or is none: {short(answer)}")
    return Reading(value)


def _value(sign: str, digits: str) -> int | float | None:
    """None: the marks in it do not say which number it is."""
    digits = digits.replace("’", "'")
    if len(digits) > LONGEST or TWO_WAYS.fullmatch(digits):
        return None
    if PLAIN.fullmatch(digits):
        plain = digits.replace(",", ".")
    elif found := GROUPED.fullmatch(digits):
        plain = digits.replace(found["mark"], "").replace(",", ".")
    else:
        return None
    value = float(plain) if "." in plain else int(plain)
    return -value if sign else value


def first_word(answer: str) -> str:
    """In small letters, without what stands around it."""
    found = re.match(r"\W*(\w+)", answer)
    return found[1].lower() if found else ""


def short(answer: str) -> str:
    """An answer within a sentence."""
    line = " ".join(answer.split())
    return repr(line if len(line) <= 60 else f"{line[:57]}...")
