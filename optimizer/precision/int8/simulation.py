"""A residual network in PyTorch, in FP32 or with simulated quantization.

Passes that need more than histograms (`ranges` chosen by their effect, `correction`) run a sample of
the calibration images through it, node by node. All values are float32; a quantized tensor holds its
dequantized values, so a simulated network agrees with the lowered graph executed as written, up to
the order of summation.

Not handled: operations other than those of a ResNet, its input normalization, a BatchNorm that stands
alone, squeeze-and-excitation, and a detector's pyramid and heads. `Simulation.unsupported` lists them,
and the passes then work from histograms alone.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from copy import copy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from optimizer.graphs.topology import WEIGHTED, Topology
from optimizer.precision.int8.encodings import Encodings, LayerEncoding, TensorEncoding
from optimizer.precision.int8.pyramid_steps import PYRAMID_OPERATIONS, is_plain_pyramid_step
from optimizer.targets.rules import TargetRules

if TYPE_CHECKING:
    import torch

__all__ = [
    "FakeQuantize",
    "Parameters",
    "Simulation",
    "Step",
    "batches",
    "exact_layer",
    "exact_parameters",
    "fake_quantize",
    "fake_quantizer",
    "quantized_layer",
    "quantized_parameters",
]

Parameters = dict[str, tuple["torch.Tensor", "torch.Tensor"]]
"""Weight and bias by layer name."""
FakeQuantize = Callable[[str, "torch.Tensor"], "torch.Tensor"]
"""Maps a tensor's name and values to its quantized and dequantized values."""


@dataclass(frozen=True)
class Step:
    """One node as a PyTorch computation.

    Attributes:
        name: The node's name.
        output: Its output tensor.
        inputs: Names of computed inputs, each with whether it is quantized (has a Q/DQ pair).
        last: Tensors that no later step reads.
        compute: Maps inputs and parameters to the output.
    """

    name: str
    output: str
    inputs: tuple[tuple[str, bool], ...]
    last: tuple[str, ...]
    compute: Callable[[list[torch.Tensor], Parameters], torch.Tensor]


class Simulation:
    """The steps of a graph, quantized by a target's rules.

    Args:
        topology: The FP32 graph.
        rules: Decide where Q/DQ pairs are.
        keep: Layers in high precision.
    """

    def __init__(self, topology: Topology, rules: TargetRules, keep: Collection[str] = ()) -> None:
        self.topology = topology
        self.rules = rules
        self.keep = frozenset(keep)
        nodes = list(topology.nodes.values())
        last: dict[str, str] = {}
        for node in nodes:
            last |= {tensor: str(node.name) for tensor in topology.data_inputs(node)}
        steps = [
            Step(
                name=str(node.name),
                output=str(node.outputs[0].name),
                inputs=(),
                last=tuple(t for t, reader in last.items() if reader == node.name),
                compute=_operation(topology, node),
            )
            for node in nodes
        ]
        self.steps = _with_pairs(steps, topology, rules, self.keep)

    def with_kept_layers(self, keep: Collection[str]) -> Simulation:
        """The same graph with exactly these layers in high precision; the operations are shared."""
        variant = copy(self)
        variant.keep = frozenset(keep)
        variant.steps = _with_pairs(self.steps, self.topology, self.rules, variant.keep)
        return variant

    @staticmethod
    def unsupported(topology: Topology) -> list[ir.Node]:
        """The nodes of a graph that cannot be simulated, in graph order."""
        return [
            node
            for node in topology.nodes.values()
            if not (node.op_type in WEIGHTED or node.op_type in _OPERATIONS)
            or node.attributes.get_string("auto_pad", "NOTSET") != "NOTSET"
            or (node.op_type.endswith("Pool") and not _is_plain_pooling(node))
            or not is_plain_pyramid_step(topology, node)
        ]

    def run(
        self,
        images: torch.Tensor,
        parameters: Parameters,
        encodings: Encodings | None = None,
        watched: Iterable[str] = (),
    ) -> dict[str, torch.Tensor]:
        """Compute the network.

        Args:
            images: In the graph's input format.
            parameters: From `exact_parameters` or `quantized_parameters`.
            encodings: Encodings of the tensors; ``None`` for FP32.
            watched: Tensors to return in addition to the graph's output.

        Returns:
            The output and the watched tensors, by name.
        """
        quantizer = None if encodings is None else fake_quantizer(encodings)
        return self.compute(images, parameters, quantizer, watched)

    def compute(
        self,
        images: torch.Tensor,
        parameters: Parameters,
        quantizer: FakeQuantize | None,
        watched: Iterable[str] = (),
    ) -> dict[str, torch.Tensor]:
        """As `run`, with a function instead of encodings."""
        requested = {self.topology.output, *watched}
        values = {self.topology.input: images}
        results = {name: images for name in requested if name == self.topology.input}
        stored: dict[str, torch.Tensor] = {}
        for step in self.steps:
            values[step.output] = step.compute(
                self.inputs_of(step, values, stored, quantizer), parameters
            )
            if step.output in requested:
                results[step.output] = values[step.output]
            for name in step.last:
                values.pop(name, None)
                stored.pop(name, None)
        return results

    def inputs_of(
        self,
        step: Step,
        values: Mapping[str, torch.Tensor],
        stored: dict[str, torch.Tensor],
        quantizer: FakeQuantize | None,
    ) -> list[torch.Tensor]:
        """Inputs of a step, quantized where the rules require it; ``stored`` caches these."""
        inputs = []
        for name, quantized in step.inputs:
            if quantizer is None or not quantized:
                inputs.append(values[name])
                continue
            if name not in stored:
                stored[name] = quantizer(name, values[name])
            inputs.append(stored[name])
        return inputs


