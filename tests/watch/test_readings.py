"""What is read from answers, and what is not believed."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mvlm_np.watch import readings
from mvlm_np.watch.readings import Number, number, yes_no


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        ("535", 535), ("The display shows 535.", 535), ("0", 0), ("007", 7), ("21.5 °C", 21.5),
        ("0,234", 0.234), (".5", 0.5), ("-3", -3), ("−3.25 degrees", -3.25), ("1,234.5", 1234.5),
        ("1.234,5", 1234.5), ("12V", 12), ("1,234,567", 1234567), ("1.234.567", 1234567),
        ("1'234", 1234), ("1’234.5", 1234.5), ("21,5", 21.5), ("40%", 40),
        ("Two.", 2), ("zero", 0), ("42, that is 42", 42), ("Sensor A12 shows 7", 7), ("+5", 5),
    ],
)  # fmt: skip
def test_the_number_in_an_answer(answer: str, value: float) -> None:
    reading = number(answer)
    assert reading.value == value and type(reading.value) is type(value) and reading.reason is None


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("I cannot see it.", "no number"), ("", "no number"), ("no one", "no number"), ("A12", "no number"),
        ("3 of 4", "several"), ("3-4", "several"), ("12:30", "several"), ("2026-11-29", "several"),
        ("1/2", "several"),
        ("1,234", "two ways"), ("1.2.3", "two ways"), ("12,34,567", "two ways"), ("192.168.1.1", "two ways"),
        ("9" * 400, "two ways"),
    ],
)  # fmt: skip
def test_what_is_not_one_number(answer: str, reason: str) -> None:
    reading = number(answer)
    assert reading.value is None and reason in str(reading.reason)


@given(st.text(alphabet="0123456789.,'-− ’ abc%:/", max_size=40))
def test_a_reading_can_always_be_written_down(answer: str) -> None:
    reading = number(answer)
    assert (reading.value is None) == (reading.reason is not None)
    json.dumps(reading.value, allow_nan=False)


@given(st.integers(-(10**9), 10**9) | st.decimals(-9999, 9999, places=2))
def test_numbers_as_python_writes_them(value: object) -> None:
    assert number(f"It is {value} litres.").value == pytest.approx(float(str(value)), abs=0)


def test_bounds() -> None:
    read = Number(least=0, most=100)
    assert read("-1").reason == "-1 is less than 0" and read("100.5").reason == "100.5 is more than 100"
    assert [read(text).value for text in ("0", "100")] == [0, 100]


def test_a_step_too_far_is_believed_when_it_comes_again_and_again() -> None:
    read = Number(step=5)
    values = [read(text).value for text in "10 14 90 15 30 31 32 33 30".split()]
    assert values == [10, 14, None, 15, None, None, 32, 33, 30]
    assert Number(step=5)("7").value == 7
    read = Number(step=5)
    assert [read(text).value for text in "0 50 90 50 90 50 90".split()] == [0, *[None] * 6]
    assert read("50").reason == "50 is more than 5 away from 0"


def test_values_out_of_bounds_do_not_count_as_steps() -> None:
    read = Number(most=60, step=5)
    assert [read(text).value for text in "10 99 99 99 99 12".split()] == [10, *[None] * 4, 12]


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        ("Yes", "yes"), ("no.", "no"), ("YES, it is", "yes"), (' "No"', "no"),
        ("North", None), ("", None), ("Maybe", None),
    ],
)  # fmt: skip
def test_yes_and_no(answer: str, value: str | None) -> None:
    reading = yes_no(answer)
    assert reading.value == value and (reading.reason is None) == (value is not None)


def test_a_long_answer_is_cut_in_a_reason() -> None:
    assert len(str(yes_no("well " * 100).reason)) < 130
    assert readings.text("Any text").value == "Any text"
