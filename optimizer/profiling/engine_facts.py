"""Facts about engines from their manifests, and checks of the request before any is opened."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from optimizer.artifacts import Manifest, find_manifest, read_manifest
from optimizer.engines.batching import compiled_profiles
from optimizer.engines.opening import how_to_build, is_foreign_graph
from optimizer.errors import UsageError
from optimizer.models.model_sources import is_checkpoint
from optimizer.processes import cpu_quota
from optimizer.results import Setting
from optimizer.targets.hardware import cpu_features

__all__ = [
    "EngineFacts",
    "check_options",
    "describe_engines",
    "grid",
    "pytorch_baseline",
    "pytorch_variant",
    "with_baseline",
]

_MAX_DURATION_S = 24 * 3600.0


@dataclass(frozen=True, kw_only=True)
class EngineFacts:
    """Facts about an engine from its manifest.

    Attributes:
        name: File name, preceded by folders if two engines have the same file name.
        image_size: Image size it was built for; ``None`` if the manifest does not state it.
        batches: Smallest and largest batch of each range it was built for; empty if unlimited.
        variant: How to run a checkpoint (`optimizer.engines.torch.VARIANTS`); ``None`` for eager
            FP32.
    """

    path: Path
    name: str
    backend: str
    precision: str
    image_size: int | None = None
    batches: tuple[tuple[int, int], ...] = ()
    build_s: float | None = None
    variant: str | None = None


def pytorch_variant(against: Path | None) -> str | None:
    """The PyTorch variant that a baseline names (``torch-fp16``); ``None`` for a file."""
    if against is None or against.exists() or not str(against).startswith("torch-"):
        return None
    return str(against)


def pytorch_baseline(facts: Sequence[EngineFacts], variant: str) -> EngineFacts:
    """The baseline that runs the checkpoint among the engines as a PyTorch variant.

    Raises:
        UsageError: The variant does not exist, or none of the engines is a checkpoint.
    """
    from optimizer.engines.torch import VARIANTS

    if variant not in VARIANTS:
        raise UsageError(
            f"unknown baseline {variant!r}", hint=f"use a file or one of {', '.join(VARIANTS)}"
        )
    checkpoint = next((fact for fact in facts if fact.backend == "torch"), None)
    if checkpoint is None:
        raise UsageError(
            f"{variant} needs a checkpoint among the engines",
            hint="add the checkpoint: resnet-opt bench model.safetensors ENGINE…",
        )
    return replace(
        checkpoint,
        name=f"{checkpoint.name} ({VARIANTS[variant].title})",
        precision=VARIANTS[variant].precision,
        variant=variant,
    )


def with_baseline(engines: Sequence[Path], against: Path | None) -> list[Path]:
    """The engines including the baseline.

    Raises:
        UsageError: There is no engine, or one is given twice.
    """
    paths = [*engines]
    if against is not None and against not in paths:
        paths.insert(0, against)
    if not paths:
        raise UsageError("no engine to measure", hint="resnet-opt bench ENGINE…")
    if len(set(paths)) < len(paths):
        raise UsageError(
            "an engine is given twice", hint="the A/A control already measures the baseline twice"
        )
    return paths


def check_options(
    *,
    batches: Sequence[int],
    threads: Sequence[int],
    streams: Sequence[int],
    duration_s: float,
    min_effect: float,
    call_timeout_s: float,
) -> None:
    """Check option values.

    Raises:
        UsageError: An option is out of range.
    """
    for name, numbers in (("batches", batches), ("threads", threads), ("streams", streams)):
        if not numbers or min(numbers) < 1 or len(set(numbers)) < len(numbers):
            raise UsageError(f"{name} must be different positive numbers, not {list(numbers)}")
    cores, quota = cpu_features().physical_cores, cpu_quota()
    if max(threads) > cores:
        within = "" if quota is None else f" within the CPU quota of {quota:g}"
        raise UsageError(
            f"{max(threads)} threads exceed the {cores} physical cores{within}",
            hint=f"--threads 1 to {cores}",
        )
    for name, seconds in (("duration", duration_s), ("call timeout", call_timeout_s)):
        if not 0.0 < seconds <= _MAX_DURATION_S:  # false for NaN too
            raise UsageError(f"the {name} must be between 0 s and 24 h, not {seconds} s")
    if not 0.0 < min_effect < 1.0:
        raise UsageError(f"the smallest effect must be between 0 and 100 %, not {min_effect:.0%}")


def grid(
    facts: Sequence[EngineFacts],
    batches: Sequence[int],
    threads: Sequence[int],
    streams: Sequence[int],
) -> list[Setting]:
    """The settings to measure, in the order of the lists.

    Settings with more streams than threads are left out, because streams would wait for each other;
    GPU engines do not compute with CPU threads and have no such limit.

    Raises:
        UsageError: A number of streams exceeds every number of threads.
    """
    on_cpu = any(not f.backend.startswith("tensorrt") for f in facts)
    if on_cpu and max(streams) > max(threads):
        raise UsageError(
            f"{max(streams)} streams need at least {max(streams)} threads, not {max(threads)}",
            hint=f"--streams 1 to {max(threads)}",
        )
    return [
        Setting(batch=b, threads=t, streams=s)
        for t in threads
        for s in streams
        for b in batches
        if s <= t or not on_cpu
    ]


def describe_engines(paths: Sequence[Path], batches: Sequence[int]) -> list[EngineFacts]:
    """Read the manifests of all engines.

    Raises:
        ArtifactError: A manifest is missing or damaged.
        UsageError: A file is missing, is not an engine, or was not built for one of the batches.
    """
    facts = [_describe(path, name) for path, name in zip(paths, _names(paths), strict=True)]
    for fact in facts:
        _check_batches(fact, batches)
    return facts


def _names(paths: Sequence[Path]) -> list[str]:
    absolute = [p.absolute() for p in paths]
    for depth in range(1, max(len(p.parts) for p in absolute) + 1):
        names = ["/".join(p.parts[-depth:]) for p in absolute]
        if len(set(names)) == len(names):
            return names
    raise UsageError("an engine is given twice, by different paths")


def _describe(path: Path, name: str) -> EngineFacts:
    manifest: Manifest | None = None
    if not path.is_file():
        raise UsageError(f"no such file: {path}", hint="check the path")
    if is_foreign_graph(path):
        raise UsageError(f"{path.name} is a graph, not an engine", hint=how_to_build(path))
    if not is_checkpoint(path) or find_manifest(path) is not None:
        manifest = read_manifest(path)
    if manifest is None or (manifest.kind != "engine" and is_checkpoint(path)):
        crop = ((manifest.preprocessing if manifest else None) or {}).get("crop")
        return EngineFacts(path=path, name=name, backend="torch", precision="fp32", image_size=crop)
    if manifest.kind != "engine":
        raise UsageError(
            f"{path.name} is a {manifest.kind}, not an engine",
            hint=how_to_build(path),
        )
    settings, details = manifest.settings, manifest.details
    precision = str(settings.get("precision"))
    if (settings.get("options") or {}).get("storage_only"):
        precision = f"{precision} storage, fp32 compute"
    return EngineFacts(
        path=path,
        name=name,
        backend=str(settings.get("backend")),
        precision=precision,
        image_size=details.get("image_size") or (manifest.preprocessing or {}).get("crop"),
        batches=tuple((low, high) for low, _, high in compiled_profiles(settings)),
        build_s=details.get("build_s"),
    )


def _check_batches(fact: EngineFacts, batches: Sequence[int]) -> None:
    for batch in batches:
        if fact.batches and not any(low <= batch <= high for low, high in fact.batches):
            built = " and ".join(
                f"batch {low}" if low == high else f"batches {low} to {high}"
                for low, high in fact.batches
            )
            raise UsageError(
                f"{fact.name} was built for {built}, not {batch}",
                hint="omit that batch, or build with a dynamic batch or another --profile",
            )
