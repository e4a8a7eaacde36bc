"""The results that rooms hand on: what ``--json`` prints and every report is rendered from.

Each file carries ``schema_version``; a reader refuses another one. Units are in the names:
``_ms`` milliseconds, ``_s`` seconds, ``_pp`` percentage points, ``_db`` decibel, ``_bytes``.
Shares and accuracies are fractions of one. ``None`` means "not known" or "not supported by this
many samples", never zero.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from optimizer.artifacts import write_text_atomically
from optimizer.errors import ArtifactError

__all__ = [
    "Audit",
    "BatchConsistency",
    "BenchResult",
    "BlockNoise",
    "Comparison",
    "Conditions",
    "DatasetInfo",
    "EngineBench",
    "EngineStatus",
    "FrontPoint",
    "Gates",
    "Hop",
    "Interval",
    "Latency",
    "LayerInfo",
    "LayerSensitivity",
    "Result",
    "RunResult",
    "SearchResult",
    "StageRecord",
    "ValidateResult",
    "VerdictName",
    "read_result",
    "write_result",
]

SCHEMA_VERSION = 1
Interval = tuple[float, float]
VerdictName = Literal["pass", "fail", "inconclusive"]
EngineStatus = Literal["ok", "failed", "built-not-run", "unavailable"]


class _Model(BaseModel):
    # "model_" is pydantic's own prefix; nothing here uses it.
    model_config = ConfigDict(extra="forbid", ser_json_inf_nan="constants")


# --- engines -----------------------------------------------------------------------------------


class LayerInfo(_Model):
    """One layer of a compiled engine, as the engine itself tells it."""

    name: str
    torch_names: list[str] = []
    """PyTorch modules fused into this layer (``layer1.0.conv2``); empty if it cannot be told."""
    type: str
    precision: str
    """What the layer computes in: ``fp32``, ``tf32``, ``fp16``, ``bf16``, ``int8``, ``fp8`` …"""
    flops: int | None = None
    """Multiply and add operations of one image (2 x MAC), for layers with weights."""
    bytes: int | None = None
    tactic: str | None = None
    memory_bytes: int | None = None
    time_ms: float | None = None


class Audit(_Model):
    """What was asked of an engine and what it computes."""

    asked: str
    computed: dict[str, float]
    """Share of the convolution and fully-connected FLOPs by precision; shares add up to one."""
    share: float | None
    """Share of those FLOPs in the asked precision; ``None`` if the engine does not tell."""
    min_share: float
    differing: list[LayerInfo] = []
    """Layers with weights that compute in another precision than asked."""
    verdict: VerdictName
    reason: str
    """One sentence a person can read."""


# --- validate ----------------------------------------------------------------------------------


class DatasetInfo(_Model):
    """Which images a result is about."""

    name: str
    n: int
    sha256: str
    image_size: int


class Hop(_Model):
    """One step from the reference to an engine, compared on the same images."""

    name: str
    engine: str | None
    """The engine's file for the last hop of a chain; ``None`` for the hops before it."""
    executor: str
    """What computed this hop, e.g. ``PyTorch 2.9 eager FP32`` or ``ONNX Runtime, as written``."""
    parent: str | None
    """The hop before this one; ``None`` for the reference."""
    precision: str
    status: EngineStatus = "ok"
    error: str | None = None
    n: int = 0
    top1: float | None = None
    top1_ci95: Interval | None = None
    top5: float | None = None
    flips: int | None = None
    """Images whose top-1 class differs from the reference's."""
    flips_vs_parent: int | None = None
    drop_pp: float | None = None
    """Loss of top-1 against the reference, in percentage points; negative is a gain."""
    drop_ci95_pp: Interval | None = None
    """Paired interval of the drop; right with zero discordant images too."""
    mcnemar_p: float | None = None
    sqnr_db: float | None = None
    """Signal to noise of the logits against the reference; ``None`` for identical outputs."""
    sqnr_vs_parent_db: float | None = None
    max_abs_diff: float | None = None
    worst_image: str | None = None
    verdict: VerdictName | None = None


class BatchConsistency(_Model):
    """Whether an image's outputs depend on its neighbours in the batch."""

    engine: str
    batches: list[int]
    max_abs_diff: float
    tolerance: float
    failing: list[str] = []
    """What differed: check, batch and image of each failure."""
    verdict: VerdictName
    reason: str


