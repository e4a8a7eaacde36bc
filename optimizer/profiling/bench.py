"""Benchmarks: engines in, ``bench.json`` out."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from optimizer.engines.placement import PYTORCH_ON_CPU, placed, runs_on
from optimizer.environment import fingerprint
from optimizer.errors import EnvironmentFault, UsageError
from optimizer.profiling.asked import (
    EngineFacts,
    check_options,
    describe_engines,
    grid,
    pytorch_baseline,
    with_baseline,
)
from optimizer.profiling.curves import curve
from optimizer.profiling.figures import compared, figures
from optimizer.profiling.grouping import (
    Grouped,
    Key,
    check_max_workers,
    in_groups,
    put_together,
)
from optimizer.profiling.harness import Cell, Limits, Measured
from optimizer.profiling.raw import save_raw
from optimizer.profiling.scenarios import check_scenarios, run_scenarios
from optimizer.profiling.starts import check_starts, measure_starts
from optimizer.profiling.verdict import failures, verdict_of
from optimizer.progress import Progress, Silent
from optimizer.results import (
    BenchResult,
    Comparison,
    EngineBench,
    LatencyBound,
    Setting,
)
from optimizer.targets.hardware import cpu_features

__all__ = ["HEADLINE", "Extras", "bench"]

HEADLINE = (
    "compute: one call at a time, from the batch in the engine's own memory to outputs that are "
    "ready there; preprocessing and copies are not in it"
)
AGAIN = " (again)"
SERVER_BOUND_MS = 15.0
"""What MLPerf's rules bound the 99th percentile of ResNet-50 in server mode by."""
_FEW = 2
"""Batches that are no sweep yet."""


@dataclass(frozen=True, kw_only=True)
class Extras:
    """What a bench may be asked for besides.

    Attributes:
        pytorch: A way to run the checkpoint among the engines, as the baseline: ``torch-fp16`` or
            ``torch-compile``.
        max_workers: Engines in memory at the same time, at most; ``None`` for as many as fit.
    """

    pytorch: str | None = None
    max_workers: int | None = None


