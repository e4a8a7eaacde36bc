"""From a graph that was read to encodings for another target.

Weights. Their integers stay as they are, bit for bit, with the source's scales (rounded to the type
of the target's constants: for FP16, 127 of them move by less than a tenth of a step). Three cases
differ, and ``notes`` counts each: a scale so small that FP16 holds it coarsely; layers that the
source left in float; and, on a CPU without VNNI (``rules.pairs``), output channels with neighbours
that would saturate in 16 bits. Integers that the kernel gets wrong keep nothing, and to move only
the neighbours loses 20 dB (they are the largest weights, and all become smaller), so such a channel
is rounded again at a scale where little or nothing has to give way. Where statistics tell the mean
of a layer's input, the bias makes up for the mean of what rounding again has moved.

Tensors. What the source could represent stays representable: the same scale where the target stores
the tensor alike, else the same largest value over the target's levels (u8 with scale s becomes s8
with s * 255 / 127). MaxPool and Flatten pass a scale on, in both directions. What the source did not
quantize, and zero points that the target cannot hold, come from statistics of the float graph.

Biases else are the source's: whatever correction they carry belongs to its integers.

Not handled: tensors that only some readers of the source read quantized (the target's rules say who
does, and there the source's range may clip what it did not before); correction of what new scales
of tensors add on average. ``--precision fp32`` gives the float graph, on which every pass works.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from optimizer.errors import DataError
from optimizer.graphs.topology import PASS_ON, Topology, analyse
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

__all__ = ["encodings_from"]

_MIDDLE = 128
_NAMED = 3


def encodings_from(
    read: ReadModel,
    rules: TargetRules,
    statistics: Statistics | None = None,
    *,
    graph_sha256: str = "",
    method: str = "auto",
) -> Encodings:
    """Carry what a source quantized over to a target.

    Args:
        read: From `read_quantized`.
        rules: The target's rules.
        statistics: Statistics of ``read.float_model``, for what the source does not tell.
        graph_sha256: Digest of the float graph's file.
        method: Range method for tensors from statistics; ``auto`` for the mean of min-max and
            least squared error.

    Returns:
        Encodings of ``read.float_model``.

    Raises:
        DataError: The target quantizes tensors, or needs zero points, that the source does not
            tell, and there are no statistics of them.
        GraphError: The float graph is not what `analyse` takes.
    """
    if statistics is not None and statistics.images < LEAST_IMAGES:
        raise DataError(f"calibration saw {statistics.images} images, which say nothing of ranges")
    return _Carrier(read, rules, statistics, method).encodings(graph_sha256)


class _Carrier:
    """One source on its way to one target."""

    def __init__(
        self, read: ReadModel, rules: TargetRules, statistics: Statistics | None, method: str
    ) -> None:
        self.read = read
        self.rules = rules
        self.statistics = statistics
        self.method = method
        self.topology = analyse(read.float_model)
        self.shifted = shiftable(self.topology, rules) if rules.shift else set()
        self.known = _passed_on(self.topology, read.tensors)
        self.notes: list[str] = []

    def encodings(self, graph_sha256: str) -> Encodings:
        """Tensors and layers."""
        tensors, layers = self._tensors(), self._layers()
        if self.rules.bias == "int32":
            layers = {
                name: layer.holding_bias(tensors[self._source_of(name)].scale)
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
        wanted = list(dict.fromkeys(e.tensor for e in self.topology.quantized_edges(self.rules)))
        found: dict[str, TensorEncoding] = {}
        missing: list[str] = []
        held: list[str] = []
        for name in wanted:
            known = self.known.get(name)
            carried = self._carried(name, known) if known is not None else None
            if carried is None:
                carried = self._inherited(name, found) or self._measured(name)
                (missing if known is None else held).append(name)
            if carried is not None:
                found[name] = carried
        if self.statistics is None:
            self._refuse(missing, held)
        if missing or held:
            self.notes.append(f"from statistics: {_named([*missing, *held])}")
        return {name: found[name] for name in wanted}

    def _refuse(self, missing: list[str], held: list[str]) -> None:
        hint = "--calib DATA or --stats FILE: their ranges are measured on the float graph"
        if missing:
            raise DataError(
                f"{self.rules.name} quantizes {_named(missing)}, which the source leaves in float",
                hint=hint,
            )
        if held:
            zero = self.known[held[0]].zero_point
            raise DataError(
                f"{self.rules.name} cannot hold the zero points of {_named(held)} "
                f"({zero} for the first)",
                hint=hint,
            )

    def _unsigned(self, name: str) -> bool:
        return self.topology.after_relu(name) and self.rules.relu_dtype == "u8"

    def _carried(self, name: str, tensor: ReadTensor) -> TensorEncoding | None:
        """The source's range in the target's levels; ``None`` if they cannot hold it."""
        below = tensor.below
        above = 255 - below
        if self._unsigned(name) or name in self.shifted:
            same = below == 0
            return self._encoding(name, tensor.scale * (1.0 if same else above / 255))
        if below == _MIDDLE:
            return self._encoding(name, tensor.scale)
        if below == 0 or self.topology.after_relu(name):
            return self._encoding(name, tensor.scale * above / 127)
        if self.rules.asymmetric:
            return TensorEncoding(
                scale=stored_scale(tensor.scale, self.rules), zero_point=below, dtype="u8"
            )
        if abs(below - _MIDDLE) == 1:  # a middle that was rounded to the other side
            return self._encoding(name, tensor.scale)
        return None

    def _inherited(self, name: str, found: Mapping[str, TensorEncoding]) -> TensorEncoding | None:
        """Max pooling passes its input's integers on."""
        node = self.topology.producer(name)
        if node is None or node.op_type != "MaxPool":
            return None
        return found.get(self.topology.data_inputs(node)[0])

    def _measured(self, name: str) -> TensorEncoding | None:
        if self.statistics is None:
            return None
        if name not in self.statistics.tensors:
            raise DataError(f"the statistics know nothing of {name}", hint="calibrate this graph")
        levels = 255 if self._unsigned(name) or name in self.shifted else 127
        seen = distribution(self.statistics.tensors[name])
        methods = ("minmax", "mse") if self.method == "auto" else (self.method,)
        largest = float(np.exp(np.mean([np.log(range_of(seen, levels, m)) for m in methods])))
        return self._encoding(name, largest / levels)

    def _encoding(self, name: str, scale: float) -> TensorEncoding:
        """As `compute_encodings` would store the tensor, with this scale."""
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
        grid = WeightGrid.of(self.rules, self.topology.groups_of(node))
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
                layer.weight_max = 128  # the kernels take it, though nothing here would make it
            changed = (layer.integers(weight) != source.integers).any(axis=_but_first(weight))
            notes.channels += len(weight)
            notes.unsafe += int(again.sum())
            notes.coarse += int((changed & ~again).sum())
        if again.any():
            self._compensate(node, layer, weight)
        return layer

    def _compensate(self, node: ir.Node, layer: LayerEncoding, weight: NDArray[np.float32]) -> None:
        """Take from the bias what rounding again adds on average, if statistics tell."""
        tensor = self.topology.data_inputs(node)[0]
        seen = self.statistics.tensors.get(tensor) if self.statistics is not None else None
        if seen is None or self.topology.groups_of(node) != 1:
            return
        moved = layer.represented(weight) - weight
        error = moved.sum(axis=tuple(range(2, weight.ndim)), dtype=np.float64) @ seen.mean
        layer.bias = (np.asarray(layer.bias) - error).astype(np.float32).tolist()


