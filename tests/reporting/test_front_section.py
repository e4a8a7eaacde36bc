"""Accuracy against speed: what is on the front, what is not, and what cannot be told."""

from __future__ import annotations

import itertools
import math
import re
from pathlib import Path

import pytest

from optimizer.reporting import render_html, render_markdown
from optimizer.reporting.front_section import FrontPoint, front_charts, front_points, front_table
from optimizer.reporting.join import engine_rows
from optimizer.results import RunResult


def _at(
    rate: float, drop: float, *, of_rate: float = 1.0, of_drop: float = 0.5, same: bool = False
) -> FrontPoint:
    """A point with intervals of this reach."""
    return FrontPoint(
        name=f"{rate:g}",
        kind="int8",
        rate=rate,
        rate_ci95=(rate - of_rate, rate + of_rate),
        drop=drop,
        drop_ci95=(drop - of_drop, drop + of_drop),
        same=same,
        is_reference=False,
    )


@pytest.mark.parametrize(
    ("point", "other", "expected"),
    [
        (_at(10, 0), _at(20, 1), True),  # slower, and more accurate
        (_at(20, 1), _at(10, 0), True),
        (_at(10, 2), _at(20, 0), False),  # beaten in both, intervals apart
        (_at(10, 0.2), _at(20, 0), None),  # drops overlap
        (_at(10, 2), _at(11, 0), None),  # speeds overlap
        (_at(10, 0, same=True), _at(20, 0, same=True), False),  # the same predictions
        (_at(10, 0), _at(10, 0), True),  # equal points do not beat each other
    ],
)
def test_the_front_is_what_no_other_point_beats(
    point: FrontPoint, other: FrontPoint, expected: bool | None
) -> None:
    assert point.on_front([point, other]) is expected


def test_every_engine_that_was_timed_and_validated_is_a_row(full_run: RunResult) -> None:
    rows = engine_rows(full_run)
    table = front_table(full_run, rows)
    assert table is not None
    texts = [[cell.text for cell in row.cells] for row in table.rows]
    assert [(line[2], line[6]) for line in texts[:6]] == [
        ("OpenVINO INT8", "yes"),
        ("ONNX Runtime INT8", "yes"),
        ("OpenVINO BF16", "undecided"),
        ("OpenVINO FP32", "yes"),
        ("ONNX Runtime FP32", "no"),
        ("PyTorch eager FP32", "no"),
    ]
    assert [line[0] for line in texts] == ["1", "", "", "", "", "", "8", "", "", "", "", ""]
    assert table.rows[5].cells[5].detail == "reference"
    assert table.rows[0].cells[5].bounds == (-0.62, 1.48)


def test_the_chart_has_the_best_corner_at_the_top_right(full_run: RunResult) -> None:
    charts = front_charts(full_run, engine_rows(full_run))
    assert [chart.batch for chart in charts] == [1, 8]
    dots = {dot.name: dot for dot in charts[0].dots}
    fast, exact = dots["OpenVINO INT8"], dots["OpenVINO FP32"]
    assert fast.x > exact.x
    assert fast.y > exact.y  # it loses more, and y grows downwards
    assert charts[0].limit is not None
    for dot in dots.values():
        assert dot.x_range[0] <= dot.x <= dot.x_range[1]
        assert dot.y_range[0] <= dot.y <= dot.y_range[1]
        assert dot.y < charts[0].limit
    corners = [tuple(map(float, corner.split(","))) for corner in charts[0].line.split()]
    front = [(d.x, d.y) for d in charts[0].dots if d.front == "yes"]
    assert set(front) <= set(corners)
    assert len(corners) == 2 * len(front) - 1
    for (x, y), (next_x, next_y) in itertools.pairwise(corners):
        assert (x == next_x) != (y == next_y)  # steps


def test_fewer_than_two_points_are_no_front(single_run: RunResult, empty_run: RunResult) -> None:
    for run in (single_run, empty_run):
        assert front_table(run, engine_rows(run)) is None
        assert front_charts(run, engine_rows(run)) == []
        assert "Accuracy against speed" not in render_html([(run, Path())])


def test_what_is_not_finite_is_left_out(full_run: RunResult) -> None:
    assert full_run.bench
    full_run.bench.engines[0].images_per_s_ci95 = (0.0, math.inf)
    names = [point.name for point in front_points(engine_rows(full_run))[1]]
    assert "PyTorch eager FP32" not in names
    assert len(names) == 5


def test_the_pages_show_the_front(full_run: RunResult) -> None:
    page = render_html([(full_run, Path())])
    assert len(re.findall(r'class="dot (?:yes|undecided|no)"', page)) == 12
    text = render_markdown(full_run)
    assert re.search(r"\| 1 \| 1 \| OpenVINO INT8 \| int8 \| 92\.4 .*\| yes \|", text)
