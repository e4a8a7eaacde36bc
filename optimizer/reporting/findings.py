"""The sentences at the top of a report, each derived from the numbers it states."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from optimizer.reporting.pruning_section import pruning_of
from optimizer.reporting.task_views import view_of
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
"""Largest difference of an engine from itself that needs no remark."""


def findings(
    validated: ValidateResult | None,
    measured: BenchResult | None,
    audits: Mapping[str, Audit],
    stages: Sequence[StageRecord],
) -> list[str]:
    """The most important facts of a run, one sentence each.

    Args:
        validated: Accuracy, if it was measured.
        measured: Speed, if it was measured.
        audits: Precision audits by file name.
        stages: The stages, for engines that were not run and assumptions that were made.
    """
    sentences = []
    best = _fastest_accepted(validated, measured)
    if best is not None and measured is not None:
        sentences.append(_speed(best, measured))
        sentences += _unsteady(measured)
        hop = _hop_of(best.b, validated, measured)
        if hop is not None and validated is not None:
            sentences.append(_accuracy(hop, validated))
    if measured is not None and measured.failed:
        sentences.append(_sentence(measured.reason))
    if validated is not None:
        sentences.append(_sentence(validated.finding))
    sentences += _pruned(stages)
    sentences += _audited(audits)
    sentences += _not_run(stages)
    sentences += _assumed(stages)
    return list(dict.fromkeys(sentences))


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
    """The hop of a measured engine, which has the engine's name or file name."""
    files = {e.file for e in measured.engines if e.name == engine}
    names = {engine, *files, *(PurePosixPath(file).name for file in files)}
    hops = validated.hops if validated is not None else []
    return next((hop for hop in hops if {hop.name, hop.engine} & names), None)


def _bench_of(name: str, batch: int, measured: BenchResult) -> EngineBench | None:
    matches = (e for e in measured.engines if name in (e.name, e.file) and e.batch == batch)
    return next(matches, None)


def _speed(best: Comparison, measured: BenchResult) -> str:
    low, high = best.ci95
    fast, slow = (_bench_of(name, best.batch, measured) for name in (best.b, best.a))
    times, where = "", ""
    if fast and slow and fast.latency_ms and slow.latency_ms:
        times = f"median {_ms(fast.latency_ms.p50)} against {_ms(slow.latency_ms.p50)}, "
        size = f"{fast.image_size} px, " if fast.image_size else ""
        threads = f", {fast.threads} threads" if fast.threads else ""
        where = f" at {size}batch {best.batch}{threads}"
    if measured.verdict == "inconclusive":
        return _sentence(f"The speed of {best.b} could not be measured: {measured.reason}")
    if best.verdict == "inconclusive":
        return (
            f"Whether {best.b} is faster than {best.a} is undecided: the 95 % interval of the speed "
            f"ratio is {low:.2f} to {high:.2f}{where}."
        )
    is_pytorch = best.a.endswith(".safetensors")
    baseline = _pytorch(fast, slow) if is_pytorch else best.a
    places = 1 if is_pytorch else 2
    return (
        f"{best.b} is {best.ratio:.{places}f} times as fast as {baseline} "
        f"({times}95 % interval of the ratio {low:.{places}f} to {high:.{places}f}) "
        f"on this machine{where}."
    )


def _pytorch(fast: EngineBench | None, slow: EngineBench | None) -> str:
    """``PyTorch eager``, with its device unless both engines ran on the CPU."""
    devices = [(bench.runs_on or "cpu") if bench else "cpu" for bench in (slow, fast)]
    if devices == ["cpu", "cpu"]:
        return "PyTorch eager"
    return "PyTorch eager on the " + ("CPU" if devices[0] == "cpu" else f"GPU ({devices[0]})")


def _unsteady(measured: BenchResult) -> list[str]:
    """A warning if the A/A control differs noticeably from itself."""
    control = measured.a_a_control
    if control is None or measured.verdict == "inconclusive":
        return []
    largest = max(1 / control.ci95[0], control.ci95[1]) - 1
    if largest <= _STEADY:
        return []
    return [
        (
            f"The machine was not quiet: two starts of {control.a} may differ by up to "
            f"{100 * largest:.0f} %; only larger differences count as faster or slower."
        )
    ]


