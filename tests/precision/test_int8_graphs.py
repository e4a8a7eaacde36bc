"""Properties of encodings and lowering on random residual networks, and pair counts on real ones."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from optimizer.errors import ArtifactError
from optimizer.graphs.topology import analyse
from optimizer.options import EncodingOptions
from optimizer.precision.int8 import (
    Collector,
    Encodings,
    Statistics,
    compute_encodings,
    lower,
)
from optimizer.targets.rules import TARGETS, TargetRules, rules_for
from tests.precision.networks import images, network

PLAIN = EncodingOptions(method="minmax", equalize=False, bias_correction="none", shift=False)
SEEDS = st.integers(0, 10_000)
KINDS = st.booleans()


def run(model: ir.Model, batch: np.ndarray, names: list[str] | None = None) -> list[np.ndarray]:
    """Execute a graph as written."""
    proto = ir.to_proto(model)
    for name in names or []:
        proto.graph.output.append(onnx.ValueInfoProto(name=name))
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = ort.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(names, {"images": batch})


def tapper(model: ir.Model) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    names = [name for name in analyse(model).observed_tensors() if name != "images"]

    def execute(batch: np.ndarray) -> dict[str, np.ndarray]:
        return {**dict(zip(names, run(model, batch, names), strict=True)), "images": batch}

    return execute


def statistics(model: ir.Model, batches: list[np.ndarray]) -> Statistics:
    topology = analyse(model)
    collector = Collector(
        {t: topology.after_relu(t) for t in topology.observed_tensors()}, tapper(model)
    )
    for batch in batches:
        collector.add(batch)
    return collector.statistics


def lowered(
    make: Callable[[], ir.Model], rules: TargetRules, options: EncodingOptions | None = None
) -> tuple[ir.Model, Encodings]:
    model = make()
    encodings = compute_encodings(make(), statistics(make(), [images(64, 1)]), rules, "0", options)
    lower(model, encodings, rules)
    return model, encodings


def noise_db(reference: np.ndarray, other: np.ndarray) -> float:
    noise = np.linalg.norm(other - reference)
    return float(20 * np.log10(np.linalg.norm(reference) / noise)) if noise else float("inf")


TENSORRT = replace(TARGETS["tensorrt"], high_precision="fp32", constants="fp32")


# --- exactness -------------------------------------------------------------------------------------


@settings(max_examples=15)
@given(seed=SEEDS, bottleneck=KINDS)
def test_equalization_changes_nothing_in_fp32(seed: int, bottleneck: bool) -> None:
    """Without rounding, the equalized network equals the original."""
    from optimizer.precision.int8.encodings import LayerEncoding
    from optimizer.precision.int8.equalization import equalization_factors

    def make() -> ir.Model:
        return network(seed, bottleneck=bottleneck)

    model = make()
    topology = analyse(model)
    factors = equalization_factors(topology, statistics(make(), [images(32)]), alpha=0.7)
    assert factors
    for node in topology.layers():
        into = factors.get(topology.data_inputs(node)[0])
        out = factors.get(str(node.outputs[0].name))
        layer = LayerEncoding(
            weight_scale=[],
            bias=[],
            input_factor=None if into is None else into.tolist(),
            output_factor=None if out is None else out.tolist(),
        )
        weight = layer.equalized(topology.weight(node))
        bias = topology.bias(node) if out is None else topology.bias(node) / out
        for value, array in ((node.inputs[1], weight), (node.inputs[2], bias)):
            assert value is not None
            value.const_value = ir.tensor(array.astype(np.float32), name=value.name)
    batch = images(8, 5)
    (expected,), (actual,) = run(make(), batch), run(model, batch)
    np.testing.assert_allclose(actual, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


def _unshifted(encodings: Encodings) -> Encodings:
    """The same levels as unsigned integers with zero point 0."""
    return encodings.model_copy(
        update={
            "tensors": {
                name: tensor.model_copy(update={"dtype": "u8", "shifted": False})
                if tensor.shifted
                else tensor
                for name, tensor in encodings.tensors.items()
            }
        }
    )


@settings(max_examples=15)
@given(seed=SEEDS)
@example(seed=180)  # a tie rounds the other way on some CPUs
def test_the_shift_is_equivalent_to_u8(seed: int) -> None:
    """A shifted s8 tensor holds the integers of u8 with zero point 0, minus 128."""

    def make() -> ir.Model:
        return network(seed, bottleneck=True)

    options = PLAIN.model_copy(update={"shift": True})
    shifted, encodings = lowered(make, TENSORRT, options)
    assert any(tensor.shifted for tensor in encodings.tensors.values())
    plain = make()
    lower(plain, _unshifted(encodings), TENSORRT)
    batch = images(8, 3)
    names = [f"{name}.quantized" for name, t in encodings.tensors.items() if t.shifted]
    actual, expected = (
        run(shifted, batch, ["logits", *names]),
        run(plain, batch, ["logits", *names]),
    )
    # Rounding of the constants in the biases may change a tie by one step, which later layers may
    # amplify to a few.
    for number, (a, b) in enumerate(zip(actual[1:], expected[1:], strict=True)):
        steps = np.abs(a.astype(int) + 128 - b.astype(int))
        assert steps.max() <= (1 if number == 0 else 8)
        assert (steps > 0).mean() < 0.02
    assert noise_db(expected[0], actual[0]) > 30


@settings(max_examples=10)
@given(seed=SEEDS, bottleneck=KINDS)
def test_u8_with_zero_point_128_holds_the_integers_of_s8(seed: int, bottleneck: bool) -> None:
    def make() -> ir.Model:
        return network(seed, bottleneck=bottleneck)

    signed = replace(TARGETS["openvino"], weight_max=127, add_inputs="both")
    unsigned = replace(TARGETS["onnxruntime"], weight_max=127)
    in_s8, encodings = lowered(make, signed)
    in_u8, _ = lowered(make, unsigned)
    batch = images(8, 3)
    names = [name for name, t in encodings.tensors.items() if t.dtype == "s8"]
    assert names
    watched = [f"{name}.quantized" for name in names]
    for a, b in zip(run(in_s8, batch, watched), run(in_u8, batch, watched), strict=True):
        assert a.dtype == np.int8
        assert b.dtype == np.uint8
        np.testing.assert_array_equal(a.astype(int) + 128, b.astype(int))


def _binary_fractions(model: ir.Model, encodings: Encodings) -> Encodings:
    """Scales rounded to powers of two and biases to multiples of 2^-12, so that sums are exact."""

    def power(scale: float) -> float:
        return float(2.0 ** np.round(np.log2(scale)))

    tensors = {
        name: tensor.model_copy(update={"scale": power(tensor.scale)})
        for name, tensor in encodings.tensors.items()
    }
    layers = {
        name: layer.model_copy(
            update={
                "weight_scale": [max(power(s), 2.0**-12) for s in layer.weight_scale],
                "bias": [float(np.round(b * 4096) / 4096) for b in layer.bias],
            }
        )
        for name, layer in encodings.layers.items()
    }
    return encodings.model_copy(update={"tensors": tensors, "layers": layers})


@settings(max_examples=10)
@given(seed=SEEDS)
def test_the_shift_is_exact(seed: int) -> None:
    """Where no sum is rounded, the shifted graph is bitwise identical to the u8 graph."""

    def make() -> ir.Model:
        return network(seed, bottleneck=True)

    observed = statistics(make(), [images(32, 1)])
    options = PLAIN.model_copy(update={"shift": True})
    encodings = _binary_fractions(
        make(), compute_encodings(make(), observed, TENSORRT, "0", options)
    )
    shifted, plain = make(), make()
    lower(shifted, encodings, TENSORRT)
    lower(plain, _unshifted(encodings), TENSORRT)
    batch = np.round(images(8, 3) * 8) / 8
    (actual,), (expected,) = run(shifted, batch), run(plain, batch)
    np.testing.assert_array_equal(actual, expected)


@settings(max_examples=10)
@given(seed=SEEDS, bottleneck=KINDS, shift=st.booleans())
def test_tensorrt_cpu_has_the_same_integers_as_tensorrt(
    seed: int, bottleneck: bool, shift: bool
) -> None:
    """tensorrt-cpu stores all integers plus 128 and computes the same logits."""

    def make() -> ir.Model:
        return network(seed, bottleneck=bottleneck)

    options = EncodingOptions(method="minmax", bias_correction="statistics", shift=shift)
    real = replace(TARGETS["tensorrt"], high_precision="fp32")
    for_gpu, encodings = lowered(make, real, options)
    for_cpu, cpu_encodings = lowered(make, TARGETS["tensorrt-cpu"], options)
    assert [t.scale for t in encodings.tensors.values()] == [
        t.scale for t in cpu_encodings.tensors.values()
    ]
    batch = images(8, 3)
    watched = ["logits", *(f"{name}.quantized" for name in encodings.tensors)]
    left, right = run(for_gpu, batch, watched), run(for_cpu, batch, watched)
    np.testing.assert_array_equal(left[0], right[0])
    for a, b in zip(left[1:], right[1:], strict=True):
        assert (a.dtype, b.dtype) == (np.int8, np.uint8)
        np.testing.assert_array_equal(a.astype(int) + 128, b.astype(int))


@settings(max_examples=10)
@given(seed=SEEDS, bottleneck=KINDS)
@example(seed=302, bottleneck=False)
@pytest.mark.parametrize("target", sorted(TARGETS))
def test_a_lowered_graph_is_valid_and_close(target: str, seed: int, bottleneck: bool) -> None:
    def make() -> ir.Model:
        return network(seed, bottleneck=bottleneck)

    rules = replace(TARGETS[target], weight_max=127, high_precision="fp32")
    model, _ = lowered(make, rules)
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    # Calibration images: others may far exceed the ranges of a random network.
    batch = images(64, 1)[:16]
    (expected,), (actual,) = run(make(), batch), run(model, batch)
    assert noise_db(expected, actual) > 25


def test_only_absorbed_relus_are_removed() -> None:
    def make() -> ir.Model:
        return network(1)

    model, _ = lowered(make, replace(TARGETS["openvino"], weight_max=127))
    assert not [n for n in model.graph if n.op_type == "Relu"]
    plain, _ = lowered(make, TENSORRT, PLAIN)
    assert len([n for n in plain.graph if n.op_type == "Relu"]) == 7


# --- ONNX Runtime -----------------------------------------------------------------------------------


def optimized(model: ir.Model, folder: Path) -> tuple[Counter[str], ort.InferenceSession]:
    """The operations that ONNX Runtime executes after optimization, and the session."""
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    options.log_severity_level = 3
    session = ort.InferenceSession(
        ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    kinds = Counter(n.op_type for n in onnx.load(options.optimized_model_filepath).graph.node)
    return kinds, session


@pytest.mark.parametrize("bottleneck", [True, False])
def test_onnxruntime_computes_everything_in_int8(bottleneck: bool, tmp_path: Path) -> None:
    """Including the classifier and the pooling; only the logits are float."""
    model, _ = lowered(lambda: network(1, bottleneck=bottleneck), TARGETS["onnxruntime"])
    kinds, _ = optimized(model, tmp_path)
    assert kinds["QGemm"] == kinds["QLinearGlobalAveragePool"] == 1
    assert not set(kinds) & {"Conv", "Gemm", "Add", "Relu", "GlobalAveragePool", "MatMul"}
    assert kinds["QuantizeLinear"] == 1
    assert kinds["DequantizeLinear"] == 0


@pytest.mark.parametrize("weight", [0.0, 1e-9, 1e-20])
@pytest.mark.parametrize("name", ["conv1", "fc", "layer1.1.conv2", "layer1.1.conv3"])
def test_a_bias_much_larger_than_the_products_is_preserved(
    name: str, weight: float, tmp_path: Path
) -> None:
    """Kernels store a bias in 32 bits in units of the products, which are tiny for tiny weights."""

    def make(weight: float = weight) -> ir.Model:
        model = network(3)
        for part, factor, term in (("weight", weight, 0.0), ("bias", 0.0, 3.0)):
            value = model.graph.initializers[f"{name}.{part}"]
            assert value.const_value is not None
            array = value.const_value.numpy().copy()
            array[0] = factor * array[0] + term
            value.const_value = ir.tensor(array, name=value.name)
        return model

    rules, batch = rules_for("onnxruntime"), images(32, 9)
    model, encodings = lowered(make, rules)
    (reference,) = run(make(), batch)
    (actual,) = optimized(model, tmp_path)[1].run(None, {"images": batch})
    baseline = optimized(lowered(lambda: make(1.0), rules)[0], tmp_path)[1]
    (baseline_logits,) = baseline.run(None, {"images": batch})
    assert noise_db(reference, actual) > noise_db(run(make(1.0), batch)[0], baseline_logits) - 3
    if name == "fc":
        step = encodings.tensors["flatten"].scale * max(encodings.layers["fc"].weight_scale)
        assert np.abs(actual[:, 0] - reference[:, 0]).max() < 2 * step + 1e-3


# --- shiftable tensors ------------------------------------------------------------------------------


def test_the_stream_is_shifted_in_bottlenecks_and_not_in_basic_blocks() -> None:
    from optimizer.precision.int8.shift import shiftable

    bottleneck = shiftable(analyse(network(0, bottleneck=True)), TENSORRT)
    assert bottleneck == {"layer1.0.relu_1", "layer1.0.relu_2", "layer1.1.relu_1"}
    basic = shiftable(analyse(network(0, bottleneck=False)), TENSORRT)
    assert basic == set()


# --- encodings as a file ------------------------------------------------------------------------------


def test_edited_encodings_are_used_by_lowering(tmp_path: Path) -> None:
    model, encodings = lowered(lambda: network(2), TENSORRT, PLAIN)
    encodings.save(tmp_path / "e.json")
    text = (tmp_path / "e.json").read_text()
    edited = re.sub(r'("layer1\.0\.relu": \{"scale": )[0-9.e-]+', r"\g<1>0.125", text)
    assert edited != text
    (tmp_path / "e.json").write_text(edited)
    loaded = Encodings.load(tmp_path / "e.json")
    assert loaded.tensors["layer1.0.relu"].scale == 0.125
    model = network(2)
    lower(model, loaded, TENSORRT)
    scale = model.graph.initializers["layer1.0.relu.scale"].const_value
    assert scale is not None
    assert float(scale.numpy()) == 0.125


def test_encodings_of_an_earlier_version_are_read_unless_roundings_were_learned(
    tmp_path: Path,
) -> None:
    _, encodings = lowered(lambda: network(2), TENSORRT, PLAIN)
    path = tmp_path / "e.json"
    encodings.save(path)
    earlier = json.loads(path.read_text())
    for layer in earlier["layers"].values():
        layer["rounding"] = None
    path.write_text(json.dumps(earlier))
    assert Encodings.load(path) == encodings
    earlier["layers"]["fc"]["rounding"] = "eJxjAAIAAAUAAQ=="
    path.write_text(json.dumps(earlier))
    with pytest.raises(ArtifactError, match=r"e\.json: .*learned.*--stats"):
        Encodings.load(path)
    earlier["layers"]["fc"] = {"weight_scale": [1.0]}
    path.write_text(json.dumps(earlier))
    with pytest.raises(ArtifactError, match=r"e\.json is invalid at layers\.fc\.bias"):
        Encodings.load(path)


# --- counts on real networks --------------------------------------------------------------------------


def _pairs_by_block(model: ir.Model) -> dict[str, int]:
    count: Counter[str] = Counter()
    for node in model.graph:
        if node.op_type == "QuantizeLinear":
            match = re.match(r"layer\d\.\d+", str(node.name))
            count[match[0] if match else "outside"] += 1
    return dict(count)


def _check_pairs(
    model: ir.Model, observed: Statistics, depths: tuple[int, ...], target: str
) -> None:
    """TensorRT: each block quantizes its two inner tensors and its output, which is the next
    block's input and residual; and the output of a downsample. OpenVINO also quantizes the last
    block's output for pooling, and ONNX Runtime also the output of conv3 for the Add."""
    rules = TARGETS[target]
    lower(model, compute_encodings(model, observed, rules, "0", PLAIN), rules)
    counts = _pairs_by_block(model)
    weights = sum(n.op_type in {"Conv", "Gemm"} for n in model.graph)
    biases = int(rules.bias == "int32")
    dequantized = sum(n.op_type == "DequantizeLinear" for n in model.graph)
    assert dequantized == sum(counts.values()) + weights + biases
    last = f"layer{len(depths)}.{depths[-1] - 1}"
    for stage, depth in enumerate(depths, start=1):
        for index in range(depth):
            block = f"layer{stage}.{index}"
            downsample = index == 0
            expected = 3 + downsample + (target == "onnxruntime")
            expected -= block == last and target.startswith("tensorrt")
            assert counts[block] == expected, (target, block)
    outside = 3 if target.startswith("tensorrt") else 4 + rules.flatten
    assert counts["outside"] == outside