@dataclass
class _Notes:
    """What was not kept as it was, counted over the layers."""

    channels: int = 0
    unsafe: int = 0
    coarse: int = 0
    rounded: list[str] = field(default_factory=list)

    def lines(self, rules: TargetRules) -> list[str]:
        """One line a reason."""
        found = []
        if self.rounded:
            found.append(f"float in the source, weights rounded here: {_named(self.rounded)}")
        if self.unsafe:
            found.append(
                f"{self.unsafe} of {self.channels} channels have weights that saturate on a CPU "
                "without VNNI: rounded again"
            )
        if self.coarse:
            found.append(
                f"{self.coarse} of {self.channels} channels have a weight scale that "
                f"{rules.constant_type.upper()} holds coarsely: rounded again"
            )
        return found


def _but_first(array: NDArray) -> tuple[int, ...]:
    return tuple(range(1, array.ndim))


def _passed_on(topology: Topology, tensors: Mapping[str, ReadTensor]) -> dict[str, ReadTensor]:
    """With the scales that MaxPool and Flatten hand from one side to the other.

    Both commute with rounding to a grid. Backwards only where nobody else reads the input, which
    would otherwise be rounded for a reader that the source spared.
    """
    known = dict(tensors)
    movers = [node for node in topology.nodes.values() if node.op_type in PASS_ON]
    ways = [(topology.data_inputs(node)[0], str(node.outputs[0].name)) for node in movers]
    for source, output in ways:
        if source in known:
            known.setdefault(output, known[source])
    for source, output in reversed(ways):
        if output in known and len(topology.consumers(source)) == 1:
            known.setdefault(source, known[output])
    return known


def _named(names: list[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")
