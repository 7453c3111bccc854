"""The JSON numbers within bounds, as a pattern that compares digit by digit."""

from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal

from mvlm_np.constrained.automaton import Nodes, span

DIGITS = 15  # of a number, at most: so many, and no two numbers are the same double (IEEE 754)
MOST = Decimal(10) ** DIGITS - 1


def number(
    nodes: Nodes,
    then: int,
    low: Decimal | None = None,
    high: Decimal | None = None,
    above: bool = False,
    below: bool = False,
    whole: bool = False,
) -> int | None:
    """A number from `low` to `high`, of up to 15 digits. None: without that bound. Returns None if none fits.

    above, below  the lower, the upper bound itself is left out
    whole         without a point. Only a number that is not whole and has no bounds may have an exponent
    """
    scientific = low is None and high is None and not whole
    low, high = max(-MOST, low if low is not None else -MOST), min(MOST, high if high is not None else MOST)
    ends = [then]
    if scientific:
        digits = nodes.one_of("09", nodes.up_to(1, "09", then))
        ends.append(nodes.node(span("EEee", nodes.node(span("++--", digits), [digits]))))
    zero, signs = Decimal(0), []
    if high >= 0:
        positive = Magnitude(nodes, ends, max(low, zero), high, above and low >= 0, below, whole)
        signs.append(positive.start)
    if low < 0:
        negative = Magnitude(nodes, ends, max(-high, zero), -low, below and high <= 0, above, whole)
        signs.append(nodes.literal("-", negative.start))
    possible = [start for start in signs if nodes.leads(start, then)]
    return nodes.any_of(possible) if possible else None


class Magnitude:
    """A number without its sign, within bounds that are not negative.

    Nodes are named by how the digits read so far compare with as many of the lower and of the upper bound:
    less, equal or more is -1, 0 or 1.
    """

    def __init__(
        self,
        nodes: Nodes,
        ends: list[int],
        low: Decimal,
        high: Decimal,
        above: bool,
        below: bool,
        whole: bool,
    ):
        self.nodes, self.ends, self.whole = nodes, ends, whole  # `ends` follow a complete number
        least, most = inward(low, ROUND_CEILING), inward(high, ROUND_FLOOR)
        self.above, self.below = above and least == low, below and most == high
        (self.low, self.low_behind), (self.high, self.high_behind) = parts(least), parts(most)
        self._made: dict[tuple[int, ...], int] = {}
        # No number is below 0 or beyond the 15 digits: there is nothing to compare with.
        no_low, no_high = least == 0 and not self.above, most == MOST and not self.below
        self.start = self.before_point(0, int(no_low), -int(no_high))

    def before_point(self, k: int, low: int, high: int) -> int:
        """k digits have been read, and the first is not 0."""
        key = (k, low, high)
        if key not in self._made:
            node = self._made[key] = self.nodes.node()
            jumps, edges = self.nodes.jumps[node], self.nodes.edges[node]
            if k:
                jumps += self.at_point(k, low, high)
            for digit in "0123456789" if k < len(self.high) else "":
                lower = low or compared(digit, self.low[k : k + 1])
                higher = high or compared(digit, self.high[k])
                if k == 0 and digit == "0":  # behind which there are no more digits before the point
                    target = self.nodes.node(jumps=self.at_point(1, lower, higher))
                else:
                    target = self.before_point(k + 1, lower, higher)
                edges.append((ord(digit), ord(digit), target))
        return self._made[key]

    def at_point(self, k: int, low: int, high: int) -> list[int]:
        """What may follow k digits before the point: nothing where the number is out of bounds."""
        low = low if k == len(self.low) else compared(k, len(self.low))
        high = high if k == len(self.high) else compared(k, len(self.high))
        if low < 0 or high > 0:
            return []
        following = self.ends if self.complete(0, low, high) else []
        if not self.whole and k < DIGITS:
            behind = self.behind_point(0, DIGITS - k, low, high)
            following = [*following, self.nodes.node(span("..", behind))]
        return following

    def behind_point(self, j: int, left: int, low: int, high: int) -> int:
        """j digits behind the point have been read, and `left` more may be."""
        if low > 0 and high < 0:
            j = min(j, 1)  # the bounds' digits count no more
        key = (j, left, low, high)
        if key not in self._made:
            node = self._made[key] = self.nodes.node()
            if j and self.complete(j, low, high):
                self.nodes.jumps[node] += self.ends
            for digit in "0123456789" if left else "":
                lower = low or compared(digit, self.low_behind[j : j + 1] or "0")
                higher = high or compared(digit, self.high_behind[j : j + 1] or "0")
                if lower >= 0 and higher <= 0:
                    target = self.behind_point(j + 1, left - 1, lower, higher)
                    self.nodes.edges[node].append((ord(digit), ord(digit), target))
        return self._made[key]

    def complete(self, j: int, low: int, high: int) -> bool:
        """Whether the number is within bounds with j digits behind the point."""
        enough = low > 0 or (len(self.low_behind) <= j and not self.above)
        return enough and (high < 0 or len(self.high_behind) > j or not self.below)


def compared(one: str | int, other: str | int) -> int:
    """-1, 0 or 1 as one is less than the other, equal or more. No digit at all is less than any."""
    return (one > other) - (one < other)  # type: ignore[operator]


def inward(bound: Decimal, rounding: str) -> Decimal:
    """A bound with at most 15 digits, rounded."""
    before, _ = parts(bound)
    return bound.quantize(Decimal(1).scaleb(len(before) - DIGITS), rounding)


def parts(bound: Decimal) -> tuple[str, str]:
    """The digits before the point, and those behind it without zeros at their end."""
    before, _, behind = f"{bound:f}".partition(".")
    return before, behind.rstrip("0")
