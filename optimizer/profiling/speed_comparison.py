"""Two ``bench.json`` of the same machine, one held against the other: a gate for CI.

The two runs did not happen side by side, so this is not exact: what changed between them besides
the engines is part of the ratio and in no interval. ``bench --against`` measures old and new in
one go and is exact.

Engines are held against each other by their latency. A sweep's settings of threads and streams that
are not those of the engines come after them, by the time an image takes: with several calls at once
throughput is what counts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from optimizer.errors import UsageError
from optimizer.profiling.curves import words
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
    """Both for a setting of a sweep alone."""
    slowdown: float
    """Relative change, new against old; negative is faster. Of the median latency, or of the time an
    image takes at a setting of a sweep."""
    ci95: Interval
    verdict: VerdictName

    @property
    def setting(self) -> str:
        """``batch 8``, or ``batch 8, 2 threads, 4 streams``."""
        if self.threads is None or self.streams is None:
            return f"batch {self.batch}"
        return words(Setting(batch=self.batch, threads=self.threads, streams=self.streams))


class BenchComparison(_Model):
    """What `compare_bench` found."""

    kind: str = "bench-comparison"
    max_slowdown: float
    pairs: list[Pair]
    missing: list[str] = []
    """Engines of the old result that the new one does not have."""
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
    """Tell whether engines became slower between two results.

    An engine passes if the whole interval of its slowdown lies below ``max_slowdown``, fails if the
    whole interval lies above, and is inconclusive between. Engines are paired by name and batch,
    else by backend, precision and batch where that leaves no choice. An old engine that is missing
    from the new result, or failed in it, did not pass.

    Args:
        old: The result to hold against.
        new: The result in question.
        max_slowdown: Largest tolerated increase of the median latency, 0.03 for 3 %.
        anyway: Compare results of different machines or settings too; a note says that they are.
        seed: Seed of the resampling.

    Raises:
        UsageError: The results cannot be compared, or the limit is no share.
    """
    if not 0.0 <= max_slowdown < 10.0:
        raise UsageError(f"the largest slowdown must be a share like 0.03, not {max_slowdown}")
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
    swept, absent = _swept(old, new, names, max_slowdown, spread, seed)
    pairs += swept
    missing += absent
    taken = {id(e) for e in partners.values()}
    verdict, reason = _verdict(pairs, missing, max_slowdown)
    return BenchComparison(
        max_slowdown=max_slowdown,
        pairs=pairs,
        missing=missing,
        added=[f"{e.name} at batch {e.batch}" for e in new.engines if id(e) not in taken],
        notes=list(dict.fromkeys(notes)),
        verdict=verdict,
        reason=reason,
    )


def _differences(old: BenchResult, new: BenchResult, *, anyway: bool) -> list[str]:
    a, b = old.device, new.device
    if a.get("sha256") is not None and a.get("sha256") == b.get("sha256"):
        return []
    names = sorted(k for k in {*a, *b} - {"sha256"} if a.get(k) != b.get(k))
    what = "; ".join(f"{k}: {a.get(k)} and {b.get(k)}" for k in names) or "fingerprints differ"
    if not anyway:
        raise UsageError(
            f"the results come from different machines ({what})",
            hint="measure both on one machine, or compare them with --anyway",
        )
    return [f"different machines: {what}"]


def _check_settings(old: EngineBench, new: EngineBench, *, anyway: bool) -> list[str]:
    differing = [
        f"{name.replace('_', ' ')} {getattr(old, name)} and {getattr(new, name)}"
        for name in _MUST_AGREE
        if getattr(old, name) != getattr(new, name)
    ]
    if not differing:
        return []
    what = f"{old.name} was measured with different settings: {', '.join(differing)}"
    if not anyway:
        raise UsageError(what, hint="measure both alike, or compare them with --anyway")
    return [what]


def _partners(old: Sequence[EngineBench], new: Sequence[EngineBench]) -> dict[int, EngineBench]:
    """The new engine of each old one, by the old one's identity."""
    found: dict[int, EngineBench] = {}
    named = {(e.name, e.batch): e for e in new}
    for engine in old:
        if (same := named.get((engine.name, engine.batch))) is not None:
            found[id(engine)] = same
    taken = {id(e) for e in found.values()}

    def alike(engines: Sequence[EngineBench], like: EngineBench) -> list[EngineBench]:
        wanted = (like.backend, like.precision, like.batch)
        return [
            e
            for e in engines
            if (e.backend, e.precision, e.batch) == wanted
            and id(e) not in found
            and id(e) not in taken
        ]

    for engine in old:
        candidates = alike(new, engine)
        if id(engine) not in found and len(candidates) == 1 and len(alike(old, engine)) == 1:
            found[id(engine)] = candidates[0]
            taken.add(id(candidates[0]))
    return found