def bench(
    engines: Sequence[Path],
    *,
    batches: Sequence[int] = (1,),
    image_size: int | None = None,
    threads: int | Sequence[int] | None = None,
    device: str | None = None,
    streams: Sequence[int] = (1,),
    starts: int = 1,
    max_latency: LatencyBound | None = None,
    scenarios: Sequence[str] = (),
    duration_s: float = 10.0,
    min_effect: float = 0.02,
    against: Path | None = None,
    control: bool = True,
    seed: int = 0,
    raw_dir: Path | None = None,
    call_timeout_s: float = 60.0,
    extras: Extras | None = None,
    progress: Progress | None = None,
) -> BenchResult:
    """Measure engines side by side and compare each with a baseline.

    Engines are compared at each batch with the first of ``threads`` and of ``streams``; what else
    was asked for goes into ``curves``.

    Args:
        engines: Engine files, or checkpoints (PyTorch eager).
        batches: Batch sizes; every engine is measured at each of them.
        image_size: Side of the images in pixels; ``None`` for the engines' own.
        threads: Threads an engine; ``None`` for all physical cores.
        device: The GPU, ``cuda:1``, of those engines that run on one; ``None`` for the first.
            PyTorch runs where they run, if it can; see `optimizer.engines.placement.placed`.
        streams: Calls of an engine at the same time, which share its threads.
        starts: How often every engine is started, an equal part of the time each: 1, or 3 and more.
            With several, intervals hold what one start differs from another.
        max_latency: A bound under which the best setting is looked for; in LoadGen's server
            scenario the bound on p99, `SERVER_BOUND_MS` without it.
        scenarios: LoadGen's scenarios to run on every engine that was measured.
        duration_s: Time of the rounds of one engine at one batch size; exceeded if a call is so
            slow that `optimizer.profiling.harness.MIN_ROUNDS` rounds do not fit.
        min_effect: Smallest difference in speed of interest, 0.02 for 2 %.
        against: The baseline; ``None`` for the first of ``engines``. If it is given, an engine
            that is slower makes the verdict ``fail``.
        control: Measure the baseline a second time as if it were another engine (at the first
            batch size).
        seed: Decides images, order of the rounds and resampling.
        raw_dir: Where the raw samples go, one NPZ file an engine and batch size.
        call_timeout_s: A call that takes longer hangs, and its engine has failed.
        extras: What else is asked for.
        progress: Told of the steps, between measurements.

    Raises:
        UsageError: An engine, a batch outside an engine's range, or an option is wrong.
        EnvironmentFault: None of the engines can run on this machine, or LoadGen is not installed.
    """
    if threads is None:
        threads = cpu_features().physical_cores
    threads = [threads] if isinstance(threads, int) else threads
    check_starts(starts)
    check_options(
        batches=batches,
        image_size=image_size,
        threads=threads,
        streams=streams,
        bound=max_latency,
        duration_s=duration_s,
        min_effect=min_effect,
        call_timeout_s=call_timeout_s,
    )
    asked_scenarios = check_scenarios(scenarios)
    paths = with_baseline(engines, against)
    facts = describe_engines(paths, batches)
    devices = placed(paths, device)
    settings = grid(facts, batches, threads, streams)
    compared_at = settings[: len(batches)]
    extras = extras or Extras()
    baseline = facts[0] if against is None else facts[paths.index(against)]
    if extras.pytorch is not None:
        baseline = pytorch_baseline(facts, extras.pytorch)
        facts = [baseline, *facts]
    cells = [_cell(f, f.name, s, image_size, devices) for s in settings for f in facts]
    again = baseline.name + AGAIN
    if control:
        cells.append(_cell(baseline, again, settings[0], image_size, devices))
    limits = Limits(duration_s=duration_s, call_timeout_s=call_timeout_s)
    progress = progress or Silent()
    check_max_workers(extras.max_workers, cells, {baseline.name, again})
    groups = in_groups(cells, shared={baseline.name, again}, most=extras.max_workers)
    grouped = _measure(groups, baseline.name, limits, starts, seed, progress)
    found, conditions = grouped.found, grouped.conditions
    _check_measured(list(found.values()))

    def compare(name: str, at: Setting, control: Comparison | None) -> Comparison | None:
        judged = [
            compared(a, b, min_effect=min_effect, control=control, seed=seed)
            for a, b in grouped.pairs[_key(name, at)]
        ]
        known = [one for one in judged if one is not None]
        # Only the control is in several groups: the one that differs most guards all comparisons.
        return max(known, key=lambda one: abs(math.log(one.ratio)), default=None)

    a_a = compare(again, settings[0], None) if control else None
    others = [f.name for f in facts if f is not baseline]
    # With several starts each interval holds what they differ by, and needs no floor.
    guard = a_a if starts == 1 else None
    ratios = [c for s in compared_at for n in others if (c := compare(n, s, guard)) is not None]
    conditions.notes += _control_notes(found.get(_key(again, settings[0])), a_a)
    conditions.notes += _placement_notes(facts, devices)
    is_swept = len(settings) > len(batches)
    raw = {key: save_raw(m, raw_dir, swept=is_swept) for key, m in found.items()}

    def listed(at: Sequence[Setting]) -> list[EngineBench]:
        keys = [(f, _key(f.name, s)) for s in at for f in facts]
        return [figures(f, found[key], seed, raw[key]) for f, key in keys]

    headline, swept = listed(compared_at), listed(settings[len(compared_at) :])
    curves = []
    if max_latency is not None or is_swept or len(batches) > _FEW:
        keys = {f.name: [_key(f.name, s) for s in settings] for f in facts}
        curves = [
            curve(name, [(found[k], raw[k]) for k in own], max_latency, seed=seed)
            for name, own in keys.items()
        ]
    alive = [f for f in facts if found[_key(f.name, settings[0])].status == "ok"]
    loaded = run_scenarios(
        {f.name: f.path for f in alive if f.variant is None},
        asked_scenarios,
        duration_s=duration_s,
        threads=settings[0].threads,
        batch=max(batches),
        image_size=image_size,
        devices=devices,
        max_latency_ms=max_latency.max_latency_ms if max_latency else SERVER_BOUND_MS,
        seed=seed,
        progress=progress,
    )
    gate = against is not None or extras.pytorch is not None
    measured = [*headline, *swept]
    second = found.get(_key(again, settings[0]))
    crashed = second is not None and second.status == "failed"
    failed = failures(measured, loaded, second.error if second is not None and crashed else None)
    missing = _not_compared(headline, baseline.name)
    verdict, reason = verdict_of(measured, ratios, guard, failed, gate=gate, missing=missing)
    return BenchResult(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        device=fingerprint(),
        headline=_headline(settings[0].streams),
        engines=headline,
        curves=curves,
        scenarios=loaded,
        comparisons=ratios,
        a_a_control=a_a,
        failed=failed,
        conditions=conditions,
        settings={
            "batches": list(batches),
            "image_size": image_size,
            "threads": settings[0].threads,
            "streams": settings[0].streams,
            "swept_threads": list(threads),
            "swept_streams": list(streams),
            **({"device": device} if device is not None else {}),
            "starts": starts,
            "max_workers": extras.max_workers,
            "workers": grouped.groups,
            "duration_s": duration_s,
            "min_effect": min_effect,
            "baseline": baseline.name,
            "gate": gate,
            "seed": seed,
            "call_timeout_s": call_timeout_s,
            "block_s": limits.block_s,
        },
        verdict=verdict,
        reason=reason,
    )


