"""Conversion after calibration: `encode` computes encodings, `quantize` writes a graph."""

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
from optimizer.graphs.metadata import (
    preprocessed_metadata,
    remove_precision_metadata,
    write_metadata,
)
from optimizer.graphs.operator_sets import FP16_SCALES, check_raisable
from optimizer.options import EncodingOptions, ForeignGraph, QuantizeOptions, takes_options
from optimizer.precision.foreign import (
    carry_over,
    check_described,
    float_graph,
    needs_import,
    prepared,
)
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

_NOT_LOOKED_FOR = (
    "without calibration images, overflow of FP16 was not looked for: resnet-opt validate shows it, "
    "and --calib DATA keeps the layers concerned in FP32"
)
PRECISIONS = ("fp32", "fp16", "bf16", "int8", "fp8")
"""What `quantize` can write; ``mixed`` needs the search (`optimizer.search`)."""
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
        statistics: Written by `calibrate` for this graph.
        output: Path of the encodings (``.encodings.json``).
        rules: The target's rules.
        options: Passes to run; ``None`` for the defaults.
        cache: Artifact cache.
        progress: Receives progress updates.

    Raises:
        ArtifactError: The statistics belong to another graph.
        DataError: The statistics come from too few images.
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
    """Convert an FP32 graph to an explicit graph of another precision.

    Computed encodings are written next to the graph, as ``<output stem>.encodings.json``. A Q/DQ
    graph is first converted to a float graph, which is written next to the output; for INT8, its
    integers and ranges are carried over to the target.

    Args:
        graph: The FP32 graph, or a Q/DQ graph from any quantizer.
        output: Path of the graph (``.onnx``).
        options: ``precision`` is one of `PRECISIONS`. ``stats`` are required for FP8, and for INT8
            unless ``encodings`` are given or ``graph`` is quantized and has everything the target
            needs. For FP16 and BF16 they show which tensors exceed the type's range; the nodes that
            read or write those stay in FP32. For a Q/DQ graph, only the range method is used.
            Calibration and search options are ignored here.
        cache: Artifact cache.
        progress: Receives progress updates.

    Raises:
        UsageError: Unknown precision or target, or required statistics are missing.
        ArtifactError: Statistics or encodings belong to another graph.
        GraphError: The graph cannot be read or converted.
        DataError: The target quantizes a tensor that a Q/DQ graph leaves in float, and there are no
            statistics.
    """
    if options.precision not in PRECISIONS:
        raise UsageError(
            f"precision {options.precision!r} needs a search",
            hint=f"use one of {', '.join(PRECISIONS)}",
        )
    check_options(graph, options.precision, options)
    shared: dict[str, Any] = {"cache": cache, "progress": progress}
    from_quantized, source = is_quantized(graph), options.of_kind(ForeignGraph)
    check_described(graph, source)
    if options.precision == "fp32" and needs_import(graph, source):
        return float_graph(graph, output, source, **shared)
    prepared_graph = prepared(graph, output, source, **shared)
    job = _Job(
        graph=prepared_graph,
        quantized=graph if from_quantized else None,
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
    """One call of `quantize`: the FP32 graph, and the Q/DQ graph it came from, if any."""

    graph: Path
    quantized: Path | None
    output: Path
    options: QuantizeOptions
    sha256: str
    cache: Cache | None
    progress: Progress


@dataclass(frozen=True, kw_only=True)
class _Conversion:
    """The in-place pass that converts a graph to one precision, and what its result depends on.

    Attributes:
        apply: Changes the graph; returns notes for the user.
        settings: Recorded in the manifest and the cache key.
        inputs: Files read in addition to the graph.
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
    # An engine built from the graph repeats its notes; the search for ranges is not of interest there.
    lasting = [note for note in notes if not note.startswith("auto ranges")]
    write_metadata(model, notes=lasting or None)
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
        raise UsageError("FP8 needs calibration data", hint="use --calib DATA or --stats FILE")
    _check_statistics(statistics, job.sha256)
    high_precision = rules_with("tensorrt", job.options.high_precision).high_precision

    def apply(model: ir.Model) -> list[str]:
        from optimizer.precision.fp8 import to_fp8
        from optimizer.precision.int8 import Statistics
        from optimizer.precision.int8.encode import fp16_overflow_notes

        loaded = Statistics.load(statistics)
        to_fp8(model, loaded, high_precision=high_precision)
        return fp16_overflow_notes(loaded) if high_precision == "fp16" else []

    return _Conversion(
        apply=apply,
        settings={"high_precision": high_precision},
        inputs=[Input.of("statistics", statistics)],
    )


def _int8(job: _Job) -> _Conversion:
    rules = rules_with(job.options.target, job.options.high_precision)
    if rules.high_precision == "fp16":
        check_raisable(job.graph, FP16_SCALES)
    encodings = job.options.encodings or _encodings(job, rules)

    def apply(model: ir.Model) -> list[str]:
        from optimizer.graphs.topology import analyse
        from optimizer.precision.int8 import Encodings, check_encodings, lower

        loaded = Encodings.load(encodings)
        loaded.check_belongs(job.sha256, rules)
        check_encodings(loaded, analyse(model), rules, encodings.name)
        lower(model, loaded, rules)
        return loaded.notes

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
    """Encodings of an FP32 graph: carried over from its Q/DQ graph if there is one, else computed."""
    statistics = job.options.stats
    output = job.output.with_name(f"{job.output.stem}.encodings.json")
    shared: dict[str, Any] = {"cache": job.cache, "progress": job.progress}
    if job.quantized is not None:
        if statistics is not None:
            _check_statistics(statistics, job.sha256)
        return carry_over(
            job.quantized, job.graph, output, rules,
            statistics=statistics, method=job.options.method, **shared,
        ).path  # fmt: skip
    if statistics is None:
        raise UsageError(
            "INT8 needs calibration data",
            hint="use --calib DATA (digits:train, a folder, file.npz), --stats FILE or --encodings FILE",
        )
    return encode(job.graph, statistics, output, rules, options=job.options, **shared).path


def _to_half(model: ir.Model, precision: str, statistics: Path | None) -> list[str]:
    """Convert to a half type, except out-of-range nodes; returns notes for the user."""
    import onnx_ir as ir

    from optimizer.precision.half import out_of_range, to_half
    from optimizer.precision.int8 import Statistics

    dtype = ir.DataType.FLOAT16 if precision == "fp16" else ir.DataType.BFLOAT16
    largest = Statistics.load(statistics).largest if statistics is not None else {}
    kept = out_of_range(model, dtype, largest)
    to_half(model, dtype, kept)
    notes = [f"{name} stays in FP32: {reason}" for name, reason in kept.items()]
    if statistics is None and dtype == ir.DataType.FLOAT16:
        notes.append(_NOT_LOOKED_FOR)
    remove_precision_metadata(model)
    write_metadata(model, keep=list(kept) or None)
    return notes


def rules_with(target: str, high_precision: str | None) -> TargetRules:
    """The rules of a target, optionally with another type around its INT8 layers.

    Raises:
        UsageError: Unknown target or type.
    """
    rules = rules_for(target)
    if high_precision is None:
        return rules
    if high_precision not in {"fp16", "fp32"}:
        raise UsageError(f"unknown high precision {high_precision!r}", hint="use fp16 or fp32")
    return replace(rules, high_precision=cast("Any", high_precision))


def _check_statistics(statistics: Path, graph_sha256: str) -> None:
    """Reject statistics of another graph before anything is computed with them."""
    if find_manifest(statistics) is None:
        raise ArtifactError(
            f"{statistics.name} has no manifest", hint="resnet-opt calibrate writes both files"
        )
    manifest = load_artifact(statistics, kind="statistics").manifest
    graph_of_statistics = next((i.sha256 for i in manifest.inputs if i.role == "graph"), None)
    if graph_of_statistics != graph_sha256:
        raise ArtifactError(
            f"{statistics.name} belongs to another graph (its sha256 differs)",
            hint="calibrate this graph again: weights, opset or preprocessing have changed",
        )
