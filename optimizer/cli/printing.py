"""What the commands print: artifacts, results and this machine, for people or as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from rich.table import Table as RichTable

    from optimizer.artifacts import Artifact
    from optimizer.environment import Environment
    from optimizer.evaluation.decoders import Difference
    from optimizer.precision.int8.halves import ScaleDifference
    from optimizer.results import (
        BenchResult,
        EngineProfile,
        ProfileResult,
        RunResult,
        SearchResult,
        ValidateResult,
    )
    from optimizer.tables import Table

__all__ = [
    "difference_words",
    "halves_lines",
    "preprocessing_note",
    "print_environment",
    "print_made",
    "print_measured",
    "print_profile",
    "print_run",
    "print_validated",
    "search_lines",
]

_WIDE = 140


def print_made(
    made: Artifact,
    as_json: bool,
    *lines: str | None,
    details: dict[str, Any] | None = None,
) -> None:
    """Print an artifact: its size and remarks, or with ``as_json`` its manifest and ``details``."""
    if as_json:
        raw = made.manifest.model_dump(mode="json")
        raw["details"] |= details or {}
        print(json.dumps({**raw, "path": str(made.path), "cached": made.cached}, indent=2))
        return
    size = made.path.stat().st_size
    unit, divisor = ("MB", 1e6) if size >= 1e5 else ("kB", 1e3)
    cached = ", nothing to do: it was made before, here or in the cache" if made.cached else ""
    print(f"{made.path}  {size / divisor:.1f} {unit}{cached}")
    for line in lines:
        if line:
            print(f"  {line}")


def preprocessing_note(made: Artifact, model: str) -> str:
    """What was assumed of weights that came without their preprocessing."""
    from optimizer.artifacts import find_manifest

    size = (made.manifest.preprocessing or {}).get("crop")
    weights = Path(model)
    bare = weights.is_file() and find_manifest(weights) is None
    return (
        "preprocessing was assumed, since the weights came without it: ImageNet's mean and std, "
        f"{size} px; a wrong one costs accuracy"
        + (f"; state another in {model}.card.json" if bare else "")
    )


def halves_lines(halves: Sequence[ScaleDifference]) -> list[str]:
    """How far scales move between two halves of the calibration images."""
    if not halves:
        return []
    middle = median(one.mse for one in halves)
    return [
        f"between two halves of the images, scales move by {middle:.1%} (median), most of all",
        *(
            f"  {one.tensor}: {one.mse:.1%} by squared error, {one.minmax:.1%} by min-max"
            for one in halves[:5]
        ),
    ]


def search_lines(search: SearchResult | None) -> list[str]:
    """What a search found."""
    if search is None:
        return []
    judged = [search.validation.finding] if search.validation is not None else []
    return [search.finding, *judged]


def difference_words(one: Difference) -> str:
    """How another decoder's pixels differ."""
    if not one.differing:
        return "the same pixels"
    flips = "" if one.flips is None else f"; {one.flips} predictions change"
    return (
        f"{one.differing} images differ, by {one.mean:.3f} of 255 levels on average and "
        f"{one.largest} at most; most of all {one.worst}{flips}"
    )


def print_run(result: RunResult, folder: Path, as_json: bool) -> None:
    """Print what a run came to."""
    if as_json:
        print(result.model_dump_json(indent=2))
        return
    from rich.console import Console

    from optimizer.reporting import render_console

    out = Console()
    if not out.is_terminal:
        out = Console(width=120)  # a log has no width of its own; 80 would cut the table
    out.print(render_console(result))
    print(f"report   {folder / 'report.html'}")


def print_validated(result: ValidateResult, output: Path, as_json: bool) -> None:
    """Print a validation: one row per hop, the finding, the verdict."""
    if as_json:
        print(result.model_dump_json(indent=2))
        return
    from optimizer.results.result_tables import validated_table

    _print(validated_table(result))
    if left_out := result.dataset.skipped:
        more = f" and {len(left_out) - 3} more" if len(left_out) > 3 else ""
        print(f"{len(left_out)} unreadable images left out: {', '.join(left_out[:3])}{more}")
    print(result.finding)
    print(f"{result.verdict}; details in {output}")


def print_measured(result: BenchResult, output: Path, as_json: bool) -> None:
    """Print a benchmark: one row per engine and batch, curves, scenarios, the verdict."""
    if as_json:
        print(result.model_dump_json(indent=2))
        return
    from optimizer.profiling.curves import summaries
    from optimizer.reporting.curve_charts import marks_of
    from optimizer.results import SCENARIO_LABEL
    from optimizer.results.result_tables import curve_table, measured_table, scenario_table

    _print(measured_table(result))
    for curve in result.curves:
        print(f"\n{curve.engine}: throughput by the clock, latency of a call with its copies")
        marks = [", ".join(marks_of(curve, point)) for point in curve.points]
        _print(curve_table(curve, marks))
        for sentence in summaries(curve):
            print(f"- {sentence}")
    if result.scenarios:
        print(f"\n{SCENARIO_LABEL}")
        _print(scenario_table(result))
    for found in result.scenarios:
        for note in found.notes:
            print(f"- {found.engine} {found.scenario}: {note}")
    for note in result.conditions.notes:
        print(f"note: {note}")
    print(f"{result.verdict}: {result.reason}; details in {output}")


