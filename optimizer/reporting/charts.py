"""Geometry of the charts: positions in percent of the width, drawn as SVG by the template.

The charts are inline SVG rather than a charting library: the page stays below a few hundred
kilobytes (the library alone would be 4.8 MB), needs no script and prints as vectors, and its text
keeps its size on a phone because only positions scale.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from optimizer.reporting.join import EngineRow
from optimizer.reporting.numbers import decimals, fixed, interval, significant
from optimizer.results import Conditions, EngineBench, Interval, RunResult, ValidateResult

__all__ = [
    "FRAME",
    "Axis",
    "Forest",
    "Mark",
    "Panel",
    "Throughput",
    "drop_chart",
    "round_panels",
    "throughput_chart",
]

PRECISIONS = ("fp32", "tf32", "fp16", "bf16", "int8", "fp8", "mixed")


FRAME = (460, 270, 46, 446, 12, 230)
"""Of a chart of lines: width and height, and left, right, top and bottom of its axes."""


@dataclass(frozen=True)
class Axis:
    """A linear scale with round tick values."""

    low: float
    high: float
    ticks: Sequence[float]
    places: int

    @classmethod
    def over(cls, low: float, high: float) -> Axis:
        """The shortest scale with round ends that contains ``low`` and ``high``."""
        if not high > low:
            high = low + (abs(low) or 1.0)
        step = 10 ** math.floor(math.log10((high - low) / 4))
        step *= next(f for f in (1, 2, 5, 10) if (high - low) / (step * f) <= 6)
        first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
        places = max(0, -math.floor(math.log10(step) + 1e-9))
        return cls(first * step, last * step, [i * step for i in range(first, last + 1)], places)

    def at(self, value: float) -> float:
        """Position of ``value`` in percent, clamped to the scale."""
        return min(100.0, max(0.0, 100 * (value - self.low) / (self.high - self.low)))

    def labels(self, *, sign: str = "") -> list[tuple[float, str]]:
        """Position and text of each tick."""
        return [(self.at(tick), fixed(tick, self.places, sign=sign)) for tick in self.ticks]


@dataclass(frozen=True)
class Mark:
    """One row of a chart: an estimate with its interval, positions in percent."""

    label: str
    text: str
    title: str
    at: float
    low: float | None
    high: float | None
    kind: str
    """Precision or verdict; selects the style of the mark."""


@dataclass(frozen=True)
class Throughput:
    """Images per second by engine, one list per batch size, on one scale."""

    axis: Axis
    batches: Sequence[tuple[int, Sequence[Mark]]]
    kinds: Sequence[str]
    left_out: Sequence[str]
    """Engines without a throughput."""


def _finite(bounds: Interval | None) -> Interval | None:
    return bounds if bounds and all(math.isfinite(b) for b in bounds) else None


def throughput_chart(rows: Sequence[EngineRow]) -> Throughput | None:
    """Bars from zero with error bars; ``None`` if nothing was timed."""
    timed = [
        (row, bench, bench.images_per_s)
        for row in rows
        for bench in row.benches
        if bench.images_per_s is not None and math.isfinite(bench.images_per_s)
    ]
    if not timed:
        return None
    axis = Axis.over(
        0, max(max(rate, *(_finite(b.images_per_s_ci95) or (0,))) for _, b, rate in timed)
    )
    batches = []
    for batch in sorted({bench.batch for _, bench, _ in timed}):
        marks = []
        for row, bench, rate in timed:
            if bench.batch != batch:
                continue
            bounds = _finite(bench.images_per_s_ci95)
            spread = interval(bounds, decimals(rate))
            text = f"{significant(rate)} {spread or ''}".strip()
            kind = bench.precision if bench.precision in PRECISIONS else "other"
            low, high = (axis.at(b) for b in bounds) if bounds else (None, None)
            title = f"{row.name}, {bench.precision}, batch {batch}: {text} images/s"
            marks.append(Mark(row.name, text, title, axis.at(rate), low, high, kind))
        batches.append((batch, marks))
    kinds = list(dict.fromkeys(mark.kind for _, marks in batches for mark in marks))
    shown = {id(row) for row, _, _ in timed}
    return Throughput(axis, batches, kinds, [r.name for r in rows if id(r) not in shown])


@dataclass(frozen=True)
class Forest:
    """Intervals of the drop, relative to the limit."""

    axis: Axis
    zero: float
    margin: float
    margin_text: str
    marks: Sequence[Mark]


def drop_chart(result: ValidateResult) -> Forest | None:
    """Drop of each engine with its paired interval; only the last hop of each chain."""
    margin = result.gates.max_drop_pp
    hops = [
        (hop, hop.drop_pp)
        for hop in result.hops
        if hop.engine is not None
        and hop.parent is not None
        and hop.drop_pp is not None
        and math.isfinite(hop.drop_pp)
    ]
    if not hops:
        return None
    ends = [end for hop, drop in hops for end in (drop, *(_finite(hop.drop_ci95_pp) or ()))]
    axis = Axis.over(min(0.0, *ends), max(margin * 1.1, *ends))
    marks = []
    for hop, drop in hops:
        bounds = _finite(hop.drop_ci95_pp)
        text = f"{fixed(drop, 2, sign='+')} {interval(bounds, 2, sign='+') or ''}".strip()
        low, high = (axis.at(b) for b in bounds) if bounds else (None, None)
        kind = hop.verdict or "unjudged"
        title = f"{hop.name}: drop {text} pp, {kind}"
        marks.append(Mark(hop.name, text, title, axis.at(drop), low, high, kind))
    return Forest(axis, axis.at(0), axis.at(margin), f"{margin:g}", marks)


# --- rounds ------------------------------------------------------------------------------------

PANEL_WIDTH, PANEL_HEIGHT = 240, 84
_LEFT, _RIGHT, _TOP, _BOTTOM = 6, 186, 8, 76


@dataclass(frozen=True)
class Dot:
    """The median of one round."""

    x: float
    y: float
    disturbed: bool
    title: str


@dataclass(frozen=True)
class Panel:
    """The round medians of one engine at one batch size, relative to their median."""

    title: str
    subtitle: str
    dots: Sequence[Dot]
    zero: float
    line: str
    """Points of the polyline."""


@dataclass(frozen=True)
class Rounds:
    """Small multiples on one scale: ``reach`` percent up and down."""

    panels: Sequence[Panel]
    reach: float
    reach_text: str
    any_disturbed: bool


def round_panels(run: RunResult) -> Rounds | None:
    """Round medians in percent of each engine's overall median, all on one scale.

    A common scale in percent makes noise comparable between engines of different speed.
    """
    bench = run.bench
    series = [e for e in bench.engines if len(e.round_medians_ms) > 1] if bench else []
    series = [e for e in series if all(math.isfinite(m) and m > 0 for m in e.round_medians_ms)]
    if bench is None or not series:
        return None
    reach = max(abs(_relative(m, e)) for e in series for m in e.round_medians_ms)
    reach = max(2.0, Axis.over(0, reach).high)
    panels = [_panel(engine, bench.conditions, reach) for engine in series]
    return Rounds(
        panels,
        reach,
        f"{reach:g}",
        any(dot.disturbed for panel in panels for dot in panel.dots),
    )


def _relative(value: float, engine: EngineBench) -> float:
    """Deviation of a round from the median of all rounds, in percent."""
    return (value / median(engine.round_medians_ms) - 1) * 100


def _panel(engine: EngineBench, conditions: Conditions, reach: float) -> Panel:
    values, centre = engine.round_medians_ms, median(engine.round_medians_ms)
    zero = (_TOP + _BOTTOM) / 2
    dots = []
    for i, value in enumerate(values):
        share, number = _relative(value, engine), engine.first_round + i
        x = _LEFT + (_RIGHT - _LEFT) * i / (len(values) - 1)
        y = zero - (_BOTTOM - _TOP) / 2 * share / reach
        title = f"round {i + 1}: {significant(value)} ms ({fixed(share, 1, sign='+')} %)"
        if number in conditions.disturbed_rounds:
            others = conditions.other_cpu_share
            title += ", disturbed"
            if number < len(others):
                title += f": other processes used {fixed(others[number] * 100, 1)} % of all cores"
        dots.append(Dot(round(x, 1), round(y, 1), number in conditions.disturbed_rounds, title))
    return Panel(
        title=engine.name,
        subtitle=f"batch {engine.batch}, median of rounds {significant(centre)} ms",
        dots=dots,
        zero=zero,
        line=" ".join(f"{dot.x},{dot.y}" for dot in dots),
    )
