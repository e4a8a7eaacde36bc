"""The room's stages after calibration: `encode` (encodings) and `quantize` (a graph)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from optimizer.artifacts import (
    Artifact,
    Cache,
    Input,
    Plan,
    find_manifest,
    library_versions,
    load_artifact,
    produce,
)
from optimizer.errors import ArtifactError, UsageError
from optimizer.graphs.facts import is_quantized
from optimizer.graphs.metadata import forget_precision, preprocessed_metadata, write_metadata
from optimizer.options import EncodingOptions, QuantizeOptions, takes_options
from optimizer.precision.foreign import carry_over, float_graph, prepared
from optimizer.precision.option_checks import check_options
from optimizer.progress import Progress, Silent
from optimizer.targets.rules import TargetRules, rules_for

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = [
    "PRECISIONS",
    "encode",
    "quantize",
    "rules_with",
]

PRECISIONS = ("fp32", "fp16", "bf16", "int8", "fp8")
"""What `quantize` writes by itself; ``mixed`` needs the search, a later room."""
_LIBRARIES = ("onnx", "onnx-ir", "numpy")


def encode(
    graph: Path,
    statistics: Path,
    output: Path,
    rules: TargetRules,
    *,
    options: EncodingOptions | None = None,
    cache: Cache | None = None,
    progress: Progress | None = None,
) -> Artifact:
    """Compute encodings of an FP32 graph for one target and write them as a file.

    Args:
        graph: The FP32 graph.
        statistics: What `calibrate` wrote for this graph.
        output: Where the encodings go (``.encodings.json``).
        rules: The target's rules.
        options: Which passes compute them; ``None`` for the best closed form.
        cache: Where artifacts are kept by key.
        progress: Told of the steps.

    Raises:
        ArtifactError: The statistics are of another graph.
        DataError: The statistics are of too few images.
    """
    from optimizer.precision.int8 import Statistics, compute_encodings
    from optimizer.precision.int8.encode import REVISION

    options = options or EncodingOptions()
    source = Input.of("model", graph)
    _check_statistics(statistics, source.sha256)
    plan = Plan(
        kind="encodings",
        settings={
            "target": rules.name,
            "rules": asdict(rules),
            "options": options.of_kind(EncodingOptions).model_dump(mode="json"),
            "passes": REVISION,
        },
        inputs=[source, Input.of("statistics", statistics)],
        libraries=library_versions(*_LIBRARIES),
    )

    def write(path: Path) -> dict[str, Any]:
        from optimizer.graphs.importing import load_graph

        progress_ = progress or Silent()
        progress_.start(f"encode for {rules.name}", total=1)
        computed = compute_encodings(
            load_graph(graph), Statistics.load(statistics), rules, source.sha256, options
        )
        computed.save(path)
        progress_.advance()
        progress_.finish(f"{len(computed.tensors)} tensors, {len(computed.layers)} layers")
        return {"tensors": len(computed.tensors), "layers": len(computed.layers)}

    return produce(plan, output, write, cache=cache)


@takes_options(QuantizeOptions)
def quantize(
    graph: Path,
    output: Path,
    options: QuantizeOptions,
    *,
    cache: Cache | None = None,
    progress: Progress | None = None,
) -> Artifact:
    """Turn an FP32 graph into an explicit graph of another precision.

    Encodings that are computed on the way are written beside the graph, as
    ``<output stem>.encodings.json``. A Q/DQ graph is read into a float graph first, which is left
    beside the output; for INT8 its integers and ranges are carried over to the target.

    Args:
        graph: The FP32 graph, or a Q/DQ graph of any origin.
        output: Where the graph goes (``.onnx``).
        options: ``precision`` is one of `PRECISIONS`. ``stats`` are needed for FP8, and for INT8
            unless ``encodings`` are given, or ``graph`` is quantized and states all that the target
            needs; for FP16 and BF16 they show which tensors the type cannot hold, and what computes
            those stays in FP32. Of a Q/DQ graph the range method alone counts. Options of
            calibration and search are for the verbs.
        cache: Where artifacts are kept by key.
        progress: Where steps are reported.

    Raises:
        UsageError: Unknown precision or target, or no statistics where they are needed.
        ArtifactError: Statistics or encodings of another graph.
        GraphError: The graph cannot be read or converted.
        DataError: The target quantizes what a Q/DQ graph leaves in float, without statistics.
    """
    if options.precision not in PRECISIONS:
        raise UsageError(
            f"precision {options.precision!r} needs a search",
            hint=f"one of {', '.join(PRECISIONS)}",
        )
    check_options(graph, options.precision, options)
    adopting: dict[str, Any] = {
        "preprocessing_from": options.preprocessing_from, "cache": cache, "progress": progress
    }  # fmt: skip
    carried = is_quantized(graph)
    if options.precision == "fp32" and (carried or options.preprocessing_from is not None):
        return float_graph(graph, output, **adopting)
    prepared_graph = prepared(graph, output, **adopting)
    job = _Job(
        graph=prepared_graph,
        quantized=graph if carried else None,
        output=output,
        options=options,
        sha256=Input.of("model", prepared_graph).sha256,
        cache=cache,
        progress=progress or Silent(),
    )
    conversion = _CONVERSIONS[options.precision](job)
    metadata = preprocessed_metadata(prepared_graph)
    inputs = [Input.of("model", prepared_graph), *conversion.inputs]
    if graph != prepared_graph:
        inputs.append(Input.of("source", graph))
    plan = Plan(
        kind="graph",
        settings={"precision": options.precision, **conversion.settings},
        inputs=inputs,
        libraries=library_versions(*_LIBRARIES),
        preprocessing=metadata.preprocessing,
        classes=metadata.classes,
    )
    return produce(plan, output, partial(_write, job, conversion), cache=cache)


@dataclass(frozen=True, kw_only=True)
class _Job:
    """One call of `quantize`: the FP32 graph, and the Q/DQ graph it was read from if there is one."""

    graph: Path
    quantized: Path | None
    output: Path
    options: QuantizeOptions
    sha256: str
    cache: Cache | None
    progress: Progress


@dataclass(frozen=True, kw_only=True)
class _Conversion:
    """What decides a graph of one precision, and the pass that changes it in place.

    Attributes:
        settings: What goes into the manifest and the key.
        inputs: The files it reads beside the graph.
        apply: Changes the graph; returns remarks for the user.
    """

    apply: Callable[[ir.Model], list[str]]
    settings: dict[str, Any] = field(default_factory=dict)
    inputs: list[Input] = field(default_factory=list)


def _write(job: _Job, conversion: _Conversion, path: Path) -> dict[str, Any]:
    from optimizer.graphs.importing import load_graph
    from optimizer.graphs.onnx_files import write_checked

    job.progress.start(f"write {job.options.precision} graph", total=1)
    model = load_graph(job.graph)
    notes = conversion.apply(model)
    write_checked(model, path)
    job.progress.advance()
    pairs = sum(node.op_type == "QuantizeLinear" for node in model.graph)
    job.progress.finish(f"{pairs} Q/DQ pairs" if pairs else None)
    return {"pairs": pairs, "nodes": len(model.graph), **({"notes": notes} if notes else {})}


def _unchanged(job: _Job) -> _Conversion:
    del job
    return _Conversion(apply=lambda _model: [])


def _half(job: _Job) -> _Conversion:
    statistics = job.options.stats
    if statistics is not None:
        _check_statistics(statistics, job.sha256)
    return _Conversion(
        apply=lambda model: _to_half(model, job.options.precision, statistics),
        inputs=[] if statistics is None else [Input.of("statistics", statistics)],
    )


def _fp8(job: _Job) -> _Conversion:
    statistics = job.options.stats
    if statistics is None:
        raise UsageError("FP8 needs calibration data", hint="--calib DATA, or --stats FILE")
    _check_statistics(statistics, job.sha256)
    high_precision = rules_with("tensorrt", job.options.high_precision).high_precision

    def apply(model: ir.Model) -> list[str]:
        from optimizer.precision.fp8 import to_fp8
        from optimizer.precision.int8 import Statistics

        to_fp8(model, Statistics.load(statistics), high_precision=high_precision)
        return []

    return _Conversion(
        apply=apply,
        settings={"high_precision": high_precision},
        inputs=[Input.of("statistics", statistics)],
    )


def _int8(job: _Job) -> _Conversion:
    rules = rules_with(job.options.target, job.options.high_precision)
    encodings = job.options.encodings or _encodings(job, rules)

    def apply(model: ir.Model) -> list[str]:
        from optimizer.precision.int8 import Encodings, lower

        chosen = Encodings.load(encodings)
        chosen.check_belongs(job.sha256, rules)
        lower(model, chosen, rules)
        return chosen.notes

    return _Conversion(
        apply=apply,
        settings={"target": rules.name, "rules": asdict(rules)},
        inputs=[Input.of("encodings", encodings)],
    )


_CONVERSIONS: dict[str, Callable[[_Job], _Conversion]] = {
    "fp32": _unchanged,
    "fp16": _half,
    "bf16": _half,
    "fp8": _fp8,
    "int8": _int8,
}


def _encodings(job: _Job, rules: TargetRules) -> Path:
    """Encodings of an FP32 graph: carried over from a Q/DQ graph if there is one, else computed."""
    statistics = job.options.stats
    output = job.output.with_name(f"{job.output.stem}.encodings.json")
    making: dict[str, Any] = {"cache": job.cache, "progress": job.progress}
    if job.quantized is not None:
        if statistics is not None:
            _check_statistics(statistics, job.sha256)
        return carry_over(
            job.quantized, job.graph, output, rules,
            statistics=statistics, method=job.options.method, **making,
        ).path  # fmt: skip
    if statistics is None:
        raise UsageError(
            "INT8 needs calibration data",
            hint="--calib DATA (digits:train, a folder, file.npz), --stats FILE or --encodings FILE",
        )
    return encode(job.graph, statistics, output, rules, options=job.options, **making).path


def _to_half(model: ir.Model, precision: str, statistics: Path | None) -> list[str]:
    """Convert, but for what the type cannot hold; a sentence for every node that is kept."""
    import onnx_ir as ir

    from optimizer.precision.half import beyond, to_half
    from optimizer.precision.int8 import Statistics

    kind = ir.DataType.FLOAT16 if precision == "fp16" else ir.DataType.BFLOAT16
    seen = Statistics.load(statistics).largest if statistics is not None else {}
    kept = beyond(model, kind, seen)
    to_half(model, kind, kept)
    notes = [f"{name} stays in FP32: {reason}" for name, reason in kept.items()]
    forget_precision(model)
    if kept:
        write_metadata(model, keep=list(kept), notes=notes)
    return notes


def rules_with(target: str, high_precision: str | None) -> TargetRules:
    """Rules of a target, with another type around INT8 than its own if one is named.

    Raises:
        UsageError: No such target or type.
    """
    rules = rules_for(target)
    if high_precision is None:
        return rules
    if high_precision not in {"fp16", "fp32"}:
        raise UsageError(f"unknown high precision {high_precision!r}", hint="fp16 or fp32")
    return replace(rules, high_precision=cast("Any", high_precision))


def _check_statistics(statistics: Path, graph_sha256: str) -> None:
    """Refuse stale statistics before anything is computed with them."""
    if find_manifest(statistics) is None:
        raise ArtifactError(
            f"{statistics.name} has no manifest beside it", hint="resnet-opt calibrate makes both"
        )
    manifest = load_artifact(statistics, kind="statistics").manifest
    taken_from = next((i.sha256 for i in manifest.inputs if i.role == "graph"), None)
    if taken_from != graph_sha256:
        raise ArtifactError(
            f"{statistics.name} was taken from another graph (its sha256 differs)",
            hint="calibrate this graph: weights, opset or preprocessing have changed",
        )