def _with_pairs(
    steps: Iterable[Step], topology: Topology, rules: TargetRules, keep: Collection[str]
) -> list[Step]:
    """The steps, with their inputs quantized as the target's rules require."""
    edges = {(e.node, e.index) for e in topology.quantized_edges(rules, keep)}

    def inputs(node: ir.Node) -> tuple[tuple[str, bool], ...]:
        computed = topology.data_inputs(node)
        return tuple(
            (str(value.name), (str(node.name), index) in edges)
            for index, value in enumerate(node.inputs)
            if value is not None and str(value.name) in computed
        )

    return [replace(step, inputs=inputs(topology.nodes[step.name])) for step in steps]


def fake_quantizer(encodings: Encodings) -> FakeQuantize:
    """The quantize-dequantize function of these encodings."""
    return lambda name, values: fake_quantize(values, encodings.tensors[name])


def fake_quantize(values: torch.Tensor, encoding: TensorEncoding) -> torch.Tensor:
    """Quantize and dequantize a tensor."""
    # In place: these passes are memory-bound.
    return values.div(encoding.scale).round_().clamp_(*encoding.levels).mul_(encoding.scale)


def exact_parameters(topology: Topology, layers: Mapping[str, LayerEncoding]) -> Parameters:
    """FP32 weights and biases after equalization, before any rounding."""
    return {
        str(node.name): exact_layer(topology, node, layers[str(node.name)])
        for node in topology.layers()
    }


def exact_layer(
    topology: Topology, node: ir.Node, layer: LayerEncoding
) -> tuple[torch.Tensor, torch.Tensor]:
    """FP32 weight and bias of one layer after equalization."""
    bias = topology.bias(node)
    if layer.output_factor is not None:
        bias = np.asarray(bias / np.asarray(layer.output_factor, np.float32), np.float32)
    return _tensor(layer.equalized(topology.weight(node))), _tensor(bias)


def quantized_parameters(topology: Topology, encodings: Encodings) -> Parameters:
    """Dequantized weights (exact ones in kept layers) and the biases of the encodings."""
    parameters: Parameters = {}
    for node in topology.layers():
        layer = encodings.layers[str(node.name)]
        if node.name in encodings.keep:
            weight, _ = exact_layer(topology, node, layer)
            parameters[str(node.name)] = (weight, _tensor(np.asarray(layer.bias, np.float32)))
        else:
            parameters[str(node.name)] = quantized_layer(topology, node, layer)
    return parameters


def quantized_layer(
    topology: Topology, node: ir.Node, layer: LayerEncoding
) -> tuple[torch.Tensor, torch.Tensor]:
    """Dequantized weight and encoded bias of one layer."""
    weight = layer.dequantized(topology.weight(node))
    return _tensor(weight), _tensor(np.asarray(layer.bias, np.float32))


def batches(images: NDArray[Any], size: int) -> Iterator[torch.Tensor]:
    """Images as tensors, float16 converted to float32."""
    for start in range(0, len(images), size):
        part = images[start : start + size]
        yield _tensor(part.astype(np.float32) if part.dtype == np.float16 else part)


def _tensor(array: NDArray[Any]) -> torch.Tensor:
    """As a tensor, channels last if 4-D: the fastest layout for PyTorch convolutions on a CPU."""
    import torch

    tensor = torch.from_numpy(array)
    if (
        tensor.ndim != 4 or tensor.dtype == torch.uint8
    ):  # uint8 NHWC input becomes channels last by itself
        return tensor
    return tensor.contiguous(memory_format=torch.channels_last)


# --- operations --------------------------------------------------------------------------------


def _operation(
    topology: Topology, node: ir.Node
) -> Callable[[list[torch.Tensor], Parameters], torch.Tensor]:
    if node.op_type in WEIGHTED:
        return _layer(topology, node)
    compute = _OPERATIONS[node.op_type](topology, node)
    return lambda inputs, _: compute(*inputs)


def _layer(
    topology: Topology, node: ir.Node
) -> Callable[[list[torch.Tensor], Parameters], torch.Tensor]:
    from torch.nn import functional

    name = str(node.name)
    if node.op_type == "Gemm":
        return lambda inputs, parameters: functional.linear(inputs[0], *parameters[name])
    rank = topology.weight(node).ndim - 2
    strides = list(node.attributes.get_ints("strides", ()) or [1] * rank)
    dilations = list(node.attributes.get_ints("dilations", ()) or [1] * rank)
    groups = topology.conv_groups(node)
    pads = _pads(node, rank)
    symmetric = all(pads[i] == pads[i + 1] for i in range(0, len(pads), 2))
    padding = list(reversed(pads[::2])) if symmetric else 0

    def convolve(inputs: list[torch.Tensor], parameters: Parameters) -> torch.Tensor:
        x = inputs[0] if symmetric else functional.pad(inputs[0], pads)
        weight, bias = parameters[name]
        return functional.conv2d(x, weight, bias, strides, padding, dilations, groups)

    return convolve


