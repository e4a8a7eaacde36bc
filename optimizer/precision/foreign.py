"""Third-party graphs: import them, convert INT8 graphs to float graphs, complete their metadata.

An INT8 graph becomes two artifacts: its equivalent float graph (``<stem>.float.onnx``), which can be
calibrated, converted to other precisions and compared like any FP32 graph; and encodings of that
float graph for a target, with the source's integers and ranges. An FP32, FP16 or FP64 file of another
exporter becomes a float graph too, by the importing pass (`optimizer.graphs.import_pass`). All list
the file among their inputs.
"""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimizer.artifacts import (
    Artifact,
    Cache,
    Input,
    OutputFile,
    Plan,
    check_outputs,
    library_versions,
    produce,
)
from optimizer.errors import GraphError, ResnetOptError, UsageError
from optimizer.graphs.facts import is_quantized
from optimizer.graphs.import_pass import PRODUCER, ImportedGraph, import_graph, infer_shapes
from optimizer.graphs.import_pass import REVISION as IMPORT_REVISION
from optimizer.graphs.metadata import Metadata, metadata_of, write_metadata
from optimizer.graphs.onnx_files import open_onnx, write_checked
from optimizer.graphs.rewriting import Change, summary
from optimizer.graphs.source_ends import SourceGraph, open_source
from optimizer.options import ForeignGraph
from optimizer.precision.source_description import (
    HOW_TO_STATE,
    SourceDescription,
    describe_source,
)
from optimizer.progress import Progress, Silent
from optimizer.targets.rules import TargetRules

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["carry_over", "check_described", "float_graph", "needs_import", "prepared"]

_LIBRARIES = ("onnx", "onnx-ir", "numpy")
_CHANNELS = (
    'state "color": "grayscale" (one channel) or "RGBA" (four) in a card, or export the network for '
    "three channels"
)
_ENDS = ("output_name", "inference_mode")
"""Options that decide what `open_source` reads."""


def prepared(
    graph: Path,
    output: Path,
    options: ForeignGraph | None = None,
    *,
    cache: Cache | None = None,
    progress: Progress | None = None,
) -> Path:
    """Return the FP32 graph to work on, writing it first if necessary.

    Args:
        graph: An FP32 graph, a Q/DQ graph, or an ONNX file of another exporter.
        output: What the caller will write; the float graph, if needed, goes next to it.
        options: What the file does not say itself.
        cache: Artifact cache.
        progress: Receives progress updates.

    Returns:
        ``graph`` if it is as `resnet-opt export` writes it, else ``<graph stem>.float.onnx``.

    Raises:
        GraphError: As in `float_graph`.
        UsageError: The output has the same name as the float graph.
    """
    options = options or ForeignGraph()
    if not needs_import(graph, options):
        return graph
    float_path = output.with_name(f"{graph.stem}.float.onnx")
    if float_path == output:
        raise UsageError(
            f"{output.name} is also the name of the float graph of {graph.name}",
            hint="choose another output name",
        )
    inputs = [graph, options.preprocessing_from]
    check_outputs([OutputFile(float_path, "graph")], inputs, force=True)
    return float_graph(graph, float_path, options, cache=cache, progress=progress).path


def needs_import(graph: Path, options: ForeignGraph | None = None) -> bool:
    """Whether `prepared` has to write a float graph.

    Raises:
        GraphError: As in `open_source`.
    """
    if (options is not None and options.as_given()) or is_quantized(graph):
        return True
    opened = open_onnx(graph, weights=False)
    metadata = Metadata.of_proto(opened.proto)
    if metadata.precision != "fp32":
        return False  # this package wrote it
    if len(opened.files) > 1:
        return True
    if opened.proto.producer_name == PRODUCER:  # then only a card can add something
        return describe_source(graph, ForeignGraph(), None).origin is not None
    return metadata.preprocessing is None or bool(_imported(graph, ForeignGraph()).changes)


def check_described(graph: Path, options: ForeignGraph) -> None:
    """Refuse a file whose preprocessing nothing states, before any work.

    Raises:
        GraphError: The preprocessing is unknown, or as in `describe_source`.
    """
    if describe_source(graph, options, None).metadata.preprocessing is None:
        raise GraphError(
            f"{graph.name} does not state its preprocessing",
            hint=HOW_TO_STATE.format(name=graph.name),
        )