class BlockNoise(_Model):
    """Signal to noise of a graph after one residual block, against the reference."""

    module: str
    """PyTorch module (``layer1.0``), ``maxpool`` for the stem, or ``logits``."""
    sqnr_db: float | None
    """``None`` for identical tensors."""


class Gates(_Model):
    """The limits a run is judged by."""

    max_drop_pp: float
    max_flips: float | None = None
    """Largest share of images that may change class; ``None`` sets no limit."""


class ValidateResult(_Model):
    """``validate.json``."""

    schema_version: int = SCHEMA_VERSION
    kind: Literal["validate"] = "validate"
    created: str
    reference: str
    dataset: DatasetInfo
    hops: list[Hop]
    first_failing_hop: str | None = None
    finding: str
    """One sentence: what was lost, where, and whether it is real."""
    batch_consistency: list[BatchConsistency] = []
    audits: dict[str, Audit] = {}
    """By engine."""
    layers: dict[str, list[BlockNoise]] = {}
    """By hop, for graphs that were looked into block by block."""
    gates: Gates
    images_needed: int | None = None
    """Images that would decide an inconclusive verdict."""
    predictions_file: str | None = None
    verdict: VerdictName


# --- search ------------------------------------------------------------------------------------


class LayerSensitivity(_Model):
    """What one layer costs in accuracy as INT8, and in time as anything else."""

    layer: str
    sqnr_db: float | None
    """Signal to noise of the logits with this layer alone in high precision."""
    gain_db: float | None
    """That, less the signal to noise with every layer in INT8."""
    cost_ms: float
    """Predicted time that keeping it alone adds."""


class FrontPoint(_Model):
    """One graph that the search looked at, on images of its own."""

    kept: list[str]
    """Layers in high precision, in graph order."""
    sqnr_db: float | None
    flips: int
    losses: int
    """Images that the FP32 network has right and this graph wrong."""
    gains: int
    expected_flips: float
    """Flips among as many images, from the noise of each on the decisions of all."""
    drop_upper_pp: float
    """Upper end of the 95 % interval of the drop, by counted or expected losses, the larger."""
    predicted_ms: float
    inside: bool
    """Within the budget."""
    dominated: bool
    """Another point is at least as fast and has at least its signal to noise."""


class SearchResult(_Model):
    """``search.json``: which layers stay in high precision, and why."""

    schema_version: int = SCHEMA_VERSION
    kind: Literal["search"] = "search"
    created: str
    graph: str
    target: str
    max_drop_pp: float
    cost_source: Literal["measured", "model"]
    cost_reason: str
    """What was measured, or which constants the model has."""
    int8_ms: float
    high_ms: float
    """Predicted times of one image with every layer in INT8 and in high precision."""
    timed_ms: tuple[float, float, float] | None
    """All-INT8, chosen and FP32 graph timed as wholes; ``None`` by a model, or if none is kept."""
    calibration_images: int
    """For the statistics, the biases, and the ranking of layers."""
    search_images: int
    """For the front; none of them calibrated, and none will judge."""
    sensitivity: list[LayerSensitivity]
    """The most sensitive layer first; empty if the INT8 graph is inside the budget."""
    front: list[FrontPoint]
    """In the order in which they were tried, from all-INT8 on."""
    chosen: int
    """Index in ``front``."""
    finding: str
    """One sentence: what is kept, and what it costs."""
    validation: ValidateResult | None = None
    """The verdict on images that the search never saw; ``None`` before it was judged."""


# --- bench -------------------------------------------------------------------------------------


class Latency(_Model):
    """Latency of one batch, milliseconds. A percentile that ``n`` cannot support is ``None``."""

    mean: float
    p50: float
    p90: float | None = None
    p95: float | None = None
    p99: float | None = None
    p99_9: float | None = None


class EngineBench(_Model):
    """One engine at one batch size."""

    name: str
    file: str
    backend: str
    status: EngineStatus
    error: str | None = None
    precision: str
    batch: int
    image_size: int | None = None
    threads: int | None = None
    streams: int = 1
    samples: int = 0
    rounds: int = 0
    warmup_calls: int = 0
    latency_ms: Latency | None = None
    latency_ci95_ms: Interval | None = None
    """Interval of the median, by bootstrap over rounds."""
    images_per_s: float | None = None
    images_per_s_ci95: Interval | None = None
    batches_per_s: float | None = None
    spans_ms: dict[str, float] = {}
    """Median of each part: ``preprocess``, ``host_to_device``, ``compute``, ``device_to_host``."""
    start_s: float | None = None
    """From the start of its process to the first message, before the engine's library is loaded."""
    first_inference_ms: float | None = None
    build_s: float | None = None
    load_s: float | None = None
    engine_bytes: int | None = None
    peak_rss_bytes: int | None = None
    gpu_memory_bytes: int | None = None
    energy_j: float | None = None
    round_medians_ms: list[float] = []
    raw_file: str | None = None