def _is_plain_pooling(node: ir.Node) -> bool:
    """Whether a pooling has no dilation, and an average pooling has symmetric padding."""
    pads = list(node.attributes.get_ints("pads", ()) or ())
    half = len(pads) // 2
    even = node.op_type != "AveragePool" or pads[:half] == pads[half:]
    return even and set(node.attributes.get_ints("dilations", ()) or ()) <= {1}


def _pads(node: ir.Node, rank: int) -> list[int]:
    """ONNX pads (all begins, then all ends) in PyTorch's order: last axis first, begin and end."""
    pads = list(node.attributes.get_ints("pads", ()) or [0] * (2 * rank))
    return [pads[side * rank + axis] for axis in reversed(range(rank)) for side in (0, 1)]


Unary = Callable[..., "torch.Tensor"]


def _relu(_: Topology, __: ir.Node) -> Unary:
    return lambda x: x.relu()


def _max_pool(_: Topology, node: ir.Node) -> Unary:
    from torch.nn import functional

    kernel = list(node.attributes.get_ints("kernel_shape", ()) or ())
    strides = list(node.attributes.get_ints("strides", ()) or [1] * len(kernel))
    pads = _pads(node, len(kernel))

    def pool(x: torch.Tensor) -> torch.Tensor:
        if any(pads):
            x = functional.pad(x, pads, value=float("-inf"))
        return functional.max_pool2d(
            x, kernel, strides, ceil_mode=bool(node.attributes.get_int("ceil_mode", 0))
        )

    return pool


def _average_pool(_: Topology, node: ir.Node) -> Unary:
    from torch.nn import functional

    kernel = list(node.attributes.get_ints("kernel_shape", ()) or ())
    strides = list(node.attributes.get_ints("strides", ()) or [1] * len(kernel))
    pads = _pads(node, len(kernel))
    return lambda x: functional.avg_pool2d(
        x,
        kernel,
        strides,
        [pads[2], pads[0]],
        ceil_mode=bool(node.attributes.get_int("ceil_mode", 0)),
        count_include_pad=bool(node.attributes.get_int("count_include_pad", 0)),
    )


def _global_average_pool(_: Topology, __: ir.Node) -> Unary:
    return lambda x: x.mean((2, 3), keepdim=True)


def _flatten(_: Topology, __: ir.Node) -> Unary:
    return lambda x: x.flatten(1)


def _cast(_: Topology, __: ir.Node) -> Unary:
    return lambda x: x.float()


def _transpose(_: Topology, node: ir.Node) -> Unary:
    order = list(node.attributes.get_ints("perm", ()) or ())
    return lambda x: x.permute(order)


def _binary(symbol: str) -> Callable[[Topology, ir.Node], Unary]:
    def make(topology: Topology, node: ir.Node) -> Unary:
        import torch

        function: Any = {"Add": torch.add, "Mul": torch.mul}[symbol]
        if len(topology.data_inputs(node)) == 2:
            return cast("Unary", function)
        values = [v.const_value for v in node.inputs if v is not None and v.const_value is not None]
        constant = torch.from_numpy(values[0].numpy().copy())
        return lambda x: function(x, constant)

    return make


def _batchnorm(_: Topology, node: ir.Node) -> Unary:
    import torch
    from torch.nn import functional

    gamma, beta, mean, variance = (
        torch.from_numpy(v.const_value.numpy().copy())
        for v in node.inputs[1:5]
        if v is not None and v.const_value is not None
    )
    epsilon = node.attributes.get_float("epsilon", 1e-5) or 1e-5
    return lambda x: functional.batch_norm(x, mean, variance, gamma, beta, eps=epsilon)


def _sigmoid(_: Topology, __: ir.Node) -> Unary:
    return lambda x: x.sigmoid()


def _softmax(topology: Topology, node: ir.Node) -> Unary:
    """At the end of the graph it is left out: probabilities near 0 and 1 hide the noise of logits."""
    if node.outputs[0].name == topology.output:
        return lambda x: x
    axis = node.attributes.get_int("axis", -1)
    return lambda x: x.softmax(-1 if axis is None else axis)


_OPERATIONS: dict[str, Callable[[Topology, ir.Node], Unary]] = {
    **PYRAMID_OPERATIONS,
    "Relu": _relu,
    "Add": _binary("Add"),
    "Mul": _binary("Mul"),
    "MaxPool": _max_pool,
    "AveragePool": _average_pool,
    "GlobalAveragePool": _global_average_pool,
    "Flatten": _flatten,
    "Cast": _cast,
    "Transpose": _transpose,
    "BatchNormalization": _batchnorm,
    "Sigmoid": _sigmoid,
    "Softmax": _softmax,
}
