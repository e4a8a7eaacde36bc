"""Layers in the reports: positions under the ceilings, bars, tables and the profile file."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from optimizer.errors import ArtifactError, UsageError
from optimizer.reporting import render_html, render_markdown, write_report
from optimizer.reporting.roofline_section import profile_views, roof_facts
from optimizer.results import (
    Ceiling,
    Ceilings,
    EngineProfile,
    ProfileResult,
    RunResult,
    TimedPart,
    write_result,
)

from .conftest import HOSTILE, SAMPLES
from .parsing import parse, table_rows, value


def _ceiling(rate: float) -> Ceiling:
    return Ceiling(rate=rate, median=0.9 * rate, rounds=20, how="given")


def _block(name: str, precision: str, time_ms: float, flops: int | None, size: int) -> TimedPart:
    return TimedPart(
        name=name,
        type="3 layers",
        precision=precision,
        time_ms=time_ms,
        time_ci95_ms=(0.9 * time_ms, 1.2 * time_ms),
        share=0.25,
        flops=flops,
        bytes=size,
        roof_ms=0.8 * time_ms,
        ceiling=precision if flops else "memory",
        bound="compute" if flops else "memory",
    )


@pytest.fixture
def profile() -> ProfileResult:
    blocks = [
        _block("images.quantize", "fp32", 0.5, None, 10_000_000),
        _block("stem", "fp32", 1.0, 80_000_000, 1_000_000),
        _block("layer1.0", "int8", 2.0, 600_000_000, 4_000_000),
        _block("layer1.1", "int8, fp32", 4.0, 100_000_000, 40_000_000),
    ]
    good = EngineProfile(
        name="model.blob", file="model.blob", backend="openvino", precision="int8", batch=8,
        threads=2, rounds=12, calls=5, whole_ms=8.0, whole_ci95_ms=(7.5, 8.5), layers_ms=7.5,
        outside_ms=0.5, blocks=blocks, notes=["its warm-up did not settle"],
    )  # fmt: skip
    bad = EngineProfile(
        name="bad.blob", file="bad.blob", backend="openvino", precision="int8", batch=8,
        status="failed", error="crashed",
    )  # fmt: skip
    return ProfileResult(
        created="2026-01-01T00:00:00+00:00",
        device={},
        headline="the time of each layer",
        engines=[good, bad],
        ceilings=Ceilings(
            created="2026-01-01T00:00:00+00:00",
            device={},
            threads=2,
            libraries={},
            compute={"fp32": _ceiling(100e9), "int8": _ceiling(400e9)},
            memory=_ceiling(10e9),
            cache=_ceiling(50e9),
        ),
    )


def test_blocks_lie_under_their_ceilings_on_logarithmic_scales(profile: ProfileResult) -> None:
    view, failed = profile_views(profile)
    assert failed.table is None
    assert failed.roofline is None
    assert "crashed" in failed.sentence
    chart = view.roofline
    assert chart is not None
    stem, first, second = chart.points  # a block without FLOPs is not shown
    assert [point.kind for point in chart.points] == ["fp32", "int8", "mixed"]
    lines = {line.kind: line for line in chart.lines}
    assert set(lines) == {"fp32", "int8", "memory", "cache"}
    # Equal ratios are equal distances on a logarithmic scale.
    decade = {text: at for at, text in chart.y_ticks}
    assert decade["10"] - decade["100"] == pytest.approx(decade["100"] - decade["1,000"], abs=0.2)
    assert lines["fp32"].y1 == pytest.approx(decade["100"], abs=0.1)
    height = decade["10"] - decade["100"]
    assert stem.y - lines["fp32"].y1 == pytest.approx(height * math.log10(100 / 80), abs=0.2)
    assert first.y - lines["int8"].y1 == pytest.approx(height * math.log10(400 / 300), abs=0.2)
    assert first.x > stem.x > second.x, "150, 80 and 2.5 FLOP/byte"
    # The memory line ends where it meets the highest ceiling: at 400 / 10 FLOP/byte.
    along = {text: at for at, text in chart.x_ticks}
    width = along["100"] - along["10"]
    assert lines["memory"].x2 == pytest.approx(along["10"] + width * math.log10(4), abs=0.2)
    assert lines["memory"].y2 == pytest.approx(lines["int8"].y1, abs=0.1)
    for point in chart.points:
        assert chart.left <= point.x <= chart.right
        assert chart.top <= point.y <= chart.bottom


def test_bars_keep_their_proportions(profile: ProfileResult) -> None:
    bars = {bar.label: bar for bar in profile_views(profile)[0].bars}
    assert list(bars) == ["images.quantize", "stem", "layer1.0", "layer1.1"]
    assert bars["layer1.1"].at / bars["stem"].at == pytest.approx(4)
    assert bars["stem"].low is not None
    assert bars["stem"].low < bars["stem"].at < (bars["stem"].high or 0)


def test_the_page_has_every_block(profile: ProfileResult, full_run: RunResult) -> None:
    page = parse(render_html([(full_run, Path())], [profile]))
    rows = table_rows(page, "r1-profile-1")
    assert len(rows) == 4
    assert value(rows[1]["Time, ms"]) == 1.0
    assert value(rows[1]["Rate, GFLOP/s"]) == pytest.approx(80)
    assert value(rows[1]["Share of ceiling, %"]) == pytest.approx(80)
    assert rows[2]["Bound by"].words == "compute"
    section = page.by_id("r1-roofline")
    assert section
    text = render_html([(full_run, Path())], [profile])
    assert "Its warm-up did not settle." in text
    assert text.count('class="block ') == 3
    assert "r1-roofline" not in render_html([(full_run, Path())])


def test_layer_names_are_escaped(profile: ProfileResult, full_run: RunResult) -> None:
    profile.engines[0].blocks[1].name = HOSTILE
    profile.engines[0].name = HOSTILE
    text = render_html([(full_run, Path())], [profile])
    assert not parse(text).all("script")
    assert "<script" not in render_markdown(full_run, Path(), profile)


def test_markdown_has_the_blocks_and_the_time_outside_the_layers(
    profile: ProfileResult, full_run: RunResult
) -> None:
    text = render_markdown(full_run, Path(), profile)
    assert "## Layers and roofline" in text
    assert "| layer1.0 | int8 | 2.00 \\[1.80, 2.40\\] |" in text
    assert "The difference of +0.50 ms is time outside the layers" in text
    assert "Layers and roofline" not in render_markdown(full_run)


def test_missing_ceilings_are_stated(profile: ProfileResult) -> None:
    assert [fact.label for fact in roof_facts(profile)] == ["fp32", "int8", "memory", "cache"]
    assert "100 GFLOP/s, fastest of 20 rounds (median 90.0): given" in roof_facts(profile)[0].text
    without = profile.model_copy(update={"ceilings": None, "ceilings_note": "not measured on GPUs"})
    assert [fact.text for fact in roof_facts(without)] == ["not measured on GPUs"]
    view, _ = profile_views(without)
    assert view.roofline is None
    assert view.table is not None


def test_a_profile_in_the_run_folder_or_by_path(
    profile: ProfileResult, full_run: RunResult, tmp_path: Path
) -> None:
    folder, elsewhere = tmp_path / "run", tmp_path / "other.json"
    folder.mkdir()
    write_result(full_run, folder / "results.json")
    write_report([folder], tmp_path / "a.md")
    assert "Layers and roofline" not in (tmp_path / "a.md").read_text()
    write_result(profile, elsewhere)
    write_report([folder], tmp_path / "b.md", profile=elsewhere)
    write_result(profile, folder / "profile.json")
    write_report([folder], tmp_path / "c.md")
    assert (tmp_path / "b.md").read_text() == (tmp_path / "c.md").read_text()
    assert "Layers and roofline" in (tmp_path / "c.md").read_text()


def test_a_wrong_profile_or_one_for_several_runs_is_refused(
    full_run: RunResult, tmp_path: Path
) -> None:
    folders = [tmp_path / name for name in "ab"]
    for folder in folders:
        folder.mkdir()
        write_result(SAMPLES["full"](), folder / "results.json")
    assert full_run.bench
    write_result(full_run.bench, tmp_path / "bench.json")
    with pytest.raises(ArtifactError, match="result of bench, not of profile"):
        write_report(folders[:1], tmp_path / "r.md", profile=tmp_path / "bench.json")
    with pytest.raises(UsageError, match="one profile cannot be used for several runs") as error:
        write_report(folders, tmp_path / "r.md", profile=tmp_path / "bench.json")
    assert "profile.json" in str(error.value.hint)