def _not_compared(measured: Sequence[EngineBench], baseline: str) -> list[str]:
    """Engines, or the baseline, that could not be measured, each with the reason."""
    return [
        f"{one.name} at batch {one.batch}{' (the baseline)' if one.name == baseline else ''}: "
        f"{one.error}"
        for one in measured
        if one.status in {"unavailable", "built-not-run"}
    ]


def _headline(streams: int) -> str:
    if streams == 1:
        return HEADLINE
    return (
        f"{HEADLINE.replace('one call at a time', f'{streams} calls at a time')}; images and "
        "batches a second are by the clock, copies included"
    )


# --- measuring -----------------------------------------------------------------------------------


def _key(name: str, at: Setting) -> Key:
    return name, at.batch, at.threads, at.streams


def _cell(
    fact: EngineFacts,
    name: str,
    at: Setting,
    image_size: int | None,
    devices: Mapping[Path, str | None],
) -> Cell:
    return Cell(
        name=name,
        engine=fact.path,
        batch=at.batch,
        image_size=image_size or fact.image_size,
        threads=at.threads,
        device=devices[fact.path],
        streams=at.streams,
        variant=fact.variant,
    )


def _measure(
    groups: Sequence[Sequence[Cell]],
    baseline: str,
    limits: Limits,
    starts: int,
    seed: int,
    progress: Progress,
) -> Grouped:
    # A provider that compiles when an engine is opened does it once, and not in every worker.
    with tempfile.TemporaryDirectory(prefix="resnet-opt-bench.") as cache:
        sessions = [
            measure_starts(
                [replace(cell, cache=Path(cache)) for cell in group],
                limits,
                starts=starts,
                seed=seed,
                progress=progress,
            )
            for group in groups
        ]
    return put_together(sessions, baseline)


def _check_measured(found: Sequence[Measured]) -> None:
    sizes = {m.image_size: m.cell.name for m in found if m.image_size is not None}
    if len(sizes) > 1:
        words = " and ".join(f"{name} {size} px" for size, name in sizes.items())
        raise UsageError(
            f"engines for different image sizes cannot be compared: {words}",
            mend="build them for one size, or measure them apart",
        )
    absent = [m for m in found if m.status in {"unavailable", "built-not-run"}]
    if len(absent) == len(found):
        raise EnvironmentFault(f"no engine can run here: {absent[0].error}")


# --- remarks ------------------------------------------------------------------------------------


def _control_notes(measured: Measured | None, control: Comparison | None) -> list[str]:
    if measured is not None and control is None:
        return [f"there is no control: {measured.error or 'the baseline was not measured'}"]
    if control is not None and control.verdict in {"faster", "slower"}:
        note = (
            f"the control raised an alarm: {control.a}, started again, ran at {control.ratio:.3f} "
            "times its own speed; no difference below that is called one"
        )
        return [note]
    return []


def _placement_notes(facts: Sequence[EngineFacts], devices: Mapping[Path, str | None]) -> list[str]:
    """That PyTorch stayed on the CPU beside engines of a GPU."""
    on = {fact.backend: runs_on(fact.path, devices[fact.path]) for fact in facts}
    beside_gpu = any((where or "").startswith("cuda") for where in on.values())
    return [PYTORCH_ON_CPU] if beside_gpu and on.get("torch") == "cpu" else []
