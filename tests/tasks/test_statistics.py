"""Intervals, tests and gates, checked against published numbers, other formulas and brute force."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from scipy.special import xlogy
from scipy.stats import binom, norm

from optimizer.tasks.paired_statistics import (
    Paired,
    drop_interval,
    drop_intervals,
    gate,
    images_needed,
    mcnemar_p,
    sqnr_db,
    sums_of_squares,
    wilson_interval,
    worst_verdict,
)


@st.composite
def counts(draw: st.DrawFn, largest: int = 3000) -> tuple[int, int, int]:
    n = draw(st.integers(1, largest))
    losses = draw(st.integers(0, n))
    return losses, draw(st.integers(0, n - losses)), n


# --- interval of the drop ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("losses", "gains", "upper_pp"), [(0, 0, 0.71), (1, 0, 1.04), (3, 0, 1.62), (2, 1, 1.17)]
)
def test_upper_bounds_of_tango_on_540_images(losses: int, gains: int, upper_pp: float) -> None:
    _, high = drop_interval(losses, gains, 540)
    assert 100 * high == pytest.approx(upper_pp, abs=0.005)


def test_no_discordant_image_gives_the_closed_form() -> None:
    z2 = norm.ppf(0.975) ** 2
    for n in (20, 50, 540, 50_000):
        low, high = drop_interval(0, 0, n)
        assert high == pytest.approx(z2 / (n + z2), rel=1e-9)
        assert low == pytest.approx(-high, rel=1e-12)


def test_many_discordant_images_give_the_textbook_interval() -> None:
    losses, gains, n = 3200, 2800, 100_000
    low, high = drop_interval(losses, gains, n)
    drop = (losses - gains) / n
    half = 1.959964 * math.sqrt(((losses + gains) / n - drop**2) / n)
    assert (low, high) == pytest.approx((drop - half, drop + half), abs=2e-6)


def _tango_score(losses: int, gains: int, n: int, drop: float) -> float:
    """Tango's statistic with the constrained estimate found by maximizing the likelihood."""

    def minus_likelihood(gain: float) -> float:
        loss, rest = gain + drop, 1 - 2 * gain - drop
        return -float(xlogy(losses, loss) + xlogy(gains, gain) + xlogy(n - losses - gains, rest))

    solution = minimize_scalar(
        minus_likelihood,
        bounds=(max(0.0, -drop), (1 - drop) / 2),
        method="bounded",
        options={"xatol": 1e-12},
    )
    gain = float(solution.x)
    return (losses - gains - n * drop) / math.sqrt(n * (2 * gain + drop - drop**2))


@pytest.mark.parametrize(
    ("losses", "gains", "n"), [(5, 2, 540), (30, 10, 1000), (12, 1, 500), (90, 60, 5000)]
)
def test_the_upper_bound_solves_tangos_equation(losses: int, gains: int, n: int) -> None:
    _, high = drop_interval(losses, gains, n)
    assert _tango_score(losses, gains, n, high) == pytest.approx(-1.959964, abs=2e-4)


@given(counts())
@settings(max_examples=50, deadline=None)
def test_the_interval_contains_the_drop_and_stays_in_range(c: tuple[int, int, int]) -> None:
    losses, gains, n = c
    low, high = drop_interval(losses, gains, n)
    assert -1 <= low <= (losses - gains) / n <= high <= 1
    assert low < high


@given(counts())
@settings(max_examples=50, deadline=None)
def test_swapping_the_models_mirrors_the_interval(c: tuple[int, int, int]) -> None:
    losses, gains, n = c
    low, high = drop_interval(losses, gains, n)
    assert drop_interval(gains, losses, n) == pytest.approx((-high, -low), abs=1e-12)


@given(counts(), st.floats(0.5, 0.98), st.floats(0.005, 0.019))
@settings(max_examples=50, deadline=None)
def test_higher_confidence_gives_a_wider_interval(
    c: tuple[int, int, int], less: float, more: float
) -> None:
    narrow, wide = drop_interval(*c, less), drop_interval(*c, less + more)
    assert wide[0] <= narrow[0] + 1e-12
    assert narrow[1] <= wide[1] + 1e-12


@given(counts())
@settings(max_examples=50, deadline=None)
def test_one_more_loss_moves_both_bounds_up(c: tuple[int, int, int]) -> None:
    losses, gains, n = c
    if losses + gains == n:
        return
    before, after = drop_interval(losses, gains, n), drop_interval(losses + 1, gains, n)
    assert after[0] >= before[0] - 1e-9
    assert after[1] >= before[1] - 1e-9


def test_arrays_give_the_same_as_single_calls() -> None:
    losses, gains = np.arange(40), np.arange(40)[::-1]
    low, high = drop_intervals(losses, gains, 540)
    for i in range(40):
        single = drop_interval(int(losses[i]), int(gains[i]), 540)
        assert (low[i], high[i]) == pytest.approx(single, abs=1e-14)


@pytest.mark.parametrize("bad", [(-1, 0, 10), (0, -1, 10), (6, 5, 10), (0, 0, 0)])
def test_impossible_counts_are_refused(bad: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="impossible counts"):
        drop_interval(*bad)
    with pytest.raises(ValueError, match="confidence"):
        drop_interval(0, 0, 10, 1.0)


# --- Wilson and McNemar --------------------------------------------------------------------------


