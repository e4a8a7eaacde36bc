"""Sweeps: the knee, the latency limit, and a whole run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimizer.errors import UsageError
from optimizer.profiling.benchmark import bench
from optimizer.profiling.curves import NEAR, curve, curve_findings
from optimizer.profiling.harness import Block, Cell, Measured
from optimizer.results import BenchResult, LatencyBound, Setting, read_result, write_result
from tests.profiling.conftest import MakeEngine


def measured(
    batch: int, call_ms: float, *, noise: float = 0.0, rounds: int = 12, calls: int = 40
) -> Measured:
    """One stream that calls back to back; every call lasts ``call_ms`` times a log-normal."""
    generator = np.random.default_rng(batch)
    blocks = []
    for number in range(rounds):
        spans = call_ms * 1e6 * np.exp(noise * generator.standard_normal(calls))
        compute = spans.astype(np.int64)
        starts = np.concatenate([[0], np.cumsum(compute)[:-1]])
        rows = np.stack([starts, 0 * compute, compute, 0 * compute], axis=1)
        blocks.append(Block(number, rows, 0, np.zeros(calls, np.int32)))
    cell = Cell(name="e", engine=Path("e"), batch=batch, image_size=8, threads=2)
    return Measured(cell, blocks=blocks)


def of(*cells: Measured, bound: LatencyBound | None = None):
    return curve("e", [(cell, None) for cell in cells], bound)


def test_the_knee_is_the_smallest_batch_near_the_best() -> None:
    # 100, 180, 195, 200 images/s: 195 is the first within 5 % of 200.
    result = of(*(measured(b, 1e3 * b / r) for b, r in ((1, 100), (2, 180), (4, 195), (8, 200))))
    (knee,) = result.knees
    assert knee.setting == Setting(batch=4, threads=2)
    assert knee.of_best == pytest.approx(0.975)
    assert knee.certain
    assert result.fastest == Setting(batch=8, threads=2)
    assert curve_findings(result) == [
        "knee at batch 4, 2 threads, 1 stream: 98% of the series' highest throughput"
    ]


def test_a_series_that_still_rises_has_no_knee() -> None:
    result = of(*(measured(b, 1e3 * b / r) for b, r in ((1, 100), (2, 180), (4, 300))))
    assert result.knees == []
    assert "still rises by more than 5% at batch 4" in curve_findings(result)[0]


def test_noise_makes_a_knee_uncertain() -> None:
    cells = [
        measured(1, 10.0, noise=0.3),
        measured(2, 19.6, noise=0.3),
        measured(4, 36.0, noise=0.3),
    ]
    assert not any(knee.certain for knee in of(*cells).knees)


def test_one_batch_is_no_curve() -> None:
    assert of(measured(1, 10.0)).knees == []


@given(st.lists(st.floats(1, 1e3), min_size=2, max_size=6))
def test_the_knee_matches_its_definition_on_any_series(rates: list[float]) -> None:
    cells = [measured(2**i, 1e3 * 2**i / r, rounds=6, calls=3) for i, r in enumerate(rates)]
    result = of(*cells)
    got = {p.setting.batch: p.images_per_s or 0.0 for p in result.points}
    best = max(got.values())
    for knee in result.knees:
        at = knee.setting.batch
        assert got[at] >= NEAR * best
        assert all(rate < NEAR * best for batch, rate in got.items() if batch < at)
    if not result.knees:
        largest = max(got)
        assert all(rate < NEAR * best for batch, rate in got.items() if batch < largest)


def test_a_setting_meets_the_limit_by_its_upper_bound_only() -> None:
    bound = LatencyBound(percentile="p99", max_latency_ms=15.0)
    fast, near, slow = measured(1, 10.0), measured(2, 14.0, noise=0.03), measured(4, 30.0)
    few = measured(8, 5.0, calls=10)
    result = of(fast, near, slow, few, bound=bound)
    assert [p.holds for p in result.points] == [True, None, False, None]
    low, high = result.points[1].bounded_ci95_ms or (None, None)
    assert low is not None
    assert low <= 15.0, "p99 itself may be within the limit"
    assert high is None or high > 15.0, (
        "its upper bound does not, or its slow calls are of one round"
    )
    assert result.points[3].bounded_ci95_ms == (5.0, None), "120 samples bound no p99 from above"
    assert result.best == Setting(batch=1, threads=2)
    assert "best with p99 within 15 ms: batch 1" in curve_findings(result)[-1]
    assert curve_findings(of(slow, bound=bound)) == ["no setting meets p99 within 15 ms"]
    assert "at least 299 samples each are needed" in curve_findings(of(few, bound=bound))[0]


def test_a_whole_sweep(make_engine: MakeEngine, tmp_path: Path) -> None:
    engine = make_engine(
        "e", busy_ms=0.5
    )  # independent of the batch: twice the batch, twice the rate
    dead = make_engine("dead", busy_ms=0.5, exit=3, after=20)
    result = bench(
        [engine, dead],
        batch=[1, 2, 4],
        threads=1,
        duration="0.1s",
        max_latency="1000ms",
        latency_percentile="p50",
        raw_dir=tmp_path / "raw",
        control=False,
    )
    good, bad = result.curves
    assert (good.engine, bad.engine) == ("e.tiny", "dead.tiny")
    assert [p.setting.batch for p in good.points] == [1, 2, 4]
    assert good.knees == [], "throughput still rises"
    assert good.fastest == good.best == Setting(batch=4, threads=1)
    for point, listed in zip(
        good.points, [e for e in result.engines if e.name == "e.tiny"], strict=True
    ):
        assert point.samples == listed.samples
        assert point.latency_ms is not None
        assert listed.latency_ms is not None
        assert point.images_per_s == pytest.approx(listed.images_per_s)
        assert (tmp_path / str(point.raw_file)).is_file()
    assert [p.status for p in bad.points] == ["failed"] * 3
    assert "exit code 3" in str(bad.points[0].error)
    assert (bad.fastest, bad.best) == (None, None)
    assert result.verdict == "fail"
    write_result(result, tmp_path / "bench.json")
    assert read_result(tmp_path / "bench.json") == result


def test_engines_are_compared_at_the_first_setting_and_the_rest_is_in_the_curves(
    make_engine: MakeEngine,
) -> None:
    from optimizer.targets.hardware import cpu_features

    if cpu_features().physical_cores < 2:
        pytest.skip("a sweep of threads needs two cores, and there is one")
    engines = [make_engine(n, busy_ms=0.5, backend="tiny-streams") for n in "ab"]
    result: BenchResult = bench(
        engines, threads=[2, 1], streams=[1, 2], duration="0.05s", control=False
    )
    assert [(e.threads, e.streams) for e in result.engines] == [(2, 1), (2, 1)]
    assert len(result.comparisons) == 1
    assert "one call at a time" in result.headline
    assert [(p.setting.threads, p.setting.streams) for p in result.curves[0].points] == [
        (2, 1), (2, 2), (1, 1),
    ], "two streams need two threads"  # fmt: skip


def test_two_settings_are_a_sweep_if_they_differ_in_threads_or_streams(
    make_engine: MakeEngine,
) -> None:
    from optimizer.targets.hardware import cpu_features

    if cpu_features().physical_cores < 2:
        pytest.skip("a sweep of threads needs two cores, and there is one")
    engine = make_engine(busy_ms=0.5, backend="tiny-streams")
    result = bench([engine], threads=2, streams=[2, 1], duration="0.05s", control=False)
    assert [e.streams for e in result.engines] == [2]
    assert "2 calls at a time" in result.headline
    assert [p.setting.streams for p in result.curves[0].points] == [2, 1]
    assert bench([engine], batch=[1, 2], threads=1, duration="0.05s", control=False).curves == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"threads": [1, 1]}, "threads must be different"),
        ({"threads": []}, "threads: no number given"),
        ({"streams": [0]}, "streams: '0' is not a positive whole number"),
        ({"streams": []}, "streams: no number given"),
        ({"max_latency": "0ms"}, "max_latency: '0ms' must be more than zero"),
        ({"max_latency": float("nan")}, "max_latency: cannot read 'nan'"),
    ],
)
def test_invalid_sweeps_are_refused(make_engine: MakeEngine, options: dict, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        bench([make_engine()], **options)
