"""FP8 graphs: placement of pairs, no saturation, accuracy, compilation."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import optimizer
from optimizer.errors import DataError, GraphError, ResnetOptError, UsageError
from optimizer.graphs.topology import WEIGHTED, analyse
from optimizer.precision.fp8 import LARGEST, quantized_layers, scales_for, to_fp8
from tests.precision.networks import images, network
from tests.precision.test_int8_graphs import noise_db, run, statistics

SEEDS = st.integers(0, 10_000)


def _converted(seed: int, *, bottleneck: bool = True, high: str = "fp32") -> ir.Model:
    model = network(seed, bottleneck=bottleneck)
    observed = statistics(network(seed, bottleneck=bottleneck), [images(64, 1)])
    to_fp8(model, observed, high_precision=high)
    return model


@settings(max_examples=10)
@given(seed=SEEDS, bottleneck=st.booleans(), high=st.sampled_from(["fp16", "fp32"]))
def test_outputs_are_close_to_fp32(seed: int, bottleneck: bool, high: str) -> None:
    model = _converted(seed, bottleneck=bottleneck, high=high)
    batch = images(16, 9)
    reference = run(network(seed, bottleneck=bottleneck), batch)[0]
    # Three mantissa bits: each tensor has about 31 dB, and layers do not compensate for each other.
    # The lowest found among hundreds of these networks is 15.9 dB; most have more than 20.
    assert noise_db(reference, run(model, batch)[0]) > 14


@settings(max_examples=10)
@given(seed=SEEDS, bottleneck=st.booleans())
def test_every_layer_except_the_stem_is_quantized_and_nothing_else(
    seed: int, bottleneck: bool
) -> None:
    layers = [str(n.name) for n in quantized_layers(analyse(network(seed, bottleneck=bottleneck)))]
    everything = [
        str(n.name) for n in network(seed, bottleneck=bottleneck).graph if n.op_type in WEIGHTED
    ]
    assert layers == everything[1:]
    model = _converted(seed, bottleneck=bottleneck)
    for node in model.graph:
        producers = [v.producer() for v in node.inputs if v is not None]
        read = sum(m is not None and m.op_type == "DequantizeLinear" for m in producers)
        assert read == (2 if node.name in layers else 0), node.name


@given(
    largest=st.lists(st.floats(0, 1e4, width=32), min_size=1, max_size=20),
    kind=st.sampled_from([np.float16, np.float32]),
)
def test_scales_avoid_saturation_and_are_tight(largest: list[float], kind: type) -> None:
    values = np.asarray(largest, np.float32)
    scales = scales_for(values, kind)
    np.testing.assert_array_equal(scales, scales.astype(kind).astype(np.float32))
    assert (scales > 0).all()
    assert (values.astype(np.float64) <= LARGEST * scales.astype(np.float64)).all()
    normal = values > LARGEST * 1e-3
    assert (scales[normal] <= values[normal] / LARGEST * 1.002).all()


def test_weights_are_the_nearest_e4m3_values() -> None:
    plain, model = network(3), _converted(3)
    node = next(n for n in plain.graph if n.name == "layer1.0.conv2")
    weight = analyse(plain).weight(node)
    constants = {k: v.const_value.numpy() for k, v in model.graph.initializers.items()}  # type: ignore[union-attr]
    stored = constants["layer1.0.conv2.weight.q"]
    scale = constants["layer1.0.conv2.weight.scale"].reshape(-1, 1, 1, 1)
    assert stored.dtype == ml_dtypes.float8_e4m3fn
    error = np.abs(stored.astype(np.float32) * scale - weight)
    # Half a unit in the last of four significant bits, or half of the smallest step.
    assert (error <= np.maximum(np.abs(weight) * 2**-4, scale * 2**-10) * 1.0001).all()


def test_all_zero_channels_give_finite_outputs() -> None:
    model = network(1)
    node = next(n for n in model.graph if n.name == "layer1.0.conv1")
    value = node.inputs[1]
    assert value is not None
    assert value.const_value is not None
    array = value.const_value.numpy().copy()
    array[0] = 0
    value.const_value = ir.tensor(array)
    reference = run(model, images(8))[0]
    to_fp8(model, statistics(network(1), [images(64, 1)]), high_precision="fp32")
    actual = run(model, images(8))[0]
    assert np.isfinite(actual).all()
    assert noise_db(reference, actual) > 15


def test_an_old_opset_is_rejected() -> None:
    model = network(0)
    model.graph.opset_imports[""] = 18
    with pytest.raises(GraphError, match="opset 18 does not support FP8"):
        to_fp8(model, statistics(network(0), [images(16)]))


def test_statistics_without_a_required_tensor_are_rejected() -> None:
    observed = statistics(network(0), [images(16)])
    observed.tensors.pop("layer1.0.relu")
    with pytest.raises(DataError, match=r"do not contain layer1\.0\.relu"):
        to_fp8(network(0), observed)


def test_fp8_needs_calibration_data(small_graph: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="FP8 needs calibration data"):
        optimizer.quantize(small_graph, tmp_path / "out.onnx", precision="fp8")
    with pytest.raises(UsageError, match="--encodings is for INT8"):
        optimizer.quantize(
            small_graph, tmp_path / "out.onnx", precision="fp8", encodings=tmp_path / "e.json"
        )


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
def test_cpu_engines_reject_fp8(
    engine: str, small_graph: Path, small_statistics: Path, tmp_path: Path
) -> None:
    with pytest.raises(ResnetOptError, match="FP8"):
        optimizer.build(
            small_graph,
            tmp_path / "out",
            precision="fp8",
            engine=engine,
            stats=small_statistics,
        )
    assert list(tmp_path.iterdir()) == []


def test_fp8_compiles_for_gpus_that_support_it(
    small_graph: Path, small_statistics: Path, tmp_path: Path
) -> None:
    pytest.importorskip("tensorrt_rtx")
    import optimizer

    engine = optimizer.build(
        small_graph,
        tmp_path / "fp8.rtx",
        precision="fp8",
        engine="tensorrt-rtx",
        target=("sm89",),
        stats=small_statistics,
    )
    audit = optimizer.audit(engine)
    assert audit.verdict == "pass", audit.reason
    assert audit.share == 1.0
    assert "FP16" in audit.reason
    with pytest.raises(ResnetOptError, match="FP8 needs sm89 or later"):
        optimizer.build(
            small_graph,
            tmp_path / "old.rtx",
            precision="fp8",
            engine="tensorrt-rtx",
            target=("sm86",),
            stats=small_statistics,
        )
    assert not (tmp_path / "old.rtx").exists()
