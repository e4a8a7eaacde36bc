"""What the commands print: artifacts, results and the environment, as text or JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Literal

from optimizer.cli.console import say
from optimizer.tables import visible

if TYPE_CHECKING:
    from rich.table import Table as RichTable

    from optimizer.artifacts import Artifact
    from optimizer.environment import Environment
    from optimizer.evaluation.decoders import Difference
    from optimizer.precision.int8.halves import ScaleDifference
    from optimizer.results import (
        BenchResult,
        DetectionPrediction,
        EngineProfile,
        Prediction,
        ProfileResult,
        PruneResult,
        RunResult,
        SearchResult,
        ValidateResult,
    )
    from optimizer.tables import Table
    from optimizer.verbs.machine import Cleaned
    from optimizer.verbs.outcomes import ExportResult

__all__ = [
    "describe_difference",
    "export_lines",
    "halves_lines",
    "prediction_lines",
    "print_artifact",
    "print_bench",
    "print_cache",
    "print_environment",
    "print_profile",
    "print_pruning",
    "print_run",
    "print_table",
    "print_validation",
    "search_lines",
]

_WIDE = 140


def print_artifact(
    artifact: Artifact,
    as_json: bool,
    *lines: str | None,
    details: dict[str, Any] | None = None,
) -> None:
    """Print an artifact's size and notes, or with ``as_json`` its manifest and ``details``."""
    if as_json:
        raw = artifact.manifest.model_dump(mode="json")
        raw["details"] |= details or {}
        print(json.dumps({**raw, "path": str(artifact.path), "cached": artifact.cached}, indent=2))
        return
    size = artifact.path.stat().st_size
    unit, divisor = ("MB", 1e6) if size >= 1e5 else ("kB", 1e3)
    cached = ", already up to date or taken from the cache" if artifact.cached else ""
    say(f"{artifact.path}  {size / divisor:.1f} {unit}{cached}")
    for line in lines:
        if line:
            say(f"  {line}")


def export_lines(result: ExportResult, model: str) -> list[str]:
    """How far an exported graph is from its source, and what was assumed or left out."""
    lines: list[str] = []
    if result.max_relative_difference is not None:
        lines.append(
            f"differs from {result.compared_with} by at most {result.max_relative_difference:.1e} "
            "of the largest logit"
        )
    elif result.compared_with == "PyTorch":
        lines.append("the head is unchanged; decoding and suppression follow it")
    details = result.manifest.details
    lines += details.get("notes", ())
    if result.preprocessing_assumed:
        lines.append(_assumed_preprocessing(result, model))
    elif result.manifest.preprocessing is None:
        lines.append(
            "its preprocessing is not stated: build, quantize and validate need --mean, --std, --resize "
            f"and --crop, or a card ({result.path.name}.card.json)"
        )
    return lines


def _assumed_preprocessing(artifact: Artifact, model: str) -> str:
    """The preprocessing that was assumed for weights that do not state it."""
    from optimizer.artifacts import find_manifest

    stated = artifact.manifest.preprocessing or {}
    mean, std = (", ".join(f"{v:.3g}" for v in stated.get(key, ())) for key in ("mean", "std"))
    weights = Path(model)
    bare = weights.is_file() and find_manifest(weights) is None
    return (
        "preprocessing was assumed, because the weights do not state it: "
        f"{stated.get('color')}, mean {mean}, std {std}, {stated.get('crop')} px; "
        "if it is wrong, accuracy is lost"
        + (f"; state the right one in {model}.card.json" if bare else "")
    )


def halves_lines(halves: Sequence[ScaleDifference]) -> list[str]:
    """How far scales differ between two halves of the calibration images."""
    if not halves:
        return []
    middle = median(moved.mse for moved in halves)
    return [
        f"scales differ by {middle:.1%} (median) between two halves of the images; largest:",
        *(
            f"  {moved.tensor}: {moved.mse:.1%} by squared error, {moved.minmax:.1%} by min-max"
            for moved in halves[:5]
        ),
    ]


def search_lines(search: SearchResult | None) -> list[str]:
    """The findings of a search and of its validation."""
    if search is None:
        return []
    validation = [search.validation.finding] if search.validation is not None else []
    return [search.finding, *validation]


def describe_difference(difference: Difference) -> str:
    """How another pipeline's pixels differ."""
    if not difference.differing:
        return "the same pixels"
    flips = "" if difference.flips is None else f"; {difference.flips} predictions change"
    return (
        f"{difference.differing} images differ, by {difference.mean:.3f} of 255 levels on average "
        f"and by at most {difference.largest} (in {difference.worst}){flips}"
    )


