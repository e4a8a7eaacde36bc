"""Join speed, accuracy, audits and builds of each engine by name or file.

Results refer to an engine by file or by name, with or without the folder. Two references mean the
same engine if they are equal or if one path ends with the other; the longest such match wins. A
reference that matches several engines equally well is joined with none of them: a separate row is
better than a wrong accuracy next to a speed.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from pydantic import ValidationError

from optimizer.results import (
    Audit,
    BatchConsistency,
    BenchResult,
    Comparison,
    ComparisonVerdict,
    EngineBench,
    EngineStatus,
    Hop,
    RunResult,
    StageRecord,
)

__all__ = [
    "STATUS_WORDS",
    "EngineRow",
    "baseline_label",
    "baseline_name",
    "engine_rows",
    "file_in_run",
    "manifest_part",
]

STATUS_WORDS: dict[EngineStatus, str] = {
    "ok": "ok",
    "failed": "failed",
    "built-not-run": "built, not run",
    "unavailable": "unavailable",
    "skipped": "not needed",
}
_WORST: list[EngineStatus] = ["failed", "unavailable", "built-not-run", "skipped", "ok"]


@dataclass
class EngineRow:
    """Everything a run recorded about one engine."""

    name: str
    file: str | None = None
    backend: str | None = None
    precision: str | None = None
    benches: list[EngineBench] = field(default_factory=list)
    hop: Hop | None = None
    audit: Audit | None = None
    consistency: list[BatchConsistency] = field(default_factory=list)
    stage: StageRecord | None = None
    path: str | None = None
    """The file relative to the run folder, if the results state its location."""
    speedups: dict[int, Comparison] = field(default_factory=dict)
    """By batch size: this engine (``b``) compared with the baseline (``a``)."""
    is_baseline: bool = False

    @property
    def is_reference(self) -> bool:
        """Whether this is the reference that accuracy is compared with."""
        return self.hop is not None and self.hop.parent is None

    @property
    def status(self) -> EngineStatus:
        """The worst status of build, validation and, if no batch could be timed, timing."""
        statuses: list[EngineStatus] = [part.status for part in (self.stage, self.hop) if part]
        timed: list[EngineStatus] = [bench.status for bench in self.benches]
        if timed and "ok" not in timed:
            statuses.append(min(timed, key=_WORST.index))
        return min(statuses, key=_WORST.index, default="ok")

    def graph_hop(self, run: RunResult) -> Hop | None:
        """The hop of the graph that this engine was built from, if it was computed."""
        if self.hop is None or self.hop.parent is None or run.validate_ is None:
            return None
        hops = (h for h in run.validate_.hops if h.name == self.hop.parent)
        return next((hop for hop in hops if hop.status == "ok"), None)

    @property
    def size_when_built(self) -> int | None:
        """Size of the engine file in bytes, as recorded by its build."""
        size = ((self.stage.manifest if self.stage else None) or {}).get("engine_bytes")
        return size if isinstance(size, int) else None

    @property
    def reasons(self) -> list[str]:
        """Why something about this engine is missing, each reason once."""
        reasons = []
        if self.stage and self.stage.status != "ok" and self.stage.note:
            reasons.append(self.stage.note)
        if self.hop and self.hop.status != "ok" and self.hop.error:
            reasons.append(self.hop.error)
        failed = [bench for bench in self.benches if bench.status != "ok"]
        all_failed_alike = len({bench.error for bench in failed}) == 1 and len(failed) == len(
            self.benches
        )
        for bench in failed:
            why = bench.error or "no reason was recorded"
            word = STATUS_WORDS[bench.status]
            reasons.append(why if all_failed_alike else f"batch {bench.batch} {word}: {why}")
        # Recorded reasons may start with the status, which is shown already.
        for word in STATUS_WORDS.values():
            reasons = [reason.removeprefix(f"{word}: ") for reason in reasons]
        reasons = list(dict.fromkeys(reasons))
        # Build and validation may record the same reason; keep the longer text.
        return [r for r in reasons if not any(r in other for other in reasons if other != r)]


def manifest_part(stage: StageRecord | None, part: str) -> dict[str, Any]:
    """``settings``, ``details``, ``libraries`` … of a stage's manifest; empty if there is none."""
    value = (stage.manifest or {}).get(part) if stage else None
    return value if isinstance(value, dict) else {}


def baseline_name(bench: BenchResult) -> str | None:
    """The baseline of speed: the PyTorch FP32 engine, else the ``a`` of most comparisons.

    Among several PyTorch FP32 engines, it is the one in most comparisons.
    """
    mentioned = Counter(name for c in bench.comparisons for name in (c.a, c.b))
    eager = [e.name for e in bench.engines if (e.backend, e.precision) == ("torch", "fp32")]
    if eager:
        return max(dict.fromkeys(eager), key=lambda name: mentioned[name])
    starts = Counter(c.a for c in bench.comparisons)
    return starts.most_common(1)[0][0] if starts else None


def baseline_label(bench: BenchResult) -> str | None:
    """The baseline's name, labelled as PyTorch if it is."""
    name = baseline_name(bench)
    if any(
        e.backend == "torch" and e.precision == "fp32" and e.name == name for e in bench.engines
    ):
        return name if name and "PyTorch" in name else f"PyTorch eager FP32 ({name})"
    return name


