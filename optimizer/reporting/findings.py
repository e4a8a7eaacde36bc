"""The sentences at the head of a report, each made from the numbers it states."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath

from optimizer.results import (
    Audit,
    BenchResult,
    Comparison,
    EngineBench,
    Hop,
    StageRecord,
    ValidateResult,
)

__all__ = ["findings"]

_STEADY = 0.05
"""Difference of an engine from itself that needs no remark."""


def findings(
    validated: ValidateResult | None,
    measured: BenchResult | None,
    audits: Mapping[str, Audit],
    stages: Sequence[StageRecord],
) -> list[str]:
    """What a reader should know first, one sentence a fact.

    Args:
        validated: Accuracy, if it was measured.
        measured: Speed, if it was measured.
        audits: What each engine computes, by file name.
        stages: The stages, for what was not run and what was assumed.
    """
    said = []
    best = _fastest_accepted(validated, measured)
    if best is not None and measured is not None:
        said.append(_speed(best, measured))
        said += _unsteady(measured)
        hop = _hop_of(best.b, validated, measured)
        if hop is not None and validated is not None:
            said.append(_accuracy(hop, validated))
    if measured is not None and measured.failed:
        said.append(_sentence(measured.reason))
    if validated is not None:
        said.append(_sentence(validated.finding))
    said += _audited(audits)
    said += _not_run(stages)
    said += _assumed(stages)
    return list(dict.fromkeys(said))


def _fastest_accepted(
    validated: ValidateResult | None, measured: BenchResult | None
) -> Comparison | None:
    """The fastest engine at the smallest batch whose accuracy did not fail."""
    if measured is None or not measured.comparisons:
        return None
    smallest = min(c.batch for c in measured.comparisons)
    candidates = [
        c
        for c in measured.comparisons
        if c.batch == smallest and _verdict_of(c.b, validated, measured) != "fail"
    ]
    return max(candidates, key=lambda c: c.ratio, default=None)


def _verdict_of(engine: str, validated: ValidateResult | None, measured: BenchResult) -> str | None:
    hop = _hop_of(engine, validated, measured)
    return hop.verdict if hop is not None else None


def _hop_of(engine: str, validated: ValidateResult | None, measured: BenchResult) -> Hop | None:
    """The hop of a measured engine: it is called by its name there, or by its file."""
    files = {e.file for e in measured.engines if e.name == engine}
    called = {engine, *files, *(PurePosixPath(file).name for file in files)}
    hops = validated.hops if validated is not None else []
    return next((hop for hop in hops if {hop.name, hop.engine} & called), None)


def _bench_of(name: str, batch: int, measured: BenchResult) -> EngineBench | None:
    found = (e for e in measured.engines if name in (e.name, e.file) and e.batch == batch)
    return next(found, None)


def _speed(best: Comparison, measured: BenchResult) -> str:
    low, high = best.ci95
    fast, slow = (_bench_of(name, best.batch, measured) for name in (best.b, best.a))
    times, where = "", ""
    if fast and slow and fast.latency_ms and slow.latency_ms:
        times = f" ({_ms(fast.latency_ms.p50)} against {_ms(slow.latency_ms.p50)} median)"
        size = f"{fast.image_size} px, " if fast.image_size else ""
        threads = f", {fast.threads} threads" if fast.threads else ""
        where = f" at {size}batch {best.batch}{threads}"
    if measured.verdict == "inconclusive":
        return f"How fast {best.b} is could not be measured: {measured.reason}."
    if best.verdict == "inconclusive":
        return (
            f"Whether {best.b} is faster than {best.a} could not be decided: the ratio's 95 % "
            f"interval is {low:.2f} to {high:.2f}{where}."
        )
    return (
        f"{best.b} is {best.ratio:.1f} times as fast as {_pytorch(fast, slow)}{times}, 95 % interval "
        f"{low:.1f} to {high:.1f},{where}, on this machine."
        if best.a.endswith(".safetensors")
        else f"{best.b} is {best.ratio:.2f} times as fast as {best.a}{times}, 95 % interval "
        f"{low:.2f} to {high:.2f},{where}, on this machine."
    )


def _pytorch(fast: EngineBench | None, slow: EngineBench | None) -> str:
    """PyTorch eager, and where it ran unless both ran on the CPU."""
    on = [(one.runs_on or "cpu") if one else "cpu" for one in (slow, fast)]
    if on == ["cpu", "cpu"]:
        return "PyTorch eager"
    return "PyTorch eager on the " + ("CPU" if on[0] == "cpu" else f"GPU ({on[0]})")


def _unsteady(measured: BenchResult) -> list[str]:
    """What the control run says about the numbers, where it says something."""
    control = measured.a_a_control
    if control is None or measured.verdict == "inconclusive":
        return []
    largest = max(1 / control.ci95[0], control.ci95[1]) - 1
    if largest <= _STEADY:
        return []
    return [
        (
            f"The machine was not quiet: {control.a}, started twice, may differ from itself by "
            f"{largest:.0%}; only larger differences are called faster or slower."
        )
    ]


def _ms(value: float) -> str:
    return f"{value:.2f} ms" if value < 10 else f"{value:.1f} ms"


def _accuracy(hop: Hop, validated: ValidateResult) -> str:
    reference = next((h for h in validated.hops if h.parent is None), None)
    if hop.top1 is None or hop.drop_pp is None or hop.drop_ci95_pp is None or reference is None:
        return f"The accuracy of {hop.name} was not measured: {hop.error or hop.status}."
    low, high = hop.drop_ci95_pp
    margin = validated.gates.max_drop_pp
    place = {
        "pass": f"below the margin of {margin:g} points",
        "fail": f"beyond the margin of {margin:g} points",
    }.get(hop.verdict or "", f"which does not decide a margin of {margin:g} points")
    assert reference.top1 is not None
    return (
        f"{hop.name}: top-1 on {validated.dataset.n} images of {validated.dataset.name} is "
        f"{hop.top1:.2%} against {reference.top1:.2%}: a loss of {hop.drop_pp:.2f} percentage points, "
        f"95 % interval {low:.2f} to {high:.2f}, {place}; {hop.flips} of {validated.dataset.n} "
        "predictions changed."
    )


def _audited(audits: Mapping[str, Audit]) -> list[str]:
    if not audits:
        return []
    wrong = {name: audit for name, audit in audits.items() if audit.verdict == "fail"}
    if wrong:
        return [f"{name}: {audit.reason}" for name, audit in wrong.items()]
    silent = [name for name, audit in audits.items() if audit.verdict == "inconclusive"]
    told = len(audits) - len(silent)
    sentence = (
        f"{told} of {len(audits)} engines compute what was asked of them, by their own layer lists"
    )
    return [sentence + (f"; {', '.join(silent)} does not tell." if silent else ".")]


def _assumed(stages: Sequence[StageRecord]) -> list[str]:
    """That nobody said what the weights expect; random ones expect nothing."""
    for stage in stages:
        settings = (stage.manifest or {}).get("settings", {})
        source = str(settings.get("source", ""))
        if settings.get("preprocessing_assumed") and ":random" not in source:
            said = (
                f"The weights, {source}, came without their preprocessing: ImageNet's mean and deviation "
                "and its resize were assumed; wrong ones cost accuracy."
            )
            return [said]
    return []


def _not_run(stages: Sequence[StageRecord]) -> list[str]:
    built = [stage for stage in stages if stage.status == "built-not-run"]
    said = []
    if built:
        reason = (built[0].note or "").removeprefix("built, not run: ")
        said.append(
            f"{_count(built)} built but not run here ({reason}): the graphs were executed as written, "
            "which predicts the accuracy; nothing is claimed of the speed."
        )
    said += [
        f"{stage.label}: {stage.note}."
        for stage in stages
        if stage.status in {"unavailable", "failed"}
    ]
    return said


def _count(stages: Sequence[StageRecord]) -> str:
    return "One engine was" if len(stages) == 1 else f"{len(stages)} engines were"


def _sentence(text: str) -> str:
    """With a capital and a full stop; a finding may begin or end otherwise elsewhere."""
    return text[:1].upper() + text[1:].rstrip(".") + "."
