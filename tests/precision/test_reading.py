"""Read INT8 graphs of this project and of other quantizers, and lower them again.

The documented loss: for the small networks in this file, the logits of a graph lowered again for
another target have an SQNR of at least `LEAST_DB` against the source (the lowest found is 19.6 dB;
600 graphs drawn at random had at least 25.8); for the same target they are bitwise identical to the
source's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optimizer.errors import DataError, GraphError
from optimizer.graphs.topology import analyse
from optimizer.options import EncodingOptions
from optimizer.precision.half import to_half
from optimizer.precision.int8 import (
    Encodings,
    ReadModel,
    Statistics,
    carry_over_encodings,
    compute_encodings,
    lower,
    read_quantized,
)
from optimizer.precision.int8.rounding import PAIR_LIMIT, WeightGrid, pair_sums
from optimizer.targets.rules import TARGETS, TargetRules
from tests.precision.networks import images, network
from tests.precision.quantizers import by_onnxruntime, by_pairs
from tests.precision.test_int8_graphs import lowered, noise_db, run, statistics

SEEDS = st.integers(0, 10_000)
KINDS = st.booleans()
LEAST_DB = 17.0


def copied(model: ir.Model) -> ir.Model:
    return ir.from_proto(ir.to_proto(model))


def observed(read: ReadModel) -> Statistics:
    return statistics(copied(read.float_model), [images(64, 1)])


def lowered_again(
    read: ReadModel, rules: TargetRules, calibration: Statistics | None = None
) -> ir.Model:
    """The graph that was read, lowered for a target."""
    model = copied(read.float_model)
    lower(model, carry_over_encodings(read, rules, calibration), rules)
    return model


def constant(model: ir.Model, name: str) -> np.ndarray:
    value = model.graph.initializers[name].const_value
    assert value is not None
    return np.asarray(value.numpy())


def weights_as_executed(source: ir.Model) -> dict[str, np.ndarray]:
    """The weight input of each layer when ONNX Runtime executes the source."""
    layers = [node for node in source.graph if node.op_type in {"Conv", "Gemm"}]
    tensors = [str(node.inputs[1].name) for node in layers if node.inputs[1] is not None]
    values = run(source, images(1), tensors)
    return {str(node.name): value for node, value in zip(layers, values, strict=True)}


# --- this project's own graphs -------------------------------------------------------------------


@settings(max_examples=6)
@given(seed=SEEDS, bottleneck=KINDS)
@pytest.mark.parametrize("target", sorted(TARGETS))
def test_a_round_trip_of_our_own_graph_is_bitwise_exact(
    target: str, seed: int, bottleneck: bool
) -> None:
    """Half types, absorbed ReLUs and the shift are undone and applied again."""

    def make() -> ir.Model:
        return network(seed, bottleneck=bottleneck)

    source, encodings = lowered(make, TARGETS[target])
    read = read_quantized(copied(source))
    onnx.checker.check_model(ir.to_proto(read.float_model), full_check=True)
    assert list(analyse(read.float_model).nodes) == list(analyse(make()).nodes)
    assert set(read.tensors) == set(encodings.tensors)
    result = lowered_again(read, TARGETS[target])
    for name, layer in read.weight_scales.items():
        np.testing.assert_array_equal(layer.integers, constant(source, f"{name}.weight.q"))
        for part in ("q", "scale"):
            stem = f"{name}.weight.{part}"
            np.testing.assert_array_equal(constant(result, stem), constant(source, stem))
    batch = images(16, 9)
    np.testing.assert_array_equal(run(result, batch)[0], run(source, batch)[0])


@settings(max_examples=6)
@given(seed=SEEDS, bottleneck=KINDS)
def test_the_float_graph_is_the_network_with_rounded_weights(seed: int, bottleneck: bool) -> None:
    def make() -> ir.Model:
        return network(seed, bottleneck=bottleneck)

    source, _ = lowered(make, TARGETS["openvino"])
    executed = weights_as_executed(source)
    read = read_quantized(copied(source))
    topology = analyse(read.float_model)
    for node in topology.layers():
        np.testing.assert_array_equal(topology.weight(node), executed[str(node.name)])
    batch = images(16, 9)
    assert noise_db(run(make(), batch)[0], run(read.float_model, batch)[0]) > 25


@settings(max_examples=4)
@given(seed=SEEDS, bottleneck=KINDS)
@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("tensorrt", "openvino"),
        ("tensorrt", "tensorrt-cpu"),
        ("openvino", "tensorrt"),
        ("openvino", "onnxruntime"),
        ("onnxruntime", "tensorrt-cpu"),
    ],
)
def test_another_target_keeps_the_output(
    source: str, target: str, seed: int, bottleneck: bool
) -> None:
    graph, _ = lowered(lambda: network(seed, bottleneck=bottleneck), TARGETS[source])
    read = read_quantized(copied(graph))
    result = lowered_again(read, TARGETS[target], observed(read))
    onnx.checker.check_model(ir.to_proto(result), full_check=True)
    batch = images(16, 9)
    assert noise_db(run(graph, batch)[0], run(result, batch)[0]) > LEAST_DB


def test_a_shifted_graph_without_shift_metadata_is_rejected() -> None:
    graph, _ = lowered(lambda: network(0), TARGETS["tensorrt"])
    del graph.metadata_props["resnet_opt.shifted"]
    with pytest.raises(GraphError, match="did not record which tensors it shifted"):
        read_quantized(graph)


def test_a_shifted_graph_that_was_changed_is_rejected() -> None:
    graph, _ = lowered(lambda: network(0), TARGETS["tensorrt"])
    graph.metadata_props["resnet_opt.shifted"] = '["layer9.relu"]'
    with pytest.raises(GraphError, match=r"layer9\.relu is shifted"):
        read_quantized(graph)


# --- ONNX Runtime's quantizer --------------------------------------------------------------------


@settings(max_examples=8)
@given(
    seed=SEEDS,
    bottleneck=KINDS,
    activations=st.sampled_from(["s8", "u8"]),
    per_channel=st.booleans(),
    symmetric=st.booleans(),
)
def test_graphs_of_onnxruntimes_quantizer(
    seed: int, bottleneck: bool, activations: str, per_channel: bool, symmetric: bool
) -> None:
    """It writes INT32 biases, quantized logits and absorbed ReLUs; weights match exactly."""
    source = by_onnxruntime(
        network(seed, bottleneck=bottleneck),
        activations=activations,
        per_channel=per_channel,
        symmetric=symmetric,
    )
    executed = weights_as_executed(source)
    read = read_quantized(copied(source))
    topology = analyse(read.float_model)
    for node in topology.layers():
        np.testing.assert_array_equal(topology.weight(node), executed[str(node.name)])
    batch, calibration = images(16, 9), observed(read)
    (expected,) = run(source, batch)
    for rules in TARGETS.values():
        encodings = carry_over_encodings(read, rules, calibration)
        for name, layer in encodings.layers.items():
            weight = topology.weight(topology.nodes[name])
            np.testing.assert_array_equal(layer.integers(weight), read.weight_scales[name].integers)
        model = copied(read.float_model)
        lower(model, encodings, rules)
        assert noise_db(expected, run(model, batch)[0]) > LEAST_DB


def test_asymmetric_weights_are_rejected() -> None:
    source = by_onnxruntime(network(1), activations="u8", weights="u8", per_channel=False)
    with pytest.raises(GraphError, match="does not fit in signed 8 bits because of its zero point"):
        read_quantized(source)


def test_integer_operators_are_rejected_with_a_hint() -> None:
    source = by_onnxruntime(network(1), operators=True)
    with pytest.raises(GraphError, match=r"has integer operators .*QLinearConv") as error:
        read_quantized(source)
    assert "QuantFormat.QDQ" in str(error.value)


def test_asymmetric_activations_are_kept_only_for_targets_that_support_them() -> None:
    read = read_quantized(by_onnxruntime(network(1)))
    point = read.tensors["images"].zero_point
    assert point != 0
    kept = carry_over_encodings(read, TARGETS["openvino"]).tensors["images"]
    assert (kept.dtype, kept.zero_point) == ("u8", point + 128)
    assert kept.scale == pytest.approx(read.tensors["images"].scale)
    with pytest.raises(DataError, match="does not support the zero points of images") as error:
        carry_over_encodings(read, TARGETS["tensorrt"])
    assert "--calib" in str(error.value)
    measured = carry_over_encodings(read, TARGETS["tensorrt"], observed(read))
    assert measured.tensors["images"].zero_point == 0
    assert any("from statistics: images" in note for note in measured.notes)


# --- pairs in the manner of ModelOpt, NNCF and QAT exports ------------------------------------------


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("zero_points", [True, False])
def test_float_weights_behind_pairs(per_channel: bool, zero_points: bool) -> None:
    """One pair per reader (merged), omitted zero points, per-tensor and per-channel scales."""
    source = by_pairs(network(3), per_channel=per_channel, zero_points=zero_points)
    executed = weights_as_executed(source)
    read = read_quantized(copied(source))
    topology = analyse(read.float_model)
    assert not {"QuantizeLinear", "DequantizeLinear"} & {n.op_type for n in read.float_model.graph}
    for node in topology.layers():
        np.testing.assert_array_equal(topology.weight(node), executed[str(node.name)])
    assert read.tensors["maxpool"].dtype == ("s8" if zero_points else "u8")
    assert read.tensors["images"].dtype == "s8"
    # The downsample reads the same tensor as the first convolution: one entry.
    assert set(read.tensors) == {
        "images", "maxpool", "layer1.0.relu", "layer1.0.relu_1", "layer1.0.relu_2",
        "layer1.1.relu", "layer1.1.relu_1", "flatten",
    }  # fmt: skip


def _with_batchnorm(model: ir.Model) -> ir.Model:
    """A BatchNorm after every convolution, as a QAT export leaves it; some factors are negative."""
    rng = np.random.default_rng(5)
    for node in [n for n in model.graph if n.op_type == "Conv"]:
        value = node.outputs[0]
        channels = int(value.shape[1])  # type: ignore[index,arg-type]
        gamma = rng.uniform(0.5, 1.5, channels) * np.where(np.arange(channels) % 3, 1, -1)
        gamma[-1] = 0.0
        parts = {
            "gamma": gamma,
            "beta": 0.1 * rng.normal(size=channels),
            "mean": 0.1 * rng.normal(size=channels),
            "var": rng.uniform(0.5, 2.0, channels),
        }
        inputs = []
        for part, array in parts.items():
            tensor = ir.tensor(array.astype(np.float32), name=f"{node.name}.bn.{part}")
            constant_ = ir.Value(
                name=tensor.name, shape=ir.Shape(array.shape),
                type=ir.TensorType(tensor.dtype), const_value=tensor,
            )  # fmt: skip
            model.graph.register_initializer(constant_)
            inputs.append(constant_)
        norm = ir.node("BatchNormalization", [value, *inputs], name=f"{node.name}.bn")
        norm.outputs[0].name = f"{node.name}.bn.output"
        uses = list(value.uses())
        model.graph.insert_after(node, norm)
        for use in uses:
            if use.node is not norm:
                use.node.replace_input_with(use.idx, norm.outputs[0])
    return model


def test_batchnorm_of_a_qat_export_is_folded_into_the_scales() -> None:
    source = by_pairs(_with_batchnorm(network(3)), scale=0.1)
    plain = read_quantized(by_pairs(network(3), scale=0.1))
    read = read_quantized(copied(source))
    for name in ("conv1", "layer1.0.downsample.0", "layer1.1.conv2"):
        signs = np.where(np.arange(len(read.weight_scales[name].integers)) % 3, 1, -1)
        signs[-1] = 0
        expected = plain.weight_scales[name].integers * signs.reshape(-1, 1, 1, 1)
        np.testing.assert_array_equal(read.weight_scales[name].integers, expected)
    batch = images(16, 9)
    weights_alone = by_pairs(_with_batchnorm(network(3)), activations=False)
    (expected,) = run(weights_alone, batch)
    np.testing.assert_allclose(
        run(read.float_model, batch)[0], expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max()
    )
    encodings, written = _encoded(read, TARGETS["openvino"])
    assert encodings.notes
    for name, integers in written.items():
        np.testing.assert_array_equal(integers, read.weight_scales[name].integers)


def test_a_pair_before_the_batchnorm_is_rejected() -> None:
    model = by_pairs(_with_batchnorm(network(3)))
    norm = next(n for n in model.graph if n.name == "conv1.bn")
    source = next(n for n in model.graph if n.name == "conv1.0.q")
    pair = [
        ir.node("QuantizeLinear", [norm.inputs[0], *source.inputs[1:]], name="bad.q"),
    ]
    pair.append(
        ir.node("DequantizeLinear", [pair[0].outputs[0], *source.inputs[1:]], name="bad.dq")
    )
    pair[0].outputs[0].name, pair[1].outputs[0].name = "bad.integers", "bad.float"
    model.graph.insert_before(norm, pair)
    norm.replace_input_with(0, pair[1].outputs[0])
    with pytest.raises(GraphError, match="conv1 is quantized between conv1 and its BatchNorm"):
        read_quantized(model)


def test_half_types_around_int8_become_float32() -> None:
    """As ModelOpt writes them with ``high_precision_dtype=fp16``: FP16 scales and weights, Casts."""
    plain = read_quantized(by_pairs(network(3)))
    half = by_pairs(network(3))
    to_half(half, ir.DataType.FLOAT16)
    read = read_quantized(half)
    kinds = {value.dtype for node in read.float_model.graph for value in node.outputs}
    assert kinds <= {ir.DataType.FLOAT, None}
    assert [n.op_type for n in read.float_model.graph] == [
        n.op_type for n in plain.float_model.graph
    ]
    for name, weight in read.weight_scales.items():  # FP16 weights may only change ties
        before = plain.weight_scales[name].integers.astype(int)
        assert np.abs(weight.integers - before).max() <= 1
    assert read.tensors["images"].scale == float(np.float16(0.05))


def test_an_old_opset_is_raised_for_fp16_scales() -> None:
    model = network(1)
    model.graph.opset_imports[""] = 13
    read = read_quantized(by_onnxruntime(model, symmetric=True))
    result = lowered_again(read, TARGETS["tensorrt"])
    onnx.checker.check_model(ir.to_proto(result), full_check=True)


def test_constants_can_be_nodes() -> None:
    source = by_pairs(network(3))
    for name in ("conv1.0.scale", "conv1.1.scale"):
        value = source.graph.initializers.pop(name)
        node = ir.node("Constant", [], attributes={"value": value.const_value}, name=f"{name}.node")
        node.outputs[0].name = f"{name}.value"
        source.graph.insert_before(source.graph[0], node)
        value.replace_all_uses_with(node.outputs[0])
    assert "conv1" in read_quantized(source).weight_scales


def test_tensors_that_the_source_leaves_in_float_need_statistics() -> None:
    read = read_quantized(by_pairs(network(3)))
    with pytest.raises(DataError, match=r"onnxruntime quantizes .*layer1\.0\.conv3.* and \d more"):
        carry_over_encodings(read, TARGETS["onnxruntime"])
    encodings = carry_over_encodings(read, TARGETS["onnxruntime"], observed(read))
    assert any("from statistics" in note for note in encodings.notes)


def test_ranges_are_kept_with_the_targets_levels() -> None:
    """u8 with 255 levels becomes s8 with 127; s8 after a ReLU becomes u8, or shifted s8."""
    read = read_quantized(by_pairs(network(3, bottleneck=False), zero_points=False, scale=0.25))
    calibration = observed(read)
    on_tensorrt = carry_over_encodings(
        read, replace(TARGETS["tensorrt"], constants="fp32"), calibration
    )
    assert on_tensorrt.tensors["layer1.0.relu"].scale == pytest.approx(0.25 * 255 / 127, rel=1e-3)
    assert (
        carry_over_encodings(read, TARGETS["openvino"], calibration).tensors["layer1.0.relu"].scale
        == 0.25
    )
    signed = read_quantized(by_pairs(network(3), scale=0.25))
    calibration = observed(signed)
    unsigned = carry_over_encodings(signed, TARGETS["openvino"], calibration).tensors[
        "layer1.0.relu_1"
    ]
    assert unsigned.scale == pytest.approx(0.25 * 127 / 255)
    shifted = carry_over_encodings(signed, TARGETS["tensorrt"], calibration).tensors[
        "layer1.0.relu_1"
    ]
    assert shifted.shifted
    assert shifted.scale == pytest.approx(0.25 * 127 / 255, rel=1e-3)


# --- weights -------------------------------------------------------------------------------------


def _encoded(read: ReadModel, rules: TargetRules) -> tuple[Encodings, dict[str, np.ndarray]]:
    topology = analyse(read.float_model)
    encodings = carry_over_encodings(read, rules, observed(read))
    return encodings, {
        name: layer.integers(topology.weight(topology.nodes[name]))
        for name, layer in encodings.layers.items()
    }


@settings(max_examples=6)
@given(seed=SEEDS)
@pytest.mark.parametrize("pairs", ["channels", "matrix"])
def test_without_vnni_only_channels_that_would_saturate_change(pairs: str, seed: int) -> None:
    source = by_onnxruntime(network(seed, width=6))
    read = read_quantized(copied(source))
    rules = replace(TARGETS["openvino"], pairs=pairs)
    grid = WeightGrid(127, rules.pairs)
    _, written = _encoded(read, rules)
    for name, integers in written.items():
        before = read.weight_scales[name].integers
        sums = pair_sums(before, grid).reshape(len(before), -1).max(axis=1, initial=0)
        safe = sums <= PAIR_LIMIT
        np.testing.assert_array_equal(integers[safe], before[safe])
        assert pair_sums(integers, grid).max(initial=0) <= PAIR_LIMIT
    batch = images(16, 9)
    result = lowered_again(read, rules, observed(read))
    assert noise_db(run(source, batch)[0], run(result, batch)[0]) > LEAST_DB


def test_the_smallest_integer_is_kept() -> None:
    source, _ = lowered(lambda: network(2), TARGETS["openvino"])
    value = source.graph.initializers["conv1.weight.q"]
    integers = constant(source, "conv1.weight.q").copy()
    integers.flat[0] = -128
    value.const_value = ir.tensor(integers, name=value.name)
    result = lowered_again(read_quantized(source), TARGETS["openvino"])
    np.testing.assert_array_equal(constant(result, "conv1.weight.q"), integers)


def test_scales_that_lose_precision_in_fp16_are_counted() -> None:
    model = network(2)
    weight = model.graph.initializers["fc.weight"]
    weight.const_value = ir.tensor(constant(model, "fc.weight") * 1e-6, name="fc.weight")
    source, _ = lowered(lambda: copied(model), TARGETS["openvino"], EncodingOptions(equalize=False))
    encodings = carry_over_encodings(read_quantized(source), TARGETS["tensorrt"])
    assert any("FP16 stores with low precision" in note for note in encodings.notes)


def test_carried_over_encodings_can_be_saved_and_loaded(tmp_path: Path) -> None:
    read = read_quantized(by_onnxruntime(network(1)))
    encodings = carry_over_encodings(read, TARGETS["onnxruntime"], graph_sha256="7")
    encodings.save(tmp_path / "e.json")
    loaded = Encodings.load(tmp_path / "e.json")
    assert loaded == encodings
    loaded.check_belongs("7", TARGETS["onnxruntime"])


# --- rejected graphs -----------------------------------------------------------------------------


def _change(name: str, array: np.ndarray) -> Callable[[ir.Model], None]:
    def change(model: ir.Model) -> None:
        value = model.graph.initializers[name]
        value.const_value = ir.tensor(array, name=name)
        value.dtype = ir.DataType.from_numpy(array.dtype)
        value.shape = ir.Shape(array.shape)

    return change


def _dead_weights(model: ir.Model) -> None:
    weights = model.graph.initializers["conv1.weight"].const_value
    assert weights is not None
    _change("conv1.weight", np.zeros_like(weights.numpy()))(model)
    _change("conv1.1.scale", np.zeros(4, np.float32))(model)


def _integers_read_by_a_relu(model: ir.Model) -> None:
    quantize = next(n for n in model.graph if n.name == "conv1.0.q")
    relu = next(n for n in model.graph if n.name == "relu")
    relu.replace_input_with(0, quantize.outputs[0])


def _integers_from_a_graph_input(model: ir.Model) -> None:
    dequantize = next(n for n in model.graph if n.name == "conv1.0.dq")
    dequantize.replace_input_with(0, model.graph.inputs[0])
    model.graph.remove(next(n for n in model.graph if n.name == "conv1.0.q"), safe=True)


def _blocks(model: ir.Model) -> None:
    for node in model.graph:
        if str(node.name).startswith("conv1.1."):
            node.attributes["block_size"] = ir.AttrInt64("block_size", 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_change("conv1.0.scale", np.float32(0)), "the scale of images is 0"),
        (_change("conv1.0.scale", np.float32("nan")), "the scale of images is nan"),
        (_change("conv1.1.scale", np.zeros(4, np.float32)), r"the scale of conv1\.weight is 0"),
        (_dead_weights, r"4 of 4 scales of the weights conv1\.weight are 0: .* are all zero"),
        (_change("conv1.0.scale", np.ones(3, np.float32)), "images has 3 per-channel scales"),
        (_change("conv1.1.scale", np.ones((4, 2), np.float32)), "has blockwise scales"),
        (_blocks, "has blockwise scales"),
        (
            _change("conv1.0.zero", np.zeros((), ml_dtypes.int4)),
            "images is quantized to INT4, not to 8-bit integers",
        ),
        (_change("conv1.0.zero", np.zeros((), np.int16)), "images is quantized to INT16"),
        (
            _change("layer1.0.conv1.0.scale", np.float32(0.1)),
            r"maxpool has two encodings: scale 0\.1 .* and scale 0\.05",
        ),
        (_integers_read_by_a_relu, "the integers of images are read by relu"),
        (_integers_from_a_graph_input, r"conv1\.0\.dq reads integers from a graph input"),
    ],
)
def test_unsupported_graphs_are_rejected(change: Callable[[ir.Model], None], message: str) -> None:
    model = by_pairs(network(3))
    change(model)
    with pytest.raises(GraphError, match=message):
        read_quantized(model)


def test_a_float_graph_is_rejected() -> None:
    with pytest.raises(GraphError, match="has no Q/DQ nodes"):
        read_quantized(network(3))


def test_too_few_images_are_rejected() -> None:
    read = read_quantized(by_pairs(network(3)))
    few = statistics(copied(read.float_model), [images(4, 1)])
    with pytest.raises(DataError, match="4 images"):
        carry_over_encodings(read, TARGETS["openvino"], few)


def test_the_float_graph_can_be_quantized_again() -> None:
    """All passes work on it."""
    read = read_quantized(by_onnxruntime(network(1)))
    model = copied(read.float_model)
    rules = TARGETS["tensorrt"]
    lower(model, compute_encodings(copied(model), observed(read), rules, "0"), rules)
    batch = images(16, 9)
    assert noise_db(run(read.float_model, batch)[0], run(model, batch)[0]) > 14