def _print(table: Table) -> None:
    from rich.console import Console

    Console().print(_rich(table))


def _rich(table: Table, *, left: int = 1, titled: bool = False) -> RichTable:
    """A table for the terminal; ``left`` columns are aligned left."""
    from rich.table import Table as RichTable

    shown = RichTable(
        title=table.caption if titled else None,
        title_justify="left",
        box=None,
        pad_edge=False,
        header_style="bold",
    )
    for number, column in enumerate(table.columns):
        justify: Literal["left", "right"] = "left" if number < left else "right"
        shown.add_column(column, justify=justify, no_wrap=titled and number > 0)
    for row in table.rows:
        shown.add_row(*row)
    return shown


def print_profile(result: ProfileResult, *, every_layer: bool) -> None:
    """Print layer times: a table per engine, and the ceilings."""
    from rich.console import Console

    from optimizer.results.result_tables import profile_table

    console = Console()
    if not console.is_terminal:
        console.width = max(console.width, _WIDE)  # a file has no width that lines must fit
    for engine in result.engines:
        if engine.status != "ok":
            print(f"{engine.name}: {engine.status}: {engine.error}")
            continue
        parts = engine.layers if every_layer else engine.blocks
        console.print(_rich(profile_table(engine, parts), left=2, titled=True))
        for line in _below(engine):
            print(f"  {line}")
    for line in _ceilings(result):
        print(line)


def _below(engine: EngineProfile) -> Iterator[str]:
    """What the layers leave of the whole call."""
    assert engine.whole_ms is not None
    assert engine.layers_ms is not None
    assert engine.outside_ms is not None
    yield (
        f"layers {engine.layers_ms:.3f} ms, whole call without profiling {engine.whole_ms:.3f} ms"
    )
    yield (
        f"not in any layer, less what profiling costs: {engine.outside_ms:+.3f} ms "
        f"({engine.outside_ms / engine.whole_ms:+.1%} of the call)"
    )
    yield from engine.notes


def _ceilings(result: ProfileResult) -> Iterator[str]:
    if result.ceilings_note:
        yield result.ceilings_note
    found = result.ceilings
    if found is None:
        return
    rates = {
        **{
            kind: (one, "GOP/s" if kind == "int8" else "GFLOP/s")
            for kind, one in found.compute.items()
        },
        "memory": (found.memory, "GB/s"),
        "cache": (found.cache, "GB/s"),
    }
    for kind, (one, unit) in rates.items():
        yield f"ceiling {kind}: {one.rate / 1e9:.1f} {unit} ({one.how})"
    yield from found.notes


def print_environment(found: Environment) -> None:
    """Print what this machine can do."""
    cpu = found.cpu
    print(f"CPU      {cpu.model}, {cpu.physical_cores} cores, {', '.join(cpu.flags) or 'no AVX2'}")
    if "VNNI" not in cpu.flags:
        print("         no VNNI: INT8 gains less here, and weights must leave room in 16-bit sums")
    print(f"memory   {found.memory_bytes / 2**30:.1f} GiB")
    print(f"system   {found.os}, Python {found.python}")
    for gpu in found.gpus:
        facts = [gpu.name]
        if gpu.compute_capability is not None:
            facts.append(f"sm{gpu.compute_capability.replace('.', '')}")
        if gpu.memory_bytes is not None:
            facts.append(f"{gpu.memory_bytes / 2**30:.1f} GiB")
        print(f"GPU {gpu.index}    {', '.join(facts)}")
    if not found.gpus:
        print("GPU      none")
    if found.gpu_software is not None:
        for line in found.gpu_software.lines():
            print(f"         {line}")
    print("\nlibraries")
    for name, version in found.libraries.items():
        print(f"  {name:<18} {version or '-'}")
    print("\nengines")
    for name, status in found.backends.items():
        verdict = "ready" if status.can_run else "builds only" if status.can_build else "missing"
        print(f"  {name:<14} {verdict:<12} {status.reason}")
        if status.hint and not status.can_run:
            print(f"  {'':<14} {'':<12} -> {status.hint}")
    print("\nproviders of onnxruntime (build --engine onnxruntime --provider NAME)")
    for name, provider in found.providers.items():
        verdict = "ready" if provider.usable else "missing"
        print(f"  {name:<15} {verdict:<11} {provider.reason}")
        if provider.needs:
            print(f"  {'':<27} it needs {' '.join(provider.needs)}")
        if provider.hint:
            print(f"  {'':<27} -> {provider.hint}")
