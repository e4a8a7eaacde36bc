"""Accuracy against speed of everything that was built: which engines no other one beats in both."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from optimizer.reporting.charts import FRAME, PRECISIONS, Axis
from optimizer.reporting.join import EngineRow
from optimizer.reporting.numbers import decimals, fixed, interval, significant
from optimizer.reporting.report_model import SAME, Cell, Column, Row, Table
from optimizer.reporting.task_views import view_of
from optimizer.results import EngineBench, Interval, RunResult

__all__ = ["FrontChart", "FrontDot", "FrontPoint", "front_charts", "front_points", "front_table"]

_, _, _LEFT, _RIGHT, _TOP, _BOTTOM = FRAME
_WORDS = {True: "yes", None: "undecided", False: "no"}


@dataclass(frozen=True)
class FrontPoint:
    """An engine at one batch size.

    Attributes:
        name: The engine.
        kind: Its precision.
        rate: Images per second.
        rate_ci95: Its interval, if there is one.
        drop: Loss of accuracy against the reference, percentage points.
        drop_ci95: Its paired interval, if there is one.
        same: Whether every prediction is the reference's.
        is_reference: Whether this is the reference itself, without a drop.
    """

    name: str
    kind: str
    rate: float
    rate_ci95: Interval | None
    drop: float
    drop_ci95: Interval | None
    same: bool
    is_reference: bool

    @property
    def rates(self) -> Interval:
        """The interval of the rate; without one, the estimate."""
        return self.rate_ci95 or (self.rate, self.rate)

    @property
    def drops(self) -> Interval:
        """The interval of the drop; without one, the estimate."""
        return self.drop_ci95 or (self.drop, self.drop)

    def beats(self, other: FrontPoint) -> bool:
        """Whether this is as fast and as accurate, and better in one of them, by the estimates."""
        better = self.rate > other.rate or self.drop < other.drop
        return better and self.rate >= other.rate and self.drop <= other.drop

    def surely_beats(self, other: FrontPoint) -> bool:
        """Whether the intervals leave no doubt about that."""
        as_accurate = (self.same and other.same) or self.drops[1] <= other.drops[0]
        return self.rates[0] > other.rates[1] and as_accurate

    def on_front(self, points: Sequence[FrontPoint]) -> bool | None:
        """``True`` if none beats this one by the estimates, ``False`` if one surely does."""
        if not any(other.beats(self) for other in points):
            return True
        return False if any(other.surely_beats(self) for other in points) else None


def front_points(rows: Sequence[EngineRow]) -> dict[int, list[FrontPoint]]:
    """By batch size: the engines that were timed and validated, the fastest first."""
    found: dict[int, list[FrontPoint]] = {}
    for row in rows:
        for bench in row.benches:
            if (point := _point(row, bench)) is not None:
                found.setdefault(bench.batch, []).append(point)
    return {
        batch: sorted(found[batch], key=lambda point: -point.rate)
        for batch in sorted(found)
        if len(found[batch]) > 1
    }


def _point(row: EngineRow, bench: EngineBench) -> FrontPoint | None:
    hop, rate = row.hop, bench.images_per_s
    drop = None if hop is None else 0.0 if row.is_reference else hop.drop_pp
    if hop is None or hop.status != "ok" or drop is None or rate is None:
        return None
    point = FrontPoint(
        name=row.name,
        kind=bench.precision,
        rate=rate,
        rate_ci95=bench.images_per_s_ci95,
        drop=drop,
        drop_ci95=None if row.is_reference else hop.drop_ci95_pp,
        same=row.is_reference or hop.flips == 0,
        is_reference=row.is_reference,
    )
    finite = all(map(math.isfinite, (rate, drop, *point.rates, *point.drops)))
    return point if finite else None


def front_table(run: RunResult, rows: Sequence[EngineRow]) -> Table | None:
    """Every engine that was timed and validated; ``None`` if there are fewer than two."""
    by_batch = front_points(rows)
    if not by_batch:
        return None
    return Table(
        id="front",
        caption="Accuracy against speed. An engine is on the front if no other is as fast and as "
        "accurate, by the estimates; undecided, if another one is, but the intervals overlap.",
        columns=[
            Column("Batch", "images", numeric=False),
            Column("Point"),
            Column("Engine", numeric=False),
            Column("Precision", numeric=False),
            Column("Throughput", "images/s", hint="95 % interval"),
            Column(f"{view_of(run.validate_).metric} drop", "pp", hint="paired 95 %"),
            Column("On the front", numeric=False),
        ],
        rows=[
            Row(
                [Cell(str(batch), value=batch) if number == 1 else SAME, *_cells(number, p, points)]
            )
            for batch, points in by_batch.items()
            for number, p in enumerate(points, 1)
        ],
    )


def _cells(number: int, point: FrontPoint, points: Sequence[FrontPoint]) -> list[Cell]:
    on_front = point.on_front(points)
    badge = {True: "pass", None: "inconclusive", False: None}[on_front]
    return [
        Cell(str(number), value=number),
        Cell(point.name),
        Cell(point.kind),
        Cell(
            significant(point.rate),
            value=point.rate,
            detail=interval(point.rate_ci95, decimals(point.rate)),
            bounds=point.rate_ci95,
        ),
        Cell(
            fixed(point.drop, 2, sign="+"),
            value=point.drop,
            detail="reference" if point.is_reference else interval(point.drop_ci95, 2, sign="+"),
            bounds=point.drop_ci95,
        ),
        Cell(_WORDS[on_front], badge=badge),
    ]


# --- the chart -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class FrontDot:
    """A point with its intervals; positions in a drawing of size `FRAME`."""

    label: str
    """Its number in the table."""
    name: str
    title: str
    kind: str
    front: str
    """``yes``, ``undecided`` or ``no``."""
    x: float
    y: float
    x_range: tuple[float, float]
    y_range: tuple[float, float]


@dataclass(frozen=True)
class FrontChart:
    """Drop over throughput at one batch size; the best corner is at the top right."""

    batch: int
    dots: Sequence[FrontDot]
    line: str
    """Steps through the front, for ``polyline``."""
    x_ticks: Sequence[tuple[float, str]]
    y_ticks: Sequence[tuple[float, str]]
    limit: float | None
    limit_text: str


def front_charts(run: RunResult, rows: Sequence[EngineRow]) -> list[FrontChart]:
    """One chart per batch size."""
    limit = run.validate_.gates.max_drop_pp if run.validate_ else None
    return [_chart(batch, points, limit) for batch, points in front_points(rows).items()]


def _chart(batch: int, points: Sequence[FrontPoint], limit: float | None) -> FrontChart:
    x_axis = Axis.over(0, max(point.rates[1] for point in points))
    ends = [end for point in points for end in (*point.drops, point.drop)]
    y_axis = Axis.over(min(0.0, *ends), max(1.1 * (limit or 0.0), *ends))

    def x(rate: float) -> float:
        return round(_LEFT + (_RIGHT - _LEFT) * x_axis.at(rate) / 100, 1)

    def y(drop: float) -> float:  # no loss is at the top
        return round(_TOP + (_BOTTOM - _TOP) * y_axis.at(drop) / 100, 1)

    dots = []
    for number, p in enumerate(points, 1):
        front = _WORDS[p.on_front(points)]
        speed = f"{significant(p.rate)} {interval(p.rate_ci95, decimals(p.rate)) or ''}".strip()
        loss = f"{fixed(p.drop, 2, sign='+')} {interval(p.drop_ci95, 2, sign='+') or ''}".strip()
        what = f"{p.name}, {p.kind}, batch {batch}: {speed} images/s, drop {loss} pp"
        dots.append(
            FrontDot(
                label=str(number),
                name=p.name,
                title=f"{what}; on the front: {front}",
                kind=p.kind if p.kind in PRECISIONS else "other",
                front=front,
                x=x(p.rate),
                y=y(p.drop),
                x_range=(x(p.rates[0]), x(p.rates[1])),
                y_range=(y(p.drops[0]), y(p.drops[1])),
            )
        )
    corners = [(dot.x, dot.y) for dot in reversed(dots) if dot.front == "yes"]
    return FrontChart(
        batch=batch,
        dots=dots,
        line=" ".join(f"{a},{b}" for a, b in _steps(corners)),
        x_ticks=[(x(t), text) for t, (_, text) in zip(x_axis.ticks, x_axis.labels(), strict=True)],
        y_ticks=[
            (y(t), text) for t, (_, text) in zip(y_axis.ticks, y_axis.labels(sign="+"), strict=True)
        ],
        limit=None if limit is None else y(limit),
        limit_text="" if limit is None else f"limit {limit:g} pp",
    )


def _steps(corners: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """From slow to fast: a speed in between is reached by the next faster engine only."""
    path = list(corners[:1])
    for (x, _), (next_x, next_y) in itertools.pairwise(corners):
        path += [(x, next_y), (next_x, next_y)]
    return path
