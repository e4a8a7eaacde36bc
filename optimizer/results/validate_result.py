"""``validate.json``: accuracy hop by hop."""

from __future__ import annotations

from typing import Literal

from optimizer.results.detection_result import DetectionMeasures, ExampleImage
from optimizer.results.engines import Audit
from optimizer.results.result_model import (
    SCHEMA_VERSION,
    EngineStatus,
    Interval,
    IntervalKind,
    Model,
    VerdictName,
)
from optimizer.tables import Table, cell

__all__ = [
    "BatchConsistency",
    "BlockNoise",
    "DatasetInfo",
    "EarlyStop",
    "Gates",
    "Hop",
    "Timing",
    "ValidateResult",
]


class DatasetInfo(Model):
    """Which images a result is about."""

    name: str
    n: int
    sha256: str
    image_size: int
    skipped: list[str] = []
    """Images that could not be read and were left out (``--skip-bad-images``)."""
    notes: list[str] = []
    """Files of the dataset that were left out as no images."""


class Hop(Model):
    """One step from the reference to an engine, compared on the same images."""

    name: str
    engine: str | None
    """The engine's file for the last hop of a chain; ``None`` for the hops before it."""
    executor: str
    """The library that computed this hop: ``PyTorch 2.9 eager FP32``, ``ONNX Runtime, as written``."""
    parent: str | None
    """The hop before this one; ``None`` for the reference."""
    precision: str
    status: EngineStatus = "ok"
    error: str | None = None
    crashed: bool = False
    """Whether ``error`` is one of the library that executes the hop: nothing is known of its accuracy."""
    n: int = 0
    top1: float | None = None
    top1_ci95: Interval | None = None
    top5: float | None = None
    flips: int | None = None
    """Images whose top-1 class differs from the reference's."""
    n_vs_parent: int | None = None
    """Images on which this hop was compared with the one before it, if not all."""
    flips_vs_parent: int | None = None
    drop_pp: float | None = None
    """Loss of top-1 against the reference, in percentage points; negative is a gain."""
    drop_ci95_pp: Interval | None = None
    """Paired 95 % interval of the drop; valid with zero discordant images too."""
    mcnemar_p: float | None = None
    sqnr_db: float | None = None
    """SQNR of the logits against the reference; ``None`` for identical outputs."""
    sqnr_vs_parent_db: float | None = None
    max_abs_diff: float | None = None
    worst_image: str | None = None
    detection: DetectionMeasures | None = None
    """For detectors, whose drop is that of AP; ``None`` for classifiers."""
    verdict: VerdictName | None = None


class BatchConsistency(Model):
    """Whether an image's outputs depend on its neighbours in the batch."""

    engine: str
    batches: list[int]
    max_abs_diff: float
    tolerance: float
    failing: list[str] = []
    """Check, batch and image of each failure."""
    verdict: VerdictName
    reason: str


class BlockNoise(Model):
    """SQNR of a graph after one residual block, against the reference."""

    module: str
    """PyTorch module (``layer1.0``), ``maxpool`` for the stem, or ``logits``."""
    sqnr_db: float | None
    """``None`` for identical tensors."""


class Gates(Model):
    """The accuracy limits of a validation."""

    max_drop_pp: float
    max_flips: float | None = None
    """Largest share of images that may change class; ``None`` sets no limit."""
    max_lost: float | None = None
    """Largest share of the reference's detections that may be lost; ``None`` sets no limit."""
    score_threshold: float = 0.3
    """The score from which detections count as lost or new."""


class EarlyStop(Model):
    """How a validation went that stops as soon as it is decided."""

    available: int
    """Images of the dataset; `DatasetInfo.n` of them were looked at."""
    seed: int
    """Seed of the order of the images."""
    decided: bool
    """Whether every engine was decided; otherwise all images were looked at."""