def engine_rows(run: RunResult) -> list[EngineRow]:
    """Join the run's results: one row per engine, in order of first appearance."""
    rows: list[EngineRow] = []
    if run.bench:
        _add_benches(rows, run.bench)
    if run.validate_:
        _add_hops(rows, run.validate_.hops)
        for engine, audit in run.validate_.audits.items():
            for row in _find(rows, engine) or [_append(rows, EngineRow(engine))]:
                row.audit = audit
        for check in run.validate_.batch_consistency:
            for row in _find(rows, check.engine) or [_append(rows, EngineRow(check.engine))]:
                row.consistency.append(check)
    _add_builds(rows, run.stages)
    for row in rows:
        row.path = row.stage.file if row.stage else file_in_run(run, row.file)
    return rows


def file_in_run(run: RunResult, file: str | None) -> str | None:
    """Path of a file in the run folder, known from the stage that wrote it or from its name."""
    if file is None:
        return None
    written = {stage.file for stage in run.stages if stage.file and _overlap(stage.file, file)}
    if len(written) == 1:
        return written.pop()
    return file if "/" in file else None


def _append(rows: list[EngineRow], row: EngineRow) -> EngineRow:
    rows.append(row)
    return row


def _add_benches(rows: list[EngineRow], bench: BenchResult) -> None:
    by_name: dict[str, EngineRow] = {}
    for engine in bench.engines:
        if engine.name not in by_name:
            row = EngineRow(engine.name, engine.file, engine.backend, engine.precision)
            by_name[engine.name] = _append(rows, row)
        by_name[engine.name].benches.append(engine)
    base = baseline_name(bench)
    for row in rows:
        row.is_baseline = row.name == base
        for comparison in bench.comparisons:
            oriented = _from_baseline(base, comparison)
            batches = [b.batch for b in row.benches]
            # With two timings of one name and batch size, it is ambiguous which was compared.
            unique = batches.count(comparison.batch) == 1
            if oriented and unique and oriented.b == row.name:
                row.speedups[comparison.batch] = oriented


def _from_baseline(base: str | None, c: Comparison) -> Comparison | None:
    """``c`` with the baseline as ``a``; ``None`` if it does not involve the baseline."""
    if c.a == base:
        return c
    if c.b != base or min(c.ratio, *c.ci95) <= 0:
        return None
    flipped: dict[ComparisonVerdict, ComparisonVerdict] = {"faster": "slower", "slower": "faster"}
    return c.model_copy(
        update={
            "a": c.b,
            "b": c.a,
            "ratio": 1 / c.ratio,
            "ci95": (1 / c.ci95[1], 1 / c.ci95[0]),
            "verdict": flipped.get(c.verdict, c.verdict),
        }
    )


def _add_hops(rows: list[EngineRow], hops: list[Hop]) -> None:
    for hop in hops:
        if hop.parent is None:
            matches = [r for r in rows if r.is_baseline and r.backend == "torch"]
        elif hop.engine is not None:
            matches = _find(rows, hop.engine)
        else:
            continue  # an intermediate hop has no row
        for row in matches or [
            _append(rows, EngineRow(hop.name, hop.engine, precision=hop.precision))
        ]:
            row.hop = hop


def _add_builds(rows: list[EngineRow], stages: list[StageRecord]) -> None:
    for stage in stages:
        kind = (stage.manifest or {}).get("kind")
        if not (kind == "engine" or (kind is None and stage.name.startswith("build"))):
            continue
        settings = manifest_part(stage, "settings")
        matches = _find(rows, stage.file) if stage.file else []
        matches = matches or [row for row in rows if row.name == stage.label]
        for row in matches or [_append(rows, EngineRow(stage.label, stage.file))]:
            row.stage = stage
            row.backend = row.backend or settings.get("backend")
            row.precision = row.precision or settings.get("precision")
            row.audit = row.audit or _audit_in(stage)


def _audit_in(stage: StageRecord) -> Audit | None:
    # Engines that cannot be opened on this machine are audited at build time.
    try:
        return Audit.model_validate(manifest_part(stage, "details").get("audit"))
    except ValidationError:
        return None  # the manifest has no audit, or one in another format


def _find(rows: list[EngineRow], reference: str) -> list[EngineRow]:
    """The single engine that ``reference`` identifies, as a list; empty if there is none."""
    same_name = [row for row in rows if row.name == reference]
    if same_name:
        return same_name[:1]
    overlaps = [max(_overlap(row.name, reference), _overlap(row.file, reference)) for row in rows]
    best = max(overlaps, default=0)
    matches = [row for row, overlap in zip(rows, overlaps, strict=True) if overlap == best]
    return matches if best and len(matches) == 1 else []


def _overlap(a: str | None, b: str) -> int:
    """Number of parts of the shorter path if the longer one ends with it, else 0."""
    if a is None:
        return 0
    shorter, longer = sorted((PurePosixPath(a).parts, PurePosixPath(b).parts), key=len)
    return len(shorter) if longer[-len(shorter) :] == shorter else 0
