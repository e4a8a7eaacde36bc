"""Benchmarks: engines in, ``bench.json`` out."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from optimizer.artifacts import write_atomically
from optimizer.engines.placement import check_device, device_of
from optimizer.environment import fingerprint
from optimizer.errors import EnvironmentFault, UsageError
from optimizer.profiling import intervals
from optimizer.profiling.asked import EngineFacts, check_options, describe_engines, with_baseline
from optimizer.profiling.conditions import joined
from optimizer.profiling.harness import Cell, Limits, Measured, measure
from optimizer.progress import Progress, Silent
from optimizer.results import (
    BenchResult,
    Comparison,
    Conditions,
    EngineBench,
    Interval,
    VerdictName,
)
from optimizer.targets.hardware import cpu_features

__all__ = ["HEADLINE", "bench"]

HEADLINE = (
    "compute: one call at a time, from the batch in the engine's own memory to outputs that are "
    "ready there; preprocessing and copies are not in it"
)
AGAIN = " (again)"
UNSTEADY = 0.10
"""Difference of an engine from itself above which only larger differences are claimed."""
UNUSABLE = 0.50
"""Difference of an engine from itself above which a run cannot say anything."""
_COMPUTE = 1
_SPANS = ("host_to_device", "compute", "device_to_host")


def bench(
    engines: Sequence[Path],
    *,
    batches: Sequence[int] = (1,),
    image_size: int | None = None,
    threads: int | None = None,
    device: str | None = None,
    duration_s: float = 10.0,
    min_effect: float = 0.02,
    against: Path | None = None,
    control: bool = True,
    seed: int = 0,
    raw_dir: Path | None = None,
    call_timeout_s: float = 60.0,
    progress: Progress | None = None,
) -> BenchResult:
    """Measure engines side by side and compare each with a baseline.

    Args:
        engines: Engine files, or checkpoints (PyTorch eager).
        batches: Batch sizes; every engine is measured at each of them.
        image_size: Side of the images in pixels; ``None`` for the engines' own.
        threads: Threads an engine; ``None`` for all physical cores.
        device: The GPU, ``cuda:1``, of those engines that run on one; ``None`` for the first.
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
        progress: Told of the steps, between measurements.

    Raises:
        UsageError: An engine, a batch outside an engine's range, or an option is wrong.
        EnvironmentFault: None of the engines can run on this machine.
    """
    check_options(
        batches=batches,
        image_size=image_size,
        threads=threads,
        duration_s=duration_s,
        min_effect=min_effect,
        call_timeout_s=call_timeout_s,
    )
    paths = with_baseline(engines, against)
    check_device(paths, device)
    facts = describe_engines(paths, batches)
    baseline = facts[0] if against is None else facts[paths.index(against)]
    threads = threads or cpu_features().physical_cores
    cells = [_cell(f, f.name, b, image_size, threads, device) for b in batches for f in facts]
    again = baseline.name + AGAIN
    if control:
        cells.append(_cell(baseline, again, batches[0], image_size, threads, device))
    limits = Limits(duration_s=duration_s, call_timeout_s=call_timeout_s)
    found, conditions = _measure(cells, limits, seed, progress or Silent())
    _check_measured(found)

    def compare(name: str, batch: int, floor: float = 0.0) -> Comparison | None:
        a, b = found[baseline.name, batch], found[name, batch]
        return _compare(a, b, min_effect=min_effect, floor=floor, seed=seed)

    a_a = compare(again, batches[0]) if control else None
    floor = _largest_effect(a_a)
    others = [f.name for f in facts if f is not baseline]
    compared = [c for b in batches for n in others if (c := compare(n, b, floor)) is not None]
    conditions.notes += _control_notes(found.get((again, batches[0])), a_a)
    raw = {key: _save_raw(m, raw_dir) for key, m in found.items()}
    listed = [
        _engine_bench(f, found[f.name, b], seed, raw[f.name, b]) for b in batches for f in facts
    ]
    verdict, reason = _verdict(listed, compared, a_a, gate=against is not None)
    return BenchResult(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        device=fingerprint(),
        headline=HEADLINE,
        engines=listed,
        comparisons=compared,
        a_a_control=a_a,
        conditions=conditions,
        settings={
            "batches": list(batches),
            "image_size": image_size,
            "threads": threads,
            **({"device": device} if device is not None else {}),
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


# --- measuring -----------------------------------------------------------------------------------

_Found = dict[tuple[str, int], Measured]


def _cell(
    fact: EngineFacts,
    name: str,
    batch: int,
    image_size: int | None,
    threads: int,
    device: str | None,
) -> Cell:
    return Cell(
        name=name,
        engine=fact.path,
        batch=batch,
        image_size=image_size or fact.image_size,
        threads=threads,
        device=device_of(fact.path, device),
    )


def _measure(
    cells: list[Cell], limits: Limits, seed: int, progress: Progress
) -> tuple[_Found, Conditions]:
    groups = _groups(cells)
    sessions = [measure(group, limits, seed=seed, progress=progress) for group in groups]
    found = {(m.cell.name, m.cell.batch): m for s in sessions for m in s.cells}
    return found, joined([(s.conditions, s.rounds) for s in sessions])


def _groups(cells: list[Cell]) -> list[list[Cell]]:
    """All cells together, or one batch size after the other if their workers need too much memory.

    Only engines at the same batch size are compared, so this costs no comparison its pairing.
    """
    import psutil

    needed = sum((512 << 20) + 8 * c.engine.stat().st_size for c in cells)
    if needed < 0.6 * psutil.virtual_memory().available:
        return [cells]
    batches = dict.fromkeys(c.batch for c in cells)
    return [[c for c in cells if c.batch == batch] for batch in batches]


def _check_measured(found: _Found) -> None:
    sizes = {m.image_size: m.cell.name for m in found.values() if m.image_size is not None}
    if len(sizes) > 1:
        words = " and ".join(f"{name} {size} px" for size, name in sizes.items())
        raise UsageError(
            f"engines for different image sizes cannot be compared: {words}",
            mend="build them for one size, or measure them apart",
        )
    absent = [m for m in found.values() if m.status in {"unavailable", "built-not-run"}]
    if len(absent) == len(found):
        raise EnvironmentFault(f"no engine can run here: {absent[0].error}")


# --- evaluating ----------------------------------------------------------------------------------


def _rounds(measured: Measured, span: int = _COMPUTE) -> list[NDArray[np.float64]]:
    return [block.spans_ms[:, span] for block in measured.blocks]


def _compare(
    a: Measured, b: Measured, *, min_effect: float, floor: float, seed: int
) -> Comparison | None:
    if a.status != "ok" or b.status != "ok":
        return None
    speed = intervals.ratio_of_medians(_rounds(a), _rounds(b), seed=seed)
    assert speed.ci95 is not None, "the harness measures enough rounds for an interval"
    return Comparison(
        a=a.cell.name,
        b=b.cell.name,
        batch=a.cell.batch,
        ratio=speed.value,
        ci95=speed.ci95,
        min_effect=min_effect,
        verdict=intervals.judge(speed, min_effect=min_effect, floor=floor),
    )


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


def _largest_effect(control: Comparison | None) -> float:
    """The largest difference that the same engine may have from itself, by the control."""
    if control is None:
        return 0.0
    low, high = control.ci95
    return max(high, 1 / low) - 1


def _engine_bench(
    fact: EngineFacts, measured: Measured, seed: int, raw_file: str | None
) -> EngineBench:
    cell = measured.cell
    bench = EngineBench(
        name=fact.name,
        file=fact.path.name,
        backend=fact.backend,
        status=measured.status,
        error=measured.error,
        precision=fact.precision,
        batch=cell.batch,
        image_size=measured.image_size or cell.image_size,
        threads=cell.threads,
        warmup_calls=measured.warmup_calls,
        samples=sum(len(block.spans_ms) for block in measured.blocks),
        rounds=len(measured.blocks),
        start_s=measured.start_s,
        first_inference_ms=measured.first_inference_ms,
        build_s=fact.build_s,
        load_s=measured.load_s,
        engine_bytes=fact.path.stat().st_size,
        peak_rss_bytes=measured.peak_rss_bytes,
        gpu_memory_bytes=measured.gpu_memory_bytes,
        raw_file=raw_file,
    )
    if measured.status != "ok":
        return bench
    rounds = _rounds(measured)
    rate = intervals.rate(rounds, seed=seed)
    spans = np.concatenate([block.spans_ms for block in measured.blocks])
    return bench.model_copy(
        update={
            "latency_ms": intervals.latency(np.concatenate(rounds)),
            "latency_ci95_ms": intervals.median(rounds, seed=seed).ci95,
            "images_per_s": rate.value * cell.batch,
            "images_per_s_ci95": _times(rate.ci95, cell.batch),
            "batches_per_s": rate.value,
            "spans_ms": {
                **dict(zip(_SPANS, np.median(spans, axis=0).tolist(), strict=True)),
                "end_to_end": float(np.median(spans.sum(axis=1))),
            },
            "energy_j": _joules_an_image(measured),
            "round_medians_ms": [float(np.median(r)) for r in rounds],
        }
    )


def _times(interval: Interval | None, factor: float) -> Interval | None:
    return None if interval is None else (interval[0] * factor, interval[1] * factor)


def _joules_an_image(measured: Measured) -> float | None:
    calls = sum(len(block.calls) for block in measured.blocks)
    return None if measured.joules is None else measured.joules / (calls * measured.cell.batch)


def _save_raw(measured: Measured, raw_dir: Path | None) -> str | None:
    """Write every call of every round, lead-ins marked; returns the name beside ``bench.json``."""
    if raw_dir is None or not measured.blocks:
        return None
    name = re.sub(r"[^\w.()-]+", "_", measured.cell.name)
    path = raw_dir / f"{name}-batch{measured.cell.batch}.npz"
    blocks = measured.blocks
    calls = np.concatenate([b.calls for b in blocks])
    lengths = [len(b.calls) for b in blocks]
    position = np.concatenate([np.arange(n) for n in lengths])
    with write_atomically(path) as temporary:
        np.savez(
            temporary,
            round=np.repeat([b.round for b in blocks], lengths).astype(np.int32),
            lead_in=position < np.repeat([b.lead_in for b in blocks], lengths),
            start_ns=calls[:, 0],
            host_to_device_ns=calls[:, 1],
            compute_ns=calls[:, 2],
            device_to_host_ns=calls[:, 3],
        )
    return f"{raw_dir.name}/{path.name}"


# --- verdict -------------------------------------------------------------------------------------


def _verdict(
    engines: Sequence[EngineBench],
    comparisons: Sequence[Comparison],
    control: Comparison | None,
    *,
    gate: bool,
) -> tuple[VerdictName, str]:
    failed = [e for e in engines if e.status == "failed"]
    if failed:
        words = "; ".join(f"{e.name} at batch {e.batch}: {e.error}" for e in failed)
        return "fail", f"{len(failed)} of {len(engines)} measurements failed: {words}"
    floor = _largest_effect(control)
    # `judge` has held each ratio against this floor: faster and slower are beyond it.
    decided = bool(comparisons) and all(c.verdict in {"faster", "slower"} for c in comparisons)
    if floor > UNUSABLE or (floor > UNSTEADY and (gate or not decided)):
        return "inconclusive", (
            f"this machine is too unsteady: the same engine, started twice, may differ from itself "
            f"by {floor:.0%}"
        )
    by_verdict = {
        v: [c for c in comparisons if c.verdict == v]
        for v in ("faster", "slower", "equivalent", "inconclusive")
    }
    if gate and by_verdict["slower"]:
        worst = min(by_verdict["slower"], key=lambda c: c.ratio)
        return "fail", (
            f"{worst.b} runs at {worst.ratio:.3f} times the speed of {worst.a} at batch "
            f"{worst.batch} (95 % interval {worst.ci95[0]:.3f} to {worst.ci95[1]:.3f})"
        )
    open_ones = by_verdict["inconclusive"]
    if open_ones and (gate or len(open_ones) == len(comparisons)):
        return "inconclusive", (
            f"{len(open_ones)} of {len(comparisons)} comparisons cannot be decided against the "
            f"smallest effect of {open_ones[0].min_effect:.1%}; measure longer or on a quieter "
            "machine"
        )
    measured = sum(e.status == "ok" for e in engines)
    counts = ", ".join(f"{len(cs)} {v}" for v, cs in by_verdict.items() if cs)
    said = f"{measured} of {len(engines)} measured" + (f"; {counts}" if counts else "")
    if floor > UNSTEADY:
        said += f"; the baseline, started twice, may differ from itself by {floor:.0%}"
    return "pass", said