def _control_spread(result: BenchResult) -> float:
    """By how much two starts of the same engine differed, on a log scale.

    Every start of an engine lies elsewhere in memory and computes at a slightly different speed.
    Within a run that is part of what the control shows; between two runs it is part of the ratio.
    """
    control = result.a_a_control
    return 0.0 if control is None else abs(math.log(control.ratio))


def _pair(
    old: EngineBench, new: EngineBench, max_slowdown: float, spread: float, seed: int
) -> Pair:
    times = [_usable(e.round_medians_ms, e.name) for e in (old, new)]
    found = _slowdown(times[0], times[1], max_slowdown, spread, seed)
    return Pair(old=old.name, new=new.name, batch=old.batch, **found)


def _swept(
    old: BenchResult,
    new: BenchResult,
    names: Mapping[str, str],
    max_slowdown: float,
    spread: float,
    seed: int,
) -> tuple[list[Pair], list[str]]:
    """Settings of sweeps beyond those of the engines, and what the new result lacks of them."""
    after = {(c.engine, _key(p.setting)): p for c in new.curves for p in c.points}
    headline = {(e.name, (e.batch, e.threads, e.streams)) for e in old.engines}
    pairs, missing = [], []
    for curve in old.curves:
        name = names.get(curve.engine, curve.engine)
        for before in curve.points:
            if before.status != "ok" or (curve.engine, _key(before.setting)) in headline:
                continue
            at, now = words(before.setting), after.get((name, _key(before.setting)))
            if now is None:
                missing.append(f"{curve.engine} at {at}")
            elif now.status != "ok":
                missing.append(f"{curve.engine} at {at} ({now.status}: {now.error})")
            else:
                # Both rates turned into times, so that a larger one is slower here too.
                times = [
                    1.0 / _usable(p.round_images_per_s, f"{name} at {at}") for p in (before, now)
                ]
                found = _slowdown(times[0], times[1], max_slowdown, spread, seed)
                pairs.append(
                    Pair(old=curve.engine, new=name, **before.setting.model_dump(), **found)
                )
    return pairs, missing


def _key(setting: Setting) -> tuple[int, int, int]:
    return setting.batch, setting.threads, setting.streams


def _usable(values: Sequence[float], label: str) -> NDArray[np.float64]:
    found = np.array(values, np.float64)
    if len(found) < MIN_ROUNDS_FOR_INTERVAL or not np.all(np.isfinite(found) & (found > 0)):
        raise UsageError(
            f"{label} has no {MIN_ROUNDS_FOR_INTERVAL} usable medians of rounds",
            hint="run resnet-opt bench again",
        )
    return found


def _slowdown(
    old: NDArray[np.float64],
    new: NDArray[np.float64],
    max_slowdown: float,
    spread: float,
    seed: int,
) -> dict[str, Any]:
    """Change, interval and verdict, from times of rounds."""
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
            f"({_words(worst)}), more than {max_slowdown:.1%}"
        )
    if missing:
        return "inconclusive", f"not in the new result: {'; '.join(missing)}"
    open_ones = [p for p in pairs if p.verdict == "inconclusive"]
    if open_ones:
        widest = max(open_ones, key=lambda p: p.ci95[1])
        return "inconclusive", (
            f"{widest.new} at {widest.setting}: {_words(widest)} does not decide whether it is "
            f"more than {max_slowdown:.1%} slower"
        )
    return "pass", f"none of {len(pairs)} is more than {max_slowdown:.1%} slower"


def _words(pair: Pair) -> str:
    return f"95 % interval {pair.ci95[0]:+.1%} to {pair.ci95[1]:+.1%}"
