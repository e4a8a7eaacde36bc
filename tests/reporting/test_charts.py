from __future__ import annotations

import math
from statistics import median

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimizer.reporting.charts import Axis, drop_chart, round_panels, throughput_chart
from optimizer.reporting.join import engine_rows
from optimizer.results import RunResult

ends = st.floats(-1e6, 1e6).filter(lambda v: v == 0 or abs(v) > 1e-3)


@given(ends, ends)
def test_an_axis_contains_its_data_and_has_few_round_ticks(a: float, b: float) -> None:
    low, high = min(a, b), max(a, b)
    if high - low < 1e-3 * max(abs(low), abs(high), 1e-3):
        return
    axis = Axis.over(low, high)
    slack = 1e-6 * (high - low)
    assert axis.low <= low + slack
    assert axis.high >= high - slack
    assert 3 <= len(axis.ticks) <= 9
    assert all(0 <= position <= 100 for position, _ in axis.labels())
    texts = [text for _, text in axis.labels()]
    assert len(set(texts)) == len(texts), "tick labels are distinct"


def test_an_axis_of_equal_ends_does_not_divide_by_zero() -> None:
    assert Axis.over(0, 0).at(0) == 0
    assert math.isfinite(Axis.over(5, 5).at(5))


def test_bars_start_at_zero_and_keep_their_proportions(full_run: RunResult) -> None:
    chart = throughput_chart(engine_rows(full_run))
    assert chart is not None
    assert chart.axis.low == 0
    (batch, marks), _ = chart.batches
    assert batch == 1
    at = {mark.label: mark.at for mark in marks}
    assert at["OpenVINO INT8"] / at["PyTorch eager FP32"] == pytest.approx(92.41 / 15.83)
    for mark in marks:
        assert mark.low is not None
        assert mark.high is not None
        assert mark.low < mark.at < mark.high


def test_engines_that_were_not_timed_are_named(full_run: RunResult) -> None:
    chart = throughput_chart(engine_rows(full_run))
    assert chart is not None
    assert chart.left_out == ["TensorRT-RTX FP16"]


def test_without_timings_there_is_no_chart(empty_run: RunResult) -> None:
    assert throughput_chart(engine_rows(empty_run)) is None
    assert round_panels(empty_run) is None


def test_an_infinite_interval_is_not_drawn(full_run: RunResult) -> None:
    assert full_run.bench
    full_run.bench.engines[0].images_per_s_ci95 = (0.0, math.inf)
    chart = throughput_chart(engine_rows(full_run))
    assert chart is not None
    mark = chart.batches[0][1][0]
    assert (mark.low, mark.high) == (None, None)


def test_the_drop_chart_shows_engines_only_and_places_the_limit(failing_run: RunResult) -> None:
    assert failing_run.validate_
    chart = drop_chart(failing_run.validate_)
    assert chart is not None
    assert len(chart.marks) == 5, (
        "not the reference, intermediate hops or engines that were not run"
    )
    assert chart.zero < chart.margin < 100
    for mark in chart.marks:
        assert mark.low is not None
        assert mark.high is not None
        assert (mark.kind == "fail") == (mark.low > chart.margin)
        assert (mark.kind == "pass") == (mark.high < chart.margin)


def test_a_limit_above_all_intervals_is_still_on_the_chart(full_run: RunResult) -> None:
    assert full_run.validate_
    full_run.validate_.gates.max_drop_pp = 10.0
    chart = drop_chart(full_run.validate_)
    assert chart is not None
    assert 50 < chart.margin < 100


def test_rounds_are_placed_by_their_deviation_and_disturbed_ones_marked(
    full_run: RunResult,
) -> None:
    rounds = round_panels(full_run)
    assert rounds is not None
    assert full_run.bench
    timed = [e for e in full_run.bench.engines if e.status == "ok"]
    assert len(rounds.panels) == len(timed) == 12
    for panel, engine in zip(rounds.panels, timed, strict=True):
        assert len(panel.dots) == len(engine.round_medians_ms)
        assert [i for i, dot in enumerate(panel.dots) if dot.disturbed] == [7, 15]
        centre = median(engine.round_medians_ms)
        for dot, value in zip(panel.dots, engine.round_medians_ms, strict=True):
            slower = value > centre
            assert (dot.y < panel.zero) == slower or dot.y == pytest.approx(panel.zero, abs=0.06)
            assert 0 <= dot.y <= 84
    assert "24.0 %" in rounds.panels[0].dots[7].title
    assert rounds.panels[0].dots[7].title.startswith("round 8: ")


def test_a_single_round_is_not_plotted(full_run: RunResult) -> None:
    assert full_run.bench
    for engine in full_run.bench.engines:
        engine.round_medians_ms = engine.round_medians_ms[:1]
    assert round_panels(full_run) is None
