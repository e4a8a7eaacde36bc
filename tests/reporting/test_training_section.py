"""The training in the reports."""

from __future__ import annotations

from pathlib import Path

import pytest

from optimizer.reporting import render_html, render_markdown
from optimizer.reporting.training_section import training_charts, training_table
from optimizer.results import RunResult, StageRecord


def history(epochs: int) -> list[dict[str, float]]:
    return [
        {
            "epoch": epoch, "step": 10 * epoch, "lr": 0.03 / epoch, "loss": 2.5 / epoch,
            "images_per_s": 123.4, "seconds": 3.0,
            **({"top1": 1 - 0.5 / epoch} if epoch % 2 == 0 else {}),
        }
        for epoch in range(1, epochs + 1)
    ]  # fmt: skip


def trained(run: RunResult, rows: list[dict[str, float]], stage: str = "train") -> RunResult:
    record = StageRecord(
        name=stage, label="train", seconds=1.0, manifest={"details": {"history": rows}}
    )
    return run.model_copy(update={"stages": [record]})


def test_without_a_training_there_is_nothing(full_run: RunResult) -> None:
    assert training_table(full_run) is None
    assert training_charts(full_run) == []
    assert "over epochs" not in render_html([(full_run, Path())])


@pytest.mark.parametrize("stage", ["train", "load"])
def test_every_epoch_is_a_row(empty_run: RunResult, stage: str) -> None:
    table = training_table(trained(empty_run, history(4), stage))
    assert table is not None
    assert [[cell.text for cell in row.cells] for row in table.rows] == [
        ["1", "0.0300", "2.50", "–", "123"],
        ["2", "0.0150", "1.25", "75.00", "123"],
        ["3", "0.0100", "0.833", "–", "123"],
        ["4", "0.00750", "0.625", "87.50", "123"],
    ]


def test_long_trainings_are_thinned(empty_run: RunResult) -> None:
    table = training_table(trained(empty_run, history(600)))
    assert table is not None
    assert len(table.rows) == 20
    assert [table.rows[i].cells[0].text for i in (0, -1)] == ["1", "600"]


def test_curves_have_a_point_per_measurement(empty_run: RunResult) -> None:
    loss, top1 = training_charts(trained(empty_run, history(6)))
    assert len(loss.points.split()) == 6
    assert len(top1.points.split()) == 3
    heights = [float(point.split(",")[1]) for point in loss.points.split()]
    assert heights == sorted(heights)  # a falling loss; y grows downwards
    assert len(training_charts(trained(empty_run, history(1)))) == 0


def test_the_pages_show_the_training(empty_run: RunResult) -> None:
    run = trained(empty_run, history(6))
    page = render_html([(run, Path())])
    assert page.count("over epochs") == 2
    assert "Training of the model, 6 epochs" in page
    assert "Training of the model, 6 epochs" in render_markdown(run)
