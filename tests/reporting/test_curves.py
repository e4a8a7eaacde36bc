"""Sweeps in the reports."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest

from optimizer.reporting import render_csv, render_html, render_markdown
from optimizer.reporting.curve_charts import curve_chart, curve_charts, curve_sentences, curve_table
from optimizer.reporting.links import Links
from optimizer.results import RunResult


def test_without_a_sweep_there_is_no_table(full_run: RunResult, empty_run: RunResult) -> None:
    for run in (full_run, empty_run):
        assert curve_table(run, Links()) is None
        assert curve_charts(run) == []
        assert "Batch, threads and streams" not in render_html([(run, Path())])


def test_every_setting_is_a_row_with_its_marks(swept_run: RunResult) -> None:
    table = curve_table(swept_run, Links())
    assert table is not None
    assert len(table.rows) == 16
    names = [column.title for column in table.columns]
    mark, batch, streams = (names.index(n) for n in ("Mark", "Batch", "Streams"))
    marked = {
        (row.cells[batch].text, row.cells[streams].text): row.cells[mark].text
        for row in table.rows[:8]
    }
    assert marked["2", "1"] == "knee, best within the bound"
    assert marked["4", "2"] == "fastest"
    assert marked["1", "2"] == ""
    assert marked["8", "2"] == "failed"
    assert [n.text for n in table.notes if "crashed" in n.text] == [
        "batch 8, 2 threads, 2 streams: crashed."
    ]
    assert "p90 ≤ 30 ms" in names


def test_the_chart_puts_higher_throughput_higher_and_longer_latency_to_the_right(
    swept_run: RunResult,
) -> None:
    assert swept_run.bench
    curve = swept_run.bench.curves[0]
    chart = curve_chart(curve)
    assert chart is not None
    assert chart.latency == "p90"
    assert [line.name for line in chart.lines] == ["2 threads, 1 stream", "2 threads, 2 streams"]
    first, second = chart.lines
    assert [dot.label for dot in first.dots] == ["1", "2", "4", "8"]
    assert [dot.label for dot in second.dots] == ["1", "2", "4"], "failed settings are not shown"
    assert chart.left_out == ["batch 8, 2 threads, 2 streams"]
    for line in chart.lines:
        assert [d.x for d in line.dots] == sorted(d.x for d in line.dots)
        assert [d.y for d in line.dots] == sorted((d.y for d in line.dots), reverse=True)
    assert [dot.knee for dot in first.dots] == [False, True, False, False]
    assert chart.bound is not None
    for line, streams in zip(chart.lines, (1, 2), strict=True):
        for dot in line.dots:
            point = next(
                p
                for p in curve.points
                if p.setting.streams == streams and str(p.setting.batch) == dot.label
            )
            assert point.latency_ms is not None
            assert (dot.x > chart.bound) == (point.latency_ms.p90 > 30)


def test_without_the_percentile_there_is_no_chart(swept_run: RunResult) -> None:
    assert swept_run.bench
    curve = swept_run.bench.curves[0]
    for point in curve.points:
        if point.latency_ms is not None:
            point.latency_ms.p90 = None
    assert curve_chart(curve) is None


def test_html_and_markdown_have_the_same_sentences(swept_run: RunResult) -> None:
    page, text = render_html([(swept_run, Path())]), render_markdown(swept_run)
    sentences = curve_sentences(swept_run)
    assert any("knee at batch 2" in s for s in sentences)
    assert any("best with p90 within 30 ms: batch 2, 2 threads, 1 stream" in s for s in sentences)
    assert "knee at batch 2" in page
    assert "knee at batch 2" in text
    assert page.count('<g class="series') == 4
    assert page.count('class="margin-line"') >= 1
    assert page.count('class="knee"') == 2


def test_csv_has_separate_rows_for_the_sweep(swept_run: RunResult, full_run: RunResult) -> None:
    rows = list(csv.DictReader(io.StringIO(render_csv(swept_run))))
    swept = [row for row in rows if row["timing"] == "by the clock"]
    assert len(swept) == 16
    assert len(rows) - len(swept) == len(list(csv.DictReader(io.StringIO(render_csv(full_run)))))
    best = [row for row in swept if row["sweep_marks"] == "knee; best within the bound"]
    assert [(row["batch_images"], row["streams"]) for row in best] == [("2", "1")]
    assert float(best[0]["bounded_high_ms"]) == pytest.approx(1000 * 2 / 92 * 1.2)