def print_run(result: RunResult, folder: Path, as_json: bool) -> None:
    """Print the result of a run."""
    if as_json:
        print(result.model_dump_json(indent=2))
        return
    from rich.console import Console

    from optimizer.reporting import render_console

    console = Console()
    if not console.is_terminal:
        console = Console(width=120)  # rich's default of 80 for files would truncate the table
    console.print(render_console(result))
    say(f"report   {folder / 'report.html'}")


def prediction_lines(row: Prediction | DetectionPrediction) -> list[str]:
    """One line per class or detection, best first."""
    from optimizer.results import Prediction

    if isinstance(row, Prediction):
        pairs = zip(row.classes, row.probabilities, strict=True)
        return [f"{probability:7.2%}  {name}" for name, probability in pairs]
    lines = [
        f"{found.score:7.2%}  {found.name}  "
        + "({:.0f}, {:.0f}) to ({:.0f}, {:.0f})".format(*found.box)
        for found in row.objects
    ]
    if row.annotated is not None:
        lines.append(f"drawn in {row.annotated}")
    return lines or ["nothing found"]


def print_validation(result: ValidateResult, output: Path, as_json: bool) -> None:
    """Print a validation: one row per hop, the finding, the verdict."""
    if as_json:
        print(result.model_dump_json(indent=2))
        return
    _print(result.as_table())
    if left_out := result.dataset.skipped:
        more = f" and {len(left_out) - 3} more" if len(left_out) > 3 else ""
        say(f"{len(left_out)} unreadable images left out: {', '.join(left_out[:3])}{more}")
    if result.early_stop is not None:
        say(f"looked at {result.dataset.n:,} of {result.early_stop.available:,} images")
    say(result.finding)
    say(f"{result.verdict}; details in {output}")


def print_bench(result: BenchResult, output: Path, as_json: bool) -> None:
    """Print a benchmark: one row per engine and batch, curves, scenarios, the verdict."""
    if as_json:
        print(result.model_dump_json(indent=2))
        return
    from optimizer.profiling.curves import curve_findings
    from optimizer.reporting.curve_charts import marks_of
    from optimizer.results import SCENARIO_LABEL

    _print(result.as_table())
    for curve in result.curves:
        say(f"\n{curve.engine}: wall-clock throughput; latency includes copies")
        marks = [", ".join(marks_of(curve, point)) for point in curve.points]
        _print(curve.table(marks))
        for sentence in curve_findings(curve):
            say(f"- {sentence}")
    if result.scenarios:
        say(f"\n{SCENARIO_LABEL}")
        _print(result.scenario_table())
    for scenario in result.scenarios:
        for note in scenario.notes:
            say(f"- {scenario.engine} {scenario.scenario}: {note}")
    for note in result.conditions.notes:
        say(f"note: {note}")
    say(f"{result.verdict}: {result.reason}; details in {output}")


def print_pruning(result: PruneResult, output: Path, as_json: bool) -> None:
    """Print what was cut, and how the validation against the network before ended."""
    if as_json:
        print(result.model_dump_json(indent=2))
        return
    print_table(result.as_table())
    for number, one in enumerate(result.rounds, start=1):
        tuned = "" if one.top1_tuned is None else f", {one.top1_tuned:.2%} after tuning"
        say(
            f"round {number}: {one.kept_saliency:.1%} of the saliency stays, top-1 {one.top1_cut:.2%} "
            f"after the cut{tuned} (on a tenth of the training images)"
        )
    for note in result.notes:
        say(f"note: {note}")
    if result.table_source == "model":
        say(f"note: latency was {result.table_reason}")
    if result.validation is not None:
        print_table(result.validation.as_table())
    say(f"{output}: {result.summary}")


def print_table(table: Table) -> None:
    """Print a table as wide as the terminal."""
    _print(table)


def _print(table: Table) -> None:
    from rich.console import Console

    Console().print(_rich(table))


def _rich(table: Table, *, left: int = 1, titled: bool = False) -> RichTable:
    """A table for the terminal; ``left`` columns are aligned left."""
    from rich.table import Table as RichTable
    from rich.text import Text

    rich_table = RichTable(
        title=Text(visible(table.caption)) if titled and table.caption else None,
        title_justify="left",
        box=None,
        pad_edge=False,
        header_style="bold",
    )
    for number, column in enumerate(table.columns):
        justify: Literal["left", "right"] = "left" if number < left else "right"
        rich_table.add_column(column, justify=justify, no_wrap=titled and number > 0)
    for row in table.rows:
        rich_table.add_row(*(Text(visible(cell)) for cell in row))  # text, not markup
    return rich_table


