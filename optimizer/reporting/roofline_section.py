"""Layers and roofline: a table and bar chart of the blocks, and the log-log roofline chart."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from optimizer.reporting.charts import PRECISIONS, Axis, Mark
from optimizer.reporting.numbers import decimals, fixed, interval, percent, significant
from optimizer.reporting.provenance import Fact
from optimizer.reporting.report_model import Cell, Column, Notes, Row, Table
from optimizer.results import Ceiling, Ceilings, EngineProfile, ProfileResult, TimedPart

__all__ = ["ROOF_HEIGHT", "ROOF_WIDTH", "ProfileView", "profile_views", "roof_facts"]

ROOF_WIDTH, ROOF_HEIGHT = 640, 340
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 500, 12, 304
GIGA = 1e9


@dataclass(frozen=True)
class Line:
    """A ceiling: its end points and label."""

    x1: float
    y1: float
    x2: float
    y2: float
    text: str
    text_y: float
    kind: str


@dataclass(frozen=True)
class Point:
    """A block with FLOPs."""

    x: float
    y: float
    kind: str
    title: str


@dataclass(frozen=True)
class Roofline:
    """Blocks as points under the ceilings; log-log scales, positions in the view box."""

    lines: Sequence[Line]
    points: Sequence[Point]
    x_ticks: Sequence[tuple[float, str]]
    y_ticks: Sequence[tuple[float, str]]
    left: float = _LEFT
    right: float = _RIGHT
    top: float = _TOP
    bottom: float = _BOTTOM


@dataclass(frozen=True)
class ProfileView:
    """One engine, ready for the template."""

    name: str
    sentence: str
    table: Table | None
    axis: Axis | None
    bars: Sequence[Mark]
    roofline: Roofline | None


def profile_views(result: ProfileResult) -> list[ProfileView]:
    """Views of all engines of a profile; a failed one contains only the reason."""
    return [
        _view(number, engine, result.ceilings) for number, engine in enumerate(result.engines, 1)
    ]


def roof_facts(result: ProfileResult) -> list[Fact]:
    """The measured ceilings, or why there are none."""
    facts = [Fact("Ceilings", result.ceilings_note)] if result.ceilings_note else []
    if result.ceilings is None:
        return facts
    for name, ceiling, unit in _rates(result.ceilings):
        text = (
            f"{significant(ceiling.rate / GIGA)} {unit}, fastest of {ceiling.rounds} rounds "
            f"(median {significant(ceiling.median / GIGA)}): {ceiling.how}"
        )
        facts.append(Fact(name, text))
    return facts + [Fact("Note", note) for note in result.ceilings.notes]


def _rates(ceilings: Ceilings) -> Iterator[tuple[str, Ceiling, str]]:
    for kind, ceiling in ceilings.compute.items():
        yield kind, ceiling, "GOP/s" if kind == "int8" else "GFLOP/s"
    yield "memory", ceilings.memory, "GB/s"
    yield "cache", ceilings.cache, "GB/s"


def _view(number: int, engine: EngineProfile, ceilings: Ceilings | None) -> ProfileView:
    if engine.status != "ok" or engine.whole_ms is None:
        sentence = f"Not profiled: {engine.error or engine.status}."
        return ProfileView(engine.name, sentence, None, None, [], None)
    axis = Axis.over(0, max(_high(part) for part in engine.blocks))
    return ProfileView(
        name=engine.name,
        sentence=_sentence(engine),
        table=_table(number, engine),
        axis=axis,
        bars=[_bar(part, axis) for part in engine.blocks],
        roofline=_roofline(engine, ceilings) if ceilings is not None else None,
    )


def _sentence(engine: EngineProfile) -> str:
    assert engine.whole_ms is not None
    assert engine.layers_ms is not None
    assert engine.outside_ms is not None
    places = decimals(engine.whole_ms)
    summary = (
        f"Batch {engine.batch}, {engine.threads} threads. A whole call without profiling took "
        f"{fixed(engine.whole_ms, places)} ms {interval(engine.whole_ci95_ms, places) or ''}, all "
        f"layers together {fixed(engine.layers_ms, places)} ms. The difference of "
        f"{fixed(engine.outside_ms, places, sign='+')} ms is time outside the layers, minus the "
        "overhead of profiling."
    )
    return " ".join([summary, *(f"{note[:1].upper()}{note[1:]}." for note in engine.notes)])


def _high(part: TimedPart) -> float:
    return max(part.time_ms, *(part.time_ci95_ms or (0.0,)))


def _kind(part: TimedPart) -> str:
    names = part.precision.split(", ")
    if len(names) > 1:
        return "mixed"
    return names[0] if names[0] in PRECISIONS else "other"


def _bar(part: TimedPart, axis: Axis) -> Mark:
    bounds, places = part.time_ci95_ms, decimals(part.time_ms)
    text = f"{significant(part.time_ms)} {interval(bounds, places) or ''}".strip()
    low, high = (axis.at(end) for end in bounds) if bounds else (None, None)
    title = f"{part.name}, {part.precision}: {text} ms"
    return Mark(part.name, text, title, axis.at(part.time_ms), low, high, _kind(part))


def _table(number: int, engine: EngineProfile) -> Table:
    notes = Notes()
    return Table(
        id=f"profile-{number}",
        caption=f"{engine.name}, batch {engine.batch}: time by residual block.",
        columns=[
            Column("Block", numeric=False),
            Column("Computes in", numeric=False),
            Column("Time", "ms", hint="95 % interval"),
            Column("Share", "%"),
            Column("Rate", "GFLOP/s"),
            Column("Intensity", "FLOP/byte"),
            Column("Share of ceiling", "%"),
            Column("Bound by", numeric=False),
        ],
        rows=[Row(_cells(part, notes)) for part in engine.blocks],
        notes=notes.all(),
    )


def _cells(part: TimedPart, notes: Notes) -> list[Cell]:
    rate, intensity, reached = part.flops_per_s, part.intensity, part.ceiling_share
    time = Cell(
        significant(part.time_ms),
        value=part.time_ms,
        detail=interval(part.time_ci95_ms, decimals(part.time_ms)),
        bounds=part.time_ci95_ms,
    )
    no_flops = "No layer has weights, so no FLOPs are counted."
    no_ceiling = "The FLOPs, the bytes or the ceiling of the data type are unknown."
    return [
        Cell(part.name, code=True),
        Cell(part.precision),
        time,
        Cell(percent(part.share, 1), value=part.share * 100),
        notes.missing(no_flops) if rate is None else Cell(significant(rate / GIGA), rate / GIGA),
        notes.missing(no_flops) if intensity is None else Cell(significant(intensity), intensity),
        notes.missing(no_ceiling)
        if reached is None
        else Cell(percent(reached, 0), value=reached * 100, detail=part.ceiling),
        notes.missing(no_ceiling) if part.bound is None else Cell(part.bound),
    ]


# --- the chart -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Log:
    """A logarithmic scale between whole powers of ten."""

    low: int
    high: int
    start: float
    end: float

    @classmethod
    def over(cls, values: Sequence[float], start: float, end: float) -> _Log:
        low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
        return cls(low, max(high, low + 1), start, end)

    def at(self, value: float) -> float:
        share = (math.log10(value) - self.low) / (self.high - self.low)
        return round(self.start + (self.end - self.start) * min(1.0, max(0.0, share)), 1)

    def ticks(self) -> list[tuple[float, str]]:
        return [(self.at(10.0**i), f"{10.0**i:,g}") for i in range(self.low, self.high + 1)]


def _roofline(engine: EngineProfile, ceilings: Ceilings) -> Roofline | None:
    shown = [
        (part, part.intensity, part.flops_per_s / GIGA)
        for part in engine.blocks
        if part.intensity and part.flops_per_s
    ]
    if not shown:
        return None
    flat = {kind: ceiling.rate / GIGA for kind, ceiling in ceilings.compute.items()}
    slopes = {"memory": ceilings.memory.rate / GIGA, "cache": ceilings.cache.rate / GIGA}
    top = max(flat.values())
    intensities = [intensity for _, intensity, _ in shown]
    x = _Log.over([*intensities, top / slopes["memory"]], _LEFT, _RIGHT)
    least = slopes["memory"] * min(intensities)
    y = _Log.over([*(rate for _, _, rate in shown), least, top], _BOTTOM, _TOP)
    points = [
        Point(x.at(intensity), y.at(rate), _kind(part), _title(part, intensity, rate))
        for part, intensity, rate in shown
    ]
    lines = _lines(flat, slopes, x, y)
    return Roofline(lines, points, x.ticks(), y.ticks())


def _lines(flat: dict[str, float], slopes: dict[str, float], x: _Log, y: _Log) -> list[Line]:
    lines = []
    for kind, rate in flat.items():
        height = y.at(rate)
        first = x.at(rate / max(slopes.values()))
        text = f"{kind} {significant(rate)}"
        lines.append(Line(first, height, x.end, height, text, height, kind))
    top = max(flat.values())
    for name, slope in slopes.items():
        low = max(10.0**x.low, 10.0**y.low / slope)
        knee = min(10.0**x.high, top / slope)
        start, end = (x.at(low), y.at(low * slope)), (x.at(knee), y.at(knee * slope))
        lines.append(Line(*start, *end, f"{name} {significant(slope)} GB/s", start[1], name))
    return lines


def _title(part: TimedPart, intensity: float, rate: float) -> str:
    position = f"{significant(rate)} GFLOP/s at {significant(intensity)} FLOP/byte"
    reached = part.ceiling_share
    share = f", {percent(reached, 0)} % of {part.ceiling}" if reached is not None else ""
    return f"{part.name}, {part.precision}: {position}{share}"
