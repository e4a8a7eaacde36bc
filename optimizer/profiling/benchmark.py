"""Benchmarks: engines in, ``bench.json`` out."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from optimizer.engines.placement import PYTORCH_ON_CPU, assign_devices, runs_on
from optimizer.environment import fingerprint
from optimizer.errors import EnvironmentFault, UsageError
from optimizer.options import BenchOptions, SpeedOptions, takes_options
from optimizer.profiling.curves import curve
from optimizer.profiling.engine_facts import (
    EngineFacts,
    check_options,
    describe_engines,
    grid,
    pytorch_baseline,
    pytorch_variant,
    with_baseline,
)
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
from optimizer.profiling.request import Request
from optimizer.profiling.scenarios import check_scenarios, run_scenarios
from optimizer.profiling.starts import check_starts, measure_starts
from optimizer.profiling.verdict import failures, verdict_of
from optimizer.progress import Progress, Silent
from optimizer.results import (
    BenchResult,
    Comparison,
    Curve,
    EngineBench,
    LatencyBound,
    ScenarioName,
    ScenarioResult,
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
    `optimizer.engines.placement.assign_devices`. The rounds of an engine exceed ``duration`` if a call is so
    slow that `optimizer.profiling.harness.MIN_ROUNDS` rounds do not fit. In LoadGen's server
    scenario ``max_latency`` bounds p99; without it, `SERVER_BOUND_MS` does.

    Args:
        engines: Engine files, or checkpoints (PyTorch eager).
        options: What is measured, how long, and what it is compared with.
        control: Measure the baseline a second time as if it were another engine (at the first
            batch size).
        raw_dir: Where the raw samples go, one NPZ file per engine and batch size.
        call_timeout_s: A call that takes longer hangs, and its engine has failed.
        progress: Where steps are reported, between measurements.

    Raises:
        UsageError: An engine, a batch outside an engine's range, or an option is wrong.
        EnvironmentFault: None of the engines can run on this machine, or LoadGen is not installed.
    """
    progress = progress or Silent()
    plan = _planned(engines, options, control, call_timeout_s)
    grouped = _measure(plan, progress)
    _check_measured(list(grouped.found.values()))
    results = _Results(plan, grouped, raw_dir)
    loaded = _scenarios(plan, grouped, progress)
    failed = failures(results.measured, loaded, results.control_error)
    verdict, reason = verdict_of(
        results.measured,
        results.comparisons,
        results.guard,
        failed,
        gate=plan.is_gate,
        missing=_not_compared(results.headline, plan.baseline.name),
    )
    conditions = grouped.conditions
    conditions.notes += _control_notes(results.again, results.a_a)
    conditions.notes += _placement_notes(plan.facts, plan.devices)
    return BenchResult(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        device=fingerprint(),
        headline=_headline(plan.settings[0].streams),
        engines=results.headline,
        curves=results.curves(),
        scenarios=loaded,
        comparisons=results.comparisons,
        a_a_control=results.a_a,
        failed=failed,
        conditions=conditions,
        settings=_recorded(plan, grouped),
        verdict=verdict,
        reason=reason,
    )


