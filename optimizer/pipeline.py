"""The main job: train or load, export, calibrate, build, audit, validate, bench, report.

One folder, one report. Every stage leaves an artifact with a manifest; a stage whose inputs,
settings, libraries and device are known is not run again.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path

from optimizer import stages
from optimizer.artifacts import Cache
from optimizer.errors import (
    AccuracyGateFailed,
    BuildError,
    EnvironmentFault,
    Inconclusive,
    PrecisionAuditFailed,
    Verdict,
)
from optimizer.progress import Progress, Silent
from optimizer.recipe import Recipe, save_recipe
from optimizer.results import BenchResult, RunResult, ValidateResult, VerdictName, write_result

__all__ = ["run", "verdict_of"]


def run(
    recipe: Recipe,
    folder: Path | str,
    *,
    command: str = "optimizer.run(recipe, folder)",
    cache: Cache | None = None,
    progress: Progress | None = None,
) -> RunResult:
    """Execute a recipe; everything it makes, and the report, are in ``folder``.

    Engines that cannot be computed here are recorded with the reason and do not stop the others.

    Args:
        recipe: What to do.
        folder: The run folder; what is there and still valid is used again.
        command: The command line, for the report's "how to repeat".
        cache: Where artifacts are kept by key.
        progress: Told of the steps.

    Returns:
        What ``results.json`` holds; `verdict_of` turns it into the error to raise, if any.

    Raises:
        UsageError: The recipe asks for something that cannot be.
        EnvironmentFault: No engine of the recipe can be built here.
    """
    from optimizer.environment import describe
    from optimizer.reporting import write_report
    from optimizer.reporting.findings import findings

    started = time.perf_counter()
    state = stages.Run(recipe, Path(folder).resolve(), cache, progress or Silent())
    images = stages.open_images(state)  # what is wrong with the data is said before any work
    state.folder.mkdir(parents=True, exist_ok=True)
    save_recipe(recipe, state.folder / "recipe.yaml")

    checkpoint = stages.make_checkpoint(state)
    graph = stages.export(state, checkpoint)
    statistics = stages.take_statistics(state, graph, images.calibration)
    for section in recipe.build:
        stages.build_engines(state, section, checkpoint, graph, statistics, images.pool)
    if not state.engines:
        reasons = "; ".join(f"{s.label}: {s.note}" for s in state.stages if s.status != "ok")
        raise EnvironmentFault(f"no engine could be built: {reasons}", mend="resnet-opt doctor")
    validated = stages.validate_engines(state, checkpoint, graph, images.held_out)
    measured = stages.measure_engines(state, checkpoint)

    result = RunResult(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        title=recipe.title,
        command=command,
        recipe=recipe.model_dump(mode="json", exclude_none=True),
        environment=describe().model_dump(mode="json"),
        stages=state.stages,
        validate_=validated,
        bench=measured,
        audits=state.audits,
        verdict=_verdict(state, validated, measured),
        findings=findings(validated, measured, state.audits, state.stages),
        seconds=time.perf_counter() - started,
    )
    write_result(result, state.folder / "results.json")
    for suffix in (".html", ".md"):
        write_report([state.folder], state.folder / f"report{suffix}")
    return result


def _verdict(
    state: stages.Run, validated: ValidateResult | None, measured: BenchResult | None
) -> VerdictName:
    verdicts: list[VerdictName] = [audit.verdict for audit in state.audits.values()]
    verdicts += [part.verdict for part in (validated, measured) if part is not None]
    if "fail" in verdicts or any(stage.status == "failed" for stage in state.stages):
        return "fail"
    return "inconclusive" if "inconclusive" in verdicts else "pass"


def verdict_of(result: RunResult) -> Verdict | BuildError | None:
    """The error a run ends with, ``None`` if its verdict is ``pass``.

    In the order of `validate`: a failed build, lost accuracy, another precision than was asked for,
    an engine that failed while it was measured; then whatever could not be decided.
    """
    failed = [s for s in result.stages if s.status == "failed"]
    if failed:
        return BuildError(f"{failed[0].label} could not be built: {failed[0].note}")
    validated, measured = result.validate_, result.bench
    audits = {**result.audits, **(validated.audits if validated else {})}
    wrong = [f"{name}: {a.reason}" for name, a in audits.items() if a.verdict == "fail"]
    if (
        validated is not None
        and validated.verdict == "fail"
        and not (wrong and _is_kept(validated))
    ):
        return AccuracyGateFailed(validated.finding)
    if wrong:
        return PrecisionAuditFailed(wrong[0])
    if measured is not None and measured.verdict == "fail":
        return BuildError(measured.reason)
    undecided = []
    if validated is not None and validated.verdict == "inconclusive":
        undecided.append(validated.finding)
    undecided += [f"{n}: {a.reason}" for n, a in audits.items() if a.verdict == "inconclusive"]
    if measured is not None and measured.verdict == "inconclusive":
        undecided.append(measured.reason)
    if undecided or result.verdict != "pass":
        return Inconclusive("; ".join(undecided) or f"the run ended with {result.verdict}")
    return None


def _is_kept(validated: ValidateResult) -> bool:
    """Whether accuracy is within its limits, whatever the audits say."""
    lost = any(hop.verdict == "fail" for hop in validated.hops)
    return not (lost or any(found.verdict == "fail" for found in validated.batch_consistency))
