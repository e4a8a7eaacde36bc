"""What a run's pruning cut: widths by block, predicted and measured times, accuracy by step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from optimizer.reporting.accuracy_cells import places_of
from optimizer.reporting.charts import Axis
from optimizer.reporting.numbers import DASH, fixed, interval, percent, significant
from optimizer.reporting.provenance import Fact
from optimizer.reporting.report_model import Cell, Column, Row, Table
from optimizer.results import EngineProfile, Hop, ProfileResult, PruneResult, RunResult, StageRecord

__all__ = [
    "LayerBar",
    "WidthChart",
    "WidthRow",
    "pruning_facts",
    "pruning_of",
    "pruning_steps",
    "width_chart",
    "width_table",
]

_PREFIX = "pruned-"
"""Start of the file names of the pruned network's engines."""


def pruning_of(stage: StageRecord) -> PruneResult | None:
    """What a stage cut, from the manifest of the pruned network; ``None`` if it cut nothing."""
    cut = (stage.manifest or {}).get("details", {}).get("prune")
    try:
        return PruneResult.model_validate(cut) if stage.name == "prune" and cut else None
    except ValidationError:
        return None  # written by another version


def _pruned(run: RunResult) -> PruneResult | None:
    return next(filter(None, map(pruning_of, run.stages)), None)


def pruning_facts(run: RunResult) -> list[Fact] | None:
    """What was wanted, what is predicted, and what it cost; ``None`` if nothing was pruned."""
    result = _pruned(run)
    if result is None:
        return None
    facts = [
        Fact("Latency counts for", f"{result.engine} {result.precision}, {result.image_size} px")
    ]
    for at in result.latency:
        times = f"{significant(at.before_ms)} → {significant(at.after_ms)} ms"
        facts.append(Fact(f"Predicted, batch {at.batch}", f"{times} ({fixed(at.speedup, 2)}×)"))
    measured = "measured" if result.table_source == "measured" else "modelled"
    facts.append(Fact("Latency table", f"{measured}: {result.table_reason}"))
    for name, (before, after), scale in (
        ("GFLOP per image", result.gflops, 1.0),
        ("Parameters, millions", result.parameters, 1e6),
    ):
        share = fixed(100 * after / before, 1)
        texts = f"{significant(before / scale)} → {significant(after / scale)}"
        facts.append(Fact(name, f"{texts} ({share} %)"))
    facts.append(Fact("Blocks dropped", ", ".join(result.dropped) or "none"))
    hop = _hop(run)
    if hop is not None and hop.drop_pp is not None:
        places = places_of(hop)
        drop = fixed(hop.drop_pp, places, sign="+")
        bounds = interval(hop.drop_ci95_pp, places, sign="+") or ""
        facts.append(Fact("Judged, before any engine", f"drop {drop} {bounds} pp: {hop.verdict}"))
    return [*facts, *(Fact("Note", note) for note in result.notes)]


def _hop(run: RunResult) -> Hop | None:
    """The hop of the pruned network in PyTorch."""
    hops = run.validate_.hops if run.validate_ else []
    return next((hop for hop in hops if hop.name == "pruned" and hop.status == "ok"), None)


def pruning_steps(run: RunResult) -> Table | None:
    """Saliency and accuracy round by round; ``None`` if nothing was pruned."""
    result = _pruned(run)
    if result is None:
        return None
    rows = [
        Row(
            [
                Cell(str(number), value=number),
                _percent_cell(one.kept_saliency, 1),
                _percent_cell(one.top1_cut, 2),
                _percent_cell(one.top1_tuned, 2),
            ]
        )
        for number, one in enumerate(result.rounds, 1)
    ]
    return Table(
        id="pruning-steps",
        caption="Rounds of pruning. The accuracies are on the training images that choose the epoch, "
        "not on those that judge.",
        columns=[
            Column("Round", numeric=False),
            Column("Saliency kept", "%"),
            Column("Top-1 after the cut", "%"),
            Column("Top-1 after the tuning", "%"),
        ],
        rows=rows,
    )


def _percent_cell(share: float | None, places: int) -> Cell:
    return Cell(percent(share, places), value=None if share is None else 100 * share)


