"""`validate`: compare engines with the reference, hop by hop, and judge the differences."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from optimizer.artifacts import digest
from optimizer.data import ImageDataset
from optimizer.errors import (
    AccuracyGateFailed,
    BuildError,
    DataError,
    GraphError,
    Inconclusive,
    PrecisionAuditFailed,
    UsageError,
)
from optimizer.evaluation.accuracy_finding import LABELS_UNINFORMATIVE, finding
from optimizer.evaluation.chain import (
    REFERENCE,
    Chain,
    Step,
    plan_steps,
    stated_preprocessing,
)
from optimizer.evaluation.clock import CONSISTENCY, Clock
from optimizer.evaluation.consistency import batch_consistency, batches_to_check
from optimizer.evaluation.evidence import Evidence
from optimizer.evaluation.hop_outcomes import Outcome, Parity, Pass
from optimizer.evaluation.layerwise import layerwise
from optimizer.evaluation.parity import measure
from optimizer.evaluation.precision_audit import audit_manifest
from optimizer.evaluation.reference import Reference, open_reference
from optimizer.evaluation.stored_predictions import PredictionStores
from optimizer.models import Model
from optimizer.models.native import NativeModel
from optimizer.options import HopOptions, takes_options
from optimizer.processes.ranks import gathered, joined, rank_and_world
from optimizer.progress import Progress, Silent
from optimizer.results import (
    Audit,
    BatchConsistency,
    BlockNoise,
    DatasetInfo,
    EarlyStop,
    Gates,
    Hop,
    Timing,
    ValidateResult,
)
from optimizer.tasks import Task

__all__ = ["raise_for_verdict", "validate"]

_CONSISTENCY_IMAGES = 32
_LAYER_IMAGES = 256


@takes_options(HopOptions)
def validate(
    chains: Sequence[Chain],
    reference: Model | NativeModel | Path,
    dataset: ImageDataset,
    gates: Gates,
    options: HopOptions,
    *,
    predictions: Path | None = None,
    stores: PredictionStores | None = None,
    progress: Progress | None = None,
) -> ValidateResult:
    """Compare every hop of every chain with the reference on the same images.

    Args:
        chains: The files from the reference to each engine.
        reference: The model, perhaps with its own framework, or the user's FP32 ONNX file.
        dataset: Labelled images.
        gates: The limits; each is a non-inferiority test on the 95 % interval.
        options: Images per call; which hops see which images; whether to compare up to 256 images
            block by block as well; the share of the FLOPs that an engine must compute in its
            precision.
        predictions: Output file for the per-image predictions (``.npz``); ``None`` writes none.
        stores: Stored predictions, which are used and extended; ``None`` stores none.
        progress: Receives progress updates per batch.

    Returns:
        The result. Its verdict is ``fail`` if any hop failed or exceeds a limit, if an engine's
        outputs depend on the other images in the batch, or if an engine does not compute in the
        requested precision; ``inconclusive`` if the deciding hop of a chain (its engine, or the
        last hop that could run) is inconclusive.

    Raises:
        UsageError: No chain, unreadable files, or data that does not fit the model.
        AccuracyGateFailed: The reference itself is below its expected accuracy.
    """
    batch = options.batch
    _check_predictions_file(predictions)
    progress, clock, read_before = progress or Silent(), Clock(), dataset.spent.cpu_s
    foreign = next((chain.source for chain in chains if chain.source is not None), None)
    opened = open_reference(reference, foreign, stated_preprocessing(chains))
    opened = _for_limits(opened, gates, options)
    if len(dataset) == 0:
        raise DataError(f"{dataset.name} contains no images")
    dataset.check_depth(opened.preprocessing)
    plan = Pass(
        chains=plan_steps(chains, opened),  # report mismatched files before checking the data
        reference=opened,
        dataset=opened.task.match(dataset, opened.num_classes, opened.classes),
        gates=gates,
        options=options,
        stores=stores,
        clock=clock,
        progress=progress,
    )
    data = plan.dataset
    with joined(), measure(plan) as parity:
        tally = parity.outcomes[REFERENCE].tally
        parity.task.check_reference(tally, opened.expected_top1, data.name)
        consistency = _consistency(parity, opened, data, batch)
        written = _write_predictions(parity, data, dataset.sha256, predictions)
        skipped, timing = _skipped_and_timing(data, clock, read_before)
    noise = _layers(parity, opened, data, batch, progress) if options.layers else {}
    evidence = _evidence(plan, parity, consistency)
    failing = evidence.first_failing
    return ValidateResult(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        task=parity.task.name,
        reference=opened.name,
        dataset=DatasetInfo(
            name=data.name,
            n=parity.images,
            sha256=dataset.sha256,
            image_size=opened.preprocessing.image_size,
            skipped=skipped,
            notes=list(data.notes),
        ),
        hops=list(evidence.hops),
        first_failing_hop=None if failing is None else failing.name,
        finding=finding(evidence),
        batch_consistency=consistency,
        audits=dict(evidence.audits),
        layers=noise,
        gates=gates,
        intervals=parity.task.intervals.kind,
        early_stop=_early_stop(plan, evidence),
        images_needed=evidence.images_needed,
        examples=parity.task.examples(_shown(parity), data),
        predictions_file=None if predictions is None else predictions.name,
        predictions_sha256=written,
        timing=timing,
        verdict=evidence.verdict,
    )


def _shown(parity: Parity) -> dict[str, Any]:
    """The tallies of the reference and of what ends a chain as far as it could run, by hop."""
    ran = [o.step for o in parity.outcomes.values() if o.step is not None and o.status == "ok"]
    parents = {step.parent for step in ran}
    return {
        name: outcome.tally
        for name, outcome in parity.outcomes.items()
        if outcome.status == "ok" and (name == REFERENCE or name not in parents)
    }


def _evidence(plan: Pass, parity: Parity, consistency: list[BatchConsistency]) -> Evidence:
    reference = parity.outcomes[REFERENCE].tally
    informative = parity.task.labels_informative(reference, plan.reference.num_classes)
    judging = _Judging(parity.task, plan.gates, plan.dataset, informative)
    return Evidence(
        hops=[_hop(name, outcome, judging) for name, outcome in parity.outcomes.items()],
        outcomes=parity.outcomes,
        chains=plan.chains,
        gates=plan.gates,
        consistency=consistency,
        audits=_audits(plan.steps, plan.options.min_share),
        task=parity.task,
        labels_informative=informative,
    )


def _write_predictions(
    parity: Parity, data: ImageDataset, sha256: str, path: Path | None
) -> str | None:
    """Write the predictions of all processes once; returns the file's digest in the first one."""
    if path is None or rank_and_world()[0] != 0:
        return None
    parity.recorder.write(path, data, sha256)
    return digest(path)


