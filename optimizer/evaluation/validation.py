"""`validate`: compare engines with the reference, hop by hop, and judge the differences."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from optimizer.artifacts import digest
from optimizer.data import ImageDataset
from optimizer.errors import (
    AccuracyGateFailed,
    DataError,
    Inconclusive,
    PrecisionAuditFailed,
    UsageError,
)
from optimizer.evaluation.accuracy_finding import LABELS_UNINFORMATIVE, finding
from optimizer.evaluation.chain import REFERENCE, Chain, Step, plan_steps
from optimizer.evaluation.clock import CONSISTENCY, Clock
from optimizer.evaluation.consistency import batch_consistency, batches_to_check
from optimizer.evaluation.evidence import Evidence
from optimizer.evaluation.layerwise import layerwise
from optimizer.evaluation.parity import Outcome, Parity, measure
from optimizer.evaluation.precision_audit import audit_manifest
from optimizer.evaluation.reference import Reference, open_reference
from optimizer.evaluation.shards import gathered, joined, rank_and_world
from optimizer.models import Model
from optimizer.options import HopOptions, takes_options
from optimizer.progress import Progress, Silent
from optimizer.results import (
    Audit,
    BatchConsistency,
    BlockNoise,
    DatasetInfo,
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
    reference: Model | Path,
    dataset: ImageDataset,
    gates: Gates,
    options: HopOptions,
    *,
    predictions: Path | None = None,
    progress: Progress | None = None,
) -> ValidateResult:
    """Compare every hop of every chain with the reference on the same images, in one pass.

    Args:
        chains: The files from the reference to each engine.
        reference: The model, or the user's FP32 ONNX file with preprocessing metadata.
        dataset: Labelled images.
        gates: The limits; each is a non-inferiority test on the 95 % interval.
        options: Images per call; whether to compare up to 256 images block by block as well; the
            share of the FLOPs that an engine must compute in its precision.
        predictions: Output file for the per-image predictions (``.npz``); ``None`` writes none.
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
    opened = open_reference(reference)
    task = opened.task
    task.check_gates(gates)
    if len(dataset) == 0:
        raise DataError(f"{dataset.name} contains no images")
    planned = plan_steps(chains, opened)  # report mismatched files before checking the data
    data = task.match(dataset, opened.num_classes, opened.classes)
    steps = {step.name: step for chain in planned.values() for step in chain}
    measured = measure(steps.values(), opened, data, batch=batch, clock=clock, progress=progress)
    with joined(), measured as parity:
        reference_tally = parity.outcomes[REFERENCE].tally
        task.check_reference(reference_tally, opened.expected_top1, data.name)
        consistency = _consistency(parity, opened, data, batch)
        predictions_sha256 = None
        if predictions is not None and rank_and_world()[0] == 0:
            parity.recorder.write(predictions, data, dataset.sha256)
            predictions_sha256 = digest(predictions)
        skipped, timing = _skipped_and_timing(data, clock, read_before)
    informative = task.labels_informative(reference_tally, opened.num_classes)
    judging = _Judging(task, gates, data, informative)
    hops = [_hop(name, outcome, judging) for name, outcome in parity.outcomes.items()]
    noise = _layers(parity, reference, data, batch, progress) if options.layers else {}
    audits = _audits(steps.values(), options.min_share)
    evidence = Evidence(
        hops=hops,
        outcomes=parity.outcomes,
        chains=planned,
        gates=gates,
        consistency=consistency,
        audits=audits,
        task=task,
        labels_informative=informative,
    )
    failing = evidence.first_failing
    return ValidateResult(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        reference=opened.name,
        dataset=DatasetInfo(
            name=data.name,
            n=reference_tally.n,
            sha256=dataset.sha256,
            image_size=opened.preprocessing.image_size,
            skipped=skipped,
        ),
        hops=hops,
        first_failing_hop=None if failing is None else failing.name,
        finding=finding(evidence),
        batch_consistency=consistency,
        audits=audits,
        layers=noise,
        gates=gates,
        images_needed=evidence.images_needed,
        predictions_file=None if predictions is None else predictions.name,
        predictions_sha256=predictions_sha256,
        timing=timing,
        verdict=evidence.verdict,
    )


def _check_predictions_file(predictions: Path | None) -> None:
    if predictions is not None and predictions.suffix != ".npz":
        raise UsageError(
            f"predictions are written as .npz, not as {predictions.name}",
            hint=f"name the file {predictions.stem}.npz",
        )


def raise_for_verdict(result: ValidateResult) -> None:
    """Raise the exception, and so the exit code, for a verdict other than ``pass``.

    Raises:
        AccuracyGateFailed: A hop failed or exceeds a limit, or outputs depend on the batch.
        PrecisionAuditFailed: Accuracy is fine, but an engine computes in another precision.
        Inconclusive: There are too few images to decide.
    """
    hop_failed = any(hop.verdict == "fail" for hop in result.hops)
    if hop_failed or any(check.verdict == "fail" for check in result.batch_consistency):
        raise AccuracyGateFailed(result.finding, hint="resnet-opt validate --layers shows where")
    if any(audit.verdict == "fail" for audit in result.audits.values()):
        raise PrecisionAuditFailed(result.finding, hint="resnet-opt inspect lists the layers")
    if result.verdict == "inconclusive":
        needed = result.images_needed
        hint = "raise the limit, or validate on a machine that can run the engine"
        if needed:
            hint = f"validate on about {needed:,} images"
        if result.finding.startswith(LABELS_UNINFORMATIVE):
            hint = "check the classes, their order and the preprocessing; more images will not help"
        raise Inconclusive(result.finding, hint=hint)


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
    reference: Model | Path,
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
