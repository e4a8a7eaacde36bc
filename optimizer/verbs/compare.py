"""The verb ``compare``: speed and accuracy of two results."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from optimizer.errors import (
    AccuracyGateFailed,
    Inconclusive,
    PerformanceRegression,
    UsageError,
    Verdict,
)
from optimizer.options import CompareOptions, takes_options
from optimizer.results import (
    BenchResult,
    Result,
    RunResult,
    ValidateResult,
    VerdictName,
    read_result,
)

if TYPE_CHECKING:
    from optimizer.evaluation.accuracy_comparison import AccuracyComparison
    from optimizer.profiling.speed_comparison import BenchComparison

__all__ = ["ComparisonResult", "compare"]


@dataclass
class ComparisonResult:
    """Speed and accuracy of two runs compared.

    Attributes:
        speed: Comparison of the benchmarks; ``None`` if a result has none.
        accuracy: Comparisons of the engines that were validated in both.
        missing: Parts of the old result that the new one lacks.
    """

    speed: BenchComparison | None = None
    accuracy: list[AccuracyComparison] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)

    def as_json(self) -> str:
        """The comparison as JSON."""
        raw = {
            "speed": self.speed.model_dump(mode="json") if self.speed else None,
            "accuracy": [part.model_dump(mode="json") for part in self.accuracy],
            "missing": self.missing,
        }
        return json.dumps(raw, indent=2)

    def as_text(self) -> str:
        """The comparison as text, one line per pair and verdict."""
        lines = []
        if self.speed is not None:
            for pair in self.speed.pairs:
                low, high = pair.ci95
                lines.append(
                    f"{pair.new}, {pair.setting}: {pair.slowdown:+.1%} "
                    f"{'latency' if pair.streams is None else 'time per image'}, 95 % interval "
                    f"{low:+.1%} to {high:+.1%}: {pair.verdict}"
                )
            lines += [f"missing: {name}" for name in self.speed.missing]
            lines += [*self.speed.notes, f"speed: {self.speed.verdict}, {self.speed.reason}"]
        lines += [f"{part.new}: {part.verdict}, {part.reason}" for part in self.accuracy]
        lines += [f"missing: {name}" for name in self.missing]
        return "\n".join(lines)

    @property
    def verdict(self) -> VerdictName:
        """``pass``, ``fail`` or ``inconclusive``."""
        error = self.error()
        if error is None:
            return "pass"
        return "inconclusive" if isinstance(error, Inconclusive) else "fail"

    def error(self) -> Verdict | None:
        """The worst verdict as an error: lost accuracy, then lost speed, then inconclusive ones."""
        failed = next((part for part in self.accuracy if part.verdict == "fail"), None)
        if failed is not None:
            return AccuracyGateFailed(failed.reason)
        if self.speed is not None and self.speed.verdict == "fail":
            return PerformanceRegression(self.speed.reason)
        undecided = next((part for part in self.accuracy if part.verdict == "inconclusive"), None)
        if undecided is not None:
            return Inconclusive(undecided.reason)
        if self.speed is not None and self.speed.verdict == "inconclusive":
            return Inconclusive(self.speed.reason)
        if self.missing:
            return Inconclusive(f"missing from the new result: {', '.join(self.missing)}")
        return None


@takes_options(CompareOptions)
def compare(old: Path | str, new: Path | str, options: CompareOptions) -> ComparisonResult:
    """Compare the parts that two result files have in common.

    Args:
        old: ``bench.json``, ``validate.json`` or ``results.json``.
        new: The same file of another run.
        options: See below.

    Raises:
        UsageError: They have nothing in common, or come from different machines or data.
        ArtifactError: A file cannot be read.
    """
    old, new = Path(old), Path(new)
    before, after = read_result(old), read_result(new)
    outcome = ComparisonResult()
    speeds = _speed_of(before), _speed_of(after)
    if speeds[0] is not None and speeds[1] is None:
        outcome.missing.append("the benchmark")
    if _has_accuracy(before) and not _has_accuracy(after):
        outcome.missing.append("the validation")
    if speeds[0] is not None and speeds[1] is not None:
        from optimizer.profiling.speed_comparison import compare_bench

        outcome.speed = compare_bench(
            speeds[0], speeds[1], max_slowdown=options.max_slowdown, anyway=options.anyway
        )
    if _has_accuracy(before) and _has_accuracy(after):
        from optimizer.evaluation.accuracy_comparison import compare as compare_accuracy
        from optimizer.evaluation.accuracy_comparison import missing

        outcome.accuracy = compare_accuracy(old, new, max_drop_pp=options.max_drop)
        outcome.missing += missing(old, new)
    if outcome.speed is None and not outcome.accuracy:
        raise UsageError(
            f"{old.name} holds {before.kind}, {new.name} holds {after.kind}: nothing to compare",
            hint="give two results of the same kind",
        )
    return outcome


def _speed_of(result: Result) -> BenchResult | None:
    if isinstance(result, RunResult):
        return result.bench
    return result if isinstance(result, BenchResult) else None


def _has_accuracy(result: Result) -> bool:
    return isinstance(result, ValidateResult) or (
        isinstance(result, RunResult) and result.validate_ is not None
    )
