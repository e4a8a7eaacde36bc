"""Statistics: bitwise identical for any batch size, order or split of the images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from optimizer.errors import ArtifactError, DataError, GraphError
from optimizer.precision.int8 import Collector, Statistics, TensorStatistics, compute_encodings
from optimizer.precision.int8.ranges import (
    METHODS,
    Distribution,
    distribution,
    range_of,
)
from optimizer.precision.int8.statistics import BINS
from optimizer.targets.rules import TARGETS
from tests.precision.networks import network
from tests.precision.test_int8_graphs import statistics

VALUES = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 6), st.integers(1, 3), st.integers(1, 4), st.integers(1, 4)),
    elements=st.floats(-1e4, 1e4, width=32, allow_subnormal=False),
)
PARTS = ("minimum", "maximum", "sums", "zeros", "exponent", "counts", "images")


def collect(values: np.ndarray, sizes: list[int], *, positive: bool = False) -> TensorStatistics:
    tensor = TensorStatistics.empty(values.shape[1], positive=positive)
    start = 0
    for size in sizes:
        if len(part := values[start : start + size]):
            tensor.add(part)
        start += size
    return tensor


def same(a: TensorStatistics, b: TensorStatistics) -> bool:
    return all(np.array_equal(getattr(a, part), getattr(b, part)) for part in PARTS)


@given(VALUES, st.randoms(use_true_random=False))
def test_batches_and_order_do_not_matter(values: np.ndarray, random: object) -> None:
    whole = collect(values, [len(values)])
    assert same(whole, collect(values, [1] * len(values)))
    order = list(range(len(values)))
    random.shuffle(order)  # type: ignore[attr-defined]
    assert same(whole, collect(values[order], [2] * len(values)))


@given(VALUES, st.integers(0, 6))
def test_merged_statistics_equal_those_of_all_images(values: np.ndarray, cut: int) -> None:
    cut = min(cut, len(values))
    left = (
        collect(values[:cut], [cut])
        if cut
        else TensorStatistics.empty(values.shape[1], positive=False)
    )
    if cut < len(values):
        left.merge(collect(values[cut:], [len(values)]))
    assert same(left, collect(values, [len(values)]))


@given(VALUES)
def test_histograms_match_numpy(values: np.ndarray) -> None:
    tensor = collect(np.abs(values), [len(values)], positive=True)
    assert tensor.counts.sum() == values.size
    assert (tensor.zeros == (values == 0).sum(axis=(0, 2, 3))).all()
    for channel in range(values.shape[1]):
        width = 2.0 ** float(tensor.exponent[channel])
        direct, _ = np.histogram(
            np.abs(values[:, channel]).astype(np.float64), bins=BINS, range=(0, BINS * width)
        )
        np.testing.assert_array_equal(tensor.counts[channel], direct)


def test_a_real_network_gives_the_same_statistics_for_any_batch(
    small_graph: Path, tmp_path: Path
) -> None:
    """ResNet-18 in ONNX Runtime, whose kernels sum single images and batches in different order."""
    from optimizer.data import open_dataset
    from optimizer.precision import calibrate

    digits = open_dataset("digits:train", limit=33)
    results = []
    for batch in (1, 7, 32):
        artifact = calibrate(small_graph, digits, tmp_path / f"{batch}.npz", batch=batch)
        results.append(Statistics.load(artifact.path))
    first = results[0]
    for other in results[1:]:
        np.testing.assert_array_equal(other.sample, first.sample)
        assert all(same(other.tensors[name], first.tensors[name]) for name in first.tensors)


def test_the_sample_does_not_depend_on_the_order() -> None:
    data = np.random.default_rng(1).normal(size=(300, 3, 8, 8)).astype(np.float32)
    samples = []
    for order in (np.arange(300), np.random.default_rng(2).permutation(300)):
        collector = Collector({}, lambda batch: {})
        for part in np.array_split(data[order], 11):
            collector.add(part)
        samples.append(collector.statistics.sample)
    assert samples[0].shape == (256, 3, 8, 8)
    np.testing.assert_array_equal(*samples)


@settings(max_examples=10)
@given(seed=st.integers(0, 1000))
def test_real_kernels_give_the_same_scales_for_any_batch(seed: int) -> None:
    data = np.random.default_rng(seed).normal(size=(21, 3, 8, 8)).astype(np.float32)
    encodings = [
        compute_encodings(
            network(seed),
            statistics(network(seed), np.array_split(data, parts)),  # type: ignore[arg-type]
            TARGETS["tensorrt"],
            "0",
        )
        for parts in (1, 3, 21)
    ]
    assert encodings[0].tensors == encodings[1].tensors == encodings[2].tensors


def test_statistics_can_be_saved_and_loaded(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(8, 4, 5, 5)).astype(np.float32)
    saved = Statistics({"a": collect(values, [8])}, {"graph": "x"})
    saved.save(tmp_path / "s.npz")
    loaded = Statistics.load(tmp_path / "s.npz")
    assert loaded.key == {"graph": "x"}
    assert same(saved.tensors["a"], loaded.tensors["a"])


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04 no archive"])
def test_a_file_without_statistics_is_rejected(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "s.npz").write_bytes(content)
    with pytest.raises(ArtifactError, match="does not contain calibration statistics"):
        Statistics.load(tmp_path / "s.npz")


def test_the_error_for_nan_names_the_layer() -> None:
    def execute(batch: np.ndarray) -> dict[str, np.ndarray]:
        return {"layer1.0.conv2": np.full((len(batch), 2), np.nan, np.float32)}

    collector = Collector({"layer1.0.conv2": False}, execute)
    with pytest.raises(GraphError, match=r"layer1\.0\.conv2 has NaN"):
        collector.add(np.zeros((2, 3, 8, 8), np.float32))
        _ = collector.statistics


def test_too_few_images_are_rejected() -> None:
    from tests.precision.test_int8_graphs import statistics

    few = statistics(network(0), [np.zeros((7, 3, 8, 8), np.float32)])
    with pytest.raises(DataError, match="7 images"):
        compute_encodings(network(0), few, TARGETS["tensorrt"], "0")


def test_black_images_give_finite_encodings() -> None:
    from optimizer.precision.int8 import lower
    from tests.precision.test_int8_graphs import run, statistics

    black = statistics(network(0), [np.zeros((8, 3, 8, 8), np.float32)])
    encodings = compute_encodings(network(0), black, TARGETS["openvino"], "0")
    assert all(np.isfinite(t.scale) and t.scale > 0 for t in encodings.tensors.values())
    model = network(0)
    lower(model, encodings, TARGETS["openvino"])
    assert np.isfinite(run(model, np.zeros((2, 3, 8, 8), np.float32))[0]).all()


# --- ranges ------------------------------------------------------------------------------------------


def _error(dist: Distribution, limit: float, levels: int) -> float:
    scale = limit / levels
    rounded = np.minimum(np.rint(dist.centers / scale), levels) * scale
    return float(np.dot(dist.counts, (dist.centers - rounded) ** 2))


@given(
    hnp.arrays(np.float32, (64, 2, 3, 3), elements=st.floats(-100, 100, width=32)),
    st.sampled_from([127, 255]),
)
def test_least_squares_is_never_worse_than_min_max(values: np.ndarray, levels: int) -> None:
    dist = distribution(collect(values, [64]))
    if dist.largest == 0:
        assert range_of(dist, levels, "mse") == 1.0
        return
    error = _error(dist, range_of(dist, levels, "mse"), levels)
    assert error <= _error(dist, dist.largest, levels) * (1 + 1e-9)


@given(hnp.arrays(np.float32, (32, 2, 3, 3), elements=st.floats(-100, 100, width=32)))
def test_every_method_stays_within_the_observed_range(values: np.ndarray) -> None:
    dist = distribution(collect(values, [32]))
    assert dist.counts.sum() == pytest.approx(values.size)
    for method in METHODS:
        assert 0 < range_of(dist, 127, method) <= max(dist.largest, 1.0) * (1 + 1e-6)


def test_only_min_max_covers_an_outlier() -> None:
    """One outlier among 100,000 values is clipped by all methods except min-max."""
    values = np.abs(np.random.default_rng(0).normal(size=(512, 1, 14, 14))).astype(np.float32)
    values[0, 0, 0, 0] = 30.0
    dist = distribution(collect(values, [512], positive=True))
    assert range_of(dist, 127, "minmax") == 30.0
    for method in ("mse", "entropy"):
        assert range_of(dist, 127, method) < 25, method


def test_all_zero_channels_have_a_positive_scale() -> None:
    from optimizer.precision.int8.rounding import WeightGrid, scales_of

    weight = np.zeros((2, 3, 1, 1), np.float32)
    weight[0] = 1.0
    scales = scales_of(weight, WeightGrid(), "mse")
    assert np.isfinite(scales).all()
    assert (scales > 0).all()


# --- rejected networks -------------------------------------------------------------------------------


def test_quantized_graphs_are_rejected() -> None:
    from optimizer.graphs.topology import analyse
    from tests.precision.test_int8_graphs import TENSORRT, lowered

    quantized, _ = lowered(lambda: network(0), TENSORRT)
    with pytest.raises(GraphError, match="already quantized"):
        analyse(quantized)


def test_shared_weights_are_rejected() -> None:
    from optimizer.graphs.topology import analyse

    model = network(0, blocks=3)
    nodes = {str(n.name): n for n in model.graph}
    nodes["layer1.2.conv1"].replace_input_with(1, nodes["layer1.1.conv1"].inputs[1])
    with pytest.raises(GraphError, match=r"layer1\.2\.conv1 and layer1\.1\.conv1 share"):
        analyse(model)


def test_computed_weights_are_rejected() -> None:
    from optimizer.graphs.topology import analyse

    model = network(0)
    conv = next(n for n in model.graph if n.op_type == "Conv")
    assert isinstance(conv.inputs[1], ir.Value)
    model.graph.initializers.pop(str(conv.inputs[1].name))
    with pytest.raises(GraphError, match="is computed in the graph"):
        analyse(model)