class Timing(Model):
    """Time spent; with several processes, that of the first."""

    wall_s: float
    """The whole validation, including opening the engines, without ``--layers``."""
    pass_s: float
    """The pass over the images."""
    waiting_s: float
    """The part of the pass in which the engines waited for images."""
    decoding_cpu_s: float
    """CPU time of decoding and preprocessing, including worker processes."""
    hops_cpu_s: dict[str, float]
    """CPU time of inference in the pass, all threads, by hop."""
    reading_cpu_s: dict[str, float] = {}
    """CPU time of turning outputs into predictions: of a detector, decoding and suppression."""
    images_computed: dict[str, int] = {}
    """Images that the times of a hop are for; predictions of the others were stored."""
    consistency_cpu_s: float
    """CPU time of the batch consistency check after the pass."""


class ValidateResult(Model):
    """``validate.json``."""

    schema_version: int = SCHEMA_VERSION
    kind: Literal["validate"] = "validate"
    task: Literal["classification", "detection"] = "classification"
    created: str
    reference: str
    dataset: DatasetInfo
    hops: list[Hop]
    first_failing_hop: str | None = None
    finding: str
    """One sentence: the loss, where it occurs, and whether it is significant."""
    batch_consistency: list[BatchConsistency] = []
    audits: dict[str, Audit] = {}
    """By engine."""
    layers: dict[str, list[BlockNoise]] = {}
    """By hop, for graphs that were compared by block."""
    gates: Gates
    intervals: IntervalKind = "fixed"
    """What the intervals of drops, flips and accuracies are valid for."""
    early_stop: EarlyStop | None = None
    """With ``--until-decided``."""
    images_needed: int | None = None
    """Number of images that would decide an inconclusive verdict."""
    examples: list[ExampleImage] = []
    """Of detectors: the images on which the engines' detections change most."""
    predictions_file: str | None = None
    predictions_sha256: str | None = None
    """Digest of that file, because another validation may have overwritten it."""
    timing: Timing | None = None
    verdict: VerdictName

    def as_table(self) -> Table:
        """One row per hop."""
        if self.task == "detection":
            return self._detection_table()
        rows = []
        for hop in self.hops:
            interval = hop.drop_ci95_pp
            rows.append(
                (
                    hop.name,
                    hop.executor,
                    cell(hop.top1, "{:.2%}"),
                    cell(hop.drop_pp, "{:+.2f}"),
                    f"{interval[0]:+.2f} … {interval[1]:+.2f}" if interval else "–",
                    cell(hop.flips, "{}"),
                    cell(hop.sqnr_db, "{:.1f}"),
                    hop.verdict or hop.error or hop.status,
                )
            )
        columns = (
            "hop", "computed by", "top-1", "drop, pp", "95 % interval", "flips", "SQNR, dB", "verdict",
        )  # fmt: skip
        return Table(columns, rows, self.finding)

    def _detection_table(self) -> Table:
        rows = []
        for hop in self.hops:
            found, interval = hop.detection, hop.drop_ci95_pp
            counts = ("–",) * 3
            aps = ("–",) * 2
            if found is not None:
                aps = cell(found.ap, "{:.3f}"), cell(found.ap50, "{:.3f}")
                counts = f"{found.detections}", cell(found.lost, "{}"), cell(found.new, "{}")
            rows.append(
                (
                    hop.name,
                    hop.executor,
                    *aps,
                    cell(hop.drop_pp, "{:+.2f}"),
                    f"{interval[0]:+.2f} … {interval[1]:+.2f}" if interval else "–",
                    *counts,
                    cell(hop.sqnr_db, "{:.1f}"),
                    hop.verdict or hop.error or hop.status,
                )
            )
        columns = (
            "hop", "computed by", "AP", "AP50", "drop, pp", "95 % interval", "detections", "lost",
            "new", "box SQNR, dB", "verdict",
        )  # fmt: skip
        return Table(columns, rows, self.finding)
