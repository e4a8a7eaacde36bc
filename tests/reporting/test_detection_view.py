"""A detector's report: AP in place of top-1, images with lost and new boxes, curves, post-processing."""

from __future__ import annotations

from pathlib import Path

import pytest

from optimizer.reporting import render_csv, render_html, render_markdown
from optimizer.reporting.findings import findings
from optimizer.results import RunResult

from .conftest import HOSTILE, SAMPLES
from .parsing import Element, parse, table_rows


@pytest.fixture(scope="module")
def run() -> RunResult:
    return SAMPLES["detector"]()


@pytest.fixture(scope="module")
def page(run: RunResult) -> Element:
    return parse(render_html([(run, Path())]))


def _row(page: Element, table: str, start: str) -> dict[str, str]:
    rows = table_rows(page, f"r1-{table}")
    texts = [{column: cell.words for column, cell in row.items()} for row in rows]
    return next(row for row in texts if next(iter(row.values())).startswith(start))


def test_the_main_table_has_ap_and_changed_detections(page: Element) -> None:
    row = _row(page, "engines", "OpenVINO INT8")
    assert row["AP"] == "0.410"
    assert row["Lost, detections"] == "7 of 100"
    assert row["New, detections"] == "2 of 95"
    assert not {"Top-1, %", "Flips, images"} & row.keys()


def test_ap_by_size_and_class_has_the_drop_of_each_engine(page: Element) -> None:
    small = _row(page, "parts", "small objects")
    assert small["Reference"].startswith("0.300")
    assert [text for text in small.values() if text.startswith("+0.80")]
    large = _row(page, "parts", "large objects")
    assert all("+" not in text for text in large.values())  # there are none
    assert _row(page, "parts", f"class {HOSTILE}")
    assert "class emu" not in page.words


def test_images_show_what_the_engine_lost_and_found(page: Element) -> None:
    drawings = [e for e in page.all("svg") if e.attributes.get("class") == "boxes"]
    assert len(drawings) == 2  # the reference, and the one engine that differs
    changes = [[str(g.attributes["class"]) for g in drawing.all("g")] for drawing in drawings]
    assert changes == [["box kept"] * 2, ["box kept", "box new", "box lost"]]
    (image,) = page.all("image")  # the other drawing uses it
    assert [use.attributes["href"] for use in page.all("use")] == [f"#{image.attributes['id']}"]
    assert str(image.attributes["href"]).startswith("data:image/jpeg;base64,")
    assert "as the reference: OpenVINO BF16 engine" in page.words


def test_curves_compare_each_engine_with_the_reference(page: Element) -> None:
    charts = [
        e for e in page.all("svg") if "precision over recall" in str(e.attributes.get("aria-label"))
    ]
    assert charts
    for chart in charts:
        lines = chart.all("polyline")
        assert len(lines) == 4
        assert len(str(lines[0].attributes["points"]).split()) == 101


def test_the_time_of_post_processing_is_apart(page: Element) -> None:
    (row,) = table_rows(page, "r1-reading")
    assert row["CPU time, ms per image"].words == "1.00"


def test_other_formats_and_findings_speak_of_detections(run: RunResult) -> None:
    markdown = render_markdown(run)
    assert "AP of the reference by object size and class" in markdown
    assert "at most 10 % of the detections lost" in markdown
    assert "Top-1" not in markdown
    assert "lost_detections" in render_csv(run).splitlines()[0]
    sentences = findings(
        run.validate_, run.bench, run.validate_.audits if run.validate_ else {}, []
    )
    assert any("7 of 100 detections above a score of 0.3 were lost" in s for s in sentences)
