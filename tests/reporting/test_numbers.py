from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimizer.reporting.numbers import (
    DASH,
    decimals,
    fixed,
    interval,
    mebibytes,
    moment,
    percent,
    seconds,
    significant,
)


def number(text: str) -> float:
    return float(text.replace("−", "-").replace(",", ""))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (92.412, "92.4"),
        (1234.5, "1,234"),
        (0.8731, "0.873"),
        (0.0, "0.00"),
        (-0.00012, "−0.000120"),
        (3.81e-06, "3.81e−6"),
        (None, DASH),
        (math.nan, DASH),
        (math.inf, "∞"),
        (-math.inf, "−∞"),
    ],
)
def test_three_significant_digits(value: float | None, text: str) -> None:
    assert significant(value) == text


@given(st.floats(min_value=-1e9, max_value=1e9, allow_nan=False))
def test_rounding_keeps_three_digits_of_any_number(value: float) -> None:
    read = number(significant(value))
    assert read == pytest.approx(value, rel=5.1e-3, abs=1e-300)


@given(st.floats(min_value=-1e6, max_value=1e6), st.integers(0, 4))
def test_fixed_is_within_half_a_unit_of_its_last_place(value: float, places: int) -> None:
    assert abs(number(fixed(value, places, sign="+")) - value) <= 0.5001 * 10**-places


@pytest.mark.parametrize("value", [0.0, -0.0, 0.001, -0.001])
def test_a_zero_has_no_sign(value: float) -> None:
    assert fixed(value, 2, sign="+") == "0.00"


def test_a_gain_and_a_loss_carry_their_sign() -> None:
    assert fixed(0.185, 2, sign="+") == "+0.18"
    assert fixed(-0.19, 2, sign="+") == "−0.19"


def test_an_interval_has_as_many_digits_as_its_estimate() -> None:
    assert interval((91.83, 92.86), decimals(92.4)) == "[91.8, 92.9]"
    assert interval((-0.55, 1.04), 2, sign="+") == "[−0.55, +1.04]"
    assert interval(None, 2) is None
    assert interval((-math.inf, math.inf), 2) == "[−∞, ∞]"


def test_units() -> None:
    assert mebibytes(25 * 2**20) == "25.0"
    assert percent(0.98519) == "98.52"
    assert seconds(0.0123) == "0.012"
    assert seconds(412.7) == "413"
    assert [mebibytes(None), percent(None), seconds(None)] == [DASH] * 3


@pytest.mark.parametrize(
    ("created", "text"),
    [
        ("2026-11-24T09:41:30+00:00", "2026-11-24 09:41 UTC"),
        ("2026-11-24T11:41:30+02:00", "2026-11-24 09:41 UTC"),
        ("2026-11-24T09:41:30", "2026-11-24 09:41"),
        ("yesterday", "yesterday"),
    ],
)
def test_times_are_shortened(created: str, text: str) -> None:
    assert moment(created) == text
