"""Graphs from other tools and of other networks: quantized correctly, or rejected early."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch

from optimizer.errors import DataError, GraphError, UsageError
from optimizer.graphs.facts import graph_facts
from optimizer.graphs.topology import Topology, analyse
from optimizer.options import EncodingOptions
from optimizer.precision.int8 import lower
from optimizer.precision.int8.correction import sqnr
from optimizer.precision.int8.encodings import stored_scale
from optimizer.precision.int8.equalization import equalization_factors
from optimizer.precision.int8.reading import read_quantized
from optimizer.precision.int8.simulation import Simulation
from optimizer.progress import Silent
from optimizer.recipe import parse_recipe
from optimizer.search.cost import _falls_back
from optimizer.targets.rules import TARGETS, rules_for

from .networks import SIZE, Builder, images, network
from .test_int8_graphs import lowered, noise_db, optimized, run, statistics

TARGET_NAMES = ["tensorrt-cpu", "openvino", "onnxruntime"]


def built(
    seed: int, body: Callable[[Builder, ir.Value], ir.Value], *, pool: bool = True
) -> ir.Model:
    """A stem, the layers that ``body`` adds, pooling and a classifier."""
    build = Builder(seed)
    x = ir.Value(
        name="images",
        shape=ir.Shape(["batch", 3, SIZE, SIZE]),
        type=ir.TensorType(ir.DataType.FLOAT),
    )
    y = body(build, build.relu(build.conv(x, "conv1", 8, 3), "relu"))
    channels, side = int(y.shape[1]), int(y.shape[2])
    if pool:
        y, side = build._emit("GlobalAveragePool", [y], "avgpool", (channels, 1, 1)), 1
    y = build._emit("Flatten", [y], "flatten", (channels * side**2,), axis=1)
    weight = build._constant("fc.weight", build.rng.normal(size=(5, channels * side**2)))
    y = build._emit(
        "Gemm", [y, weight, build._constant("fc.bias", build.rng.normal(size=5))],
        "fc", (5,), transB=1,
    )  # fmt: skip
    y.name = "logits"
    return build.model(x, y)


def squeezed(build: Builder, x: ir.Value) -> ir.Value:
    """A block with squeeze and excitation."""
    shape = tuple(x.shape[1:])
    y = build.conv(x, "block.conv", 8, 3)
    gate = build._emit("GlobalAveragePool", [y], "block.squeeze", (8, 1, 1))
    gate = build._emit("Sigmoid", [build.conv(gate, "block.excite", 8, 1)], "block.gate", (8, 1, 1))
    y = build._emit("Mul", [y, gate], "block.scaled", shape)
    return build.relu(build.add(y, x, "block.add"), "block.relu")


def clipped(build: Builder, x: ir.Value) -> ir.Value:
    """A block whose activation is ReLU6, as a Clip with constants."""
    bounds = [
        build._constant(f"block.{n}", np.asarray(v)) for n, v in (("low", 0.0), ("high", 6.0))
    ]
    y = build.conv(x, "block.conv", 8, 3)
    y = build._emit("Clip", [y, *bounds], "block.relu6", tuple(x.shape[1:]))
    y = build.add(build.conv(y, "block.conv2", 8, 1), x, "block.add")
    return build._emit("Clip", [y, *bounds], "block.relu6_1", tuple(x.shape[1:]))


def pooled_shortcut(build: Builder, x: ir.Value) -> ir.Value:
    """ResNet-D: average pooling and a convolution in the shortcut."""
    half = SIZE // 2
    y = build.conv(x, "block.conv", 12, 3, stride=2)
    z = build._emit(
        "AveragePool", [x], "block.pool", (8, half, half), kernel_shape=[2, 2], strides=[2, 2]
    )
    return build.relu(build.add(y, build.conv(z, "block.downsample.1", 12, 1), "block.add"), "out")


@pytest.mark.parametrize("target", TARGET_NAMES)
@pytest.mark.parametrize("body", [squeezed, clipped, pooled_shortcut])
def test_other_kinds_of_blocks_are_quantized(
    body: Callable[[Builder, ir.Value], ir.Value], target: str
) -> None:
    """Calibration observes enough tensors for every target; unknown operations are not changed."""
    model, _ = lowered(lambda: built(3, body), TARGETS[target])
    batch = images(32, 9)
    assert noise_db(run(built(3, body), batch)[0], run(model, batch)[0]) > 18


def test_an_average_pool_is_part_of_the_residual_stream() -> None:
    topology = analyse(built(3, pooled_shortcut))
    assert topology.after_relu("block.pool")
    (group,) = [g for g in topology.channel_groups() if "block.pool" in g.tensors]
    assert group.closed
    assert set(group.tensors) >= {"relu", "block.pool"}


@pytest.mark.parametrize(
    ("operation", "attributes", "supported"),
    [
        ("AveragePool", {"pads": [0, 0, 1, 1]}, False),
        ("AveragePool", {"pads": [1, 1, 1, 1]}, True),
        ("MaxPool", {"pads": [0, 0, 1, 1]}, True),
        ("MaxPool", {"pads": [0, 0, 0, 0], "dilations": [2, 2]}, False),
    ],
)
def test_poolings_that_cannot_be_simulated_are_detected(
    operation: str, attributes: dict[str, list[int]], supported: bool
) -> None:
    def pooled(build: Builder, x: ir.Value) -> ir.Value:
        return build._emit(operation, [x], "pool", (8, 7, 7), kernel_shape=[2, 2], **attributes)

    assert (not Simulation.unsupported(analyse(built(1, pooled)))) is supported


def test_a_flattened_feature_map_is_not_equalized() -> None:
    """Its features are pairs of channel and position, so factors per channel do not apply."""

    def make() -> ir.Model:
        return built(
            3, lambda build, x: build.relu(build.conv(x, "conv2", 6, 3), "out"), pool=False
        )

    topology = Topology(make())
    observed = statistics(make(), [images(16, 1)])
    assert "out" not in equalization_factors(topology, observed)
    assert "relu" in equalization_factors(topology, observed)
    model, _ = lowered(make, TARGETS["openvino"])
    assert noise_db(run(make(), images(32, 9))[0], run(model, images(32, 9))[0]) > 25


def test_a_second_output_is_rejected() -> None:
    model = network(1)
    pooled = next(n for n in model.graph if n.name == "maxpool").outputs[0]
    model.graph.outputs.append(pooled)
    with pytest.raises(GraphError, match=r"2 outputs \(logits, maxpool\); a classifier has one"):
        analyse(model)


def test_zero_points_in_constant_nodes_are_recognized(tmp_path: Path) -> None:
    """An INT8 graph mistaken for FP32 would be compared with itself."""
    model, _ = lowered(lambda: network(1), TARGETS["openvino"])
    model.metadata_props.clear()
    proto = ir.to_proto(model)
    kept = []
    for tensor in proto.graph.initializer:
        if tensor.data_type in {2, 3} and not tensor.dims:
            node = onnx.helper.make_node("Constant", [], [tensor.name], value=tensor)
            proto.graph.node.insert(0, node)
        else:
            kept.append(tensor)
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(kept)
    path = tmp_path / "q.onnx"
    onnx.save(proto, path)
    assert graph_facts(path).precision == "int8"


def test_kept_layers_of_the_source_are_removed_from_the_metadata() -> None:
    """The audit relies on this metadata: a stale list would fail a correct engine."""
    mixed, _ = lowered(
        lambda: network(1), TARGETS["openvino"], EncodingOptions(keep=("layer1.0.conv2",))
    )
    assert json.loads(mixed.metadata_props["resnet_opt.keep"]) == ["layer1.0.conv2"]
    mixed.metadata_props["resnet_opt.notes"] = "[]"
    read = read_quantized(mixed).float_model
    assert not {"resnet_opt.keep", "resnet_opt.notes"} & set(read.metadata_props)

    def again() -> ir.Model:
        model = network(1)
        model.metadata_props["resnet_opt.keep"] = '["layer1.0.conv2"]'
        return model

    assert "resnet_opt.keep" not in lowered(again, TARGETS["openvino"])[0].metadata_props


def test_nan_and_overflow_have_the_worst_sqnr() -> None:
    exact = torch.ones(4)
    assert sqnr(exact, torch.full((4,), float("nan"))) == float("-inf")
    assert sqnr(exact, torch.full((4,), float("inf"))) == float("-inf")
    assert sqnr(exact, exact) == float("inf")


def test_sample_images_that_exceed_fp16_stay_float32() -> None:
    """16-bit pixels: a float16 sample would overflow, and with it all bias corrections."""
    model = network(3)
    weight = model.graph.initializers["conv1.weight"]
    assert weight.const_value is not None
    weight.const_value = ir.tensor(weight.const_value.numpy() * 1e-5, name="conv1.weight")
    big = [1e5 * images(32, 1)]
    observed = statistics(model, big)
    assert np.abs(big[0]).max() > np.finfo(np.float16).max
    assert np.isfinite(observed.sample).all()
    assert observed.sample.dtype == np.float32
    assert statistics(network(3), [images(32, 1)]).sample.dtype == np.float16


@pytest.mark.parametrize("scale", [1e-9, 3.1e-8, 1e-6, 2.345e-5, 6e-5, 1e-3, 1.0, 6e4])
def test_a_scale_is_never_rounded_down_by_much(scale: float) -> None:
    for target in TARGETS.values():
        stored = stored_scale(scale, target)
        assert stored >= scale * (1 - 2.0**-11)
    assert stored_scale(scale, TARGETS["openvino"]) == pytest.approx(scale, rel=1e-6)


def test_a_scale_outside_the_range_of_the_type_is_rejected() -> None:
    with pytest.raises(GraphError, match="exceeds float16"):
        stored_scale(1e5, TARGETS["tensorrt"])
    assert stored_scale(1e5, TARGETS["openvino"]) == 1e5


def test_biases_that_exceed_fp16_are_rejected_by_name() -> None:
    def make() -> ir.Model:
        model = network(1)
        bias = model.graph.initializers["layer1.1.conv3.bias"]
        assert bias.const_value is not None
        bias.const_value = ir.tensor(bias.const_value.numpy() + 1e6, name=bias.name)
        return model

    with pytest.raises(GraphError, match=r"a bias of layer1\.1\.conv3 is .*, which exceeds FP16"):
        lowered(make, TARGETS["tensorrt-cpu"], EncodingOptions(equalize=False))


def test_a_layer_without_weights_keeps_its_bias(tmp_path: Path) -> None:
    """A zero-initialized last BatchNorm of a block leaves only the bias of the branch."""

    def make() -> ir.Model:
        model = network(3)
        value = model.graph.initializers["layer1.1.conv3.weight"]
        assert value.const_value is not None
        value.const_value = ir.tensor(0.0 * value.const_value.numpy(), name=value.name)
        return model

    batch = images(32, 9)
    model, _ = lowered(make, rules_for("onnxruntime"))
    (as_written,) = run(model, batch)
    (computed,) = optimized(model, tmp_path)[1].run(None, {"images": batch})
    (exact,) = run(make(), batch)
    assert noise_db(exact, computed) > noise_db(exact, as_written) - 0.5


def test_the_classifier_in_onnx_runtime_has_int8_cost() -> None:
    """With its INT32 bias it runs in INT8, so keeping it is not free."""
    topology = analyse(network(1))
    assert _falls_back(topology, TARGETS["onnxruntime"])(()) == []


def test_calibration_images_are_rejected_for_validation(tmp_path: Path) -> None:
    from optimizer.verbs.job import Job

    recipe = parse_recipe(
        {
            "model": "m.safetensors",
            "calibrate": {"calib": "digits:test"},
            "build": {"precision": "int8"},
            "validate": {"data": "digits:test"},
        }
    )
    job = Job(recipe, tmp_path, None, Silent())
    with pytest.raises(
        UsageError, match="256 of the 540 images of digits:test are also in"
    ) as caught:
        job.open_images()
    assert "leave out --calib" in str(caught.value.hint)


def test_calibration_observes_all_tensors_that_lowering_needs() -> None:
    for body in (squeezed, clipped, pooled_shortcut):
        topology = analyse(built(1, body))
        observed = set(topology.observed_tensors())
        for rules in TARGETS.values():
            assert {edge.tensor for edge in topology.quantized_edges(rules)} <= observed
    with pytest.raises(DataError, match="calibrate this graph again"):
        observed = statistics(network(1), [images(16, 1)])
        del observed.tensors["relu"]
        from optimizer.precision.int8 import compute_encodings

        lower(
            network(1),
            compute_encodings(network(1), observed, TARGETS["openvino"], "0"),
            TARGETS["openvino"],
        )