ComparisonVerdict = Literal["faster", "slower", "equivalent", "inconclusive"]


class Comparison(_Model):
    """How two engines of one run relate; ``ratio`` is the speed of ``b`` in units of ``a``."""

    a: str
    b: str
    batch: int
    ratio: float
    ci95: Interval
    min_effect: float
    verdict: ComparisonVerdict


class Conditions(_Model):
    """The state of the machine between rounds."""

    cpu: str
    governor: str | None = None
    mhz: list[float] = []
    load_1min: list[float] = []
    other_cpu_share: list[float] = []
    """Share of all cores used by other processes in each round."""
    disturbed_rounds: list[int] = []
    gpu: list[dict[str, Any]] = []
    notes: list[str] = []


class BenchResult(_Model):
    """``bench.json``."""

    schema_version: int = SCHEMA_VERSION
    kind: Literal["bench"] = "bench"
    created: str
    device: dict[str, Any]
    """The machine's fingerprint: CPU, cores, memory, GPUs, with a ``sha256`` over it."""
    headline: str
    """Which span the numbers are, in words."""
    engines: list[EngineBench]
    scenarios: list[dict[str, Any]] = []
    comparisons: list[Comparison] = []
    a_a_control: Comparison | None = None
    conditions: Conditions
    settings: dict[str, Any] = {}
    verdict: VerdictName
    reason: str


# --- run ---------------------------------------------------------------------------------------


class StageRecord(_Model):
    """One stage of a run: what it made, how long it took, whether it was taken from the cache."""

    name: str
    label: str
    file: str | None = None
    """Relative to the run folder."""
    cached: bool = False
    seconds: float
    status: EngineStatus = "ok"
    note: str | None = None
    manifest: dict[str, Any] | None = None


class RunResult(_Model):
    """``results.json`` of a run folder."""

    schema_version: int = SCHEMA_VERSION
    kind: Literal["run"] = "run"
    created: str
    title: str
    command: str
    recipe: dict[str, Any]
    environment: dict[str, Any]
    stages: list[StageRecord]
    validate_: ValidateResult | None = Field(default=None, alias="validate")
    bench: BenchResult | None = None
    verdict: VerdictName
    findings: list[str]
    """The sentences at the head of the report."""
    seconds: float

    model_config = ConfigDict(
        extra="forbid", populate_by_name=True, serialize_by_alias=True, ser_json_inf_nan="constants"
    )


Result = ValidateResult | BenchResult | SearchResult | RunResult
_KINDS: dict[str, type[BaseModel]] = {
    "validate": ValidateResult,
    "bench": BenchResult,
    "search": SearchResult,
    "run": RunResult,
}


def write_result(result: Result, path: Path) -> None:
    """Write a result as JSON, whole or not at all."""
    write_text_atomically(path, result.model_dump_json(indent=2) + "\n")


def read_result(path: Path) -> Result:
    """Read any of the results; the file says which it is.

    Raises:
        ArtifactError: No such file, truncated, edited beyond recognition, or another schema.
    """
    import json

    if not path.is_file():
        raise ArtifactError(f"no such file: {path}", mend="check the path")
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ArtifactError(
            f"{path.name} is not JSON: {error}", mend="run the command again"
        ) from error
    kind = raw.get("kind") if isinstance(raw, dict) else None
    if not isinstance(kind, str) or kind not in _KINDS:
        raise ArtifactError(f"{path.name} is not a result of validate, bench, search or run")
    if raw.get("schema_version") != SCHEMA_VERSION:
        raise ArtifactError(
            f"{path.name} has schema version {raw.get('schema_version')}, "
            f"this is version {SCHEMA_VERSION}",
            mend="run the command again with this version of resnet-opt",
        )
    try:
        result = _KINDS[kind].model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ArtifactError(
            f"{path.name} does not fit its schema at {where}: {first['msg']}",
            mend="run the command again",
        ) from error
    assert isinstance(result, (ValidateResult, BenchResult, SearchResult, RunResult))
    return result