# --- what is measured ----------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """One benchmark, before anything is measured.

    Attributes:
        options: As they were given, with the threads filled in.
        facts: The engines, the baseline among them.
        baseline: What the others are compared with.
        devices: Where each engine runs.
        settings: Batch, threads and streams; those that are compared come first.
        cells: Every engine at every setting, and the control.
        scenarios: LoadGen's, by name.
        limits: Of each cell.
    """

    options: BenchOptions
    facts: list[EngineFacts]
    baseline: EngineFacts
    devices: Mapping[Path, str | None]
    settings: list[Setting]
    cells: list[Cell]
    scenarios: list[ScenarioName]
    limits: Limits

    @property
    def again(self) -> str:
        """Name of the control."""
        return self.baseline.name + AGAIN

    @property
    def is_gate(self) -> bool:
        """Whether an engine slower than the baseline fails."""
        return self.options.against is not None

    @property
    def compared_at(self) -> list[Setting]:
        """The settings at which engines are compared with the baseline."""
        return self.settings[: len(self.options.batch)]


def _planned(
    engines: Sequence[Path], options: BenchOptions, control: bool, call_timeout_s: float
) -> _Plan:
    """Look at everything that was requested before anything is opened."""
    threads = options.threads or (cpu_features().physical_cores,)
    options = options.model_copy(update={"threads": threads})
    check_starts(options.starts)
    check_options(
        batches=options.batch,
        threads=threads,
        streams=options.streams,
        duration_s=options.duration,
        min_effect=options.min_effect,
        call_timeout_s=call_timeout_s,
    )
    scenarios = check_scenarios(options.scenario)
    variant = pytorch_variant(options.against)
    against = None if variant is not None else options.against
    paths = with_baseline(engines, against)
    facts = describe_engines(paths, options.batch)
    baseline = facts[0] if against is None else facts[paths.index(against)]
    if variant is not None:
        baseline = pytorch_baseline(facts, variant)
        facts = [baseline, *facts]
    devices = assign_devices(paths, options.device)
    settings = grid(facts, options.batch, threads, options.streams)
    size = options.image_size
    cells = [_cell(f, f.name, s, size, devices) for s in settings for f in facts]
    again = baseline.name + AGAIN
    if control:
        cells.append(_cell(baseline, again, settings[0], size, devices))
    check_max_workers(options.max_workers, cells, {baseline.name, again})
    return _Plan(
        options=options,
        facts=facts,
        baseline=baseline,
        devices=devices,
        settings=settings,
        cells=cells,
        scenarios=scenarios,
        limits=Limits(duration_s=options.duration, call_timeout_s=call_timeout_s),
    )


def _recorded(plan: _Plan, grouped: Grouped) -> dict[str, Any]:
    """The settings as they go into the result."""
    options = plan.options
    return {
        "batches": list(options.batch),
        "image_size": options.image_size,
        "threads": plan.settings[0].threads,
        "streams": plan.settings[0].streams,
        "swept_threads": list(options.threads or ()),
        "swept_streams": list(options.streams),
        **({"device": options.device} if options.device is not None else {}),
        "starts": options.starts,
        "max_workers": options.max_workers,
        "workers": grouped.groups,
        "duration_s": options.duration,
        "min_effect": options.min_effect,
        "baseline": plan.baseline.name,
        "gate": plan.is_gate,
        "seed": options.seed,
        "call_timeout_s": plan.limits.call_timeout_s,
        "block_s": plan.limits.block_s,
    }


# --- what came out -------------------------------------------------------------------------------


class _Results:
    """Figures and comparisons of what was measured.

    Attributes:
        a_a: The control compared with the baseline.
        guard: What a difference must exceed to be called one; with several starts each interval
            holds what they differ by, and needs none.
        comparisons: Every other engine with the baseline.
        headline: Figures at the settings that are compared.
        measured: Figures at all settings.
    """

    def __init__(self, plan: _Plan, grouped: Grouped, raw_dir: Path | None) -> None:
        self._plan, self._grouped = plan, grouped
        first = plan.settings[0]
        self.again = grouped.found.get(_key(plan.again, first))
        self.a_a = None if self.again is None else self._compare(plan.again, first, None)
        self.guard = self.a_a if plan.options.starts == 1 else None
        others = [fact.name for fact in plan.facts if fact is not plan.baseline]
        compared_to = [self._compare(n, s, self.guard) for s in plan.compared_at for n in others]
        self.comparisons = [one for one in compared_to if one is not None]
        self._is_swept = len(plan.settings) > len(plan.compared_at)
        self._raw = {
            key: save_raw(one, raw_dir, swept=self._is_swept) for key, one in grouped.found.items()
        }
        self.headline = self._figures(plan.compared_at)
        self.measured = [
            *self.headline, *self._figures(plan.settings[len(plan.compared_at) :])
        ]  # fmt: skip

    @property
    def control_error(self) -> str | None:
        """Why the control failed; ``None`` if it did not."""
        failed = self.again is not None and self.again.status == "failed"
        return self.again.error if failed and self.again is not None else None

    def _compare(self, name: str, at: Setting, control: Comparison | None) -> Comparison | None:
        options = self._plan.options
        judged = [
            compared(a, b, min_effect=options.min_effect, control=control, seed=options.seed)
            for a, b in self._grouped.pairs[_key(name, at)]
        ]
        known = [one for one in judged if one is not None]
        # Only the control is in several groups: the one that differs most guards all comparisons.
        return max(known, key=lambda one: abs(math.log(one.ratio)), default=None)

    def _figures(self, settings: Sequence[Setting]) -> list[EngineBench]:
        seed, found = self._plan.options.seed, self._grouped.found
        keys = [(fact, _key(fact.name, at)) for at in settings for fact in self._plan.facts]
        return [figures(fact, found[key], seed, self._raw[key]) for fact, key in keys]

    def curves(self) -> list[Curve]:
        """Throughput and latency over the settings, where there are enough of them."""
        options = self._plan.options
        bound = latency_bound(options)
        if bound is None and not self._is_swept and len(options.batch) <= _FEW:
            return []
        found = self._grouped.found
        return [
            curve(
                fact.name,
                [
                    (found[key], self._raw[key])
                    for key in (_key(fact.name, at) for at in self._plan.settings)
                ],
                bound,
                seed=options.seed,
            )
            for fact in self._plan.facts
        ]


def _scenarios(plan: _Plan, grouped: Grouped, progress: Progress) -> list[ScenarioResult]:
    """LoadGen's scenarios, of the engines that could be measured."""
    options, first = plan.options, plan.settings[0]
    # LoadGen runs a checkpoint as it is, in none of PyTorch's variants.
    plain = [fact for fact in plan.facts if fact.variant is None]
    alive = [f for f in plain if grouped.found[_key(f.name, first)].status == "ok"]
    bound = latency_bound(options)
    return run_scenarios(
        {f.name: f.path for f in alive},
        plan.scenarios,
        Request(
            engine="",
            scenario="offline",
            folder="",
            duration_s=options.duration,
            threads=first.threads,
            batch=max(options.batch),
            image_size=options.image_size,
            seed=options.seed,
            max_latency_ms=bound.max_latency_ms if bound else SERVER_BOUND_MS,
        ),
        devices=plan.devices,
        progress=progress,
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


def _measure(plan: _Plan, progress: Progress) -> Grouped:
    groups = in_groups(
        plan.cells, shared={plan.baseline.name, plan.again}, most=plan.options.max_workers
    )
    # A provider that compiles when an engine is opened does it once, and not in every worker.
    with tempfile.TemporaryDirectory(prefix="resnet-opt-bench.") as cache:
        sessions = [
            measure_starts(
                [replace(cell, cache=Path(cache)) for cell in group],
                plan.limits,
                starts=plan.options.starts,
                seed=plan.options.seed,
                progress=progress,
            )
            for group in groups
        ]
    return put_together(sessions, plan.baseline.name)


def _check_measured(found: Sequence[Measured]) -> None:
    sizes = {m.image_size: m.cell.name for m in found if m.image_size is not None}
    if len(sizes) > 1:
        words = " and ".join(f"{name} {size} px" for size, name in sizes.items())
        raise UsageError(
            f"engines for different image sizes cannot be compared: {words}",
            hint="build them for one size, or measure them apart",
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
