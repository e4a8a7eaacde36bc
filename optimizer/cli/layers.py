"""The command ``profile``: layer by layer, block by block, against the machine's ceilings."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from optimizer.cli import options as opt

if TYPE_CHECKING:
    from rich.table import Table

    from optimizer.results import EngineProfile, ProfileResult, TimedPart

__all__ = ["profile"]

_WIDE = 140


def profile(
    engines: Annotated[list[Path], typer.Argument(help="Engines or checkpoints.")],
    batch: Annotated[int, typer.Option(min=1, help="Images a call.")] = 1,
    image_size: opt.ImageSize = None,
    threads: opt.Threads = None,
    duration: Annotated[str, typer.Option(help="Time an engine.")] = "5s",
    device: Annotated[
        str | None, typer.Option(help="Which device, cuda:1; default: the engine's first.")
    ] = None,
    ceilings: Annotated[
        bool, typer.Option(help="Hold CPU engines against this machine's measured ceilings.")
    ] = True,
    remeasure: Annotated[
        bool, typer.Option("--remeasure", help="Measure the ceilings although they are known.")
    ] = False,
    layers: Annotated[bool, typer.Option("--layers", help="Print every layer.")] = False,
    seed: Annotated[int, typer.Option(help="Decides the order within the rounds.")] = 0,
    output: Annotated[Path, typer.Option("-o", "--output", help="Where the result goes.")] = Path(
        "profile.json"
    ),
    as_json: opt.Json = False,
) -> None:
    """See where the time goes: every layer and residual block, and how far from the roofline.

    Example: resnet-opt profile model.blob model.safetensors --batch 1 -o profile.json
    """
    from optimizer import verbs
    from optimizer.artifacts import check_output
    from optimizer.cli.console import progress
    from optimizer.errors import BuildError, UsageError
    from optimizer.results import write_result
    from optimizer.units import parse_duration

    if remeasure and not ceilings:
        raise UsageError("--remeasure measures the ceilings that --no-ceilings leaves out")
    check_output(output, engines)
    with progress() as bars:
        result = verbs.profile(
            engines,
            batch=batch,
            image_size=image_size,
            threads=threads,
            duration_s=parse_duration(duration),
            device=device,
            roofs=ceilings,
            remeasure=remeasure,
            seed=seed,
            progress=bars,
        )
    write_result(result, output)
    if as_json:
        typer.echo(result.model_dump_json(indent=2))
    else:
        _print(result, every_layer=layers)
        typer.echo(f"details in {output}")
    if failed := [f"{one.name} {one.error}" for one in result.engines if one.status == "failed"]:
        raise BuildError("; ".join(failed))


def _print(result: ProfileResult, *, every_layer: bool) -> None:
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        console.width = max(console.width, _WIDE)  # a file has no width that lines must fit
    for engine in result.engines:
        if engine.status != "ok":
            typer.echo(f"{engine.name}: {engine.status}: {engine.error}")
            continue
        console.print(_table(engine, engine.layers if every_layer else engine.blocks))
        for line in _below(engine):
            typer.echo(f"  {line}")
    for line in _ceilings(result):
        typer.echo(line)


def _table(engine: EngineProfile, parts: list[TimedPart]) -> Table:
    from rich.table import Table

    title = f"{engine.name}, batch {engine.batch}, {engine.threads} threads"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for number, column in enumerate(
        ("", "computes in", "ms", "95 % interval", "share", "GFLOP/s", "of ceiling", "bound by")
    ):
        table.add_column(column, justify="left" if number < 2 else "right", no_wrap=number > 0)
    for part in parts:
        low_high, rate, reached = part.time_ci95_ms, part.flops_per_s, part.ceiling_share
        table.add_row(
            part.name,
            part.precision,
            f"{part.time_ms:.3f}",
            f"{low_high[0]:.3f} … {low_high[1]:.3f}" if low_high else "–",
            f"{part.share:.1%}",
            f"{rate / 1e9:.1f}" if rate else "–",
            f"{reached:.0%} of {part.ceiling}" if reached is not None else "–",
            part.bound or "–",
        )
    return table


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
