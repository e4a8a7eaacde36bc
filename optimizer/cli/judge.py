"""Commands that judge and use engines: validate, bench, predict, inspect, compare, report."""

from __future__ import annotations

import enum
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from optimizer.cli import options as opt

if TYPE_CHECKING:
    from optimizer.results import BenchResult, ValidateResult

__all__ = ["bench", "compare", "inspect", "predict", "report", "validate"]


class Percentile(enum.StrEnum):
    """Percentiles that a latency can be bounded by."""

    p50 = "p50"
    p90 = "p90"
    p95 = "p95"
    p99 = "p99"


Engines = Annotated[list[Path], typer.Argument(help="Engines or checkpoints.")]
Judged = Annotated[list[Path], typer.Argument(help="Engines, graphs or checkpoints.")]


def validate(
    engines: Judged,
    reference: Annotated[
        str, typer.Option(help="The model, or your own FP32 ONNX file, to hold them against.")
    ],
    data: opt.Data,
    max_drop: Annotated[str, typer.Option(help="Largest loss of top-1, in points.")] = "1pp",
    max_flips: Annotated[
        str | None, typer.Option(help="Largest share of images whose class changes.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Take a stratified subset of this many images.")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Images at a time.")] = 32,
    layers: Annotated[bool, typer.Option("--layers", help="Also look block by block.")] = False,
    arch: opt.Arch = None,
    image_size: opt.ImageSize = None,
    device: opt.Device = None,
    skip_bad_images: opt.SkipBadImages = False,
    workers: opt.Workers = None,
    output: Annotated[Path, typer.Option("-o", "--output", help="Where the result goes.")] = Path(
        "validate.json"
    ),
    as_json: opt.Json = False,
) -> None:
    """Prove the accuracy hop by hop: PyTorch, ONNX, the graph as written, the engine.

    Example: resnet-opt validate model.blob --reference model.safetensors --data digits:test
    """
    from optimizer import verbs
    from optimizer.artifacts import check_output
    from optimizer.cli.console import progress
    from optimizer.evaluation import raise_for_verdict
    from optimizer.results import write_result
    from optimizer.units import parse_pp, parse_share

    check_output(output, [*engines, reference, data])
    with progress() as bars:
        result = verbs.validate(
            engines,
            reference=reference,
            data=data,
            max_drop_pp=parse_pp(max_drop),
            max_flips=parse_share(max_flips) if max_flips else None,
            limit=limit,
            batch=batch,
            layers=layers,
            arch=arch,
            image_size=image_size,
            device=device,
            skip_bad_images=skip_bad_images,
            workers=workers,
            predictions=output.with_suffix(".predictions.npz"),
            progress=bars,
        )
    if int(os.environ.get("RANK", "0")) != 0:  # torchrun: every process has the same result
        return
    write_result(result, output)
    _print_validated(result, output, as_json)
    raise_for_verdict(result)


def bench(
    engines: Engines,
    batch: Annotated[str, typer.Option(help="Batch sizes, 1,8.")] = "1",
    image_size: opt.ImageSize = None,
    threads: Annotated[
        str | None, typer.Option(help="Threads an engine, 1,2; default: all cores.")
    ] = None,
    device: opt.Device = None,
    streams: Annotated[
        str, typer.Option(help="Calls of an engine at the same time, 1,2; they share its threads.")
    ] = "1",
    starts: Annotated[
        int,
        typer.Option(
            min=1, help="Start every engine so often: intervals hold what starts differ by; 5."
        ),
    ] = 1,
    max_latency: Annotated[
        str | None,
        typer.Option(help="Find the setting with the highest throughput within it, 15ms."),
    ] = None,
    latency_percentile: Annotated[
        Percentile, typer.Option(help="The percentile that --max-latency bounds.")
    ] = Percentile.p99,
    scenario: Annotated[
        str | None,
        typer.Option(help="LoadGen scenarios too: single-stream,multi-stream,server,offline."),
    ] = None,
    duration: Annotated[str, typer.Option(help="Time an engine and setting.")] = "10s",
    min_effect: Annotated[str, typer.Option(help="Smallest difference of interest.")] = "2%",
    against: Annotated[
        Path | None,
        typer.Option(help="Baseline, measured in the same rounds; slower than it fails (exit 5)."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Decides the order of the rounds.")] = 0,
    output: Annotated[Path, typer.Option("-o", "--output", help="Where the result goes.")] = Path(
        "bench.json"
    ),
    as_json: opt.Json = False,
) -> None:
    """Measure latency and throughput: a process an engine, rounds in random order, intervals.

    Several batches, threads or streams are a sweep of every combination, with the knee of each
    curve. Engines are compared at the first number of threads and of streams. LoadGen's server
    scenario looks for the highest rate whose p99 holds --max-latency (15ms without it).

    Example: resnet-opt bench model.blob --against model.safetensors --batch 1,8 --duration 10s

    Example: resnet-opt bench model.blob --batch 1,2,4,8,16,32 --streams 1,2 --max-latency 15ms
    """
    from optimizer import verbs
    from optimizer.artifacts import check_output
    from optimizer.cli.console import progress
    from optimizer.errors import BuildError, Inconclusive, PerformanceRegression
    from optimizer.results import LatencyBound, write_result
    from optimizer.units import parse_duration, parse_share

    bound = None
    if max_latency is not None:
        milliseconds = 1e3 * parse_duration(max_latency)
        bound = LatencyBound(percentile=latency_percentile.value, max_latency_ms=milliseconds)
    check_output(output, [*engines, against])
    with progress() as bars:
        result = verbs.bench(
            engines,
            batch=opt.numbers(batch, "the batch sizes"),
            image_size=image_size,
            threads=opt.numbers(threads, "the threads") if threads else None,
            device=device,
            streams=opt.numbers(streams, "the streams"),
            starts=starts,
            max_latency=bound,
            scenario=opt.words(scenario),
            duration_s=parse_duration(duration),
            min_effect=parse_share(min_effect),
            against=against,
            seed=seed,
            raw_dir=output.parent / f"{output.stem}.raw",
            progress=bars,
        )
    write_result(result, output)
    _print_measured(result, output, as_json)
    if result.verdict == "fail":
        # Whatever crashed (an engine, a setting of a sweep, a scenario, the control) is no regression.
        raise (BuildError if result.failed else PerformanceRegression)(result.reason)
    if result.verdict == "inconclusive":
        raise Inconclusive(result.reason)


def predict(
    engine: Annotated[Path, typer.Argument(help="An engine or a checkpoint.")],
    images: Annotated[list[Path], typer.Argument(help="Image files, or folders of them.")],
    top: Annotated[int, typer.Option(min=1, help="Classes to print.")] = 5,
    device: opt.Device = None,
    as_json: opt.Json = False,
) -> None:
    """Classify images: the best classes with their probabilities.

    Example: resnet-opt predict model.blob cat.jpg dog.png
    """
    from optimizer.evaluation.prediction import predict as room

    rows = room(engine, images, top=top, device=device)
    if as_json:
        typer.echo(json.dumps([row.model_dump(mode="json") for row in rows], indent=2))
        return
    for row in rows:
        typer.echo(row.image)
        for name, share in zip(row.classes, row.probabilities, strict=True):
            typer.echo(f"  {share:7.2%}  {name}")


def inspect(
    artifact: Annotated[
        Path, typer.Argument(help="Any artifact with a manifest, or an ONNX file.")
    ],
    diff: Annotated[Path | None, typer.Option(help="Another one to hold against it.")] = None,
    layers: Annotated[bool, typer.Option("--layers", help="Print every layer.")] = False,
    min_share: Annotated[
        str, typer.Option(help="Share of the FLOPs that must be in the asked precision.")
    ] = "95%",
    as_json: opt.Json = False,
) -> None:
    """Show what an artifact is, what an engine computes, and whether that was asked.

    Example: resnet-opt inspect model.blob --layers

    Example: resnet-opt inspect fp16.rtx --diff int8.rtx

    Of two engines, --diff tells by PyTorch layer where precision, tactic,
    fusion, share of the FLOPs and size differ.
    """
    from optimizer.cli.inspection import describe, difference
    from optimizer.errors import PrecisionAuditFailed
    from optimizer.units import parse_share

    share = parse_share(min_share)
    shown = describe(artifact, min_share=share)
    if diff is not None:
        other = describe(diff, min_share=share)
        typer.echo(difference(shown, other, as_json=as_json))
        return
    typer.echo(shown.as_json() if as_json else shown.as_text(every_layer=layers))
    if shown.audit is not None and shown.audit.verdict == "fail":
        raise PrecisionAuditFailed(f"{artifact.name}: {shown.audit.reason}")


def compare(
    old: Annotated[Path, typer.Argument(help="bench.json, validate.json or results.json.")],
    new: Annotated[Path, typer.Argument(help="The same of another run.")],
    max_slowdown: Annotated[str, typer.Option(help="Largest slowdown.")] = "3%",
    max_drop: Annotated[str, typer.Option(help="Largest loss of top-1, in points.")] = "1pp",
    anyway: Annotated[
        bool, typer.Option("--anyway", help="Compare speeds of different machines too.")
    ] = False,
    as_json: opt.Json = False,
) -> None:
    """Hold two results against each other: a gate for CI.

    Example: resnet-opt compare main/bench.json branch/bench.json --max-slowdown 3%
    """
    from optimizer.cli.comparison import compare_results
    from optimizer.units import parse_pp, parse_share

    outcome = compare_results(
        old,
        new,
        max_slowdown=parse_share(max_slowdown),
        max_drop_pp=parse_pp(max_drop),
        anyway=anyway,
    )
    typer.echo(outcome.as_json() if as_json else outcome.as_text())
    error = outcome.error()
    if error is not None:
        raise error


def report(
    run_dirs: Annotated[list[Path], typer.Argument(help="Folders of run or demo.")],
    output: opt.Output,
    profile: Annotated[
        Path | None,
        typer.Option(help="Where the time goes; default: profile.json in each folder."),
    ] = None,
) -> None:
    """Write the report of one run, or of several side by side.

    Example: resnet-opt report runs/demo -o report.html
    """
    from optimizer.reporting import write_report

    write_report(run_dirs, output, profile=profile)
    typer.echo(str(output))


# --- printing ------------------------------------------------------------------------------------


def _print_validated(result: ValidateResult, output: Path, as_json: bool) -> None:
    if as_json:
        typer.echo(result.model_dump_json(indent=2))
        return
    from optimizer.cli.tables import validated_table

    _print(validated_table(result))
    if left_out := result.dataset.skipped:
        more = f" and {len(left_out) - 3} more" if len(left_out) > 3 else ""
        typer.echo(f"{len(left_out)} unreadable images left out: {', '.join(left_out[:3])}{more}")
    typer.echo(result.finding)
    typer.echo(f"{result.verdict}; details in {output}")


def _print_measured(result: BenchResult, output: Path, as_json: bool) -> None:
    if as_json:
        typer.echo(result.model_dump_json(indent=2))
        return
    from optimizer.cli.tables import curve_table, measured_table, scenario_table
    from optimizer.profiling.curves import summaries
    from optimizer.results import SCENARIO_LABEL

    _print(measured_table(result))
    for curve in result.curves:
        typer.echo(f"\n{curve.engine}: throughput by the clock, latency of a call with its copies")
        _print(curve_table(curve))
        for sentence in summaries(curve):
            typer.echo(f"- {sentence}")
    if result.scenarios:
        typer.echo(f"\n{SCENARIO_LABEL}")
        _print(scenario_table(result))
    for found in result.scenarios:
        for note in found.notes:
            typer.echo(f"- {found.engine} {found.scenario}: {note}")
    for note in result.conditions.notes:
        typer.echo(f"note: {note}")
    typer.echo(f"{result.verdict}: {result.reason}; details in {output}")


def _print(renderable: Any) -> None:
    from rich.console import Console

    Console().print(renderable)
