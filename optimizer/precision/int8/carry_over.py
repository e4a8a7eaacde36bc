"""Carry the encodings of a quantized graph over to another target.

Weights. The integers are kept, bit for bit, with the source's scales (rounded to the type of the
target's constants: for FP16, 127 times a scale moves by less than a tenth of a step). There are three
exceptions, counted in ``notes``: a scale so small that FP16 stores it with low precision; layers that
the source left in float; and, on a CPU without VNNI (``rules.pairs``), output channels with
neighbouring weights that would saturate in 16 bits. Keeping such integers would give wrong sums, and
changing only the neighbours loses 20 dB (they are the largest weights, and all become smaller), so
the whole channel is rounded again with a scale at which few or no weights exceed the limit. If there
are statistics of a layer's input, its bias compensates for the mean error of rounding again.

Tensors. The source's range stays representable: the scale is kept where the target stores the tensor
in the same way, otherwise the same largest value is divided by the target's number of levels (u8 with
scale s becomes s8 with s * 255 / 127). Scales propagate through MaxPool and Flatten in both
directions. Tensors that the source did not quantize, and zero points that the target does not
support, get ranges from statistics of the float graph.

Other biases are the source's: any correction in them belongs to its integers.

Not handled: tensors of which the source quantizes only some readers (the target's rules decide, so
the source's range may clip for readers where it did not before); bias correction for new scales of
tensors. ``--precision fp32`` gives the float graph, on which every pass works.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from optimizer.errors import DataError
from optimizer.graphs.topology import PASS_THROUGH_OPS, Topology, analyse
from optimizer.precision.int8.encode import LEAST_IMAGES
from optimizer.precision.int8.encodings import (
    Encodings,
    LayerEncoding,
    TensorEncoding,
    stored_scale,
)
from optimizer.precision.int8.ranges import distribution, range_of
from optimizer.precision.int8.reading import ReadModel, ReadTensor
from optimizer.precision.int8.rounding import WeightGrid, scales_of, unsafe_channels
from optimizer.precision.int8.shift import shiftable
from optimizer.precision.int8.statistics import Statistics
from optimizer.targets.rules import TargetRules

__all__ = ["carry_over_encodings"]

_MIDDLE = 128
_LISTED_NAMES = 3


def carry_over_encodings(
    read: ReadModel,
    rules: TargetRules,
    statistics: Statistics | None = None,
    *,
    graph_sha256: str = "",
    method: str = "auto",
) -> Encodings:
    """Carry the encodings of a quantized source over to a target.

    Args:
        read: From `read_quantized`.
        rules: The target's rules.
        statistics: Statistics of ``read.float_model``, for tensors without usable source encodings.
        graph_sha256: Digest of the float graph's file.
        method: Range method for tensors from statistics; ``auto`` is the geometric mean of min-max
            and least squared error.

    Returns:
        Encodings of ``read.float_model``.

    Raises:
        DataError: The target quantizes tensors that the source leaves in float, or does not support
            the source's zero points, and there are no statistics of these tensors.
        GraphError: `analyse` does not accept the float graph.
    """
    if statistics is not None and statistics.images < LEAST_IMAGES:
        raise DataError(
            f"calibration on {statistics.images} images is not enough to estimate ranges",
            hint=f"use at least {LEAST_IMAGES} images, better 256 or more",
        )
    return _CarryOver(read, rules, statistics, method).encodings(graph_sha256)


class _CarryOver:
    """The encodings of one source for one target."""

    def __init__(
        self, read: ReadModel, rules: TargetRules, statistics: Statistics | None, method: str
    ) -> None:
        self.read = read
        self.rules = rules
        self.statistics = statistics
        self.method = method
        self.topology = analyse(read.float_model)
        self.shifted = shiftable(self.topology, rules) if rules.shift else set()
        self.source_tensors = _propagated(self.topology, read.tensors)
        self.notes: list[str] = []

    def encodings(self, graph_sha256: str) -> Encodings:
        """Encodings of all tensors and layers."""
        tensors, layers = self._tensors(), self._layers()
        if self.rules.bias == "int32":
            layers = {
                name: layer.with_bias_in_range(tensors[self._source_of(name)].scale)
                for name, layer in layers.items()
            }
        return Encodings(
            target=self.rules.name,
            weight_max=self.rules.weight_max,
            pairs=self.rules.pairs,
            graph_sha256=graph_sha256,
            options={"carried_over": True, "method": self.method},
            tensors=tensors,
            layers=layers,
            notes=self.notes,
        )

    def _source_of(self, layer: str) -> str:
        return self.topology.data_inputs(self.topology.nodes[layer])[0]

    # --- tensors ---------------------------------------------------------------------------------

    def _tensors(self) -> dict[str, TensorEncoding]:
        required = list(dict.fromkeys(e.tensor for e in self.topology.quantized_edges(self.rules)))
        encodings: dict[str, TensorEncoding] = {}
        missing: list[str] = []
        unsupported: list[str] = []
        for name in required:
            source = self.source_tensors.get(name)
            encoding = self._carried(name, source) if source is not None else None
            if encoding is None:
                encoding = self._inherited(name, encodings) or self._measured(name)
                (missing if source is None else unsupported).append(name)
            if encoding is not None:
                encodings[name] = encoding
        if self.statistics is None:
            self._require_statistics(missing, unsupported)
        if missing or unsupported:
            self.notes.append(f"from statistics: {_list_names([*missing, *unsupported])}")
        return {name: encodings[name] for name in required}

    def _require_statistics(self, missing: list[str], unsupported: list[str]) -> None:
        hint = "use --calib DATA or --stats FILE to get their ranges from the float graph"
        if missing:
            raise DataError(
                f"{self.rules.name} quantizes {_list_names(missing)}, which the source leaves in float",
                hint=hint,
            )
        if unsupported:
            zero = self.source_tensors[unsupported[0]].zero_point
            raise DataError(
                f"{self.rules.name} does not support the zero points of {_list_names(unsupported)} "
                f"({zero} for the first)",
                hint=hint,
            )

    def _unsigned(self, name: str) -> bool:
        return self.topology.after_relu(name) and self.rules.relu_dtype == "u8"

    def _carried(self, name: str, tensor: ReadTensor) -> TensorEncoding | None:
        """The source's range with the target's levels; ``None`` if the target cannot represent it."""
        below = tensor.below
        above = 255 - below
        if self._unsigned(name) or name in self.shifted:
            same_levels = below == 0
            return self._encoding(name, tensor.scale * (1.0 if same_levels else above / 255))
        if below == _MIDDLE:
            return self._encoding(name, tensor.scale)
        if below == 0 or self.topology.after_relu(name):
            return self._encoding(name, tensor.scale * above / 127)
        if self.rules.asymmetric:
            return TensorEncoding(
                scale=stored_scale(tensor.scale, self.rules), zero_point=below, dtype="u8"
            )
        if abs(below - _MIDDLE) == 1:  # symmetric, with the middle rounded to the other side
            return self._encoding(name, tensor.scale)
        return None

    def _inherited(
        self, name: str, encodings: Mapping[str, TensorEncoding]
    ) -> TensorEncoding | None:
        """The output of max pooling has the encoding of its input."""
        node = self.topology.producer(name)
        if node is None or node.op_type != "MaxPool":
            return None
        return encodings.get(self.topology.data_inputs(node)[0])

    def _measured(self, name: str) -> TensorEncoding | None:
        if self.statistics is None:
            return None
        if name not in self.statistics.tensors:
            raise DataError(
                f"the statistics do not contain {name}", hint="calibrate this graph again"
            )
        levels = 255 if self._unsigned(name) or name in self.shifted else 127
        dist = distribution(self.statistics.tensors[name])
        methods = ("minmax", "mse") if self.method == "auto" else (self.method,)
        largest = float(np.exp(np.mean([np.log(range_of(dist, levels, m)) for m in methods])))
        return self._encoding(name, largest / levels)

    def _encoding(self, name: str, scale: float) -> TensorEncoding:
        """The encoding that `compute_encodings` would choose, with this scale."""
        unsigned = self._unsigned(name)
        dtype = "u8" if unsigned else self.rules.signed_dtype
        return TensorEncoding(
            scale=stored_scale(scale, self.rules),
            zero_point=_MIDDLE if dtype == "u8" and not unsigned else 0,
            dtype=dtype,
            shifted=name in self.shifted,
        )

    # --- layers ----------------------------------------------------------------------------------

    def _layers(self) -> dict[str, LayerEncoding]:
        layers, notes = {}, _Notes()
        for node in self.topology.layers():
            layers[str(node.name)] = self._layer(node, notes)
        self.notes += notes.lines(self.rules)
        return layers

    def _layer(self, node: ir.Node, notes: _Notes) -> LayerEncoding:
        name = str(node.name)
        grid = WeightGrid.of(self.rules, self.topology.conv_groups(node))
        weight = self.topology.weight(node)
        source = self.read.weight_scales.get(name)
        again = (
            np.ones(len(weight), bool) if source is None else unsafe_channels(source.integers, grid)
        )
        scales = np.ones(len(weight), np.float32) if source is None else source.scale.copy()
        if again.any():
            scales[again] = scales_of(weight[again], grid, "mse")
        layer = LayerEncoding(
            weight_scale=[stored_scale(float(scale), self.rules) for scale in scales],
            bias=self.topology.bias(node).tolist(),
            weight_max=grid.largest,
            pairs=grid.pairs,
        )
        if source is None:
            notes.rounded.append(name)
        else:
            if grid.largest == 127 and (source.integers[~again] == -128).any():
                layer.weight_max = 128  # kernels support -128; this project never writes it
            changed = (layer.integers(weight) != source.integers).any(axis=_all_but_first(weight))
            notes.channels += len(weight)
            notes.unsafe += int(again.sum())
            notes.coarse += int((changed & ~again).sum())
        if again.any():
            self._compensate(node, layer, weight)
        return layer

    def _compensate(self, node: ir.Node, layer: LayerEncoding, weight: NDArray[np.float32]) -> None:
        """Subtract the mean error of rounding again from the bias, if there are statistics."""
        tensor = self.topology.data_inputs(node)[0]
        observed = self.statistics.tensors.get(tensor) if self.statistics is not None else None
        if observed is None or self.topology.conv_groups(node) != 1:
            return
        change = layer.dequantized(weight) - weight
        error = change.sum(axis=tuple(range(2, weight.ndim)), dtype=np.float64) @ observed.mean
        layer.bias = (np.asarray(layer.bias) - error).astype(np.float32).tolist()


@dataclass
class _Notes:
    """Weights that could not be kept, counted over all layers."""

    channels: int = 0
    unsafe: int = 0
    coarse: int = 0
    rounded: list[str] = field(default_factory=list)

    def lines(self, rules: TargetRules) -> list[str]:
        """One line per reason."""
        lines = []
        if self.rounded:
            lines.append(f"float in the source, weights quantized now: {_list_names(self.rounded)}")
        if self.unsafe:
            lines.append(
                f"{self.unsafe} of {self.channels} channels have weights that saturate on a CPU "
                "without VNNI: rounded again"
            )
        if self.coarse:
            lines.append(
                f"{self.coarse} of {self.channels} channels have a weight scale that "
                f"{rules.constant_type.upper()} stores with low precision: rounded again"
            )
        return lines


def _all_but_first(array: NDArray) -> tuple[int, ...]:
    return tuple(range(1, array.ndim))


def _propagated(topology: Topology, tensors: Mapping[str, ReadTensor]) -> dict[str, ReadTensor]:
    """The encodings of the source, propagated through MaxPool and Flatten in both directions.

    Both commute with rounding to a grid. Backwards only where the input has no other reader, for
    which the source does not quantize it.
    """
    result = dict(tensors)
    nodes = [node for node in topology.nodes.values() if node.op_type in PASS_THROUGH_OPS]
    edges = [(topology.data_inputs(node)[0], str(node.outputs[0].name)) for node in nodes]
    for source, output in edges:
        if source in result:
            result.setdefault(output, result[source])
    for source, output in reversed(edges):
        if output in result and len(topology.consumers(source)) == 1:
            result.setdefault(source, result[output])
    return result


def _list_names(names: list[str]) -> str:
    more = len(names) - _LISTED_NAMES
    return ", ".join(names[:_LISTED_NAMES]) + (f" and {more} more" if more > 0 else "")
