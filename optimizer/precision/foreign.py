"""Stages for graphs of somebody else: INT8 graphs as float graphs, preprocessing that they lack.

An INT8 graph becomes two artifacts: the float graph that it stands for (``<stem>.float.onnx``),
which can be calibrated, exported to other precisions and compared like any FP32 graph, and
encodings of that float graph for a target, with the source's integers and ranges. Both name the
INT8 graph among their inputs.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimizer.artifacts import (
    Artifact,
    Cache,
    Input,
    Plan,
    check_output,
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
_ADOPTED = ("preprocessing", "classes", "arch")


def prepared(
    graph: Path,
    output: Path,
    *,
    preprocessing_from: str | None = None,
    cache: Cache | None = None,
    progress: Progress | None = None,
) -> Path:
    """The FP32 graph that a stage works on.

    Args:
        graph: An FP32 graph, or a Q/DQ graph.
        output: What the stage writes; a float graph that is needed goes beside it.
        preprocessing_from: As in `float_graph`.
        cache: Where artifacts are kept by key.
        progress: Told of the steps.

    Returns:
        ``graph`` itself if it is FP32 and asks for nothing, else ``<graph stem>.float.onnx``.

    Raises:
        GraphError: As in `float_graph`.
        UsageError: The output has the name of the float graph.
    """
    if preprocessing_from is None and not is_quantized(graph):
        return graph
    beside = output.with_name(f"{graph.stem}.float.onnx")
    if beside == output:
        raise UsageError(
            f"{output.name} is the name of the float graph that is read out of {graph.name}",
            hint="give the output another name",
        )
    check_output(beside, [graph, preprocessing_from])
    made = float_graph(
        graph, beside, preprocessing_from=preprocessing_from, cache=cache, progress=progress
    )
    return made.path


def float_graph(
    graph: Path,
    output: Path,
    *,
    preprocessing_from: str | None = None,
    cache: Cache | None = None,
    progress: Progress | None = None,
) -> Artifact:
    """Write the FP32 graph that a graph of somebody else stands for.

    Args:
        graph: A Q/DQ graph, which is read; or an FP32 graph that only lacks its preprocessing.
        output: Where the FP32 graph goes (``.onnx``).
        preprocessing_from: What knows the preprocessing, if the graph does not say it: an ONNX
            file of this project, or a model (checkpoint or name).
        cache: Where artifacts are kept by key.
        progress: Told of the steps.

    Raises:
        GraphError: The graph cannot be read, or nobody knows its preprocessing.
    """
    metadata = _adopted(graph, preprocessing_from)
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


def _adopted(graph: Path, preprocessing_from: str | None) -> Metadata:
    """What the FP32 graph is to say of itself, beyond what the source does."""
    own = metadata_of(graph)
    if preprocessing_from is not None:
        other = _told_by(preprocessing_from)
        told = other.preprocessing
        if own.preprocessing not in (None, told):
            raise GraphError(
                f"{graph.name} says which preprocessing it expects, and {preprocessing_from} says another",
                hint="leave out --preprocessing-from",
            )
        own = Metadata(
            {name: other[name] for name in _ADOPTED if other.get(name, "[]") != "[]"} | own
        )
    if "preprocessing" not in own:
        raise GraphError(
            f"{graph.name} does not say which preprocessing it expects",
            hint="--preprocessing-from the FP32 graph (resnet-opt export) or checkpoint it is from",
        )
    kept = {name: own[name] for name in (*_ADOPTED, "checkpoint_sha256") if name in own}
    source, _ = input_and_output(open_onnx(graph, weights=False).proto, graph.name)
    kind = source.type.tensor_type
    pixels = kind.elem_type == 2  # TensorProto.UINT8
    batch = kind.shape.dim[0].dim_value if kind.shape.dim else 0
    return Metadata(
        kept
        | {
            "precision": "fp32",
            "input": "uint8-nhwc" if pixels else "float32-nchw",
            "batch": str(batch or "dynamic"),
        }
    )


def _told_by(source: str) -> Metadata:
    """Preprocessing, classes and architecture, as a graph carries them."""
    if source.endswith(".onnx"):
        found = metadata_of(Path(source))
        if "preprocessing" not in found:
            raise GraphError(
                f"{Path(source).name} does not say which preprocessing it expects either",
                hint="give a graph from resnet-opt export, or a checkpoint",
            )
        return found
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
    """Refuse preprocessing of another image size and classes of another number."""
    from optimizer.data import Preprocessing

    assert metadata.preprocessing is not None
    size = Preprocessing.from_dict(metadata.preprocessing).image_size
    shape = model.graph.inputs[0].shape
    sides = () if shape is None else shape[1:3] if "uint8" in metadata["input"] else shape[2:4]
    if any(isinstance(side, int) and side != size for side in sides):
        raise GraphError(
            f"the graph takes images of {sides[0]} x {sides[1]}, "
            f"the preprocessing makes {size} x {size}",
            hint="--preprocessing-from what this graph was made from",
        )
    classes = metadata.classes
    out = model.graph.outputs[0].shape
    if classes and out is not None and isinstance(out[-1], int) and out[-1] != len(classes):
        raise GraphError(
            f"the graph has {out[-1]} outputs, and there are {len(classes)} class names",
            hint="--preprocessing-from what this graph was made from",
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
    """Write the encodings of an INT8 graph, carried over to a target.

    Args:
        source: The INT8 graph.
        graph: The float graph that `float_graph` wrote for it; the encodings belong to this one.
        output: Where the encodings go (``.encodings.json``).
        rules: The target's rules.
        statistics: Statistics of ``graph``, for what the source does not tell.
        method: Range method for what comes from statistics.
        cache: Where artifacts are kept by key.
        progress: Told of the steps.

    Raises:
        DataError: Something must come from statistics, and there are none.
        GraphError: The graph cannot be read, or its weights cannot be kept.
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
        from optimizer.precision.int8 import Statistics, encodings_from, read_quantized

        progress_ = progress or Silent()
        progress_.start(f"carry over to {rules.name}", total=1)
        seen = Statistics.load(statistics) if statistics is not None else None
        try:
            carried = encodings_from(
                read_quantized(open_onnx(source, weights=False).to_ir()), rules, seen,
                graph_sha256=inputs[1].sha256, method=method,
            )  # fmt: skip
        except ResnetOptError as error:
            raise type(error)(f"{source.name}: {error.message}", hint=error.hint) from error
        carried.save(path)
        progress_.advance()
        progress_.finish("; ".join(carried.notes) or "everything is kept as it was")
        return {
            "tensors": len(carried.tensors),
            "layers": len(carried.layers),
            "notes": carried.notes,
        }

    return produce(plan, output, write, cache=cache)