# --- widths --------------------------------------------------------------------------------------


def _inner(widths: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """By block: the channels inside of it, without those of the residual stream."""
    return {name: tuple(w[:-1]) for name, w in widths.items() if name != "stem"}


def width_table(run: RunResult, profile: ProfileResult | None = None) -> Table | None:
    """Channels of each block before and after, with its times if the run was profiled."""
    result = _pruned(run)
    if result is None:
        return None
    before, after = _inner(result.before), _inner(result.after)
    pair = _profiled(profile, result)
    times = [_block_times(engine) for engine in pair] if pair else [{}, {}]
    caption = "Channels inside of the blocks, before and after."
    if pair:
        caption += f" Times are of {pair[0].name} and {pair[1].name}, batch {pair[0].batch}."
    table = Table(
        id="widths",
        caption=caption,
        columns=[
            Column("Block", numeric=False),
            Column("Channels before"),
            Column("Channels after"),
            Column("Time before", "ms", optional=True),
            Column("Time after", "ms", optional=True),
        ],
        rows=[Row(_width_cells(name, before[name], after.get(name), times)) for name in before],
    )
    return table.without_empty_columns()


def _width_cells(
    name: str,
    before: Sequence[int],
    after: Sequence[int] | None,
    times: Sequence[Mapping[str, float]],
) -> list[Cell]:
    left = Cell("dropped", badge="muted") if after is None else Cell(_widths(after))
    timed = [Cell(significant(t.get(name)), value=t.get(name)) for t in times]
    return [Cell(name, code=True), Cell(_widths(before)), left, *timed]


def _widths(widths: Sequence[int]) -> str:
    return " · ".join(map(str, widths)) or DASH


def _profiled(
    profile: ProfileResult | None, result: PruneResult
) -> tuple[EngineProfile, EngineProfile] | None:
    """The profiles of an engine before and after, of the pruning's precision if there are several."""
    engines = {e.name: e for e in profile.engines if e.status == "ok"} if profile else {}
    pairs = [
        (engines[name.removeprefix(_PREFIX)], engine)
        for name, engine in engines.items()
        if name.startswith(_PREFIX) and name.removeprefix(_PREFIX) in engines
    ]
    wanted = (result.engine, result.precision)
    return min(pairs, key=lambda pair: (pair[0].backend, pair[0].precision) != wanted, default=None)


def _block_times(engine: EngineProfile) -> dict[str, float]:
    times: dict[str, float] = {}
    for part in engine.blocks:
        if part.block is not None:
            times[part.block] = times.get(part.block, 0.0) + part.time_ms
    return times


@dataclass(frozen=True)
class LayerBar:
    """One layer inside of a block: ends of the bars before and after, in percent of the width."""

    before: float
    after: float
    y: float
    """Top of the bar, pixels."""


@dataclass(frozen=True)
class WidthRow:
    """One block."""

    name: str
    bars: Sequence[LayerBar]
    text: str
    title: str
    dropped: bool
    height: int


@dataclass(frozen=True)
class WidthChart:
    """Widths by block on one scale."""

    axis: Axis
    rows: Sequence[WidthRow]


_BAR = 9
"""Height of a layer's bar with its gap, pixels."""


def width_chart(run: RunResult) -> WidthChart | None:
    """A bar for each layer inside of a block; ``None`` if nothing was pruned."""
    result = _pruned(run)
    if result is None:
        return None
    before, after = _inner(result.before), _inner(result.after)
    axis = Axis.over(0, max(n for widths in before.values() for n in widths))
    rows = []
    for name, widths in before.items():
        left = after.get(name)
        kept = left or (0,) * len(widths)
        text = "dropped" if left is None else f"{_widths(widths)} → {_widths(left)}"
        bars = [
            LayerBar(axis.at(wide), axis.at(narrow), 4 + _BAR * index)
            for index, (wide, narrow) in enumerate(zip(widths, kept, strict=True))
        ]
        title = f"{name}: {f'{_widths(widths)}, dropped' if left is None else text}"
        rows.append(WidthRow(name, bars, text, title, left is None, 7 + _BAR * len(widths)))
    return WidthChart(axis, rows)
