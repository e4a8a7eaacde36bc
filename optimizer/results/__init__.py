"""The results of the verbs: what ``--json`` prints and reports are rendered from.

Each file has a ``schema_version``; readers refuse other versions. Units are in the names: ``_ms``
milliseconds, ``_s`` seconds, ``_pp`` percentage points, ``_db`` decibels, ``_bytes``. Shares and
accuracies are fractions of one. ``None`` means unknown, or too few samples; never zero.
"""

from __future__ import annotations

from optimizer.results.bench_result import (
    BenchResult,
    Comparison,
    ComparisonVerdict,
    Conditions,
    EngineBench,
)
from optimizer.results.curve_result import Curve, CurvePoint, Knee, LatencyBound, Setting
from optimizer.results.detection_result import (
    DetectionMeasures,
    ExampleImage,
    MarkedBox,
    PairedDrop,
)
from optimizer.results.engines import Audit, LayerDifference, LayerInfo, LayerSide
from optimizer.results.latency import Latency
from optimizer.results.latency_table_result import (
    BlockTimes,
    LatencyTable,
    TableCheck,
    TimesAtBatch,
)
from optimizer.results.prediction_result import (
    DetectionPrediction,
    FoundObject,
    Prediction,
)
from optimizer.results.profile_result import (
    BoundBy,
    Ceiling,
    Ceilings,
    EngineProfile,
    ProfileResult,
    TimedPart,
)
from optimizer.results.prune_result import PrunedLatency, PruneResult, PruneRound
from optimizer.results.quantized_training_result import (
    QuantizedCandidate,
    QuantizedTrainingResult,
)
from optimizer.results.result_files import Result, read_result, result_text, write_result
from optimizer.results.result_model import (
    SCHEMA_VERSION,
    EngineStatus,
    Interval,
    IntervalKind,
    VerdictName,
)
from optimizer.results.run_result import RunResult, StageRecord
from optimizer.results.scenario_result import (
    SCENARIO_LABEL,
    ScenarioName,
    ScenarioResult,
    ServerProbe,
)
from optimizer.results.search import FrontPoint, LayerSensitivity, SearchResult
from optimizer.results.validate_result import (
    BatchConsistency,
    BlockNoise,
    DatasetInfo,
    EarlyStop,
    Gates,
    Hop,
    Timing,
    ValidateResult,
)

__all__ = [
    "SCENARIO_LABEL",
    "SCHEMA_VERSION",
    "Audit",
    "BatchConsistency",
    "BenchResult",
    "BlockNoise",
    "BlockTimes",
    "BoundBy",
    "Ceiling",
    "Ceilings",
    "Comparison",
    "ComparisonVerdict",
    "Conditions",
    "Curve",
    "CurvePoint",
    "DatasetInfo",
    "DetectionMeasures",
    "DetectionPrediction",
    "EarlyStop",
    "EngineBench",
    "EngineProfile",
    "EngineStatus",
    "ExampleImage",
    "FoundObject",
    "FrontPoint",
    "Gates",
    "Hop",
    "Interval",
    "IntervalKind",
    "Knee",
    "Latency",
    "LatencyBound",
    "LatencyTable",
    "LayerDifference",
    "LayerInfo",
    "LayerSensitivity",
    "LayerSide",
    "MarkedBox",
    "PairedDrop",
    "Prediction",
    "ProfileResult",
    "PruneResult",
    "PruneRound",
    "PrunedLatency",
    "QuantizedCandidate",
    "QuantizedTrainingResult",
    "Result",
    "RunResult",
    "ScenarioName",
    "ScenarioResult",
    "SearchResult",
    "ServerProbe",
    "Setting",
    "StageRecord",
    "TableCheck",
    "TimedPart",
    "TimesAtBatch",
    "Timing",
    "ValidateResult",
    "VerdictName",
    "read_result",
    "result_text",
    "write_result",
]
