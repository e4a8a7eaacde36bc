"""Bias correction from statistics alone: what rounding is expected to add, a layer by itself.

For graphs that cannot be simulated, or where no sample of the images is at hand; on the network
itself, `optimizer.precision.int8.correction` is better, because there each layer sees what the
layers before it have done.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from optimizer.graphs.topology import Topology
from optimizer.precision.int8.encodings import Encodings, LayerEncoding, TensorEncoding
from optimizer.precision.int8.rounding import nearest
from optimizer.precision.int8.statistics import BINS, Statistics, TensorStatistics

__all__ = ["correct_by_statistics"]


def correct_by_statistics(
    topology: Topology,
    node: ir.Node,
    encodings: Encodings,
    statistics: Statistics,
    factors: Mapping[str, NDArray[np.float32]],
) -> None:
    """Take the expected mean error of a layer's output from its bias.

    Args:
        topology: The graph.
        node: A layer with weights; one whose channels are in groups is left as it is.
        encodings: Changed in place.
        statistics: Of the graph.
        factors: By which channels were divided, by tensor.
    """
    if topology.groups_of(node) != 1:
        return
    source = topology.data_inputs(node)[0]
    layer = encodings.layers[str(node.name)]
    error = _mean_error(
        layer.equalized(topology.weight(node)),
        layer,
        statistics.tensors[source],
        encodings.tensors[source],
        factors.get(source),
    )
    layer.bias = (np.asarray(layer.bias) - error).astype(np.float32).tolist()


def _mean_error(
    exact: NDArray[np.float32],
    layer: LayerEncoding,
    seen: TensorStatistics,
    encoding: TensorEncoding,
    factor: NDArray[np.float32] | None,
) -> NDArray[np.float64]:
    """Mean of what rounding adds to each output: E[sum w' x' - sum w x], borders not counted.

    Source: Nagel et al. 2019, "Data-Free Quantization", section 4.2, with the means measured.
    """
    spatial = tuple(range(2, exact.ndim))
    scale = np.asarray(layer.weight_scale, np.float32).reshape(-1, *([1] * (exact.ndim - 1)))
    rounded = (nearest(exact / scale, layer.grid) * scale).astype(np.float64)
    divide = np.ones(len(seen.exponent)) if factor is None else factor.astype(np.float64)
    mean = seen.mean / divide
    stored_mean = mean + _rounding_bias(seen, encoding, divide)
    error = (
        rounded.sum(axis=spatial) @ stored_mean - exact.sum(axis=spatial, dtype=np.float64) @ mean
    )
    return np.asarray(error, np.float64)


def _rounding_bias(
    seen: TensorStatistics, encoding: TensorEncoding, divide: NDArray[np.float64]
) -> NDArray[np.float64]:
    """E[x' - x] of each channel by its histogram."""
    centers = (np.arange(BINS) - seen.origin + 0.5)[None, :] * np.ldexp(1.0, seen.exponent)[:, None]
    centers = centers / divide[:, None]
    stored = np.clip(np.rint(centers / encoding.scale), *encoding.levels) * encoding.scale
    counts = seen.counts.astype(np.float64)
    counts[:, seen.origin] -= seen.zeros
    total = np.maximum(counts.sum(axis=1) + seen.zeros, 1.0)
    return np.asarray(((stored - centers) * counts).sum(axis=1) / total, np.float64)
