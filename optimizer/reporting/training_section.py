"""The training behind the engines: a table of epochs, and curves of loss and accuracy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optimizer.reporting.charts import FRAME, Axis
from optimizer.reporting.numbers import fixed, significant
from optimizer.reporting.report_model import Cell, Column, Row, Table
from optimizer.results import RunResult

__all__ = ["TrainingChart", "training_charts", "training_table"]

_MAX_ROWS = 20
_, _, _LEFT, _RIGHT, _TOP, _BOTTOM = FRAME


@dataclass(frozen=True)
class TrainingChart:
    """One quantity over the epochs, as positions in a drawing of size `FRAME`.

    Attributes:
        name: The quantity.
        points: The line, for ``polyline``.
        x_ticks: Position and text of each tick.
        y_ticks: Likewise.
    """

    name: str
    points: str
    x_ticks: Sequence[tuple[float, str]]
    y_ticks: Sequence[tuple[float, str]]


def _history(run: RunResult) -> list[dict[str, Any]]:
    """One row per epoch, from the manifest of the checkpoint; empty if it was trained elsewhere."""
    for stage in run.stages:
        details = (stage.manifest or {}).get("details", {})
        if stage.name in ("train", "load") and details.get("history"):
            rows: list[dict[str, Any]] = details["history"]
            return rows
    return []


def training_table(run: RunResult) -> Table | None:
    """Learning rate, loss and accuracy of at most 20 epochs; ``None`` without a training."""
    history = _history(run)
    if not history:
        return None
    last = len(history) - 1
    shown = sorted({round(i * last / (_MAX_ROWS - 1)) for i in range(_MAX_ROWS)})
    table = Table(
        id="training",
        caption=f"Training of the model, {len(history)} epochs. The held-out accuracy is that of the "
        "images the training measured, which may be those of the validation.",
        columns=[
            Column("Epoch"),
            Column("Learning rate"),
            Column("Loss"),
            Column("Top-1", "%", optional=True),
            Column("Throughput", "images/s"),
        ],
        rows=[Row(_cells(history[i])) for i in shown],
        notes=[],
    )
    return table.keep(range(len(table.columns)))


def _cells(row: Mapping[str, float]) -> list[Cell]:
    top1 = row.get("top1")
    return [
        Cell(str(int(row["epoch"])), value=row["epoch"]),
        Cell(significant(row["lr"], 3), value=row["lr"]),
        Cell(significant(row["loss"], 3), value=row["loss"]),
        Cell("–") if top1 is None else Cell(fixed(100 * top1, 2), value=100 * top1),
        Cell(significant(row["images_per_s"], 3), value=row["images_per_s"]),
    ]


def training_charts(run: RunResult) -> list[TrainingChart]:
    """Loss and accuracy over the epochs; empty if there are fewer than two points."""
    history = _history(run)
    quantities = {
        "Loss": [(row["epoch"], row["loss"]) for row in history],
        "Top-1 on held-out images, %": [
            (row["epoch"], 100 * row["top1"]) for row in history if "top1" in row
        ],
    }
    return [_chart(name, points) for name, points in quantities.items() if len(points) > 1]


def _chart(name: str, points: Sequence[tuple[float, float]]) -> TrainingChart:
    epochs, values = zip(*points, strict=True)
    x, y = Axis.over(0, max(epochs)), Axis.over(min(values), max(values))
    return TrainingChart(
        name=name,
        points=" ".join(f"{_x(x.at(a)):.1f},{_y(y.at(b)):.1f}" for a, b in points),
        x_ticks=[(round(_x(at), 1), text) for at, text in x.labels()],
        y_ticks=[(round(_y(at), 1), text) for at, text in y.labels()],
    )


def _x(percent: float) -> float:
    return _LEFT + (_RIGHT - _LEFT) * percent / 100


def _y(percent: float) -> float:
    return _BOTTOM - (_BOTTOM - _TOP) * percent / 100