@given(st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
@settings(max_examples=50, deadline=None)
def test_wilson_solves_its_equation(c: tuple[int, int]) -> None:
    successes, n = c
    low, high = wilson_interval(successes, n)
    share, z = successes / n, norm.ppf(0.975)
    for bound in (low, high):
        if 0 < bound < 1:
            expected = z**2 * bound * (1 - bound) / n
            assert (share - bound) ** 2 == pytest.approx(expected, rel=1e-6, abs=1e-12)
    assert low - 1e-12 <= share <= high + 1e-12


@given(st.integers(0, 60), st.integers(0, 60))
@settings(deadline=None)
def test_mcnemar_is_the_exact_binomial_tail(losses: int, gains: int) -> None:
    n, smaller = losses + gains, min(losses, gains)
    expected = min(1.0, 2 * float(binom.cdf(smaller, n, 0.5))) if losses != gains else 1.0
    assert mcnemar_p(losses, gains) == pytest.approx(expected, rel=1e-9)
    assert mcnemar_p(losses, gains) == mcnemar_p(gains, losses)


# --- gates ---------------------------------------------------------------------------------------


def test_the_gate_is_non_inferiority() -> None:
    assert gate((-0.5, 0.9), 1.0) == "pass"
    assert gate((1.1, 3.0), 1.0) == "fail"
    assert gate((0.5, 1.5), 1.0) == "inconclusive"
    assert gate((0.0, 1.0), 1.0) == "inconclusive"
    assert gate((1.0, 2.0), 1.0) == "inconclusive"


def test_a_small_sample_does_not_pass_although_its_p_value_is_large() -> None:
    few = Paired(50, 1, 0)
    assert few.p == 1.0
    assert gate(few.interval_pp, 1.0) == "inconclusive"


def test_the_worst_verdict_wins() -> None:
    assert worst_verdict() == "pass"
    assert worst_verdict("pass", None) == "pass"
    assert worst_verdict("pass", "inconclusive", None) == "inconclusive"
    assert worst_verdict("inconclusive", "fail", "pass") == "fail"


# --- images needed -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("drop", "discordant", "published"),
    [(0.001, 0.002, 12_364), (0.005, 0.01, 2_471), (0.01, 0.02, 1_235), (0.01, 0.05, 3_090)],
)
def test_images_needed_is_the_sample_size_of_a_paired_difference(
    drop: float, discordant: float, published: int
) -> None:
    """At a limit of zero and one-sided 5 % it is the textbook formula."""
    n = 1_000_000
    paired = Paired(n, round(n * (discordant + drop) / 2), round(n * (discordant - drop) / 2))
    z_alpha, z_power = norm.ppf(0.95), norm.ppf(0.8)
    by_hand = ((z_alpha * discordant**0.5 + z_power * (discordant - drop**2) ** 0.5) / drop) ** 2
    assert by_hand == pytest.approx(published, rel=0.001)
    assert images_needed(paired, 0.0, confidence=0.90) == math.ceil(by_hand)


@pytest.mark.parametrize(
    ("losses", "gains", "n"), [(0, 0, 300), (5, 3, 400), (3, 0, 540), (30, 5, 500), (2, 9, 200)]
)
def test_the_gate_decides_with_the_stated_power(losses: int, gains: int, n: int) -> None:
    paired, limit = Paired(n, losses, gains), 0.02
    needed = images_needed(paired, limit)
    assert needed is not None
    rng = np.random.default_rng(1)
    rates = [losses / n, gains / n, 1 - (losses + gains) / n]
    drawn = rng.multinomial(needed, rates, size=4000)
    low, high = drop_intervals(drawn[:, 0], drawn[:, 1], needed)
    decided = float(np.mean((high < limit) | (low > limit)))
    assert decided >= 0.75


def test_without_any_flip_enough_images_are_still_needed() -> None:
    needed = images_needed(Paired(100, 0, 0), 0.01)
    assert needed == 381  # z^2 (1 - limit) / limit
    assert drop_interval(0, 0, needed)[1] < 0.01 <= drop_interval(0, 0, needed - 1)[1]


def test_a_drop_that_equals_the_limit_is_never_decided() -> None:
    assert images_needed(Paired(1000, 10, 0), 0.01) is None


# --- signals -------------------------------------------------------------------------------------


def test_sqnr_of_a_known_ratio() -> None:
    signal, noise = sums_of_squares(np.array([3.0, 4.0]), np.array([3.0, 4.5]))
    assert (signal, noise) == (25.0, 0.25)
    assert sqnr_db(signal, noise) == pytest.approx(20.0)
    assert sqnr_db(25.0, 0.0) is None
    assert sqnr_db(0.0, 1.0) == -math.inf


def test_sums_of_squares_do_not_overflow_half_precision() -> None:
    big = np.full(1000, 300, np.float16)
    signal, noise = sums_of_squares(big, big + np.float16(1))
    assert (signal, noise) == (9e7, 1000.0)


@given(st.floats(0.01, 100), st.integers(0, 2**32 - 1))
@settings(max_examples=50, deadline=None)
def test_sqnr_does_not_depend_on_scale(scale: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    clean, dirty = rng.normal(size=(2, 64))
    plain = sqnr_db(*sums_of_squares(clean, dirty))
    assert sqnr_db(*sums_of_squares(clean * scale, dirty * scale)) == pytest.approx(plain, abs=1e-6)
