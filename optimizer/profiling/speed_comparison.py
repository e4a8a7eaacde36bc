"""Compare two ``bench.json`` files of the same machine: a gate for CI.

The two runs did not happen side by side, so the comparison is not exact: anything else that changed
between them is part of the ratio but not of any interval. ``bench --against`` measures old and new in
one run and is exact.

Engines are compared by latency. Settings of a sweep with other numbers of threads or streams are
compared by time per image, because throughput is what counts with concurrent calls.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from optimizer.errors import UsageError
from optimizer.profiling.curves import describe_setting
from optimizer.profiling.intervals import MIN_ROUNDS_FOR_INTERVAL, Estimate, ratio_unpaired
from optimizer.results import BenchResult, EngineBench, Interval, Setting, VerdictName

__all__ = ["BenchComparison", "Pair", "compare_bench"]

NOT_EXACT = (
    "the two runs were not measured side by side; resnet-opt bench NEW --against OLD is exact"
)
_MUST_AGREE = ("image_size", "threads", "streams")


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Pair(_Model):
    """One engine in the old and in the new result."""

    old: str
    new: str
    batch: int
    threads: int | None = None
    streams: int | None = None
    """Threads and streams are set only for settings of a sweep."""
    slowdown: float
    """Relative change from old to new; negative is faster. Of the median latency, or of the time per
    image for a setting of a sweep."""
    ci95: Interval
    verdict: VerdictName

    @property
    def setting(self) -> str:
        """``batch 8``, or ``batch 8, 2 threads, 4 streams``."""
        if self.threads is None or self.streams is None:
            return f"batch {self.batch}"
        return describe_setting(
            Setting(batch=self.batch, threads=self.threads, streams=self.streams)
        )


class BenchComparison(_Model):
    """The result of `compare_bench`."""

    kind: str = "bench-comparison"
    max_slowdown: float
    pairs: list[Pair]
    missing: list[str] = []
    """Engines of the old result that are missing from the new one."""
    added: list[str] = []
    notes: list[str] = []
    verdict: VerdictName
    reason: str


def compare_bench(
    old: BenchResult,
    new: BenchResult,
    *,
    max_slowdown: float = 0.03,
    anyway: bool = False,
    seed: int = 0,
) -> BenchComparison:
    """Check whether engines became slower between two results.

    An engine passes if the whole interval of its slowdown is below ``max_slowdown``, fails if the
    whole interval is above, and is inconclusive otherwise. Engines are paired by name and batch, else
    by backend, precision and batch if that is unambiguous. An old engine that is missing from the new
    result, or failed in it, does not pass.

    Args:
        old: The reference result.
        new: The result to check.
        max_slowdown: Largest tolerated increase of the median latency, 0.03 for 3 %.
        anyway: Also compare results of different machines or settings, with a note.
        seed: Seed of the bootstrap.

    Raises:
        UsageError: The results cannot be compared, or ``max_slowdown`` is out of range.
    """
    if not 0.0 <= max_slowdown < 10.0:
        raise UsageError(f"max_slowdown must be a fraction such as 0.03, not {max_slowdown}")
    notes = [NOT_EXACT, *_differences(old, new, anyway=anyway)]
    partners = _partners(old.engines, new.engines)
    spread = max(_control_spread(old), _control_spread(new))
    pairs: list[Pair] = []
    missing: list[str] = []
    for before in old.engines:
        after = partners.get(id(before))
        if before.status != "ok":
            continue
        label = f"{before.name} at batch {before.batch}"
        if after is None:
            missing.append(label)
        elif after.status != "ok":
            missing.append(f"{label} ({after.status}: {after.error})")
        else:
            notes += _check_settings(before, after, anyway=anyway)
            pairs.append(_pair(before, after, max_slowdown, spread, seed))
    if not pairs and not missing:
        raise UsageError("the old result has no measured engine")
    names = {
        before.name: partners[id(before)].name for before in old.engines if id(before) in partners
    }
    swept_pairs, swept_missing = _compare_sweeps(old, new, names, max_slowdown, spread, seed)
    pairs += swept_pairs
    missing += swept_missing
    paired = {id(e) for e in partners.values()}
    verdict, reason = _verdict(pairs, missing, max_slowdown)
    return BenchComparison(
        max_slowdown=max_slowdown,
        pairs=pairs,
        missing=missing,
        added=[f"{e.name} at batch {e.batch}" for e in new.engines if id(e) not in paired],
        notes=list(dict.fromkeys(notes)),
        verdict=verdict,
        reason=reason,
    )


def _differences(old: BenchResult, new: BenchResult, *, anyway: bool) -> list[str]:
    a, b = old.device, new.device
    if a.get("sha256") is not None and a.get("sha256") == b.get("sha256"):
        return []
    names = sorted(k for k in {*a, *b} - {"sha256"} if a.get(k) != b.get(k))
    details = "; ".join(f"{k}: {a.get(k)} and {b.get(k)}" for k in names) or "fingerprints differ"
    if not anyway:
        raise UsageError(
            f"the results come from different machines ({details})",
            hint="measure both on one machine, or use --anyway",
        )
    return [f"different machines: {details}"]


def _check_settings(old: EngineBench, new: EngineBench, *, anyway: bool) -> list[str]:
    differing = [
        f"{name.replace('_', ' ')} {getattr(old, name)} and {getattr(new, name)}"
        for name in _MUST_AGREE
        if getattr(old, name) != getattr(new, name)
    ]
    if not differing:
        return []
    message = f"{old.name} was measured with different settings: {', '.join(differing)}"
    if not anyway:
        raise UsageError(message, hint="measure both with the same settings, or use --anyway")
    return [message]


def _partners(old: Sequence[EngineBench], new: Sequence[EngineBench]) -> dict[int, EngineBench]:
    """The new engine for each old one, by ``id`` of the old one."""
    partners: dict[int, EngineBench] = {}
    by_name = {(e.name, e.batch): e for e in new}
    for engine in old:
        if (namesake := by_name.get((engine.name, engine.batch))) is not None:
            partners[id(engine)] = namesake
    paired = {id(e) for e in partners.values()}

    def unpaired_like(like: EngineBench, engines: Sequence[EngineBench]) -> list[EngineBench]:
        key = (like.backend, like.precision, like.batch)
        return [
            e
            for e in engines
            if (e.backend, e.precision, e.batch) == key
            and id(e) not in partners
            and id(e) not in paired
        ]

    for engine in old:
        candidates = unpaired_like(engine, new)
        unambiguous = len(candidates) == 1 and len(unpaired_like(engine, old)) == 1
        if id(engine) not in partners and unambiguous:
            partners[id(engine)] = candidates[0]
            paired.add(id(candidates[0]))
    return partners


def _control_spread(result: BenchResult) -> float:
    """Difference between two starts of the same engine, on a log scale.

    Each start has another memory layout and a slightly different speed. Within a run the A/A control
    includes this variation; between two runs it is part of the ratio.
    """
    control = result.a_a_control
    return 0.0 if control is None else abs(math.log(control.ratio))


def _pair(
    old: EngineBench, new: EngineBench, max_slowdown: float, spread: float, seed: int
) -> Pair:
    times = [_checked_rounds(e.round_medians_ms, e.name) for e in (old, new)]
    change = _slowdown(times[0], times[1], max_slowdown, spread, seed)
    return Pair(old=old.name, new=new.name, batch=old.batch, **change)


def _compare_sweeps(
    old: BenchResult,
    new: BenchResult,
    names: Mapping[str, str],
    max_slowdown: float,
    spread: float,
    seed: int,
) -> tuple[list[Pair], list[str]]:
    """Compare sweep settings not covered by the engines; returns pairs and missing settings."""
    after = {(c.engine, _key(p.setting)): p for c in new.curves for p in c.points}
    headline = {(e.name, (e.batch, e.threads, e.streams)) for e in old.engines}
    pairs, missing = [], []
    for curve in old.curves:
        name = names.get(curve.engine, curve.engine)
        for before in curve.points:
            if before.status != "ok" or (curve.engine, _key(before.setting)) in headline:
                continue
            label = describe_setting(before.setting)
            now = after.get((name, _key(before.setting)))
            if now is None:
                missing.append(f"{curve.engine} at {label}")
            elif now.status != "ok":
                missing.append(f"{curve.engine} at {label} ({now.status}: {now.error})")
            else:
                # Convert rates to times, so that larger values are slower as for latencies.
                times = [
                    1.0 / _checked_rounds(p.round_images_per_s, f"{name} at {label}")
                    for p in (before, now)
                ]
                change = _slowdown(times[0], times[1], max_slowdown, spread, seed)
                pairs.append(
                    Pair(old=curve.engine, new=name, **before.setting.model_dump(), **change)
                )
    return pairs, missing


def _key(setting: Setting) -> tuple[int, int, int]:
    return setting.batch, setting.threads, setting.streams


def _checked_rounds(values: Sequence[float], label: str) -> NDArray[np.float64]:
    rounds = np.array(values, np.float64)
    if len(rounds) < MIN_ROUNDS_FOR_INTERVAL or not np.all(np.isfinite(rounds) & (rounds > 0)):
        raise UsageError(
            f"{label} has fewer than {MIN_ROUNDS_FOR_INTERVAL} rounds, or invalid ones",
            hint="run resnet-opt bench again",
        )
    return rounds


def _slowdown(
    old: NDArray[np.float64],
    new: NDArray[np.float64],
    max_slowdown: float,
    spread: float,
    seed: int,
) -> dict[str, Any]:
    """Relative change, interval and verdict, from round times."""
    ratio: Estimate = ratio_unpaired(new, old, seed=seed)
    assert ratio.ci95 is not None
    low, high = ratio.ci95[0] * math.exp(-spread) - 1, ratio.ci95[1] * math.exp(spread) - 1
    verdict: VerdictName = "inconclusive"
    if high <= max_slowdown:
        verdict = "pass"
    elif low > max_slowdown:
        verdict = "fail"
    return {"slowdown": ratio.value - 1, "ci95": (low, high), "verdict": verdict}


def _verdict(
    pairs: Sequence[Pair], missing: Sequence[str], max_slowdown: float
) -> tuple[VerdictName, str]:
    failed = [p for p in pairs if p.verdict == "fail"]
    if failed:
        worst = max(failed, key=lambda p: p.slowdown)
        return "fail", (
            f"{worst.new} at {worst.setting} is {worst.slowdown:+.1%} slower "
            f"({_format_interval(worst)}), more than {max_slowdown:.1%}"
        )
    if missing:
        return "inconclusive", f"not in the new result: {'; '.join(missing)}"
    undecided = [p for p in pairs if p.verdict == "inconclusive"]
    if undecided:
        widest = max(undecided, key=lambda p: p.ci95[1])
        return "inconclusive", (
            f"{widest.new} at {widest.setting}: {_format_interval(widest)} includes the limit of "
            f"{max_slowdown:.1%}"
        )
    return "pass", f"none of {len(pairs)} is more than {max_slowdown:.1%} slower"


def _format_interval(pair: Pair) -> str:
    return f"95 % interval {pair.ci95[0]:+.1%} to {pair.ci95[1]:+.1%}"
