"""Check encodings, which may have been edited by hand, against their graph and target.

`Encodings.load` checks types, signs and ranges. This checks what needs the graph (which tensors and
layers there are, and how many channels each has) and the target (which integers it computes with, and
which scales its constants can hold), so that every wrong entry is named before anything is written.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from optimizer.errors import ArtifactError, GraphError
from optimizer.graphs.topology import ChannelGroup, Topology
from optimizer.precision.int8.encodings import (
    Encodings,
    LayerEncoding,
    TensorEncoding,
    stored_scale,
)
from optimizer.precision.int8.rounding import WeightGrid
from optimizer.targets.rules import TargetRules

__all__ = ["check_encodings"]

_AGAIN = "correct the file, or compute the encodings again from the statistics: --stats FILE"
_LARGEST_FLOAT = float(np.finfo(np.float32).max)
_SAME_FACTOR = 1e-5
"""Relative difference up to which two factors count as equal; the file holds float32 values."""


def check_encodings(
    encodings: Encodings, topology: Topology, rules: TargetRules, name: str
) -> None:
    """Reject encodings that the graph or the target cannot use.

    Args:
        encodings: As read from a file.
        topology: The FP32 graph.
        rules: The target's rules.
        name: Name of the file, for messages.

    Raises:
        ArtifactError: An entry is missing, superfluous or has a wrong value; the message names the
            tensor or layer and the field.
        UsageError: ``keep`` names a layer that the graph does not have.
    """
    keep = topology.check_layers(encodings.keep)
    layers = {str(node.name): node for node in topology.layers()}
    needed = dict.fromkeys(edge.tensor for edge in topology.quantized_edges(rules, keep))
    fault = _Fault(name)
    fault.names("tensors", encodings.tensors, needed, topology.has)
    fault.names("layers", encodings.layers, layers, layers.__contains__)
    for tensor, encoding in encodings.tensors.items():
        _check_tensor(fault, tensor, encoding, rules)
    for layer, node in layers.items():
        _check_layer(fault, encodings.layers[layer], node, topology, rules)
    for group in topology.channel_groups():
        _check_factors(fault, encodings, group)


class _Fault:
    """Raises the error for a wrong entry of one file."""

    def __init__(self, file: str) -> None:
        self._file = file

    def at(self, where: str, problem: str, hint: str = _AGAIN) -> ArtifactError:
        """An error for the field ``where`` (``tensors.relu.scale``)."""
        return ArtifactError(f"{self._file}: {where} {problem}", hint=hint)

    def names(
        self,
        section: str,
        given: Collection[str],
        needed: Collection[str],
        known: Callable[[str], bool],
    ) -> None:
        """Check the names of the entries of a section."""
        for name in needed:
            if name not in given:
                raise self.at(f"{section}.{name}", "is missing, but the target needs it")
        for name in given:
            if not known(name):
                close = difflib.get_close_matches(name, needed, n=1)
                hint = f"did you mean {close[0]}?" if close else "remove the entry"
                raise self.at(f"{section}.{name}", "is not in the graph", hint)


def _check_tensor(fault: _Fault, name: str, tensor: TensorEncoding, rules: TargetRules) -> None:
    where = f"tensors.{name}"
    types = {rules.relu_dtype, rules.signed_dtype} | ({"u8"} if rules.asymmetric else set())
    if tensor.dtype not in types:
        raise fault.at(
            f"{where}.dtype", f"is {tensor.dtype}, which {rules.name} does not compute with",
            f"use {' or '.join(sorted(types))}",
        )  # fmt: skip
    low, high = tensor.bounds
    if not low <= tensor.zero_point <= high:
        raise fault.at(
            f"{where}.zero_point", f"is {tensor.zero_point}, which is not a {tensor.dtype} integer",
            f"use {low} to {high}",
        )  # fmt: skip
    middle = 128 if tensor.dtype == "u8" else 0
    allowed = {middle, 0} if rules.relu_dtype == "u8" else {middle}
    if tensor.zero_point not in allowed and not (rules.asymmetric and tensor.dtype == "u8"):
        raise fault.at(
            f"{where}.zero_point", f"is {tensor.zero_point}, which {rules.name} does not support",
            f"use {' or '.join(str(zero) for zero in sorted(allowed))} for {tensor.dtype}",
        )  # fmt: skip
    if tensor.shifted and not rules.shift:
        raise fault.at(
            f"{where}.shifted", f"is true, but tensors are not shifted for {rules.name}",
            'set it to false and "zero_point" to 0, for all levels of u8',
        )  # fmt: skip
    _check_scale(fault, f"{where}.scale", tensor.scale, rules)


def _check_scale(fault: _Fault, where: str, scale: float, rules: TargetRules) -> None:
    try:
        stored = stored_scale(scale, rules)
    except GraphError as error:
        raise fault.at(where, f"is {scale:g}: {error.message}") from error
    # Rounding up to the smallest subnormal would change the scale by more than half of itself.
    if stored > 1.5 * scale or 256.0 * stored > _LARGEST_FLOAT:
        size = "small" if stored > scale else "large"
        raise fault.at(where, f"is {scale:g}, which is too {size} for {rules.constant_type}")


def _check_layer(
    fault: _Fault, layer: LayerEncoding, node: ir.Node, topology: Topology, rules: TargetRules
) -> None:
    where = f"layers.{node.name}"
    weight = topology.weight(node)
    grid = WeightGrid.of(rules, topology.conv_groups(node))
    outputs, inputs = weight.shape[:2]
    lists: tuple[tuple[str, Sequence[float] | None, int], ...] = (
        ("weight_scale", layer.weight_scale, outputs),
        ("bias", layer.bias, outputs),
        ("input_factor", layer.input_factor, inputs),
        ("output_factor", layer.output_factor, outputs),
    )
    for field, values, length in lists:
        if values is not None and len(values) != length:
            raise fault.at(
                f"{where}.{field}", f"has {len(values)} values, but the layer has {length} channels"
            )
    if layer.pairs != grid.pairs:
        raise fault.at(
            f"{where}.pairs", f"is {layer.pairs}, but the target's CPU needs {grid.pairs}",
            f'use "{grid.pairs}": otherwise 16-bit sums may overflow',
        )  # fmt: skip
    largest = 128 if grid.largest == 127 else grid.largest  # integers of other quantizers
    if layer.weight_max > largest:
        raise fault.at(
            f"{where}.weight_max", f"is {layer.weight_max}, but the target allows {largest}",
            f"use {grid.largest} or less",
        )  # fmt: skip
    for index, scale in enumerate(layer.weight_scale):
        _check_scale(fault, f"{where}.weight_scale.{index}", scale, rules)
    _check_float32(fault, f"{where}.bias", layer.bias)
    for field, values, _ in lists[2:]:
        if values is not None:
            _check_float32(fault, f"{where}.{field}", values, positive=True)
    with np.errstate(over="ignore", invalid="ignore"):
        equalized = layer.equalized(weight)
    if not np.isfinite(equalized).all():
        raise fault.at(f"{where}.input_factor", "and output_factor make weights infinite")


def _check_float32(
    fault: _Fault, where: str, values: Sequence[float], *, positive: bool = False
) -> None:
    with np.errstate(over="ignore"):
        stored = np.asarray(values, np.float64).astype(np.float32)
    wrong = ~np.isfinite(stored) | ((stored <= 0) if positive else False)
    if wrong.any():
        index = int(np.flatnonzero(wrong)[0])
        problem = "is not a positive float32 value" if positive else "exceeds float32"
        raise fault.at(f"{where}.{index}", f"is {values[index]:g}, which {problem}")


def _check_factors(fault: _Fault, encodings: Encodings, group: ChannelGroup) -> None:
    """Each factor must cancel: what the producers of a tensor divide by, its consumers multiply by."""
    factors = [
        (f"layers.{name}.output_factor", encodings.layers[name].output_factor)
        for name in group.producers
    ] + [
        (f"layers.{name}.input_factor", encodings.layers[name].input_factor)
        for name in group.consumers
    ]
    if not factors or all(values is None for _, values in factors):
        return
    used = [(where, values) for where, values in factors if values is not None]
    where, first = used[0]
    if not group.closed:
        raise fault.at(where, "does not cancel: not only layers read and write these channels")
    for other, values in factors:
        if values is None or not _equal(values, first):
            raise fault.at(
                other, f"differs from {where}, so the network would compute something else",
                "edit the factors of all layers that share these channels alike",
            )  # fmt: skip


def _equal(values: Sequence[float], others: Sequence[float]) -> bool:
    if len(values) != len(others):
        return False
    a: NDArray[np.float64] = np.asarray(values, np.float64)
    return bool(np.allclose(a, np.asarray(others, np.float64), rtol=_SAME_FACTOR, atol=0.0))
