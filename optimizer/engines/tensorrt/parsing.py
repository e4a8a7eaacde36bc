"""Parses an ONNX file into the library's network; errors name the node and a remedy."""

from __future__ import annotations

from typing import Any

from optimizer.engines.tensorrt.graph_check import CheckedGraph, place
from optimizer.engines.tensorrt.library import Library
from optimizer.engines.tensorrt.log import BuildLog, one_line
from optimizer.errors import GraphError

__all__ = ["create_network", "parse_graph"]

_EXPORT = "export it again with resnet-opt export"
_HINTS = (
    ("zero point", "lower it for TensorRT: resnet-opt quantize --precision int8 --target tensorrt"),
    ("type UInt8", "cast the images to a floating-point type before anything else"),
    ("type Int32", "leave biases in floating point: resnet-opt quantize --target tensorrt does"),
    ("same type", "make weights and activations the same type: resnet-opt quantize does"),
    ("Failed to open file", "copy the model's data file into the same folder"),
    ("import initializer", "copy the model's data file into the same folder"),
)


def create_network(trt: Any, builder: Any) -> Any:
    """An empty strongly typed network: it computes in the types of the graph.

    The flag is given by name because its number differs between TensorRT 10 and 11. In 11 and RTX,
    where every network is strongly typed, it has no effect.
    """
    return builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))


def parse_graph(
    library: Library, parser: Any, network: Any, graph: CheckedGraph, log: BuildLog
) -> None:
    """Fill ``network`` from a checked graph, with a parser created for it.

    Raises:
        GraphError: The parser rejects a node, or parses less than the graph contains.
    """
    accepted = parser.parse_from_file(str(graph.path))
    if not accepted or parser.num_errors:
        raise _parser_error(library, parser, graph, log)
    inputs = [network.get_input(index).name for index in range(network.num_inputs)]
    outputs = [network.get_output(index).name for index in range(network.num_outputs)]
    if network.num_layers < len(graph.weights) or network.num_layers == 0:
        raise GraphError(
            f"{library.title} read {network.num_layers} layers from {graph.path.name}, "
            f"which has {len(graph.weights)} with weights",
            hint=_EXPORT,
        )
    if inputs != [graph.input.name] or outputs != [graph.output.name]:
        raise GraphError(
            f"{library.title} read inputs {inputs} and outputs {outputs} from {graph.path.name}, "
            f"not {graph.input.name} and {graph.output.name}",
            hint=_EXPORT,
        )


def _parser_error(library: Library, parser: Any, graph: CheckedGraph, log: BuildLog) -> GraphError:
    if not parser.num_errors:
        reason = log.reason("no reason given")
        return GraphError(f"{library.title} cannot read {graph.path.name}: {reason}", hint=_EXPORT)
    error = parser.get_error(0)
    name, operator = error.node_name(), error.node_operator()
    text = one_line(error.desc()).removeprefix("Assertion failed: ")
    if not operator:
        return GraphError(
            f"{library.title} cannot read {graph.path.name}: {text}", hint=_hint(text, log)
        )
    where = place(name, operator)
    # The parser reports failed C++ assertions; "false" alone means an unsupported operator.
    unknown = text == "false" or "Plugin not found" in text
    if unknown:
        return GraphError(
            f"{library.title} does not support {where}",
            hint=f"replace {operator} with operators that TensorRT supports",
        )
    return GraphError(f"{library.title} rejects {where}: {text}", hint=_hint(text, log))


def _hint(text: str, log: BuildLog) -> str:
    messages = " ".join([text, *log.errors])
    return next((hint for mark, hint in _HINTS if mark in messages), _EXPORT)
