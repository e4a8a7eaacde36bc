"""What was cut, in the reports."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from optimizer.reporting import render_html, render_markdown
from optimizer.reporting.findings import findings
from optimizer.reporting.pruning_section import (
    pruning_facts,
    pruning_steps,
    width_chart,
    width_table,
)
from optimizer.results import (
    EngineProfile,
    Hop,
    ProfileResult,
    PrunedLatency,
    PruneResult,
    PruneRound,
    RunResult,
    StageRecord,
    TimedPart,
)
from tests.reporting.conftest import HOSTILE

BEFORE = {"stem": 64, "layer1.0": [64, 64, 256], "layer1.1": [64, 64, 256], "layer2.0": [128, 512]}
AFTER = {"stem": 64, "layer1.0": [48, 32, 256], "layer2.0": [128, 512]}


def pruned(run: RunResult, **changes: Any) -> RunResult:
    """The run with a pruning."""
    result = PruneResult(
        created="2026-11-24T09:41:07+00:00",
        reference="model.safetensors",
        arch="resnet50",
        engine="openvino",
        precision="int8",
        table_source="measured",
        table_reason="layer times of openvino",
        image_size=224,
        before=BEFORE,
        after=AFTER,
        dropped=["layer1.1"],
        latency=[PrunedLatency(batch=1, before_ms=12.0, after_ms=8.0)],
        gflops=(8.0, 4.0),
        parameters=(25_000_000, 15_000_000),
        rounds=[
            PruneRound(widths=AFTER, kept_saliency=0.9, top1_cut=0.5, top1_tuned=0.97),
            PruneRound(widths=AFTER, kept_saliency=0.8, top1_cut=0.6, top1_tuned=None),
        ],
    ).model_copy(update=changes)
    stage = StageRecord(
        name="prune",
        label="prune for openvino int8",
        file="pruned.safetensors",
        seconds=1.0,
        manifest={"kind": "checkpoint", "details": {"prune": result.model_dump(mode="json")}},
    )
    hop = Hop(
        name="pruned", engine=None, executor="PyTorch", parent="PyTorch FP32", precision="fp32",
        n=540, top1=0.97, drop_pp=0.37, drop_ci95_pp=(-0.5, 1.2), verdict="pass",
    )  # fmt: skip
    if run.validate_ is not None:
        run.validate_.hops.append(hop)
    return run.model_copy(update={"stages": [*run.stages, stage]})


def _profile(*names: str) -> ProfileResult:
    def engine(name: str, scale: float) -> EngineProfile:
        parts = [
            TimedPart(name=block, type="block", precision="int8", block=block, time_ms=ms * scale, share=0.5)
            for block, ms in (("layer1.0", 2.0), ("layer1.1", 1.0), ("layer2.0", 3.0), ("layer2.0", 1.0))
        ]  # fmt: skip
        return EngineProfile(
            name=name, file=name, backend="openvino", precision=name.rsplit("-", maxsplit=1)[-1][:4], batch=1,
            blocks=[part for part in parts if scale == 1 or part.block != "layer1.1"],
        )  # fmt: skip

    engines = [engine(name, 0.5 if name.startswith("pruned-") else 1.0) for name in names]
    return ProfileResult(created="2026-11-24", device={}, headline="layers", engines=engines)


def test_without_a_pruning_there_is_nothing(full_run: RunResult) -> None:
    assert pruning_facts(full_run) is None
    assert (pruning_steps(full_run), width_table(full_run), width_chart(full_run)) == (None,) * 3
    assert "Width by block" not in render_html([(full_run, Path())])
    assert "## Pruning" not in render_markdown(full_run)


def test_the_facts_say_what_was_saved_and_whether_it_was_measured(full_run: RunResult) -> None:
    facts = {fact.label: fact.text for fact in pruning_facts(pruned(full_run)) or []}
    assert facts["Predicted, batch 1"] == "12.0 → 8.00 ms (1.50×)"
    assert facts["GFLOP per image"] == "8.00 → 4.00 (50.0 %)"
    assert facts["Parameters, millions"] == "25.0 → 15.0 (60.0 %)"
    assert facts["Blocks dropped"] == "layer1.1"
    assert facts["Latency table"] == "measured: layer times of openvino"
    assert facts["Judged, before any engine"] == "drop +0.37 [−0.50, +1.20] pp: pass"


def test_a_modelled_table_is_called_one(empty_run: RunResult) -> None:
    run = pruned(empty_run, table_source="model", table_reason="not measured (no GPU)")
    facts = {fact.label: fact.text for fact in pruning_facts(run) or []}
    assert facts["Latency table"] == "modelled: not measured (no GPU)"
    assert "Judged, before any engine" not in facts  # no validation


def test_widths_are_those_inside_of_the_blocks(empty_run: RunResult) -> None:
    table = width_table(pruned(empty_run))
    assert table is not None
    assert [[cell.text for cell in row.cells] for row in table.rows] == [
        ["layer1.0", "64 · 64", "48 · 32"],
        ["layer1.1", "64 · 64", "dropped"],
        ["layer2.0", "128", "128"],
    ]


def test_times_of_blocks_are_shown_if_both_engines_were_profiled(empty_run: RunResult) -> None:
    run = pruned(empty_run)
    names = ["openvino-fp32.blob", "openvino-int8.blob"]
    both = width_table(run, _profile(*names, *(f"pruned-{name}" for name in names)))
    assert both is not None
    assert "Times are of openvino-int8.blob and pruned-openvino-int8.blob, batch 1." in both.caption
    assert [[cell.text for cell in row.cells[3:]] for row in both.rows] == [
        ["2.00", "1.00"], ["1.00", "–"], ["4.00", "2.00"],
    ]  # fmt: skip
    for alone in (_profile(*names), _profile("pruned-openvino-int8.blob")):
        table = width_table(run, alone)
        assert table is not None
        assert len(table.columns) == 3


def test_the_picture_has_a_bar_for_each_layer(empty_run: RunResult) -> None:
    chart = width_chart(pruned(empty_run))
    assert chart is not None
    cut, dropped, whole = chart.rows
    assert [(b.before / chart.axis.at(1), b.after / chart.axis.at(1)) for b in cut.bars] == [
        (64, 48), (64, 32),
    ]  # fmt: skip
    assert (dropped.dropped, dropped.text, len(dropped.bars)) == (True, "dropped", 2)
    assert whole.bars[0].before == whole.bars[0].after
    assert cut.height > whole.height


def test_steps_are_rounds(empty_run: RunResult) -> None:
    table = pruning_steps(pruned(empty_run))
    assert table is not None
    assert [[cell.text for cell in row.cells] for row in table.rows] == [
        ["1", "90.0", "50.00", "97.00"],
        ["2", "80.0", "60.00", "–"],
    ]


def test_the_pages_show_the_pruning(full_run: RunResult) -> None:
    run = pruned(full_run)
    page, text = render_html([(run, Path())]), render_markdown(run)
    assert page.count('<rect class="cut"') == 5
    assert page.count('<rect class="kept"') == 3  # none of the dropped block
    assert "| layer1.1 | 64 · 64 | dropped |" in text
    found = findings(run.validate_, run.bench, {}, run.stages)
    assert any(
        s.startswith("Pruned for openvino int8, measured table: 12 to 8 ms at batch 1 (1.50x)")
        and s.endswith("layer1.1 dropped.")
        for s in found
    )


def test_names_cannot_break_the_page(full_run: RunResult) -> None:
    run = pruned(full_run, engine=HOSTILE, table_reason=HOSTILE, dropped=[HOSTILE], notes=[HOSTILE])
    assert "<script>alert" not in render_html([(run, Path())])


def test_results_of_another_version_are_left_out(empty_run: RunResult) -> None:
    run = pruned(empty_run)
    manifest = run.stages[-1].manifest
    assert manifest is not None
    del manifest["details"]["prune"]["gflops"]
    assert pruning_facts(run) is None
