"""A quantized network whose weights, biases and scales are trained.

It starts at finished encodings and computes in every step what the lowered graph computes. What it has
learned becomes an FP32 graph and encodings of that graph, so lowering writes it as it writes any other,
with Q/DQ pairs where the target wants them. Equalization is part of that FP32 graph's weights.

What is learned is stored relative to its own size: weights to the largest that their scale represents,
biases to the biases of the layer, scales as logarithms relative to their first value. So one learning
rate suits all, and no scale becomes negative. Weights of a 2:4 sparse layer that are zero stay zero.

Sources: Esser et al. 2020, "Learned Step Size Quantization" (the gradient of a scale); Jain et al.
2020, "Trained Quantization Thresholds" (logarithms of scales). Esser's factor for the gradients of
scales is left out, because AdamW divides by their size anyway.
Not handled: nodes that `Simulation.unsupported` lists, and detectors.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from optimizer.graphs.topology import PASS_THROUGH_OPS, Topology
from optimizer.precision.int8.encodings import Encodings, LayerEncoding, stored_scale
from optimizer.precision.int8.simulation import Parameters, Simulation, exact_parameters
from optimizer.precision.int8.straight_through import (
    round_activations,
    round_constants,
    round_weights,
)
from optimizer.precision.qdq import write_float_layer
from optimizer.targets.rules import TargetRules
from optimizer.targets.structured_sparsity import has_pattern

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ["Quantization", "learned_encodings", "trainable_network", "write_learned"]

_SCALE_RATE = 10.0
"""Learning rate of the logarithms of scales, relative to that of weights."""


class Quantization:
    """What a quantized network is made of, and what does not change while it is trained.

    Args:
        topology: The FP32 graph.
        encodings: Finished encodings of it.
        rules: The target's rules.
    """

    def __init__(self, topology: Topology, encodings: Encodings, rules: TargetRules) -> None:
        self.topology, self.encodings, self.rules = topology, encodings, rules
        self.simulation = Simulation(topology, rules, encodings.keep)
        self.exact = exact_parameters(topology, encodings.layers)
        """FP32 weights and biases after equalization: the network that is learned from."""
        edges = topology.quantized_edges(rules, encodings.keep)
        self.owners = {edge.tensor: self._owner(edge.tensor) for edge in edges}
        """For each quantized tensor, the one whose scale it shares (itself, unless pooled)."""

    def _owner(self, tensor: str) -> str:
        producer = self.topology.producer(tensor)
        if producer is None or producer.op_type not in PASS_THROUGH_OPS:
            return tensor
        source = self.topology.data_inputs(producer)[0]
        same = self.encodings.tensors.get(source) == self.encodings.tensors[tensor]
        return self._owner(source) if same else tensor

    @property
    def layers(self) -> dict[str, LayerEncoding]:
        """Encodings of the layers that are quantized."""
        keep = set(self.encodings.keep)
        return {name: enc for name, enc in self.encodings.layers.items() if name not in keep}


def trainable_network(quantization: Quantization) -> nn.Module:
    """A module that maps images (as the graph's input) to logits, N x classes."""
    module: nn.Module = _network_class()(quantization)
    return module


@cache
def _network_class() -> Any:
    """The class, defined when it is needed because it derives from one of torch."""
    import torch
    from torch import nn

    class QuantizedNetwork(nn.Module):
        first_scales: torch.Tensor

        def __init__(self, quantization: Quantization) -> None:
            super().__init__()
            self.quantization = quantization
            self.parts = nn.ModuleDict(
                {_key(name): _layer(quantization, name) for name in quantization.encodings.layers}
            )
            owners = sorted(set(quantization.owners.values()))
            first = [quantization.encodings.tensors[name].scale for name in owners]
            self.index = {name: position for position, name in enumerate(owners)}
            self.register_buffer("first_scales", torch.tensor(first, dtype=torch.float32))
            self.log_scales = nn.Parameter(torch.zeros(len(owners)))

        def __deepcopy__(self, memo: dict[int, Any]) -> QuantizedNetwork:
            """A copy, as averaging the weights needs; the graph is shared."""
            copied = QuantizedNetwork(self.quantization)
            copied.load_state_dict(self.state_dict())
            return copied.to(self.log_scales.device)

        def scales(self) -> torch.Tensor:
            """Scales of the tensors in the order of `index`, as the graph stores them."""
            learned = self.first_scales * torch.exp(_SCALE_RATE * self.log_scales)
            return round_constants(learned, self.quantization.rules.constant_type)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            quantization, scales = self.quantization, self.scales()
            parameters: Parameters = {
                name: self.parts[_key(name)]() for name in quantization.encodings.layers
            }

            def quantize(name: str, values: torch.Tensor) -> torch.Tensor:
                scale = scales[self.index[quantization.owners[name]]]
                return round_activations(values, scale, quantization.encodings.tensors[name].levels)

            simulation = quantization.simulation
            computed = simulation.compute(images, parameters, quantize)
            return computed[simulation.topology.output]

    return QuantizedNetwork


@cache
def _layer_class() -> Any:
    import torch
    from torch import nn

    class QuantizedLayer(nn.Module):
        """Weight and bias of one layer; rounded, unless the layer is kept (``grid`` is ``None``)."""

        first_scale: torch.Tensor
        unit: torch.Tensor
        bias_unit: torch.Tensor
        mask: torch.Tensor | None

        def __init__(
            self,
            weight: torch.Tensor,
            bias: torch.Tensor,
            encoding: LayerEncoding,
            rules: TargetRules,
            kept: bool,
        ) -> None:
            super().__init__()
            self.grid = None if kept else encoding.grid
            self.constant_type = rules.constant_type
            scale = torch.tensor(encoding.weight_scale, dtype=torch.float32)
            column = scale.reshape(-1, *([1] * (weight.ndim - 1)))
            size = bias.square().mean().sqrt()
            self.register_buffer("first_scale", scale)
            self.register_buffer("unit", column * encoding.grid.largest)
            self.register_buffer("bias_unit", torch.where(size > 0, size, torch.ones(())))
            sparse = has_pattern(weight.numpy())
            self.register_buffer("mask", (weight != 0).float() if sparse else None)
            self.weight = nn.Parameter((weight / self.unit).contiguous())
            self.bias = nn.Parameter(bias / self.bias_unit)
            self.log_scale = nn.Parameter(torch.zeros(len(scale)))

        def exact(self) -> tuple[torch.Tensor, torch.Tensor]:
            """The weight before rounding, and the bias."""
            weight = self.weight * self.unit
            return weight if self.mask is None else weight * self.mask, self.bias * self.bias_unit

        def scale(self) -> torch.Tensor:
            learned = self.first_scale * torch.exp(_SCALE_RATE * self.log_scale)
            return round_constants(learned, self.constant_type)

        def forward(self) -> tuple[torch.Tensor, torch.Tensor]:
            weight, bias = self.exact()
            if self.grid is not None:
                weight = round_weights(weight, self.scale(), self.grid)
            if weight.ndim == 4:
                weight = weight.contiguous(memory_format=torch.channels_last)
            return weight, bias

    return QuantizedLayer


def _layer(quantization: Quantization, name: str) -> Any:
    encoding = quantization.encodings.layers[name]
    weight, _ = quantization.exact[name]
    bias = np.asarray(encoding.bias, np.float32)  # with the correction
    kept = name in quantization.encodings.keep
    return _layer_class()(weight.contiguous(), _tensor(bias), encoding, quantization.rules, kept)


def _tensor(array: NDArray[np.float32]) -> torch.Tensor:
    import torch

    return torch.from_numpy(array.copy())


def _key(name: str) -> str:
    """A layer's name as a key of a ModuleDict, which has no dots."""
    return name.replace(".", "/")


# --- what was learned ----------------------------------------------------------------------------


def write_learned(module: nn.Module, model: ir.Model) -> None:
    """Write the learned FP32 weights and biases into the graph the network was made from, in place."""
    topology = Topology(model)
    for node in list(topology.layers()):
        weight, bias = (part.detach().cpu() for part in _part(module, str(node.name)).exact())
        write_float_layer(model.graph, node, weight.contiguous().numpy(), bias.numpy())


def learned_encodings(module: nn.Module, graph_sha256: str) -> Encodings:
    """The learned encodings, for the graph that `write_learned` wrote.

    Args:
        module: From `trainable_network`, trained.
        graph_sha256: Digest of that graph's file.
    """
    quantization: Any = module.quantization
    before: Encodings = quantization.encodings
    rules: TargetRules = quantization.rules
    scales = module.scales().detach().cpu().tolist()  # type: ignore[operator]
    tensors = {
        name: encoding.model_copy(
            update={"scale": _scale(name, module, scales, encoding.scale, rules)}
        )
        for name, encoding in before.tensors.items()
    }
    layers = {
        name: _learned_layer(_part(module, name), encoding, rules)
        for name, encoding in before.layers.items()
    }
    if rules.bias == "int32":
        topology = quantization.topology
        for name, layer in layers.items():
            source = topology.data_inputs(topology.nodes[name])[0]
            layers[name] = layer.with_bias_in_range(tensors[source].scale)
    return before.model_copy(
        update={"graph_sha256": graph_sha256, "tensors": tensors, "layers": layers}
    )


def _scale(name: str, module: Any, scales: list[float], first: float, rules: TargetRules) -> float:
    owner = module.quantization.owners.get(name)
    return first if owner is None else stored_scale(scales[module.index[owner]], rules)


def _learned_layer(part: Any, before: LayerEncoding, rules: TargetRules) -> LayerEncoding:
    scales = part.scale().detach().cpu().tolist()
    _, bias = part.exact()
    return before.model_copy(
        update={
            "weight_scale": [stored_scale(scale, rules) for scale in scales],
            "bias": bias.detach().cpu().tolist(),
            "input_factor": None,
            "output_factor": None,
        }
    )


def _part(module: Any, name: str) -> Any:
    return module.parts[_key(name)]