def float_graph(
    graph: Path,
    output: Path,
    options: ForeignGraph | None = None,
    *,
    cache: Cache | None = None,
    progress: Progress | None = None,
) -> Artifact:
    """Write the FP32 equivalent of a third-party graph, with complete metadata.

    The graph is compared with the file on images before it is kept; what was changed is in the
    manifest's ``changes``.

    Args:
        graph: A Q/DQ graph, or an ONNX file of another exporter.
        output: Path of the FP32 graph (``.onnx``).
        options: What the file does not say itself.
        cache: Artifact cache.
        progress: Receives progress updates.

    Raises:
        GraphError: The graph cannot be read or imported, or its preprocessing does not fit.
    """
    options = options or ForeignGraph()
    source = open_source(graph, options)
    description = describe_source(graph, options, _side(source))
    metadata = _float_metadata(graph, source, description)
    _check_fits(source, metadata)
    plan = Plan(
        kind="graph",
        settings={
            "precision": "fp32",
            "metadata": metadata,
            "import": IMPORT_REVISION,
            **{name: getattr(options, name) for name in _ENDS if getattr(options, name)},
        },
        inputs=[Input.of("source", graph)],
        libraries=library_versions(*_LIBRARIES, "onnxscript"),
        preprocessing=metadata.preprocessing,
        classes=metadata.classes,
    )

    def write(path: Path) -> dict[str, Any]:
        progress_ = progress or Silent()
        progress_.start(f"read {graph.name}", total=2)
        model, details = _float_model(graph, source, metadata, progress_)
        write_metadata(model, **metadata)
        model.producer_name, model.producer_version = PRODUCER, None
        write_checked(model, path)
        progress_.advance()
        taken = [description.taken] if description.taken else []
        lines = [*taken, *details.get("changes", [])]
        progress_.finish("; ".join(lines) or None)
        return {**details, **({"changes": lines} if lines else {})}

    return produce(plan, output, write, cache=cache)


def _float_model(
    graph: Path, source: SourceGraph, metadata: Metadata, progress: Progress
) -> tuple[ir.Model, dict[str, Any]]:
    """The float model of a foreign file, and what was done to it."""
    if is_quantized(graph):
        from optimizer.precision.int8.reading import read_quantized

        read = read_quantized(open_onnx(graph, weights=False).to_ir())
        counts = {"tensors": len(read.tensors), "layers": len(read.weight_scales)}
        done = ["{tensors} tensors, {layers} layers in INT8".format(**counts)]
        return read.float_model, {**counts, "changes": done}
    from optimizer.data import Preprocessing
    from optimizer.graphs.import_check import check_import, images_for

    imported = import_graph(source)
    _set_image_size(imported.model, metadata, imported.changes)
    progress.advance(note="comparing with the file")
    stated = metadata.preprocessing
    images = images_for(source, None if stated is None else Preprocessing.from_dict(stated))
    difference = check_import(source, imported, images)
    details = {"changes": summary(imported.changes), "difference": difference}
    return imported.model, {**details, "images_compared": len(images)}


def _imported(graph: Path, options: ForeignGraph) -> ImportedGraph:
    return import_graph(open_source(graph, options))


def _side(source: SourceGraph) -> int | None:
    """Side of the images that a source takes; ``None`` if it takes any."""
    shape = _dims(source.proto.graph.input[0])
    sides = shape[1:3] if _takes_pixels(source) else shape[2:4]
    return next((side for side in sides if side is not None), None)


def _dims(value: Any) -> list[int | None]:
    return [d.dim_value or None for d in value.type.tensor_type.shape.dim]


def _takes_pixels(source: SourceGraph) -> bool:
    return bool(source.proto.graph.input[0].type.tensor_type.elem_type == 2)  # TensorProto.UINT8


def _float_metadata(graph: Path, source: SourceGraph, description: SourceDescription) -> Metadata:
    """Metadata of the FP32 graph: the source's own, completed by its description."""
    own = metadata_of(graph)
    kept = {"checkpoint_sha256": own["checkpoint_sha256"]} if "checkpoint_sha256" in own else {}
    batch = _dims(source.proto.graph.input[0])[0]
    return Metadata(
        description.metadata
        | kept
        | {
            "precision": "fp32",
            "input": "uint8-nhwc" if _takes_pixels(source) else "float32-nchw",
            "batch": str(batch or "dynamic"),
        }
    )