def _ms(value: float) -> str:
    return f"{value:.2f} ms" if value < 10 else f"{value:.1f} ms"


def _accuracy(hop: Hop, validated: ValidateResult) -> str:
    reference = next((h for h in validated.hops if h.parent is None), None)
    view = view_of(validated)
    known = reference is not None and view.accuracy(reference) and view.accuracy(hop)
    if reference is None or not known or hop.drop_pp is None or hop.drop_ci95_pp is None:
        return f"The accuracy of {hop.name} was not measured: {hop.error or hop.status}."
    low, high = hop.drop_ci95_pp
    limit = f"the limit of {validated.gates.max_drop_pp:g} pp"
    judgement = {"pass": f"within {limit}", "fail": f"which exceeds {limit}"}.get(
        hop.verdict or "", f"which does not decide {limit}"
    )
    return (
        f"{view.sentence(hop, reference, validated)}: a drop of "
        f"{hop.drop_pp:.2f} pp (percentage points), 95 % interval {low:.2f} to {high:.2f}, {judgement}; "
        f"{view.changes(hop, validated)}."
    )


def _audited(audits: Mapping[str, Audit]) -> list[str]:
    if not audits:
        return []
    wrong = {name: audit for name, audit in audits.items() if audit.verdict == "fail"}
    if wrong:
        return [f"{name}: {audit.reason}" for name, audit in wrong.items()]
    unknown = [name for name, audit in audits.items() if audit.verdict == "inconclusive"]
    sentence = (
        f"{len(audits) - len(unknown)} of {len(audits)} engines compute in the requested precision, "
        "according to their own layer lists"
    )
    return [sentence + (f"; not reported by {', '.join(unknown)}." if unknown else ".")]


def _pruned(stages: Sequence[StageRecord]) -> list[str]:
    """What pruning saved, by the latency table."""
    sentences = []
    for result in filter(None, map(pruning_of, stages)):
        gone = f"; {', '.join(result.dropped)} dropped" if result.dropped else ""
        sentences.append(_sentence(f"Pruned for {result.summary}{gone}"))
    return sentences


def _assumed(stages: Sequence[StageRecord]) -> list[str]:
    """A warning that the preprocessing was assumed; random weights need none."""
    for stage in stages:
        settings = (stage.manifest or {}).get("settings", {})
        source = str(settings.get("source", ""))
        if settings.get("preprocessing_assumed") and ":random" not in source:
            assumed = _described(stage.manifest or {})
            sentence = (
                f"The weights ({source}) do not state their preprocessing; assumed was: {assumed}. "
                "If that is wrong, accuracy suffers."
            )
            return [sentence]
    return []


def _described(manifest: Mapping[str, Any]) -> str:
    """The preprocessing of an artifact in words: of Keras's files it is not ImageNet's usual one."""
    from optimizer.data import Preprocessing

    stated = manifest.get("preprocessing")
    return "ImageNet's usual one" if stated is None else Preprocessing.from_dict(stated).in_words


def _not_run(stages: Sequence[StageRecord]) -> list[str]:
    built = [stage for stage in stages if stage.status == "built-not-run"]
    sentences = []
    if built:
        reason = (built[0].note or "").removeprefix("built, not run: ")
        sentences.append(
            f"{_count(built)} built but not run here ({reason}): executing the graphs as written "
            "predicts their accuracy; their speed was not measured."
        )
    sentences += [
        f"{stage.label}: {stage.note}."
        for stage in stages
        if stage.status in {"unavailable", "failed"}
    ]
    return sentences


def _count(stages: Sequence[StageRecord]) -> str:
    return "One engine was" if len(stages) == 1 else f"{len(stages)} engines were"


def _sentence(text: str) -> str:
    """``text`` with a capital letter and a full stop."""
    return text[:1].upper() + text[1:].rstrip(".") + "."
