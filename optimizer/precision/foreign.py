"""Third-party graphs: convert INT8 graphs to float graphs, add missing preprocessing metadata.

An INT8 graph becomes two artifacts: its equivalent float graph (``<stem>.float.onnx``), which can be
calibrated, converted to other precisions and compared like any FP32 graph; and encodings of that
float graph for a target, with the source's integers and ranges. Both list the INT8 graph among their
inputs.
"""

from __future__ import annotations

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
from optimizer.graphs.facts import input_and_output, is_quantized
from optimizer.graphs.metadata import Metadata, encoded, metadata_of, write_metadata
from optimizer.graphs.onnx_files import open_onnx, write_graph
from optimizer.progress import Progress, Silent
from optimizer.targets.rules import TargetRules

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["carry_over", "float_graph", "prepared"]

_LIBRARIES = ("onnx", "onnx-ir", "numpy")
_BORROWED = ("preprocessing", "classes", "arch")


def prepared(
    graph: Path,
    output: Path,
    *,
    preprocessing_from: str | None = None,
    cache: Cache | None = None,
    progress: Progress | None = None,
) -> Path:
    """Return the FP32 graph to work on, writing it first if necessary.

    Args:
        graph: An FP32 graph, or a Q/DQ graph.
        output: What the caller will write; the float graph, if needed, goes next to it.
        preprocessing_from: As in `float_graph`.
        cache: Artifact cache.
        progress: Receives progress updates.

    Returns:
        ``graph`` if it is FP32 and ``preprocessing_from`` is ``None``, else
        ``<graph stem>.float.onnx``.

    Raises:
        GraphError: As in `float_graph`.
        UsageError: The output has the same name as the float graph.
    """
    if preprocessing_from is None and not is_quantized(graph):
        return graph
    float_path = output.with_name(f"{graph.stem}.float.onnx")
    if float_path == output:
        raise UsageError(
            f"{output.name} is also the name of the float graph of {graph.name}",
            hint="choose another output name",
        )
    check_outputs([OutputFile(float_path, "graph")], [graph, preprocessing_from], force=True)
    return float_graph(
        graph, float_path, preprocessing_from=preprocessing_from, cache=cache, progress=progress
    ).path


def float_graph(
    graph: Path,
    output: Path,
    *,
    preprocessing_from: str | None = None,
    cache: Cache | None = None,
    progress: Progress | None = None,
) -> Artifact:
    """Write the FP32 equivalent of a third-party graph, with complete metadata.

    Args:
        graph: A Q/DQ graph, or an FP32 graph without preprocessing metadata.
        output: Path of the FP32 graph (``.onnx``).
        preprocessing_from: Where to take missing preprocessing from: an ONNX file written by this
            project, or a model (checkpoint or name).
        cache: Artifact cache.
        progress: Receives progress updates.

    Raises:
        GraphError: The graph cannot be read, or its preprocessing is unknown or does not fit.
    """
    metadata = _float_metadata(graph, preprocessing_from)
    plan = Plan(
        kind="graph",
        settings={"precision": "fp32", "metadata": metadata},
        inputs=[Input.of("source", graph)],
        libraries=library_versions(*_LIBRARIES),
        preprocessing=metadata.preprocessing,
        classes=metadata.classes,
    )

    def write(path: Path) -> dict[str, Any]:
        from optimizer.precision.int8.reading import read_quantized

        progress_ = progress or Silent()
        progress_.start(f"read {graph.name}", total=1)
        model = open_onnx(graph, weights=False).to_ir()
        details = {}
        if is_quantized(graph):
            read = read_quantized(model)
            model = read.float_model
            details = {"tensors": len(read.tensors), "layers": len(read.weight_scales)}
        _check_fits(model, metadata)
        write_metadata(model, **metadata)
        write_graph(model, path)
        progress_.advance()
        progress_.finish(
            "{tensors} tensors, {layers} layers in INT8".format(**details) if details else None
        )
        return details

    return produce(plan, output, write, cache=cache)


def _float_metadata(graph: Path, preprocessing_from: str | None) -> Metadata:
    """Metadata of the FP32 graph: the source's own, completed from ``preprocessing_from``."""
    metadata = metadata_of(graph)
    if preprocessing_from is not None:
        donor = _donor_metadata(preprocessing_from)
        if metadata.preprocessing not in (None, donor.preprocessing):
            raise GraphError(
                f"{graph.name} has preprocessing metadata that differs from {preprocessing_from}",
                hint="leave out --preprocessing-from",
            )
        metadata = Metadata(
            {name: donor[name] for name in _BORROWED if donor.get(name, "[]") != "[]"} | metadata
        )
    if "preprocessing" not in metadata:
        raise GraphError(
            f"{graph.name} does not state its preprocessing",
            hint="--preprocessing-from the FP32 graph (resnet-opt export) or checkpoint it comes from",
        )
    kept = {name: metadata[name] for name in (*_BORROWED, "checkpoint_sha256") if name in metadata}
    source, _ = input_and_output(open_onnx(graph, weights=False).proto, graph.name)
    tensor_type = source.type.tensor_type
    is_uint8 = tensor_type.elem_type == 2  # TensorProto.UINT8
    batch = tensor_type.shape.dim[0].dim_value if tensor_type.shape.dim else 0
    return Metadata(
        kept
        | {
            "precision": "fp32",
            "input": "uint8-nhwc" if is_uint8 else "float32-nchw",
            "batch": str(batch or "dynamic"),
        }
    )


def _donor_metadata(source: str) -> Metadata:
    """Preprocessing, classes and architecture of a graph or model, as graph metadata."""
    if source.endswith(".onnx"):
        metadata = metadata_of(Path(source))
        if "preprocessing" not in metadata:
            raise GraphError(
                f"{Path(source).name} does not state its preprocessing either",
                hint="use a graph from resnet-opt export, or a checkpoint",
            )
        return metadata
    from optimizer.models import load_model

    model = load_model(source)
    return encoded(
        {
            "preprocessing": model.preprocessing.to_dict(),
            "classes": list(model.classes or ()),
            "arch": model.arch,
        }
    )


def _check_fits(model: ir.Model, metadata: Metadata) -> None:
    """Reject preprocessing of another image size, and another number of classes."""
    from optimizer.data import Preprocessing

    assert metadata.preprocessing is not None
    size = Preprocessing.from_dict(metadata.preprocessing).image_size
    shape = model.graph.inputs[0].shape
    sides = () if shape is None else shape[1:3] if "uint8" in metadata["input"] else shape[2:4]
    if any(isinstance(side, int) and side != size for side in sides):
        raise GraphError(
            f"the graph takes images of {sides[0]} x {sides[1]}, "
            f"the preprocessing produces {size} x {size}",
            hint="--preprocessing-from the model that this graph was made from",
        )
    classes = metadata.classes
    out = model.graph.outputs[0].shape
    if classes and out is not None and isinstance(out[-1], int) and max(2, out[-1]) != len(classes):
        raise GraphError(
            f"the graph has {out[-1]} outputs, but there are {len(classes)} class names",
            hint="--preprocessing-from the model that this graph was made from",
        )


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
