"""Benchmark engines and return the contents of ``bench.json``."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from optimizer.artifacts import scratch_folder
from optimizer.engines.placement import PYTORCH_ON_CPU, assign_devices, runs_on
from optimizer.environment import fingerprint
from optimizer.errors import EnvironmentFault, UsageError
from optimizer.options import BenchOptions, SpeedOptions, takes_options
from optimizer.profiling.cell_figures import compare_cells, compute_figures
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
from optimizer.profiling.grouping import (
    Grouped,
    Key,
    check_max_workers,
    merge_groups,
    split_into_groups,
)
from optimizer.profiling.harness import Cell, Limits, Measured
from optimizer.profiling.loadgen_request import Request
from optimizer.profiling.raw_samples import save_raw
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
    "compute: one call at a time, with batch and outputs in the engine's memory; excludes "
    "preprocessing and copies"
)
CONTROL_SUFFIX = " (again)"
SERVER_BOUND_MS = 15.0
"""MLPerf's limit on the 99th percentile latency of ResNet-50 in the server scenario."""
_MIN_CURVE_BATCHES = 3
"""Number of batch sizes from which the result contains curves."""


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

    Engines are compared at each batch size with the first value of ``threads`` and of ``streams``;
    all other settings go into ``curves``. PyTorch runs on the engines' device if it can; see
    `optimizer.engines.placement.assign_devices`. An engine takes longer than ``duration`` if its calls are so
    slow that `optimizer.profiling.harness.MIN_ROUNDS` rounds do not fit. ``max_latency`` also limits
    p99 in LoadGen's server scenario, where the default is `SERVER_BOUND_MS`.

    Args:
        engines: Engine files, or checkpoints (PyTorch eager).
        options: Settings to measure, duration and baseline.
        control: Measure the baseline a second time as if it were another engine (at the first
            setting only).
        raw_dir: Folder for the raw samples, one NPZ file per engine and setting.
        call_timeout_s: An engine fails if a call takes longer.
        progress: Receives progress updates, between measurements only.

    Raises:
        UsageError: An engine or option is invalid, or a batch size is outside an engine's range.
        EnvironmentFault: No engine can run on this machine, or LoadGen is not installed.
    """
    progress = progress or Silent()
    plan = _plan(engines, options, control, call_timeout_s)
    grouped = _measure(plan, progress)
    _check_measured(list(grouped.cells.values()))
    results = _Results(plan, grouped, raw_dir)
    scenarios = _run_loadgen(plan, grouped, progress)
    failed = failures(results.measured, scenarios, results.control_error)
    verdict, reason = verdict_of(
        results.measured,
        results.comparisons,
        results.noise_floor,
        failed,
        gate=plan.is_gate,
        missing=_not_compared(results.headline, plan.baseline.name),
    )
    conditions = grouped.conditions
    conditions.notes += _control_notes(results.control_cell, results.a_a)
    conditions.notes += _placement_notes(plan.facts, plan.devices)
    return BenchResult(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        device=fingerprint(),
        headline=_headline(plan.settings[0].streams),
        engines=results.headline,
        curves=results.curves(),
        scenarios=scenarios,
        comparisons=results.comparisons,
        a_a_control=results.a_a,
        failed=failed,
        conditions=conditions,
        settings=_settings_record(plan, grouped),
        verdict=verdict,
        reason=reason,
    )


# --- the plan ------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """The validated inputs of one benchmark.

    Attributes:
        options: The options as given, with the default number of threads filled in.
        facts: All engines, including the baseline.
        baseline: The engine that the others are compared with.
        devices: Device of each engine file.
        settings: Combinations of batch, threads and streams; those used for comparisons come first.
        cells: Every engine at every setting, and the control.
        scenarios: LoadGen scenarios to run.
        limits: Time limits of each cell.
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
    def control_name(self) -> str:
        """Name of the control, the baseline's second copy."""
        return self.baseline.name + CONTROL_SUFFIX

    @property
    def is_gate(self) -> bool:
        """Whether the run fails if an engine is slower than the baseline."""
        return self.options.against is not None

    @property
    def compared_at(self) -> list[Setting]:
        """The settings at which engines are compared with the baseline."""
        return self.settings[: len(self.options.batch)]


