"""Benchmarks: engines in, ``bench.json`` out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from optimizer.engines.placement import PYTORCH_ON_CPU, placed, runs_on
from optimizer.environment import fingerprint
from optimizer.errors import EnvironmentFault, UsageError
from optimizer.options import BenchOptions, SpeedOptions, takes_options
from optimizer.profiling.asked import (
    EngineFacts,
    check_options,
    describe_engines,
    grid,
    with_baseline,
)
from optimizer.profiling.conditions import joined
from optimizer.profiling.curves import curve, setting_of
from optimizer.profiling.figures import compared, figures
from optimizer.profiling.grouping import in_groups
from optimizer.profiling.harness import Cell, Limits, Measured
from optimizer.profiling.raw import save_raw
from optimizer.profiling.scenarios import check_scenarios, run_scenarios
from optimizer.profiling.starts import check_starts, measure_starts
from optimizer.profiling.verdict import failures, verdict_of
from optimizer.progress import Progress, Silent
from optimizer.results import (
    BenchResult,
    Comparison,
    Conditions,
    EngineBench,
    LatencyBound,
    Setting,
)
from optimizer.targets.hardware import cpu_features

__all__ = ["HEADLINE", "bench"]

HEADLINE = (
    "compute: one call at a time, from the batch in the engine's own memory to outputs that are "
    "ready there; preprocessing and copies are not in it"
)
AGAIN = " (again)"
SERVER_BOUND_MS = 15.0
"""What MLPerf's rules bound the 99th percentile of ResNet-50 in server mode by."""
_FEW = 2
"""Batches that are no sweep yet."""


@takes_options(BenchOptions)
def bench(
    engines: Sequence[Path],
    options: BenchOptions,
    *,
    control: bool = True,
    raw_dir: Path | None = None,
    call_timeout_s: float = 60.0,
    progress: Progress | None = None,
) -> BenchResult:
    """Measure engines side by side and compare each with a baseline.

    Engines are compared at each batch with the first of ``threads`` and of ``streams``; all other
    settings go into ``curves``. PyTorch runs where the engines run, if it can; see
    `optimizer.engines.placement.placed`. The rounds of an engine exceed ``duration`` if a call is so
    slow that `optimizer.profiling.harness.MIN_ROUNDS` rounds do not fit. In LoadGen's server
    scenario ``max_latency`` bounds p99, `SERVER_BOUND_MS` does without it.

    Args:
        engines: Engine files, or checkpoints (PyTorch eager).
        options: What is measured, how long, and what it is compared with.
        control: Measure the baseline a second time as if it were another engine (at the first
            batch size).
        raw_dir: Where the raw samples go, one NPZ file an engine and batch size.
        call_timeout_s: A call that takes longer hangs, and its engine has failed.
        progress: Where steps are reported, between measurements.

    Raises:
        UsageError: An engine, a batch outside an engine's range, or an option is wrong.
        EnvironmentFault: None of the engines can run on this machine, or LoadGen is not installed.
    """
    batches, streams, starts = options.batch, options.streams, options.starts
    image_size, device, seed = options.image_size, options.device, options.seed
    duration_s, min_effect, against = options.duration, options.min_effect, options.against
    threads = options.threads or (cpu_features().physical_cores,)
    max_latency = latency_bound(options)
    check_starts(starts)
    check_options(
        batches=batches,
        threads=threads,
        streams=streams,
        duration_s=duration_s,
        min_effect=min_effect,
        call_timeout_s=call_timeout_s,
    )
    asked_scenarios = check_scenarios(options.scenario)
    paths = with_baseline(engines, against)
    facts = describe_engines(paths, batches)
    devices = placed(paths, device)
    settings = grid(facts, batches, threads, streams)
    compared_at = settings[: len(batches)]
    baseline = facts[0] if against is None else facts[paths.index(against)]
    cells = [_cell(f, f.name, s, image_size, devices) for s in settings for f in facts]
    again = baseline.name + AGAIN
    if control:
        cells.append(_cell(baseline, again, settings[0], image_size, devices))
    limits = Limits(duration_s=duration_s, call_timeout_s=call_timeout_s)
    progress = progress or Silent()
    found, conditions = _measure(cells, limits, starts, seed, progress)
    _check_measured(list(found.values()))

    def compare(name: str, at: Setting, control: Comparison | None) -> Comparison | None:
        a, b = found[_key(baseline.name, at)], found[_key(name, at)]
        return compared(a, b, min_effect=min_effect, control=control, seed=seed)

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
        {f.name: f.path for f in alive},
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
    gate = against is not None
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
            "duration_s": duration_s,
            "min_effect": min_effect,
            "baseline": baseline.name,
            "gate": against is not None,
            "seed": seed,
            "call_timeout_s": call_timeout_s,
            "block_s": limits.block_s,
        },
        verdict=verdict,
        reason=reason,
    )


def latency_bound(options: SpeedOptions) -> LatencyBound | None:
    """The limit under which the best setting is looked for; ``None`` without one."""
    if options.max_latency is None:
        return None
    return LatencyBound(
        percentile=options.latency_percentile, max_latency_ms=1e3 * options.max_latency
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

_Key = tuple[str, int, int, int]
_Found = dict[_Key, Measured]


def _key(name: str, at: Setting) -> _Key:
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
    )


def _measure(
    cells: list[Cell], limits: Limits, starts: int, seed: int, progress: Progress
) -> tuple[_Found, Conditions]:
    groups = in_groups(cells)
    sessions = [
        measure_starts(group, limits, starts=starts, seed=seed, progress=progress)
        for group in groups
    ]
    before = 0
    for session in sessions:
        for cell in session.cells:
            cell.first_round = before
        before += session.rounds
    found = {_key(m.cell.name, setting_of(m)): m for s in sessions for m in s.cells}
    conditions = joined([(s.conditions, s.rounds) for s in sessions])
    if len(groups) > 1:
        conditions.notes.append(
            "there is too little memory for all workers at once: settings were measured one after "
            "the other, and what the machine did meanwhile is in the differences between them"
        )
    return found, conditions


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