def _early_stop(plan: Pass, evidence: Evidence) -> EarlyStop | None:
    if not plan.options.until_decided:
        return None
    return EarlyStop(
        available=len(plan.dataset),
        seed=plan.options.seed,
        decided=all(hop is not None and hop.verdict != "inconclusive" for hop in evidence.ends),
    )


def _for_limits(opened: Reference, gates: Gates, options: HopOptions) -> Reference:
    """The reference, with its task set up for the limits."""
    task = opened.task.for_gates(gates)
    if options.layers and task.name != "classification":
        raise UsageError(
            "--layers compares the residual blocks of classifiers only", hint="leave it out"
        )
    return replace(opened, task=task)


def _check_predictions_file(predictions: Path | None) -> None:
    if predictions is not None and predictions.suffix != ".npz":
        raise UsageError(
            f"predictions are written as .npz, not as {predictions.name}",
            hint=f"name the file {predictions.stem}.npz",
        )


def raise_for_verdict(result: ValidateResult) -> None:
    """Raise the exception, and so the exit code, for a verdict other than ``pass``.

    Raises:
        GraphError, BuildError: A graph or an engine could not be executed, and no other hop fails.
        AccuracyGateFailed: A hop failed or exceeds a limit, or outputs depend on the batch.
        PrecisionAuditFailed: Accuracy is fine, but an engine computes in another precision.
        Inconclusive: There are too few images to decide.
    """
    failed_hops = [hop for hop in result.hops if hop.verdict == "fail"]
    if failed_hops and all(hop.crashed for hop in failed_hops):
        _raise_for_crash(failed_hops[0], result.finding)
    if failed_hops or any(check.verdict == "fail" for check in result.batch_consistency):
        hint = "resnet-opt validate --layers shows where"
        if result.task == "detection":
            hint = "--keep leaves layers out of INT8; --method minmax clips no confident score"
        raise AccuracyGateFailed(result.finding, hint=hint)
    if any(audit.verdict == "fail" for audit in result.audits.values()):
        raise PrecisionAuditFailed(result.finding, hint="resnet-opt inspect lists the layers")
    if result.verdict == "inconclusive":
        needed = result.images_needed
        hint = "raise the limit, or validate on a machine that can run the engine"
        if _nothing_to_lose(result):
            hint = (
                "lower --score-threshold: the reference has no detection with a score of "
                f"{result.gates.score_threshold:g}"
            )
        if needed:
            hint = f"validate on about {needed:,} images"
        if result.finding.startswith(LABELS_UNINFORMATIVE):
            hint = "check the classes, their order and the preprocessing; more images will not help"
        raise Inconclusive(result.finding, hint=hint)