def print_profile(result: ProfileResult, *, every_layer: bool) -> None:
    """Print layer times, one table per engine, and the ceilings."""
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        console.width = max(console.width, _WIDE)  # lines in a file need not fit a terminal
    for engine in result.engines:
        if engine.status != "ok":
            say(f"{engine.name}: {engine.status}: {engine.error}")
            continue
        parts = engine.layers if every_layer else engine.blocks
        console.print(_rich(engine.table(parts), left=2, titled=True))
        for line in _summary(engine):
            say(f"  {line}")
    for line in _ceilings(result):
        say(line)


def _summary(engine: EngineProfile) -> Iterator[str]:
    """The layers' sum compared with the whole call."""
    assert engine.whole_ms is not None
    assert engine.layers_ms is not None
    assert engine.outside_ms is not None
    yield (
        f"layers {engine.layers_ms:.3f} ms, whole call without profiling {engine.whole_ms:.3f} ms"
    )
    yield (
        f"not in any layer, minus the cost of profiling: {engine.outside_ms:+.3f} ms "
        f"({engine.outside_ms / engine.whole_ms:+.1%} of the call)"
    )
    yield from engine.notes


def _ceilings(result: ProfileResult) -> Iterator[str]:
    if result.ceilings_note:
        yield result.ceilings_note
    ceilings = result.ceilings
    if ceilings is None:
        return
    rates = {
        **{
            kind: (ceiling, "GOP/s" if kind == "int8" else "GFLOP/s")
            for kind, ceiling in ceilings.compute.items()
        },
        "memory": (ceilings.memory, "GB/s"),
        "cache": (ceilings.cache, "GB/s"),
    }
    for kind, (ceiling, unit) in rates.items():
        yield f"ceiling {kind}: {ceiling.rate / 1e9:.1f} {unit} ({ceiling.how})"
    yield from ceilings.notes


def print_cache(contents: Cleaned) -> None:
    """Print the artifacts in the cache, and what in its folder is not the cache's."""
    for file, kind, size in contents.artifacts:
        print(f"{size / 1e6:10.1f} MB  {kind:<11} {file}")
    for path in contents.foreign:
        print(f"kept, because resnet-opt did not make it: {path}")


def print_environment(environment: Environment) -> None:
    """Print what this machine can build and run."""
    cpu = environment.cpu
    say(f"CPU      {cpu.model}, {cpu.physical_cores} cores, {', '.join(cpu.flags) or 'no AVX2'}")
    if "VNNI" not in cpu.flags:
        say("         no VNNI: INT8 gains less, and weights are limited to avoid 16-bit saturation")
    say(f"memory   {environment.memory_bytes / 2**30:.1f} GiB")
    say(f"system   {environment.os}, Python {environment.python}")
    for gpu in environment.gpus:
        facts = [gpu.name]
        if gpu.compute_capability is not None:
            facts.append(f"sm{gpu.compute_capability.replace('.', '')}")
        if gpu.memory_bytes is not None:
            facts.append(f"{gpu.memory_bytes / 2**30:.1f} GiB")
        say(f"GPU {gpu.index}    {', '.join(facts)}")
    if not environment.gpus:
        say("GPU      none")
    if environment.gpu_software is not None:
        for line in environment.gpu_software.lines():
            say(f"         {line}")
    say("\nlibraries")
    for name, version in environment.libraries.items():
        say(f"  {name:<18} {version or '-'}")
    for conflict in environment.version_conflicts:
        say(f"  conflict: {conflict}")
    if environment.version_hint is not None:
        say(f"  -> {environment.version_hint}")
    say("\nengines")
    for name, status in environment.backends.items():
        verdict = "ready" if status.can_run else "builds only" if status.can_build else "missing"
        say(f"  {name:<14} {verdict:<12} {status.reason}")
        if status.hint and not status.can_run:
            say(f"  {'':<14} {'':<12} -> {status.hint}")
    say("\nproviders of onnxruntime (build --engine onnxruntime --provider NAME)")
    for name, provider in environment.providers.items():
        verdict = "ready" if provider.usable else "missing"
        say(f"  {name:<15} {verdict:<11} {provider.reason}")
        if provider.needs:
            say(f"  {'':<27} needs {' '.join(provider.needs)}")
        if provider.hint:
            say(f"  {'':<27} -> {provider.hint}")
