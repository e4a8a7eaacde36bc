"""Commands about the machine: doctor, clean."""

from __future__ import annotations

import typer

from optimizer.cli import options as opt

__all__ = ["clean", "doctor"]


def doctor(as_json: opt.Json = False) -> None:
    """Tell what this machine can build and run, and the command that would enable the rest.

    Example: resnet-opt doctor
    """
    from optimizer.environment import describe

    found = describe()
    if as_json:
        typer.echo(found.model_dump_json(indent=2))
        return
    cpu = found.cpu
    typer.echo(
        f"CPU      {cpu.model}, {cpu.physical_cores} cores, {', '.join(cpu.flags) or 'no AVX2'}"
    )
    if "VNNI" not in cpu.flags:
        typer.echo(
            "         no VNNI: INT8 gains less here, and weights must leave room in 16-bit sums"
        )
    typer.echo(f"memory   {found.memory_bytes / 2**30:.1f} GiB")
    typer.echo(f"system   {found.os}, Python {found.python}")
    for gpu in found.gpus:
        facts = [gpu.name]
        if gpu.compute_capability is not None:
            facts.append(f"sm{gpu.compute_capability.replace('.', '')}")
        if gpu.memory_bytes is not None:
            facts.append(f"{gpu.memory_bytes / 2**30:.1f} GiB")
        typer.echo(f"GPU {gpu.index}    {', '.join(facts)}")
    if not found.gpus:
        typer.echo("GPU      none")
    typer.echo("\nlibraries")
    for name, version in found.libraries.items():
        typer.echo(f"  {name:<18} {version or '-'}")
    typer.echo("\nengines")
    for name, status in found.backends.items():
        verdict = "ready" if status.can_run else "builds only" if status.can_build else "missing"
        typer.echo(f"  {name:<14} {verdict:<12} {status.reason}")
        if status.mend and not status.can_run:
            typer.echo(f"  {'':<14} {'':<12} -> {status.mend}")
    typer.echo("\nproviders of onnxruntime (build --engine onnxruntime --provider NAME)")
    for name, provider in found.providers.items():
        verdict = "ready" if provider.usable else "missing"
        typer.echo(f"  {name:<15} {verdict:<11} {provider.reason}")
        if provider.needs:
            typer.echo(f"  {'':<27} it needs {' '.join(provider.needs)}")
        if provider.mend:
            typer.echo(f"  {'':<27} -> {provider.mend}")


def clean() -> None:
    """Remove the cache of artifacts. What you named with -o stays.

    Example: resnet-opt clean
    """
    from optimizer.artifacts import Cache

    cache = Cache.default()
    count = len(cache.entries())
    freed = cache.clear()
    typer.echo(f"{count} artifacts, {freed / 1e6:.1f} MB removed from {cache.root}")
