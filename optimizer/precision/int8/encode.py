"""From statistics and weights to encodings for one target, in closed form.

The steps, each of which can be switched off: equalization, ranges of the tensors, scales of the
weights, correction of the biases.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from optimizer.errors import DataError, UsageError
from optimizer.precision.int8.encodings import Encodings, LayerEncoding, TensorEncoding
from optimizer.precision.int8.equalization import ALPHA, equalization_factors
from optimizer.precision.int8.ranges import METHODS, distribution, range_of, weight_scales
from optimizer.precision.int8.shift import shiftable
from optimizer.precision.int8.statistics import BINS, Statistics, TensorStatistics
from optimizer.precision.topology import Topology
from optimizer.targets.rules import TargetRules

__all__ = ["LEAST_IMAGES", "EncodingOptions", "compute_encodings"]

LEAST_IMAGES = 8


@dataclass(frozen=True, kw_only=True)
class EncodingOptions:
    """Which passes compute the encodings.

    Attributes:
        method: Range method of the tensors; weights use least squared error unless ``minmax``.
        percentile: For ``method="percentile"``.
        equalize: Equalize channels inside blocks and along the residual stream.
        alpha: Balance of equalization between activations (1) and weights (0).
        correct_bias: Correct biases for the mean error of rounded weights and tensors.
        shift: Quantize tensors after a ReLU around their middle, where the target allows it.
    """

    method: str = "mse"
    percentile: float = 99.99
    equalize: bool = True
    alpha: float = ALPHA
    correct_bias: bool = True
    shift: bool = True

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise UsageError(
                f"unknown range method {self.method!r}", mend=f"one of {', '.join(METHODS)}"
            )
        if not 50.0 < self.percentile <= 100.0:
            raise UsageError(f"percentile {self.percentile}", mend="above 50, up to 100")


def compute_encodings(
    model: ir.Model,
    statistics: Statistics,
    rules: TargetRules,
    graph_sha256: str,
    options: EncodingOptions | None = None,
) -> Encodings:
    """Compute encodings of an FP32 graph for one target.

    Args:
        model: The FP32 graph; it is not changed.
        statistics: Statistics of this graph.
        rules: The target's rules.
        graph_sha256: Digest of the graph's file, kept so that the encodings find their graph.
        options: Which passes to run; ``None`` for the best closed form.

    Raises:
        DataError: Statistics of too few images, or without a tensor that is needed.
        GraphError: The graph is not what `analyse` takes.
    """
    options = options or EncodingOptions()
    if statistics.images < LEAST_IMAGES:
        raise DataError(
            f"calibration saw {statistics.images} images, which say nothing about ranges",
            mend=f"at least {LEAST_IMAGES} images, better 256 and more",
        )
    topology = Topology(model)
    needed = {edge.tensor for edge in topology.quantized_edges(rules)}
    missing = needed - set(statistics.tensors)
    if missing:
        raise DataError(
            f"the statistics know nothing of {sorted(missing)[0]}",
            mend="calibrate this graph again",
        )
    factors = (
        equalization_factors(topology, statistics, alpha=options.alpha) if options.equalize else {}
    )
    tensors = _tensor_encodings(topology, statistics, rules, factors, options)
    layers = {
        str(node.name): _layer_encoding(
            topology, node, statistics, tensors, factors, rules, options
        )
        for node in topology.layers()
    }
    return Encodings(
        target=rules.name,
        weight_max=rules.weight_max,
        graph_sha256=graph_sha256,
        options=asdict(options),
        tensors=tensors,
        layers=layers,
    )


def _tensor_encodings(
    topology: Topology,
    statistics: Statistics,
    rules: TargetRules,
    factors: dict[str, NDArray[np.float32]],
    options: EncodingOptions,
) -> dict[str, TensorEncoding]:
    shifted = shiftable(topology, rules) if rules.shift and options.shift else set()
    encodings: dict[str, TensorEncoding] = {}
    for edge in topology.quantized_edges(rules):
        name = edge.tensor
        if name in encodings:
            continue
        producer = topology.producer(name)
        if rules.pooling and producer is not None and producer.op_type == "MaxPool":
            # Integer max pooling passes its input's integers on.
            encodings[name] = encodings[topology.data_inputs(producer)[0]]
            continue
        positive = topology.after_relu(name)
        dtype = rules.relu_dtype if positive else rules.signed_dtype
        levels = 255 if positive and (dtype == "u8" or name in shifted) else 127
        dist = distribution(statistics.tensors[name], factors.get(name))
        limit = range_of(dist, levels, options.method, percentile=options.percentile)
        encodings[name] = TensorEncoding(
            scale=_stored(limit / levels, rules),
            zero_point=128 if dtype == "u8" and not positive else 0,
            dtype=dtype,
            shifted=name in shifted,
        )
    return encodings


def _stored(scale: float, rules: TargetRules) -> float:
    """The scale as the graph will hold it, so that integers are rounded with the real one."""
    kind = np.float16 if rules.high_precision == "fp16" else np.float32
    stored = float(kind(scale))
    return stored if stored > 0 else float(np.finfo(kind).smallest_subnormal)


def _layer_encoding(
    topology: Topology,
    node: ir.Node,
    statistics: Statistics,
    tensors: dict[str, TensorEncoding],
    factors: dict[str, NDArray[np.float32]],
    rules: TargetRules,
    options: EncodingOptions,
) -> LayerEncoding:
    source = topology.data_inputs(node)[0]
    input_factor = factors.get(source)
    output_factor = factors.get(str(node.outputs[0].name))
    weight, bias = topology.weight(node), topology.bias(node)
    layer = LayerEncoding(
        weight_scale=[],
        bias=[],
        input_factor=None if input_factor is None else input_factor.tolist(),
        output_factor=None if output_factor is None else output_factor.tolist(),
    )
    exact = layer.equalized(weight)
    scales = weight_scales(exact, rules.weight_max, options.method)
    layer.weight_scale = [_stored(float(s), rules) for s in scales]
    if output_factor is not None:
        bias = bias / output_factor
    if options.correct_bias and topology.groups_of(node) == 1:
        bias = bias - _mean_error(
            exact, layer, rules, statistics.tensors[source], tensors[source], input_factor
        )
    layer.bias = bias.astype(np.float32).tolist()
    return layer


def _mean_error(
    exact: NDArray[np.float32],
    layer: LayerEncoding,
    rules: TargetRules,
    seen: TensorStatistics,
    encoding: TensorEncoding,
    factor: NDArray[np.float32] | None,
) -> NDArray[np.float64]:
    """Mean of what rounding adds to each output: E[sum w' x' - sum w x], borders not counted.

    Source: Nagel et al. 2019, "Data-Free Quantization", section 4.2, with the means measured.
    """
    spatial = tuple(range(2, exact.ndim))
    scale = np.asarray(layer.weight_scale, np.float64).reshape(-1, *([1] * (exact.ndim - 1)))
    rounded = np.clip(np.rint(exact / scale), -rules.weight_max, rules.weight_max) * scale
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
    low, high = encoding.bounds
    zero = encoding.zero_point - (128 if encoding.shifted else 0)
    stored = (np.clip(np.rint(centers / encoding.scale) + zero, low, high) - zero) * encoding.scale
    counts = seen.counts.astype(np.float64)
    counts[:, seen.origin] -= seen.zeros
    total = np.maximum(counts.sum(axis=1) + seen.zeros, 1.0)
    return np.asarray(((stored - centers) * counts).sum(axis=1) / total, np.float64)