@pytest.mark.parametrize("target", sorted(TARGETS))
def test_pairs_per_block(target: str) -> None:
    model = network(0, blocks=3)
    _check_pairs(model, statistics(network(0, blocks=3), [images(8)]), (3,), target)


@pytest.mark.long
@pytest.mark.parametrize(
    ("arch", "depths", "targets"),
    [
        ("resnet50", (3, 4, 6, 3), tuple(TARGETS)),
        ("resnet101", (3, 4, 23, 3), ("tensorrt", "onnxruntime")),
    ],
)
def test_pairs_per_block_of_whole_networks(
    arch: str, depths: tuple[int, ...], targets: tuple[str, ...], tmp_path: Path
) -> None:
    from optimizer.data import Preprocessing
    from optimizer.exporting import export_onnx
    from optimizer.models import load_model

    small = replace(load_model(f"{arch}:random:10"), preprocessing=Preprocessing.digits(32))
    path = export_onnx(small, tmp_path / "m.onnx").path
    observed = statistics_of_file(path)
    for target in targets:
        _check_pairs(ir.load(path), observed, depths, target)


def statistics_of_file(path: Path) -> Statistics:
    from optimizer.graphs.taps import tapped

    topology = analyse(ir.load(path))
    observed = {t: topology.after_relu(t) for t in topology.observed_tensors()}
    collector = Collector(observed, tapped(path, list(observed)))
    collector.add(np.random.default_rng(0).normal(size=(8, 3, 32, 32)).astype(np.float32))
    return collector.statistics
