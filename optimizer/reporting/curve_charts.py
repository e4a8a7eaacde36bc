"""Sweeps: the table of every setting, and throughput over latency as a chart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from optimizer.profiling.curves import curve_findings, describe_setting
from optimizer.reporting.charts import FRAME, Axis
from optimizer.reporting.links import Links
from optimizer.reporting.numbers import decimals, interval, significant
from optimizer.reporting.report_model import SAME, Cell, Column, Notes, Row, Table
from optimizer.reporting.speed import SAMPLES_NEEDED
from optimizer.results import Curve, CurvePoint, RunResult

__all__ = [
    "CurveChart",
    "CurveDot",
    "CurveLine",
    "curve_chart",
    "curve_charts",
    "curve_sentences",
    "curve_table",
    "marks_of",
]

_, _, _LEFT, _RIGHT, _TOP, _BOTTOM = FRAME


def marks_of(curve: Curve, point: CurvePoint) -> list[str]:
    """Labels of a point: knee, fastest, best within the bound."""
    setting = point.setting
    marks = ["knee"] if any(knee.setting == setting for knee in curve.knees) else []
    marks += ["fastest"] if setting == curve.fastest else []
    return marks + (["best within the bound"] if setting == curve.best else [])


def curve_sentences(run: RunResult) -> list[str]:
    """Sentences on the knees and the best setting of every engine."""
    curves = run.bench.curves if run.bench else []
    return [f"{curve.engine}: {sentence}" for curve in curves for sentence in curve_findings(curve)]


def curve_table(run: RunResult, links: Links) -> Table | None:
    """Every setting of every engine; ``None`` if there was no sweep."""
    curves = run.bench.curves if run.bench else []
    if not curves:
        return None
    notes = Notes()
    bounds = list(dict.fromkeys(_limit(c) for c in curves if c.bound))
    return Table(
        id="curves",
        caption="Sweep: wall-clock throughput while all streams were busy, and end-to-end latency of "
        "a call; both include copies to and from the device.",
        columns=[
            Column("Engine", numeric=False),
            Column("Batch", "images"),
            Column("Threads"),
            Column("Streams"),
            Column("Throughput", "images/s", hint="95 % interval"),
            Column("p50", "ms", hint="95 % interval"),
            Column("p90", "ms"),
            Column("p99", "ms"),
            Column(bounds[0] if bounds else "Bound", numeric=False, optional=True),
            Column("Mark", numeric=False),
        ],
        rows=[
            Row([Cell(curve.engine) if i == 0 else SAME, *_cells(curve, point, notes, links)])
            for curve in curves
            for i, point in enumerate(curve.points)
        ],
        notes=notes.all(),
    ).without_empty_columns()


def _limit(curve: Curve) -> str:
    return f"{curve.bound.percentile} ≤ {curve.bound.max_latency_ms:g} ms" if curve.bound else ""


def _cells(curve: Curve, point: CurvePoint, notes: Notes, links: Links) -> list[Cell]:
    setting = point.setting
    head = [Cell(str(n), value=n) for n in (setting.batch, setting.threads, setting.streams)]
    if point.images_per_s is None or point.latency_ms is None:
        missing = notes.missing(f"{describe_setting(setting)}: {point.error or point.status}.")
        return [*head, *[missing] * 4, Cell("–"), Cell(point.status, badge="fail")]
    rate = Cell(
        significant(point.images_per_s),
        value=point.images_per_s,
        detail=interval(point.images_per_s_ci95, decimals(point.images_per_s)),
        bounds=point.images_per_s_ci95,
        href=links.to(point.raw_file),
    )
    p50 = point.latency_ms.p50
    median = Cell(
        significant(p50),
        value=p50,
        detail=interval(point.latency_ci95_ms, decimals(p50)),
        bounds=point.latency_ci95_ms,
    )
    tails = [_tail(point, which, notes) for which in ("p90", "p99")]
    marks = Cell(", ".join(marks_of(curve, point)))
    return [*head, rate, median, *tails, _bound_cell(curve, point), marks]


def _tail(point: CurvePoint, which: str, notes: Notes) -> Cell:
    value = getattr(point.latency_ms, which)
    if value is not None:
        return Cell(significant(value), value=value)
    needed = SAMPLES_NEEDED[which]
    why = f"Too few samples for {which}: a distribution-free bound needs {needed} samples."
    return notes.missing(why, detail=f"n = {point.samples:,}")


def _bound_cell(curve: Curve, point: CurvePoint) -> Cell:
    if curve.bound is None:
        return Cell("–")
    low, high = point.bounded_ci95_ms or (None, None)
    ends = f"[{significant(low)}, {significant(high)}]"
    word = {True: "met", False: "exceeded", None: "undecided"}[point.holds]
    badge = {True: "pass", False: "fail", None: "inconclusive"}[point.holds]
    return Cell(word, detail=ends, badge=badge)


# --- the chart -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class CurveDot:
    """One setting; positions in units of the drawing."""

    x: float
    y: float
    label: str
    """The batch size."""
    title: str
    knee: bool
    best: bool


@dataclass(frozen=True)
class CurveLine:
    """Batch sizes at one number of threads and streams, ascending."""

    name: str
    dots: Sequence[CurveDot]
    points: str
    """Points of the polyline."""


@dataclass(frozen=True)
class CurveChart:
    """Throughput over latency of one engine."""

    engine: str
    latency: str
    """The latency on the x axis: the percentile of the bound, or p50."""
    x_ticks: Sequence[tuple[float, str]]
    y_ticks: Sequence[tuple[float, str]]
    lines: Sequence[CurveLine]
    bound: float | None
    bound_text: str
    left_out: Sequence[str]
    """Settings without this latency."""


def curve_charts(run: RunResult) -> list[CurveChart]:
    """One chart per engine whose sweep can be drawn."""
    curves = run.bench.curves if run.bench else []
    return [chart for curve in curves if (chart := curve_chart(curve)) is not None]


def curve_chart(curve: Curve) -> CurveChart | None:
    """Throughput over latency; ``None`` if no setting has both."""
    which = curve.bound.percentile if curve.bound else "p50"
    drawn = {id(p): at for p in curve.points if (at := _position(p, which)) is not None}
    if not drawn:
        return None
    limit = [curve.bound.max_latency_ms] if curve.bound else []
    x = Axis.over(0, max(*(ms for ms, _ in drawn.values()), *limit, 0.0))
    y = Axis.over(0, max(rate for _, rate in drawn.values()))

    def place_x(value: float) -> float:
        return round(_LEFT + (_RIGHT - _LEFT) * x.at(value) / 100, 1)

    def place_y(value: float) -> float:
        return round(_BOTTOM - (_BOTTOM - _TOP) * y.at(value) / 100, 1)

    series: dict[str, list[CurveDot]] = {}
    for point in sorted(curve.points, key=lambda p: p.setting.batch):
        if id(point) not in drawn:
            continue
        ms, rate = drawn[id(point)]
        marks = marks_of(curve, point)
        speed = f"{significant(rate)} images/s, {which} {significant(ms)} ms"
        title = f"{describe_setting(point.setting)}: {speed}"
        dot = CurveDot(
            place_x(ms),
            place_y(rate),
            str(point.setting.batch),
            ", ".join([title, *marks]),
            "knee" in marks,
            "best within the bound" in marks,
        )
        series.setdefault(describe_setting(point.setting).partition(", ")[2], []).append(dot)
    return CurveChart(
        engine=curve.engine,
        latency=which,
        x_ticks=[(place_x(t), text) for t, (_, text) in zip(x.ticks, x.labels(), strict=True)],
        y_ticks=[(place_y(t), text) for t, (_, text) in zip(y.ticks, y.labels(), strict=True)],
        lines=[
            CurveLine(name, dots, " ".join(f"{d.x},{d.y}" for d in dots))
            for name, dots in series.items()
        ],
        bound=place_x(limit[0]) if limit else None,
        bound_text=_limit(curve),
        left_out=[describe_setting(p.setting) for p in curve.points if id(p) not in drawn],
    )


def _position(point: CurvePoint, which: str) -> tuple[float, float] | None:
    latency = getattr(point.latency_ms, which) if point.latency_ms else None
    if latency is None or point.images_per_s is None:
        return None
    return latency, point.images_per_s