def _plan(
    engines: Sequence[Path], options: BenchOptions, control: bool, call_timeout_s: float
) -> _Plan:
    """Validate the whole request before any engine is opened."""
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
    control_name = baseline.name + CONTROL_SUFFIX
    if control:
        cells.append(_cell(baseline, control_name, settings[0], size, devices))
    check_max_workers(options.max_workers, cells, {baseline.name, control_name})
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


def _settings_record(plan: _Plan, grouped: Grouped) -> dict[str, Any]:
    """The settings as stored in the result."""
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


# --- evaluating ----------------------------------------------------------------------------------


class _Results:
    """Figures and comparisons computed from the measurements.

    Attributes:
        control_cell: The measurement of the control; ``None`` without a control.
        a_a: The control compared with the baseline.
        noise_floor: The A/A comparison that differences must exceed; ``None`` with several starts,
            because the intervals then include start-to-start variation.
        comparisons: Every other engine compared with the baseline.
        headline: Figures at the settings used for comparisons.
        measured: Figures at all settings.
    """

    def __init__(self, plan: _Plan, grouped: Grouped, raw_dir: Path | None) -> None:
        self._plan, self._grouped = plan, grouped
        first = plan.settings[0]
        self.control_cell = grouped.cells.get(_key(plan.control_name, first))
        self.a_a = None
        if self.control_cell is not None:
            self.a_a = self._compare(plan.control_name, first, None)
        self.noise_floor = self.a_a if plan.options.starts == 1 else None
        candidates = [fact.name for fact in plan.facts if fact is not plan.baseline]
        comparisons = [
            self._compare(name, setting, self.noise_floor)
            for setting in plan.compared_at
            for name in candidates
        ]
        self.comparisons = [c for c in comparisons if c is not None]
        self._is_swept = len(plan.settings) > len(plan.compared_at)
        self._raw_files = {
            key: save_raw(cell, raw_dir, swept=self._is_swept)
            for key, cell in grouped.cells.items()
        }
        self.headline = self._figures(plan.compared_at)
        swept_settings = plan.settings[len(plan.compared_at) :]
        self.measured = [*self.headline, *self._figures(swept_settings)]

    @property
    def control_error(self) -> str | None:
        """Why the control failed; ``None`` if it did not."""
        if self.control_cell is None or self.control_cell.status != "failed":
            return None
        return self.control_cell.error

    def _compare(
        self, name: str, setting: Setting, control: Comparison | None
    ) -> Comparison | None:
        options = self._plan.options
        comparisons = [
            compare_cells(a, b, min_effect=options.min_effect, control=control, seed=options.seed)
            for a, b in self._grouped.pairs[_key(name, setting)]
        ]
        succeeded = [c for c in comparisons if c is not None]
        # Only the control is in several groups; the largest difference applies to all comparisons.
        return max(succeeded, key=lambda c: abs(math.log(c.ratio)), default=None)

    def _figures(self, settings: Sequence[Setting]) -> list[EngineBench]:
        seed, cells = self._plan.options.seed, self._grouped.cells
        keys = [(fact, _key(fact.name, s)) for s in settings for fact in self._plan.facts]
        return [compute_figures(fact, cells[key], seed, self._raw_files[key]) for fact, key in keys]

    def curves(self) -> list[Curve]:
        """Throughput and latency over the settings; empty if too few settings were measured."""
        options = self._plan.options
        bound = _latency_bound(options)
        is_sweep = self._is_swept or len(options.batch) >= _MIN_CURVE_BATCHES
        if bound is None and not is_sweep:
            return []
        return [self._curve(fact.name, bound) for fact in self._plan.facts]

    def _curve(self, name: str, bound: LatencyBound | None) -> Curve:
        keys = [_key(name, setting) for setting in self._plan.settings]
        cells = [(self._grouped.cells[key], self._raw_files[key]) for key in keys]
        return curve(name, cells, bound, seed=self._plan.options.seed)