def _nothing_to_lose(result: ValidateResult) -> bool:
    """Whether lost detections are limited, and the reference of a detector has none to lose."""
    found = result.hops[0].detection
    return result.gates.max_lost is not None and found is not None and not found.detections


def _raise_for_crash(hop: Hop, finding: str) -> NoReturn:
    """A hop that no library executes is a fault of the file, not a loss of accuracy."""
    if hop.engine is not None:
        raise BuildError(
            finding, hint="build the engine again; resnet-opt doctor checks the libraries"
        )
    raise GraphError(finding, hint="the file is damaged or was edited: export or convert it again")


# --- hops --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Judging:
    """What every hop is judged with."""

    task: Task
    gates: Gates
    data: ImageDataset
    labels_informative: bool


def _hop(name: str, outcome: Outcome, judging: _Judging) -> Hop:
    step, task = outcome.step, judging.task
    hop = Hop(
        name=name,
        engine=step.path.name if step is not None and step.kind == "engine" else None,
        executor=outcome.executor,
        parent=step.parent if step is not None else None,
        precision=step.precision if step is not None else "fp32",
        status=outcome.status,
        error=outcome.error,
        crashed=outcome.crashed,
    )
    if outcome.status == "failed":
        return hop.model_copy(update={"verdict": "fail"})
    if outcome.status != "ok":
        return hop
    measured = task.fields(outcome.tally, judging.data, is_reference=step is None)
    if step is not None:
        measured["verdict"] = task.verdict(
            outcome.tally, judging.gates, labels_informative=judging.labels_informative
        )
    return hop.model_copy(update=measured)


# --- engines -----------------------------------------------------------------------------------


def _consistency(
    parity: Parity, reference: Reference, dataset: ImageDataset, batch: int
) -> list[BatchConsistency]:
    checks = []
    dataset = replace(dataset, workers=0)  # too few images to start worker processes for
    for name, executor in parity.sessions.items():
        outcome = parity.outcomes[name]
        if outcome.step is None or outcome.step.kind != "engine" or outcome.status != "ok":
            continue
        count = min(_CONSISTENCY_IMAGES, len(dataset))
        (sample,) = dataset.batches(
            count, reference.preprocessing, as_uint8=executor.takes_uint8, order=range(count)
        )
        with parity.clock.computing(CONSISTENCY):
            checks.append(
                batch_consistency(
                    name,
                    executor.session,
                    sample.images,
                    [dataset.image_id(int(i)) for i in sample.indices],
                    batches=batches_to_check(outcome.step.manifest, batch),
                    precision=outcome.step.precision,
                )
            )
    return checks


def _skipped_and_timing(
    dataset: ImageDataset, clock: Clock, read_before: float
) -> tuple[list[str], Timing]:
    """Images skipped by any process, and the timing of the first process."""
    local = list(dataset.skipped), clock.result(dataset.spent.cpu_s - read_before)
    skipped, timings = zip(*gathered(local), strict=True)
    return sorted({name for names in skipped for name in names}), timings[0]


def _audits(steps: Iterable[Step], min_share: float) -> dict[str, Audit]:
    return {
        step.name: audit_manifest(step.manifest, min_share)
        for step in steps
        if step.kind == "engine" and step.manifest is not None and "layers" in step.manifest.details
    }


def _layers(
    parity: Parity,
    reference: Reference,
    dataset: ImageDataset,
    batch: int,
    progress: Progress,
) -> dict[str, list[BlockNoise]]:
    subset = dataset.select(np.arange(min(_LAYER_IMAGES, len(dataset)), dtype=np.int64))
    noise = {}
    for name, outcome in parity.outcomes.items():
        step = outcome.step
        # BF16 graphs cannot be tapped: ONNX Runtime's CPU provider has no BF16 convolution.
        if step is None or step.kind != "graph" or step.precision == "bf16":
            continue
        if outcome.status == "ok":
            noise[name] = layerwise(reference, step.path, subset, batch=batch, progress=progress)
    return noise
