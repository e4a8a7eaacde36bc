"""The room's stages after calibration: `encode` (encodings) and `quantize` (a graph)."""

from __future__ import annotations

from dataclasses import asdict, replace
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
from optimizer.precision.asked import check_options
from optimizer.precision.foreign import carry_over, float_graph, prepared
from optimizer.progress import Progress, Silent
from optimizer.targets.rules import TargetRules, rules_for

if TYPE_CHECKING:
    import onnx_ir as ir

    from optimizer.precision.int8 import EncodingOptions

__all__ = [
    "PRECISIONS",
    "encode",
    "quantize",
    "rules_with",
]

PRECISIONS = ("fp32", "fp16", "bf16", "int8", "fp8")
"""What `quantize` writes by itself; ``mixed`` needs the search, a later room."""
_HALF = {"fp16", "bf16"}
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
    from optimizer.precision.int8 import EncodingOptions, Statistics, compute_encodings
    from optimizer.precision.int8.encode import REVISION

    options = options or EncodingOptions()
    source = Input.of("model", graph)
    _check_statistics(statistics, source.sha256)
    plan = Plan(
        kind="encodings",
        settings={
            "target": rules.name,
            "rules": asdict(rules),
            "options": asdict(options),
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


def quantize(
    graph: Path,
    output: Path,
    *,
    precision: str,
    target: str = "openvino",
    statistics: Path | None = None,
    encodings: Path | None = None,
    options: EncodingOptions | None = None,
    high_precision: str | None = None,
    preprocessing_from: str | None = None,
    cache: Cache | None = None,
    progress: Progress | None = None,
) -> Artifact:
    """Turn an FP32 graph into an explicit graph of another precision.

    Encodings that are computed on the way are written beside the graph, as
    ``<output stem>.encodings.json``. A Q/DQ graph is read into a float graph first, which is left
    beside the output; for INT8 its integers and ranges are carried over to the target.

    Args:
        graph: The FP32 graph, or a Q/DQ graph of anybody.
        output: Where the graph goes (``.onnx``).
        precision: One of `PRECISIONS`.
        target: Whose rules an INT8 graph follows.
        statistics: From `calibrate`; needed for FP8, and for INT8 unless ``encodings`` are given, or
            ``graph`` is quantized and tells all that the target asks. For FP16 and BF16 they tell
            which tensors the type cannot hold; what computes those stays in FP32.
        encodings: Encodings to write instead of computing them.
        options: Which passes compute the encodings; of a Q/DQ graph the range method alone counts.
        high_precision: ``fp16`` or ``fp32`` around INT8 and FP8 layers; ``None`` for the target's
            own, ``fp16`` for FP8.
        preprocessing_from: What knows the preprocessing of a graph that does not say it.
        cache: Where artifacts are kept by key.
        progress: Told of the steps.

    Raises:
        UsageError: Unknown precision or target, or no statistics where they are needed.
        ArtifactError: Statistics or encodings of another graph.
        GraphError: The graph cannot be read or converted.
        DataError: The target quantizes what a Q/DQ graph leaves in float, without statistics.
    """
    if precision not in PRECISIONS:
        known = ", ".join((*PRECISIONS, "mixed"))
        raise UsageError(f"unknown precision {precision!r}", mend=f"one of {known}")
    check_options(graph, precision, options, encodings=encodings)
    rules = rules_with(target, high_precision) if precision == "int8" else None
    source, carried = graph, is_quantized(graph)
    adopting: dict[str, Any] = {
        "preprocessing_from": preprocessing_from, "cache": cache, "progress": progress
    }  # fmt: skip
    if precision == "fp32" and (carried or preprocessing_from is not None):
        return float_graph(source, output, **adopting)
    graph = prepared(source, output, **adopting)
    metadata = preprocessed_metadata(graph)
    settings: dict[str, Any] = {"precision": precision}
    inputs = [Input.of("model", graph)]
    if rules is not None:
        if encodings is None:
            beside = output.with_name(f"{output.stem}.encodings.json")
            encodings = _encodings(
                source if carried else None, graph, statistics, beside, rules,
                options=options, cache=cache, progress=progress,
            )  # fmt: skip
        settings |= {"target": rules.name, "rules": asdict(rules)}
        inputs.append(Input.of("encodings", encodings))
    elif precision == "fp8":
        if statistics is None:
            raise UsageError("FP8 needs calibration data", mend="--calib DATA, or --stats FILE")
        _check_statistics(statistics, inputs[0].sha256)
        settings["high_precision"] = rules_with("tensorrt", high_precision).high_precision
        inputs.append(Input.of("statistics", statistics))
    elif precision in _HALF and statistics is not None:
        _check_statistics(statistics, inputs[0].sha256)
        inputs.append(Input.of("statistics", statistics))
    if source != graph:
        inputs.append(Input.of("source", source))
    plan = Plan(
        kind="graph",
        settings=settings,
        inputs=inputs,
        libraries=library_versions(*_LIBRARIES),
        preprocessing=metadata.preprocessing,
        classes=metadata.classes,
    )

    def write(path: Path) -> dict[str, Any]:
        from optimizer.graphs.importing import load_graph
        from optimizer.graphs.onnx_files import write_checked

        progress_ = progress or Silent()
        progress_.start(f"write {precision} graph", total=1)
        model, said = load_graph(graph), list[str]()
        if precision == "fp8":
            from optimizer.precision.fp8 import to_fp8
            from optimizer.precision.int8 import Statistics

            assert statistics is not None
            to_fp8(model, Statistics.load(statistics), high_precision=settings["high_precision"])
        elif precision in _HALF:
            said += _to_half(model, precision, statistics)
        elif rules is not None:
            assert encodings is not None
            _lower(model, rules, encodings, inputs[0].sha256)
        write_checked(model, path)
        progress_.advance()
        pairs = sum(node.op_type == "QuantizeLinear" for node in model.graph)
        progress_.finish(f"{pairs} Q/DQ pairs" if pairs else None)
        if encodings is not None:
            said += _notes(encodings)
        notes = {"notes": said} if said else {}
        return {"pairs": pairs, "nodes": len(model.graph), **notes}

    return produce(plan, output, write, cache=cache)


def _encodings(
    source: Path | None,
    graph: Path,
    statistics: Path | None,
    output: Path,
    rules: TargetRules,
    *,
    options: EncodingOptions | None,
    cache: Cache | None,
    progress: Progress | None,
) -> Path:
    """Encodings of an FP32 graph: carried over from ``source`` if there is one, else computed."""
    if source is not None:
        if statistics is not None:
            _check_statistics(statistics, Input.of("model", graph).sha256)
        return carry_over(
            source, graph, output, rules, statistics=statistics,
            method=options.method if options else "auto", cache=cache, progress=progress,
        ).path  # fmt: skip
    if statistics is None:
        raise UsageError(
            "INT8 needs calibration data",
            mend="--calib DATA (digits:train, a folder, file.npz), --stats FILE or --encodings FILE",
        )
    return encode(
        graph, statistics, output, rules, options=options, cache=cache, progress=progress
    ).path


def _notes(encodings: Path) -> list[str]:
    from optimizer.precision.int8 import Encodings

    return Encodings.load(encodings).notes


def _lower(model: ir.Model, rules: TargetRules, encodings: Path, sha256: str) -> None:
    from optimizer.precision.int8 import Encodings, lower

    chosen = Encodings.load(encodings)
    chosen.check_belongs(sha256, rules)
    lower(model, chosen, rules)


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
        raise UsageError(f"unknown high precision {high_precision!r}", mend="fp16 or fp32")
    return replace(rules, high_precision=cast("Any", high_precision))


def _check_statistics(statistics: Path, graph_sha256: str) -> None:
    """Refuse stale statistics before anything is computed with them."""
    if find_manifest(statistics) is None:
        raise ArtifactError(
            f"{statistics.name} has no manifest beside it", mend="resnet-opt calibrate makes both"
        )
    manifest = load_artifact(statistics, kind="statistics").manifest
    taken_from = next((i.sha256 for i in manifest.inputs if i.role == "graph"), None)
    if taken_from != graph_sha256:
        raise ArtifactError(
            f"{statistics.name} was taken from another graph (its sha256 differs)",
            mend="calibrate this graph: weights, opset or preprocessing have changed",
        )