def _run_loadgen(plan: _Plan, grouped: Grouped, progress: Progress) -> list[ScenarioResult]:
    """Run the LoadGen scenarios on the engines that were measured successfully."""
    options, first = plan.options, plan.settings[0]
    # The LoadGen process opens checkpoints without variants.
    plain = [fact for fact in plan.facts if fact.variant is None]
    alive = [f for f in plain if grouped.cells[_key(f.name, first)].status == "ok"]
    bound = _latency_bound(options)
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


def _latency_bound(options: SpeedOptions) -> LatencyBound | None:
    """The latency limit for choosing the best setting; ``None`` if none was requested."""
    if options.max_latency is None:
        return None
    return LatencyBound(
        percentile=options.latency_percentile, max_latency_ms=1e3 * options.max_latency
    )


def _not_compared(measured: Sequence[EngineBench], baseline: str) -> list[str]:
    """Engines (including the baseline) that cannot run here, each with the reason."""
    return [
        f"{engine.name} at batch {engine.batch}"
        f"{' (the baseline)' if engine.name == baseline else ''}: {engine.error}"
        for engine in measured
        if engine.status in {"unavailable", "built-not-run"}
    ]


def _headline(streams: int) -> str:
    if streams == 1:
        return HEADLINE
    return (
        f"{HEADLINE.replace('one call at a time', f'{streams} calls at a time')}; images and "
        "batches per second are wall-clock rates that include copies"
    )


# --- measuring -----------------------------------------------------------------------------------


def _key(name: str, setting: Setting) -> Key:
    return name, setting.batch, setting.threads, setting.streams


def _cell(
    fact: EngineFacts,
    name: str,
    setting: Setting,
    image_size: int | None,
    devices: Mapping[Path, str | None],
) -> Cell:
    return Cell(
        name=name,
        engine=fact.path,
        batch=setting.batch,
        image_size=image_size or fact.image_size,
        threads=setting.threads,
        device=devices[fact.path],
        streams=setting.streams,
        variant=fact.variant,
    )


def _measure(plan: _Plan, progress: Progress) -> Grouped:
    groups = split_into_groups(
        plan.cells,
        shared={plan.baseline.name, plan.control_name},
        max_workers=plan.options.max_workers,
    )
    # Providers that compile when an engine is opened compile once and not in every worker.
    with scratch_folder("bench") as cache:
        measurements = [
            measure_starts(
                [replace(cell, cache=cache) for cell in group],
                plan.limits,
                starts=plan.options.starts,
                seed=plan.options.seed,
                progress=progress,
            )
            for group in groups
        ]
    return merge_groups(measurements, plan.baseline.name)


def _check_measured(cells: Sequence[Measured]) -> None:
    sizes = {m.image_size: m.cell.name for m in cells if m.image_size is not None}
    if len(sizes) > 1:
        examples = ", ".join(f"{name} {size} px" for size, name in sizes.items())
        raise UsageError(
            f"engines for different image sizes cannot be compared: {examples}",
            hint="build them for one image size, or measure them separately",
        )
    absent = [m for m in cells if m.status in {"unavailable", "built-not-run"}]
    if len(absent) == len(cells):
        raise EnvironmentFault(f"no engine can run here: {absent[0].error}")


# --- notes ---------------------------------------------------------------------------------------


def _control_notes(measured: Measured | None, control: Comparison | None) -> list[str]:
    if measured is not None and control is None:
        return [f"no A/A control: {measured.error or 'the baseline was not measured'}"]
    if control is not None and control.verdict in {"faster", "slower"}:
        note = (
            f"A/A control: a second copy of {control.a} ran at {control.ratio:.3f} times its speed; "
            "smaller differences are not reported"
        )
        return [note]
    return []


def _placement_notes(facts: Sequence[EngineFacts], devices: Mapping[Path, str | None]) -> list[str]:
    """A note if PyTorch ran on the CPU while other engines ran on a GPU."""
    used = {fact.backend: runs_on(fact.path, devices[fact.path]) for fact in facts}
    any_gpu = any((device or "").startswith("cuda") for device in used.values())
    return [PYTORCH_ON_CPU] if any_gpu and used.get("torch") == "cpu" else []
