"""Numbers within bounds, digit by digit, against decimal arithmetic."""

from decimal import Decimal

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from mvlm_np.constrained.automaton import Automaton, Nodes
from mvlm_np.constrained.numbers import number


def reads(text: str, low: Decimal | None = None, high: Decimal | None = None, **options: bool) -> bool | None:
    """Whether a number's automaton reads a text; None: no number fits."""
    nodes = Nodes()
    end = nodes.node()
    start = number(nodes, end, low, high, **options)
    if start is None:
        return None
    automaton = Automaton(nodes, start, end)
    return bool(automaton.accepting[automaton.after(text.encode())])


@pytest.mark.parametrize("text, right", [
    ("0", True), ("-0", True), ("7", True), ("-12", True), ("0.5", True), ("1.50", True), ("1e5", True),
    ("1.5E-07", True), ("2e+3", True), ("123456789012345", True), ("0.12345678901234", True),
    ("", False), ("-", False), ("01", False), (".5", False), ("1.", False), ("1.e5", False), ("1e", False),
    ("+1", False), ("1e123", False), ("0x1", False), ("1 ", False), ("--1", False), ("NaN", False),
    ("1234567890123456", False), ("0.123456789012345", False), ("12345678.12345678", False),
])  # fmt: skip
def test_a_number_without_bounds_is_a_json_number_of_up_to_15_digits(text: str, right: bool) -> None:
    assert reads(text) == right


def test_a_number_with_a_bound_has_no_exponent_and_a_whole_one_no_point() -> None:
    assert not reads("1e5", Decimal(0))
    assert reads("1", None, None, whole=True)
    assert not reads("1.0", None, None, whole=True)


decimals = st.decimals(-20000, 20000, places=2) | st.integers(-300, 300).map(Decimal)
bounds = st.none() | decimals


@given(bounds, bounds, st.booleans(), st.booleans(), st.booleans(), st.data())
def test_it_reads_exactly_the_numbers_within_bounds(
    low: Decimal | None, high: Decimal | None, above: bool, below: bool, whole: bool, data: st.DataObject
) -> None:
    near = [bound for bound in (low, high) if bound is not None] or [Decimal(0)]
    steps = st.sampled_from(["0", "1", "-1", "0.01", "-0.01", "0.0001", "-0.0001", "9", "-10"]).map(Decimal)
    value = data.draw(decimals | st.builds(lambda a, b: a + b, st.sampled_from(near), steps))
    text = f"{value:f}"
    if "." in text and data.draw(st.booleans()):
        text = text.rstrip("0").rstrip(".")
    assume(text != "-0")  # a way to write 0, which may be left out
    right = (
        (low is None or value > low or (value == low and not above))
        and (high is None or value < high or (value == high and not below))
        and not (whole and "." in text)
    )
    found = reads(text, low, high, above=above, below=below, whole=whole)
    if found is None:
        assert not right
        assert low is not None and high is not None
        assert low > high or whole or (low == high and (above or below))
    else:
        assert found == right


@pytest.mark.parametrize("low, high, options", [
    ("5", "3", {}), ("0.2", "0.8", {"whole": True}), ("1", "1", {"above": True}), ("1e15", None, {}),
    ("0", "1", {"whole": True, "above": True, "below": True}), (None, "-1e20", {}),
    ("1.000000000000001", "1.000000000000002", {}),
])  # fmt: skip
def test_it_says_so_where_there_is_no_such_number(
    low: str | None, high: str | None, options: dict[str, bool]
) -> None:
    assert reads("1", Decimal(low) if low else None, Decimal(high) if high else None, **options) is None


@pytest.mark.parametrize("bound, text", [
    ("1e308", "999999999999999"), ("-1e308", "-999999999999999"), ("0.30000000000000004", "0.3"),
    ("9007199254740991", "42"), ("1e-300", "0"),
])  # fmt: skip
def test_a_bound_with_more_digits_than_numbers_have_is_moved_inward(bound: str, text: str) -> None:
    limit = Decimal(bound)
    assert reads(text, limit if limit < 0 else None, limit if limit > 0 else None)
    if bound == "0.30000000000000004":
        assert not reads("0.3", limit)
        assert reads("0.30000000000001", limit)


def test_what_a_double_would_round_to_an_excluded_bound_is_not_read() -> None:
    assert float("999.99999999999999999") == 1000
    assert not reads("999.99999999999999999", None, Decimal(1000), below=True)
    assert reads("999.999999999999", None, Decimal(1000), below=True)