def _set_image_size(model: ir.Model, metadata: Metadata, changes: list[Change]) -> None:
    """Fix a dynamic height and width to those of the preprocessing, which engines compile for."""
    import onnx_ir as ir

    value = model.graph.inputs[0]
    if metadata.preprocessing is None or value.shape is None or "uint8" in metadata["input"]:
        return
    dims = list(value.shape)
    if all(isinstance(d, int) for d in dims[2:]):
        return
    side = int(metadata.preprocessing["crop"])
    value.shape = ir.Shape([*dims[:2], side, side])
    changes.append(Change(f"dynamic height and width fixed at {side} x {side}", str(value.name)))
    for node in model.graph:  # shapes inside follow from the input's
        for output in node.outputs:
            if not output.is_graph_output():
                output.shape = None
    infer_shapes(model)


def _check_fits(source: SourceGraph, metadata: Metadata) -> None:
    """Reject images that the graph does not take, and another number of classes."""
    from optimizer.data import Preprocessing

    shape = _dims(source.proto.graph.input[0])
    channels, height, width = (shape[3], *shape[1:3]) if _takes_pixels(source) else shape[1:]
    name = source.path.name
    if height is not None and width is not None and height != width:
        raise GraphError(
            f"{name} takes images of {height} x {width}, but preprocessing here gives squares",
            hint=f"--crop {_square_of(height, width)} uses the network on squares of that side; "
            "validate shows what that costs",
        )
    if metadata.preprocessing is None:
        return
    preprocessing = Preprocessing.from_dict(metadata.preprocessing)
    if channels not in (None, preprocessing.channels):
        raise GraphError(
            f"{name} takes images with {channels} channels, but its preprocessing gives "
            f"{preprocessing.channels}",
            hint=_CHANNELS,
        )
    size = preprocessing.image_size
    if any(side not in (None, size) for side in (height, width)):
        raise GraphError(
            f"the graph takes images of {height} x {width}, the preprocessing produces {size} x {size}",
            hint="--preprocessing-from the model that this graph was made from, or --crop "
            f"{height or width}",
        )
    classes, out = metadata.classes, _dims(source.proto.graph.output[0])
    if metadata.detector is not None:
        return
    if classes and len(out) > 1 and out[1] is not None and max(2, out[1]) != len(classes):
        raise GraphError(
            f"the graph has {out[1]} outputs, but there are {len(classes)} class names",
            hint="correct the class names in its card, or take the card of the model that this graph "
            "was made from: --preprocessing-from",
        )


def _square_of(height: int, width: int) -> int:
    """The side of a square of about as many pixels, a multiple of 32 where that is possible."""
    side = math.sqrt(height * width)
    return max(32, round(side / 32) * 32) if side > 32 else round(side)


def carry_over(
    source: Path,
    graph: Path,
    output: Path,
    rules: TargetRules,
    *,
    statistics: Path | None = None,
    method: str = "auto",
    cache: Cache | None = None,
    progress: Progress | None = None,
) -> Artifact:
    """Carry the encodings of an INT8 graph over to a target and write them.

    Args:
        source: The INT8 graph.
        graph: The float graph that `float_graph` wrote for it; the encodings belong to this graph.
        output: Path of the encodings (``.encodings.json``).
        rules: The target's rules.
        statistics: Statistics of ``graph``, for tensors that the source does not quantize.
        method: Range method for tensors whose ranges come from statistics.
        cache: Artifact cache.
        progress: Receives progress updates.

    Raises:
        DataError: Statistics are needed, and there are none.
        GraphError: The graph cannot be read, or its weights cannot be carried over.
    """
    inputs = [Input.of("source", source), Input.of("model", graph)]
    if statistics is not None:
        inputs.append(Input.of("statistics", statistics))
    plan = Plan(
        kind="encodings",
        settings={"target": rules.name, "rules": asdict(rules), "carried_over": method},
        inputs=inputs,
        libraries=library_versions(*_LIBRARIES),
    )

    def write(path: Path) -> dict[str, Any]:
        from optimizer.precision.int8 import Statistics, carry_over_encodings, read_quantized

        progress_ = progress or Silent()
        progress_.start(f"carry over to {rules.name}", total=1)
        loaded = Statistics.load(statistics) if statistics is not None else None
        try:
            encodings = carry_over_encodings(
                read_quantized(open_onnx(source, weights=False).to_ir()), rules, loaded,
                graph_sha256=inputs[1].sha256, method=method,
            )  # fmt: skip
        except ResnetOptError as error:
            raise type(error)(f"{source.name}: {error.message}", hint=error.hint) from error
        encodings.save(path)
        progress_.advance()
        progress_.finish("; ".join(encodings.notes) or "everything unchanged")
        return {
            "tensors": len(encodings.tensors),
            "layers": len(encodings.layers),
            "notes": encodings.notes,
        }

    return produce(plan, output, write, cache=cache)
