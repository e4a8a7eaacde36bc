"""Intervals that hold at every number of images at once."""

from __future__ import annotations

from math import comb, exp, log

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optimizer.tasks.anytime_statistics import (
    anytime_drop_bounds,
    anytime_drop_interval,
    anytime_rate_interval,
    log_wealth,
)
from optimizer.tasks.paired_statistics import drop_interval, wilson_interval


@st.composite
def _counts(draw: st.DrawFn) -> tuple[int, int, int]:
    n = draw(st.integers(1, 60_000))
    losses = draw(st.integers(0, n))
    return losses, draw(st.integers(0, n - losses)), n


def _wealth(losses: int, gains: int, n: int, supposed: float) -> float:
    counts = (np.array([float(x)]) for x in (losses, gains, n))
    return exp(float(log_wealth(*counts, np.array([supposed]))[0]))


@pytest.mark.parametrize("n", [1, 2, 7, 20])
@pytest.mark.parametrize(
    ("loss_rate", "gain_rate"), [(0.01, 0.0), (0.02, 0.01), (0.3, 0.1), (0.1, 0.4), (0.0, 0.0)]
)
def test_the_wealth_does_not_grow_if_the_supposed_mean_is_true(
    n: int, loss_rate: float, gain_rate: float
) -> None:
    """Exactly, by summing over all outcomes: this is what makes early stopping valid."""
    agree_rate, expected = 1 - loss_rate - gain_rate, 0.0
    for losses in range(n + 1):
        for gains in range(n + 1 - losses):
            ways = comb(n, losses) * comb(n - losses, gains)
            chance = loss_rate**losses * gain_rate**gains * agree_rate ** (n - losses - gains)
            expected += ways * chance * _wealth(losses, gains, n, loss_rate - gain_rate)
    assert expected == pytest.approx(1, rel=1e-9)


@pytest.mark.parametrize(("rate", "images"), [(0.01, 520), (0.05, 250), (0.3, 100)])
def test_the_true_rate_is_ever_refuted_with_at_most_the_stated_probability(
    rate: float, images: int
) -> None:
    """Exactly, following the distribution of the counts image by image with a look after each."""
    hits = np.arange(images + 1, dtype=np.float64)
    supposed = np.full(images + 1, rate)
    chance = np.zeros(images + 1)
    chance[0], refuted = 1.0, 0.0
    for n in range(1, images + 1):
        chance[1:] = chance[1:] * (1 - rate) + chance[:-1] * rate
        chance[0] *= 1 - rate
        reached = np.minimum(hits, n)
        counts = (np.zeros_like(reached), np.full_like(reached, n))
        crossed = log_wealth(reached, *counts, supposed) > log(40)
        refuted += float(chance[crossed].sum())
        chance[crossed] = 0
    assert 0 < refuted <= 0.025


@settings(max_examples=40)
@given(_counts())
def test_an_interval_contains_what_was_observed(counts: tuple[int, int, int]) -> None:
    losses, gains, n = counts
    low, high = anytime_drop_interval(losses, gains, n)
    assert -1 <= low <= (losses - gains) / n <= high <= 1
    low, high = anytime_rate_interval(losses, n)
    assert -1e-9 <= low <= losses / n <= high <= 1


@settings(max_examples=40)
@given(_counts())
def test_losses_and_gains_mirror_each_other(counts: tuple[int, int, int]) -> None:
    losses, gains, n = counts
    low, high = anytime_drop_interval(losses, gains, n)
    assert anytime_drop_interval(gains, losses, n) == pytest.approx((-high, -low), abs=1e-12)


@settings(max_examples=40)
@given(_counts())
def test_looking_at_any_time_costs_width(counts: tuple[int, int, int]) -> None:
    losses, gains, n = counts
    low, high = anytime_drop_interval(losses, gains, n)
    fixed_low, fixed_high = drop_interval(losses, gains, n)
    assert high - low > (fixed_high - fixed_low) * 0.99


def test_without_flips_few_hundred_images_decide_about_one_percent() -> None:
    """A test for one number of images needs 367 of them."""
    assert anytime_drop_interval(0, 0, 500)[1] < 0.01 < anytime_drop_interval(0, 0, 367)[1]
    assert anytime_rate_interval(0, 500)[1] < 0.01


def test_bounds_shrink_towards_the_true_drop() -> None:
    n = np.array([10**3, 10**4, 10**5, 10**6])
    low, high = anytime_drop_bounds(n // 50, n // 100, n)
    assert np.all(np.diff(high - low) < 0)
    assert high[-1] - low[-1] < 0.002
    assert np.all((low < 0.01) & (high > 0.01))


def test_arrays_and_single_counts_agree() -> None:
    low, high = anytime_drop_bounds([3, 40], [1, 0], [100, 50])
    assert (low[1], high[1]) == anytime_drop_interval(40, 0, 50)


@pytest.mark.parametrize("counts", [(0, 0, 0), (-1, 0, 5), (4, 3, 6)])
def test_impossible_counts_are_refused(counts: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="impossible counts"):
        anytime_drop_interval(*counts)


@pytest.mark.parametrize("counts", [(0, 0), (7, 6), (-1, 6)])
def test_impossible_rates_are_refused(counts: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="impossible counts"):
        anytime_rate_interval(*counts)


def test_a_rate_is_never_known_better_than_from_a_fixed_number_of_images() -> None:
    for hits in (0, 1, 5, 50):
        low, high = anytime_rate_interval(hits, 1000)
        fixed = wilson_interval(hits, 1000)
        assert low <= fixed[0]
        assert high >= fixed[1]
