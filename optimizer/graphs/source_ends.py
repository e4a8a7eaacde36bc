"""Foreign ONNX files with plain ends: one float32 N x C x H x W input, one float32 N x classes output.

Exporters write half or double inputs, channels last, several outputs, ArgMax, or outputs with
trailing dimensions of one. `open_source` puts Casts and Transposes at the ends of the graph and
selects its output; everything in between stays as it is in the file. The result can be executed as
written, and is what the importing pass (`import_graph`) starts from and is checked against.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from optimizer.errors import GraphError
from optimizer.graphs.metadata import Metadata
from optimizer.graphs.onnx_files import check_opened, open_onnx
from optimizer.graphs.rewriting import Change
from optimizer.graphs.training_mode import check_inference_mode, switch_to_inference
from optimizer.options import ForeignGraph

__all__ = ["SQUARES", "SourceGraph", "end_of", "ends_in_probabilities", "open_source", "plain_ends"]

_UINT8, _FLOAT, _INT64, _HALF, _DOUBLE, _BFLOAT16 = 2, 1, 7, 10, 11, 16
PRECISION_OF = {_FLOAT: "fp32", _HALF: "fp16", _DOUBLE: "fp64", _BFLOAT16: "bf16"}
"""Names of the floating-point types, by `onnx.TensorProto` number."""
_IR_VERSION = 8
_CHANNELS = {1, 3, 4}
_PASSES_SCORES = {"Identity", "Flatten", "Reshape", "Squeeze", "Cast"}


@dataclass(frozen=True)
class SourceGraph:
    """A foreign ONNX file with plain ends.

    Attributes:
        path: The file.
        proto: The `onnx.ModelProto` with weights.
        changes: What was done at its ends.
    """

    path: Path
    proto: Any
    changes: list[Change] = field(default_factory=list)

    @property
    def input_name(self) -> str:
        """Name of the input."""
        return str(self.proto.graph.input[0].name)

    @property
    def output_name(self) -> str:
        """Name of the output."""
        return str(self.proto.graph.output[0].name)


def open_source(path: Path, options: ForeignGraph | None = None) -> SourceGraph:
    """Read an ONNX file of an image classifier and give it plain ends.

    Args:
        path: The file.
        options: The output to use, if several could be the scores; whether to switch nodes in
            training mode to inference; ``crop``, the side of squares to use the network on if the
            file is for images that are not square.

    Raises:
        GraphError: As in `open_checked`; the file is not a classifier; several outputs could be the
            scores; or nodes are in training mode.
    """
    import onnx

    options = options or ForeignGraph()
    opened = open_onnx(path)
    if Metadata.of_proto(opened.proto).has_nms:
        raise GraphError(
            f"{path.name} ends with non-maximum suppression: it is for ONNX Runtime or OpenVINO in "
            "other programs, not for engines, which end with the head",
            hint="give the graph that was exported without --with-nms",
        )
    changes: list[Change] = []
    _drop_constant_inputs(opened.proto, changes)
    _infer_output_shapes(opened.proto, changes)
    proto = check_opened(opened).proto
    # Exporters write the newest IR version, which ONNX Runtime may not know yet.
    proto.ir_version = max(
        _IR_VERSION, onnx.helper.find_min_ir_version_for(proto.opset_import, True)
    )
    _unique_node_names(proto, changes)
    _inline_functions(proto, changes)
    if options.crop is not None:
        _as_square(proto.graph, options.crop, changes)
    if options.inference_mode:
        changes += switch_to_inference(proto)
    check_inference_mode(proto, path.name)
    return plain_ends(SourceGraph(path, proto, changes), options.output_name)


def plain_ends(source: SourceGraph, output_name: str | None = None) -> SourceGraph:
    """Give a model plain ends, in place; a graph that has them is unchanged."""
    graph, changes, name = source.proto.graph, source.changes, source.path.name
    if len(graph.input) != 1:
        names = ", ".join(value.name for value in graph.input)
        raise GraphError(
            f"{name} has {len(graph.input)} inputs ({names}); a classifier of images has one",
            hint="export it with the image as its only input",
        )
    _choose_output(graph, name, output_name, changes)
    _plain_input(graph, name, changes)
    if (
        Metadata.of_proto(source.proto).detector is None
    ):  # this package exports only plain detectors
        _plain_output(graph, name, changes)
    return source


def _infer_output_shapes(proto: Any, changes: list[Change]) -> None:
    """Outputs without a shape, which the checker rejects."""
    import onnx

    missing = [v for v in proto.graph.output if not v.type.tensor_type.HasField("shape")]
    if not missing or not proto.graph.node:
        return
    inferred = onnx.shape_inference.infer_shapes(proto).graph.output
    for value in missing:
        known = next(other for other in inferred if other.name == value.name)
        if known.type.tensor_type.HasField("shape"):
            value.CopyFrom(known)
            changes.append(Change("shape of an output inferred", value.name))


def _unique_node_names(proto: Any, changes: list[Change]) -> None:
    """Rename nodes that share a name, which ONNX Runtime refuses to load."""
    taken: set[str] = set()
    for node in proto.graph.node:
        name, count = node.name, 0
        while node.name and node.name in taken:
            count += 1
            node.name = f"{name}_{count}"
        if count:
            changes.append(Change("node with the name of another renamed", node.name))
        taken.add(node.name)


def _inline_functions(proto: Any, changes: list[Change]) -> None:
    if not proto.functions:
        return
    import onnx

    names = ", ".join(sorted({function.name for function in proto.functions}))
    inlined = onnx.inliner.inline_local_functions(proto)
    proto.CopyFrom(inlined)
    changes.append(Change("functions of the model inlined", names))


def _drop_constant_inputs(proto: Any, changes: list[Change]) -> None:
    """Initializers are inputs as well up to IR version 3."""
    graph = proto.graph
    proto.ir_version = max(proto.ir_version, 4)
    constants = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in constants]
    if len(inputs) == len(graph.input):
        return
    changes.append(Change("initializers removed from the inputs", ""))
    kept = [value.SerializeToString() for value in inputs]
    del graph.input[:]
    for text in kept:
        graph.input.add().ParseFromString(text)


# --- the output -----------------------------------------------------------------------------------


def _choose_output(graph: Any, name: str, wanted: str | None, changes: list[Change]) -> None:
    """Leave one output: the requested one, or the only one that can be the scores."""
    outputs = {value.name: value for value in graph.output}
    producers = {output: node for node in graph.node for output in node.output}
    if wanted is not None and wanted not in outputs:
        raise GraphError(
            f"{name} has no output {wanted!r}",
            hint=f"--output-name with one of {', '.join(outputs)}",
        )
    # An ArgMax of scores is replaced by the scores: top-1 is the same, and noise can be measured.
    scores = {
        producers[output].input[0]
        if output in producers and producers[output].op_type == "ArgMax"
        else output: output
        for output in ([wanted] if wanted is not None else outputs)
    }
    if len(scores) != 1:
        listed = ", ".join(f"{output} ({_shape_text(value)})" for output, value in outputs.items())
        raise GraphError(
            f"{name} has {len(outputs)} outputs: {listed}; a classifier has one",
            hint=f"name the scores of the classes: --output-name {_likely_output(graph)}",
        )
    (chosen, output), *_ = scores.items()
    if chosen != output:
        changes.append(
            Change(f"the scores {chosen} are the output instead of their ArgMax", output)
        )
    dropped = [other for other in outputs if other not in (output, chosen)]
    changes += [Change("other output left out", other) for other in dropped]
    if list(outputs) == [chosen]:
        return
    kept = outputs[chosen].SerializeToString() if chosen in outputs else None
    del graph.output[:]
    value = graph.output.add()
    if kept is not None:
        value.ParseFromString(kept)
    else:
        value.CopyFrom(_value_info(graph, chosen))
    _remove_unread_nodes(graph)


def _value_info(graph: Any, name: str) -> Any:
    """What is known about a tensor inside the graph."""
    import onnx

    known = next((value for value in graph.value_info if value.name == name), None)
    return known or onnx.helper.make_tensor_value_info(name, _FLOAT, None)


def _remove_unread_nodes(graph: Any) -> None:
    needed = {value.name for value in graph.output}
    kept = []
    for node in reversed(graph.node):
        if needed & set(node.output):
            kept.append(node.SerializeToString())
            needed |= set(node.input)
            needed |= {name for a in node.attribute for name in _names_in(a)}
    del graph.node[:]
    for text in reversed(kept):
        graph.node.add().ParseFromString(text)


def _names_in(attribute: Any) -> set[str]:
    """Tensors that a subgraph in an attribute may read."""
    subgraphs = [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]
    return {name for graph in subgraphs for node in graph.node for name in node.input}


def _likely_output(graph: Any) -> str:
    """The output that nothing else reads, or the first one."""
    read = {name for node in graph.node for name in node.input}
    unread = [value.name for value in graph.output if value.name not in read]
    return str(unread[0] if unread else graph.output[0].name)


def _plain_output(graph: Any, name: str, changes: list[Change]) -> None:
    output = graph.output[0]
    kind = output.type.tensor_type.elem_type
    shape = _shape(output)
    if shape and (len(shape) < 2 or any(d != 1 for d in shape[2:])):
        raise GraphError(
            f"{name} gives {_shape_text(output)}, but an image classifier gives N x classes",
            hint="give the file of a whole classifier, with pooling and its last layer",
        )
    if kind not in (*PRECISION_OF, 0):
        raise GraphError(
            f"the output {output.name} of {name} holds no floating-point scores",
            hint="export the scores of the classes as an output, and name it with --output-name",
        )
    nodes: list[tuple[str, dict[str, Any]]] = []
    if len(shape) > 2:
        nodes.append(("Flatten", {"axis": 1}))
        changes.append(Change(f"output of {len(shape)} dimensions flattened", output.name))
    if kind not in (_FLOAT, 0):
        nodes.append(("Cast", {"to": _FLOAT}))
        changes.append(Change(f"{PRECISION_OF[kind]} output cast to fp32", output.name))
    if nodes:
        _append(graph, output, nodes, shape[:2])


def _append(
    graph: Any, output: Any, operations: list[tuple[str, dict[str, Any]]], shape: list[Any]
) -> None:
    """Put nodes before the output, which keeps its name."""
    import onnx

    inner = f"{output.name}.source"
    for node in graph.node:
        _rename(node.output, output.name, inner)
        _rename(node.input, output.name, inner)
    previous = inner
    for index, (kind, attributes) in enumerate(operations):
        last = index == len(operations) - 1
        target = output.name if last else f"{output.name}.{kind.lower()}"
        node = onnx.helper.make_node(
            kind, [previous], [target], name=f"{output.name}.{kind.lower()}", **attributes
        )
        graph.node.append(node)
        previous = target
    output.CopyFrom(onnx.helper.make_tensor_value_info(output.name, _FLOAT, shape or None))


def ends_in_probabilities(proto: Any) -> bool:
    """Whether the first output of a model is computed by Softmax or Sigmoid."""
    node = end_of(proto.graph)
    return node is not None and node.op_type in {"Softmax", "Sigmoid"}


def end_of(graph: Any) -> Any:
    """The node that computes the first output, before Casts and changes of shape; or ``None``."""
    producers = {output: node for node in graph.node for output in node.output}
    node = producers.get(graph.output[0].name)
    while node is not None and node.op_type in _PASSES_SCORES:
        node = producers.get(node.input[0])
    return node


# --- the input ------------------------------------------------------------------------------------


def _plain_input(graph: Any, name: str, changes: list[Change]) -> None:
    value = graph.input[0]
    kind, shape = value.type.tensor_type.elem_type, _shape(value)
    if len(shape) != 4:
        raise GraphError(
            f"the input {value.name} of {name} is {_shape_text(value)}, but images are "
            "N x channels x height x width",
            hint="give the file of an image classifier",
        )
    if kind == _UINT8:
        return  # pixels: N x H x W x 3, normalized in the graph
    if kind not in PRECISION_OF:
        raise GraphError(
            f"the input {value.name} of {name} is neither floating-point nor uint8",
            hint="export it with float32 images",
        )
    channels_last = shape[1] not in _CHANNELS and shape[3] in _CHANNELS
    operations: list[tuple[str, dict[str, Any]]] = []
    if kind != _FLOAT:
        operations.append(("Cast", {"to": kind}))
        changes.append(Change(f"{PRECISION_OF[kind]} input: images are cast from fp32", value.name))
    if channels_last:
        operations.append(("Transpose", {"perm": [0, 2, 3, 1]}))
        changes.append(Change("NHWC input: images are transposed from NCHW", value.name))
        shape = [shape[0], shape[3], shape[1], shape[2]]
    if operations:
        _prepend(graph, value, operations, shape)


SQUARES = "fixed size that is not square replaced"
"""What is changed where the user asks for squares."""


def _as_square(graph: Any, side: int, changes: list[Change]) -> None:
    """Let a network for images that are not square take squares; others are unchanged.

    Whether the network computes anything useful on them is not known here: `check_import` runs it, and
    a validation judges it.
    """
    if not graph.input:
        return
    shape = _shape(graph.input[0])
    first = 1 if len(shape) == 4 and shape[1] not in _CHANNELS and shape[3] in _CHANNELS else 2
    height, width = shape[first : first + 2] if len(shape) == 4 else (None, None)
    if not isinstance(height, int) or not isinstance(width, int) or height == width:
        return
    for place in (first, first + 1):
        graph.input[0].type.tensor_type.shape.dim[place].dim_value = side
    del graph.value_info[:]
    changes.append(Change(f"{SQUARES}: {height} x {width} by {side} x {side}", graph.input[0].name))


def _prepend(
    graph: Any, value: Any, operations: list[tuple[str, dict[str, Any]]], shape: list[Any]
) -> None:
    """Put nodes after the input, which keeps its name."""
    import onnx

    inner = f"{value.name}.source"
    for node in graph.node:
        _rename(node.input, value.name, inner)
    previous, nodes = value.name, []
    for index, (kind, attributes) in enumerate(operations):
        last = index == len(operations) - 1
        target = inner if last else f"{value.name}.{kind.lower()}"
        nodes.append(
            onnx.helper.make_node(
                kind, [previous], [target], name=f"{value.name}.{kind.lower()}", **attributes
            )
        )
        previous = target
    rest = [node.SerializeToString() for node in graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    for text in rest:
        graph.node.add().ParseFromString(text)
    value.CopyFrom(onnx.helper.make_tensor_value_info(value.name, _FLOAT, shape))


def _rename(names: Any, old: str, new: str) -> None:
    for index, name in enumerate(names):
        if name == old:
            names[index] = new


def _shape(value: Any) -> list[Any]:
    """Dimensions: a number, a symbol, or ``None``; empty if unknown."""
    return [
        d.dim_value if d.HasField("dim_value") else (d.dim_param or None)
        for d in value.type.tensor_type.shape.dim
    ]


def _shape_text(value: Any) -> str:
    shape = _shape(value)
    return " x ".join("N" if not isinstance(d, int) else str(d) for d in shape) or "a scalar"
