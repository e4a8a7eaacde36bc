"""Percentiles, intervals and verdicts: properties, and false alarms on simulated machines."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optimizer.profiling.intervals import (
    MIN_ROUNDS_FOR_INTERVAL,
    Estimate,
    judge,
    latency,
    median,
    quantile_bounds,
    rate,
    ratio_of_medians,
    ratio_unpaired,
    serial_correlation,
    smallest_sample,
)

milliseconds = st.floats(0.01, 1000.0)
round_of_samples = st.lists(milliseconds, min_size=1, max_size=8).map(np.array)
rounds_of_samples = st.lists(round_of_samples, min_size=1, max_size=20)


# --- percentiles ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("quantile", "n"), [(0.90, 29), (0.95, 59), (0.99, 299), (0.999, 2995), (0.5, 5)]
)
def test_the_published_sample_sizes(quantile: float, n: int) -> None:
    assert smallest_sample(quantile) == n


@given(st.floats(0.05, 0.9995), st.floats(0.5, 0.999))
def test_the_smallest_sample_is_enough_and_one_less_is_not(q: float, confidence: float) -> None:
    n = smallest_sample(q, confidence)
    assert 1 - q**n >= confidence - 1e-12
    assert n == 1 or 1 - q ** (n - 1) < confidence + 1e-12


@pytest.mark.parametrize("quantile", [0.0, 1.0, -0.1, math.nan])
def test_a_quantile_out_of_range_is_refused(quantile: float) -> None:
    with pytest.raises(ValueError, match="quantile"):
        smallest_sample(quantile)


@pytest.mark.parametrize(
    ("n", "reported"),
    [
        (28, set()),
        (29, {"p90"}),
        (59, {"p90", "p95"}),
        (298, {"p90", "p95"}),
        (299, {"p90", "p95", "p99"}),
        (2994, {"p90", "p95", "p99"}),
        (2995, {"p90", "p95", "p99", "p99_9"}),
    ],
)
def test_a_percentile_needs_enough_samples(n: int, reported: set[str]) -> None:
    result = latency(np.arange(1.0, n + 1))
    tails = result.model_dump(exclude={"mean", "p50"})
    assert {name for name, value in tails.items() if value is not None} == reported
    assert result.p50 == np.median(np.arange(1.0, n + 1))


def test_no_sample_is_discarded() -> None:
    samples = np.full(3000, 1.0)
    samples[::100] = 500.0
    result = latency(samples)
    assert result.p99_9 == 500.0
    assert result.mean == pytest.approx(1 + 499 * 30 / 3000)


# --- properties of the intervals -----------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(rounds_of_samples, st.integers(0, 5))
def test_an_interval_contains_its_value(rounds: list, seed: int) -> None:
    pooled = np.concatenate(rounds)
    result = median(rounds, seed=seed)
    assert result.value == np.median(pooled)
    assert result == median(rounds, seed=seed)
    if len(rounds) < MIN_ROUNDS_FOR_INTERVAL:
        assert result.ci95 is None
    else:
        assert result.ci95 is not None
        assert result.ci95[0] <= result.value * (1 + 1e-12)
        assert result.ci95[1] >= result.value * (1 - 1e-12)


@settings(max_examples=40, deadline=None)
@given(st.lists(round_of_samples, min_size=6, max_size=20), st.floats(0.1, 10.0))
def test_scaling_the_clock_scales_the_results(rounds: list, factor: float) -> None:
    scaled = [r * factor for r in rounds]
    for estimate, power in ((median, 1), (rate, -1)):
        before, after = estimate(rounds), estimate(scaled)
        assert after.value == pytest.approx(before.value * factor**power)
        assert after.ci95 == pytest.approx([bound * factor**power for bound in before.ci95])
    speed = ratio_of_medians(rounds, scaled)
    assert speed.value == pytest.approx(1 / factor)
    # Paired by round, a constant factor has no uncertainty.
    assert speed.ci95 == pytest.approx((1 / factor, 1 / factor))


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_exchanging_the_engines_inverts_the_ratio(data: st.DataObject) -> None:
    n = data.draw(st.integers(6, 15))
    a, b = (data.draw(st.lists(round_of_samples, min_size=n, max_size=n)) for _ in range(2))
    forth, back = ratio_of_medians(a, b), ratio_of_medians(b, a)
    assert forth.value == pytest.approx(1 / back.value)
    assert forth.ci95 == pytest.approx((1 / back.ci95[1], 1 / back.ci95[0]))


def test_many_samples_are_binned_without_losing_the_median() -> None:
    generator = np.random.default_rng(0)
    rounds = [10 + generator.normal(0, 0.1) + generator.gamma(2, 0.5, 3000) for _ in range(20)]
    pooled = np.concatenate(rounds)
    result = median(rounds, seed=1)
    few = np.random.default_rng(1).integers(0, 20, (300, 20))
    exact = [np.median(np.concatenate([rounds[i] for i in rows])) for rows in few]
    low, high = np.quantile(exact, [0.025, 0.975])
    width = high - low
    assert result.value == np.median(pooled)
    assert result.ci95[0] == pytest.approx(low, abs=0.5 * width)
    assert result.ci95[1] == pytest.approx(high, abs=0.5 * width)


def test_a_rate_counts_the_slow_calls() -> None:
    rounds = [np.array([1.0] * 9 + [91.0])] * 6
    assert rate(rounds).value == pytest.approx(100.0)
    assert median(rounds).value == 1.0


def test_rounds_must_be_pairs() -> None:
    with pytest.raises(ValueError, match="rounds cannot be paired: 7 and 8"):
        ratio_of_medians([np.ones(3)] * 7, [np.ones(3)] * 8)


def test_serial_correlation_widens_the_interval() -> None:
    generator = np.random.default_rng(3)
    drift = np.cumsum(generator.normal(0, 0.02, 40))
    drifting = [np.exp(d + generator.normal(0, 0.001, 20)) for d in drift]
    shuffled = [drifting[i] for i in generator.permutation(40)]
    assert serial_correlation(drift) > 0.7
    wide, narrow = (np.diff(np.log(median(r).ci95))[0] for r in (drifting, shuffled))
    assert wide > 2 * narrow


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=40))
def test_serial_correlation_stays_in_its_range(values: list[float]) -> None:
    assert 0.0 <= serial_correlation(np.array(values)) <= 0.95


def test_independent_rounds_show_hardly_any_correlation() -> None:
    generator = np.random.default_rng(4)
    result = [serial_correlation(generator.standard_t(2, 40)) for _ in range(300)]
    assert np.mean(result) < 0.12
    assert serial_correlation(np.ones(10)) == 0.0


# --- verdicts ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "ci95", "verdict"),
    [
        (1.00, (0.99, 1.01), "equivalent"),
        (1.01, (1.005, 1.015), "equivalent"),  # certainly faster, but negligibly
        (1.05, (1.03, 1.07), "faster"),
        (1.03, (1.001, 1.06), "faster"),
        (1.015, (1.005, 1.03), "inconclusive"),
        (1.05, (0.99, 1.10), "inconclusive"),
        (0.95, (0.93, 0.97), "slower"),
        (0.985, (0.97, 0.995), "inconclusive"),
        (1.00, (0.97, 1.03), "inconclusive"),
        (2.00, None, "inconclusive"),
    ],
)
def test_verdicts(value: float, ci95: tuple[float, float] | None, verdict: str) -> None:
    assert judge(Estimate(value, ci95), min_effect=0.02) == verdict


def test_differences_within_the_controls_are_not_called() -> None:
    speed = Estimate(1.05, (1.03, 1.07))
    assert judge(speed, min_effect=0.02, floor=0.04) == "faster"
    assert judge(speed, min_effect=0.02, floor=0.06) == "inconclusive"
    assert judge(Estimate(1.0, (0.99, 1.01)), min_effect=0.02, floor=0.5) == "equivalent"
    assert judge(Estimate(1.0, (0.99, 1.01)), min_effect=0.02, drift=0.005) == "equivalent"
    assert judge(Estimate(1.0, (0.99, 1.01)), min_effect=0.02, drift=0.015) == "inconclusive"


@given(
    st.floats(0.5, 2.0), st.floats(0.0, 0.4), st.floats(0.0, 0.4), st.floats(0.001, 0.2),
    st.floats(0.0, 0.2),
)  # fmt: skip
def test_exchanging_the_engines_exchanges_the_verdict(
    value: float, below: float, above: float, effect: float, floor: float
) -> None:
    low, high = value * math.exp(-below), value * math.exp(above)
    bounds = (1 / (1 + effect), 1 + effect, 1 + max(effect, floor), 1.0)
    for end, bound in itertools.product((low, high, value), bounds):
        if math.isclose(end, bound, rel_tol=1e-9) or math.isclose(end, 1 / bound, rel_tol=1e-9):
            return  # rounding of the reciprocal may fall on either side
    forth = judge(Estimate(value, (low, high)), min_effect=effect, floor=floor)
    back = judge(Estimate(1 / value, (1 / high, 1 / low)), min_effect=effect, floor=floor)
    assert {"faster": "slower", "slower": "faster"}.get(forth, forth) == back


# --- false alarms --------------------------------------------------------------------------------


class Machine:
    """A simulated machine with drifting speed and bursts of load from other processes."""

    def __init__(self, seed: int, *, mean_busy_s: float, mean_free_s: float, slower: float) -> None:
        self.generator = np.random.default_rng(seed)
        self.bursts = (mean_busy_s, mean_free_s, slower)
        self.now = 0.0
        self.next_change = 0.0
        self.busy = False
        self.factor = 1.0
        self.drift = 0.0

    def call(self, milliseconds: float) -> float:
        while self.now >= self.next_change:
            busy_s, free_s, slower = self.bursts
            self.busy = not self.busy
            self.factor = 1 + slower * self.generator.random() if self.busy else 1.0
            self.next_change += self.generator.exponential(busy_s if self.busy else free_s)
        noise = self.generator.normal(0, 0.01)
        if self.generator.random() < 0.02:
            noise += self.generator.exponential(0.2)
        taken = milliseconds * self.factor * math.exp(self.drift + noise)
        self.now += taken / 1e3
        return taken

    def block(self, milliseconds: float, seconds: float) -> np.ndarray:
        self.drift = 0.97 * self.drift + self.generator.normal(0, 0.004)
        end = self.now + seconds
        taken = []
        while self.now < end:
            taken.append(self.call(milliseconds))
        return np.array(taken)


MACHINES = {
    "quiet": {"mean_busy_s": 0.02, "mean_free_s": 5.0, "slower": 0.3},
    "short bursts": {"mean_busy_s": 0.05, "mean_free_s": 0.2, "slower": 1.0},
    "bursts longer than a block": {"mean_busy_s": 1.0, "mean_free_s": 3.0, "slower": 0.5},
    "half loaded for seconds": {"mean_busy_s": 3.0, "mean_free_s": 3.0, "slower": 0.5},
}


def interleaved(machine: Machine, latencies: list[float], rounds: int) -> list[list[np.ndarray]]:
    samples: list[list[np.ndarray]] = [[] for _ in latencies]
    for _ in range(rounds):
        for i in machine.generator.permutation(len(latencies)):
            samples[i].append(machine.block(latencies[i], 0.25))
    return samples


def blockwise(machine: Machine, latencies: list[float], rounds: int) -> list[list[np.ndarray]]:
    return [[machine.block(ms, 0.25) for _ in range(rounds)] for ms in latencies]


@pytest.mark.parametrize("machine", MACHINES)
def test_an_a_a_comparison_rarely_raises_an_alarm(machine: str) -> None:
    experiments, alarms, excluded = 60, 0, 0
    for seed in range(experiments):
        a, b = interleaved(Machine(seed, **MACHINES[machine]), [20.0, 20.0], 20)
        speed = ratio_of_medians(a, b)
        alarms += judge(speed, min_effect=0.02) in {"faster", "slower"}
        excluded += not speed.ci95[0] <= 1 <= speed.ci95[1]
    assert alarms <= 0.05 * experiments
    # The interval itself must cover 1 too: binomial bound for 5 % of 60.
    assert excluded <= 7


def test_sequential_measurement_raises_false_alarms() -> None:
    """The problem that interleaved rounds avoid."""
    alarms = 0
    for seed in range(30):
        machine = Machine(seed, **MACHINES["half loaded for seconds"])
        a, b = blockwise(machine, [20.0, 20.0], 20)
        low, high = (np.median(np.concatenate(x)) for x in (a, b))
        alarms += abs(math.log(low / high)) > math.log(1.02)
    assert alarms > 0.2 * 30


@pytest.mark.parametrize("machine", ["quiet", "bursts longer than a block"])
def test_a_true_slowdown_is_never_called_a_speedup_or_equivalent(machine: str) -> None:
    experiments, verdicts = 30, []
    for seed in range(experiments):
        a, b = interleaved(Machine(seed, **MACHINES[machine]), [20.0, 21.0], 20)
        verdicts.append(judge(ratio_of_medians(a, b), min_effect=0.02))
    assert "faster" not in verdicts
    assert "equivalent" not in verdicts
    if machine == "quiet":
        assert verdicts.count("slower") >= 0.8 * experiments


def test_ratio_of_two_separate_runs() -> None:
    generator = np.random.default_rng(0)
    a, b = generator.normal(10.0, 0.05, 30), generator.normal(11.0, 0.05, 40)
    speed = ratio_unpaired(a, b, seed=3)
    assert speed.value == pytest.approx(10 / 11, rel=0.01)
    assert speed.ci95[0] < 10 / 11 < speed.ci95[1]
    assert ratio_unpaired(a, a).ci95[0] < 1 < ratio_unpaired(a, a).ci95[1]
    assert ratio_unpaired(a[:5], b).ci95 is None


# --- bounds of a quantile ------------------------------------------------------------------------


def test_slow_calls_of_one_round_give_no_upper_bound() -> None:
    """One slow round of 40 does not show whether 1 % or 5 % of rounds are slow."""
    rounds = [np.full(100, 10.0) for _ in range(40)]
    assert quantile_bounds(rounds, 0.99)[1] == 10.0, "there are no slow calls"
    rounds[7] = np.append(np.full(20, 10.0), np.linspace(29.0, 31.0, 80))
    assert quantile_bounds(rounds, 0.99)[1] is None
    even = [np.append(np.full(99, 10.0), 30.0) for _ in range(40)]
    assert quantile_bounds(even, 0.98)[1] == 10.0, "one slow call in every round is certain"


def test_bounds_of_a_quantile_have_nominal_coverage() -> None:
    generator = np.random.default_rng(0)
    low_held = high_held = 0
    for _ in range(1000):
        low, high = quantile_bounds(list(generator.random((10, 50))), 0.9)
        assert low is not None
        assert high is not None
        low_held += low <= 0.9
        high_held += high >= 0.9
    assert low_held >= 930
    assert high_held >= 930


def test_clustered_slow_calls_reduce_the_effective_sample() -> None:
    generator = np.random.default_rng(1)
    held = naive = 0
    for _ in range(400):
        slow_rounds = generator.random(30) < 0.3  # 30 % of calls are slow, in whole rounds
        rounds = [generator.random(50) + 10 * slow for slow in slow_rounds]
        _, high = quantile_bounds(rounds, 0.8)
        _, alone = quantile_bounds(list(np.concatenate(rounds)[:, None]), 0.8)
        assert alone is not None
        held += high is None or high >= 10 + 1 / 3
        naive += alone >= 10 + 1 / 3
    assert held >= 360
    assert naive < 320, "treating calls as independent undercovers"


@pytest.mark.parametrize("quantile", [0.5, 0.9, 0.95, 0.99])
def test_a_bound_from_above_exists_from_the_smallest_sample_on(quantile: float) -> None:
    n = smallest_sample(quantile)
    samples = np.arange(1.0, n + 1)
    assert quantile_bounds([samples], quantile)[1] == n
    assert quantile_bounds([samples[:-1]], quantile)[1] is None
