"""Feature pyramids and detection heads in FP16 and in the simulation of INT8, on a small graph."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from optimizer.engines.onnxruntime import as_written
from optimizer.graphs.topology import WEIGHTED, Topology, analyse
from optimizer.precision.half import to_half
from optimizer.precision.int8.correction import sqnr
from optimizer.precision.int8.detection_noise import output_weights
from optimizer.precision.int8.pyramid_steps import is_plain_pyramid_step
from optimizer.precision.int8.simulation import Parameters, Simulation
from optimizer.targets.rules import TARGETS

SIDE, CHANNELS, GROUPS, VALUES = 8, 4, 2, 6


def pyramid(**resize: object) -> onnx.ModelProto:
    """Two levels: convolutions, an enlarged level added, GroupNorm as exported, and a head."""
    random = np.random.default_rng(0)
    constants: dict[str, np.ndarray] = {
        "up.scales": np.array([1, 1, 2, 2], np.float32),
        "groups": np.array([0, GROUPS, -1], np.int64),
        "back": np.array([0, CHANNELS, SIDE, SIDE], np.int64),
        "norm.weight": np.ones(GROUPS, np.float32),
        "norm.bias": np.zeros(GROUPS, np.float32),
        "gain": random.normal(1, 0.2, (CHANNELS, 1, 1)).astype(np.float32),
    }
    nodes = []

    def conv(name: str, source: str, inputs: int, outputs: int, stride: int = 1) -> str:
        weight = random.normal(0, 0.4, (outputs, inputs, 3, 3)).astype(np.float32)
        constants[f"{name}.weight"] = weight
        constants[f"{name}.bias"] = random.normal(0, 0.1, outputs).astype(np.float32)
        inputs_ = [source, f"{name}.weight", f"{name}.bias"]
        attributes = {"pads": [1] * 4, "strides": [stride] * 2}
        nodes.append(helper.make_node("Conv", inputs_, [name], name=name, **attributes))
        return name

    def node(op: str, name: str, *inputs: str, **attributes: object) -> str:
        nodes.append(helper.make_node(op, list(inputs), [name], name=name, **attributes))
        return name

    attributes = {
        "mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor",
        **resize,
    }  # fmt: skip
    fine = node("Relu", "fine.relu", conv("fine", "images", 3, CHANNELS))
    coarse = conv("coarse", fine, CHANNELS, CHANNELS, stride=2)
    up = node("Resize", "up", coarse, "", "up.scales", **attributes)
    merged = node("Add", "merged", conv("lateral", fine, CHANNELS, CHANNELS), up)
    grouped = node("Reshape", "grouped", merged, "groups")
    normal = node("InstanceNormalization", "normal", grouped, "norm.weight", "norm.bias")
    scaled = node("Mul", "scaled", node("Reshape", "ungrouped", normal, "back"), "gain")
    for level, (source, side) in enumerate(((scaled, SIDE), (coarse, SIDE // 2))):
        head = conv(f"head{level}", source, CHANNELS, VALUES)
        moved = node("Transpose", f"moved{level}", head, perm=[0, 2, 3, 1])
        constants[f"flat{level}"] = np.array([0, side * side, VALUES], np.int64)
        node("Reshape", f"level{level}", moved, f"flat{level}")
    nodes.append(helper.make_node("Concat", ["level0", "level1"], ["head"], name="concat", axis=1))
    anchors = SIDE**2 + (SIDE // 2) ** 2
    graph = helper.make_graph(
        nodes,
        "pyramid",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["n", 3, SIDE, SIDE])],
        [helper.make_tensor_value_info("head", TensorProto.FLOAT, ["n", anchors, VALUES])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return onnx.shape_inference.infer_shapes(model)


def _images(count: int = 3) -> np.ndarray:
    return np.random.default_rng(1).normal(size=(count, 3, SIDE, SIDE)).astype(np.float32)


def _run(model: onnx.ModelProto, folder: Path) -> np.ndarray:
    path = folder / "graph.onnx"
    onnx.save(model, path)
    return as_written(path).run(_images())


@pytest.mark.parametrize("kind", [ir.DataType.FLOAT16, ir.DataType.BFLOAT16])
def test_scales_of_a_resize_stay_float(kind: ir.DataType) -> None:
    model = ir.from_proto(pyramid())
    to_half(model, kind)
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    kinds = {name: value.dtype for name, value in model.graph.initializers.items()}
    assert kinds["up.scales"] == ir.DataType.FLOAT
    assert kinds["coarse.weight"] == kinds["gain"] == kind


def test_fp16_is_close(tmp_path: Path) -> None:
    exact = _run(pyramid(), tmp_path)
    model = ir.from_proto(pyramid())
    to_half(model, ir.DataType.FLOAT16)
    half = _run(ir.to_proto(model), tmp_path)
    assert 0 < np.abs(half - exact).max() < 0.01 * np.abs(exact).max()


def test_scales_that_another_node_reads_are_copied() -> None:
    """As float32 for the Resize, and in the half type for the other."""
    proto = pyramid()
    scale = helper.make_node("Mul", ["head_", "up.scales_"], ["head"], name="last")
    constant = numpy_helper.from_array(np.array([2.0], np.float32), "up.scales_")
    proto.graph.initializer.append(constant)
    proto.graph.node[-1].output[0] = "head_"
    proto.graph.node.append(scale)
    resize = next(node for node in proto.graph.node if node.op_type == "Resize")
    resize.input[1] = "up.scales_"  # the region of interest, which may be half
    model = ir.from_proto(proto)
    to_half(model, ir.DataType.FLOAT16)
    dtypes = {name: value.dtype for name, value in model.graph.initializers.items()}
    assert dtypes["up.scales_"] == ir.DataType.FLOAT16
    assert dtypes["up.scales"] == ir.DataType.FLOAT


def _parameters(topology: Topology) -> Parameters:
    return {
        str(node.name): tuple(
            torch.from_numpy(np.array(values))
            for values in (topology.weight(node), topology.bias(node))
        )
        for node in topology.layers()
    }  # type: ignore[misc]


def test_the_simulation_computes_pyramids(tmp_path: Path) -> None:
    proto = pyramid()
    topology = analyse(ir.from_proto(proto))
    assert not Simulation.unsupported(topology)
    simulation = Simulation(topology, TARGETS["openvino"])
    with torch.no_grad():
        outputs = simulation.compute(
            torch.from_numpy(_images()), _parameters(topology), quantizer=None
        )
    np.testing.assert_allclose(outputs["head"].numpy(), _run(proto, tmp_path), atol=1e-5)
    quantized = {name for step in simulation.steps for name, pair in step.inputs if pair}
    assert {"fine.relu", "coarse"} <= quantized
    assert WEIGHTED.isdisjoint(step.name for step in simulation.steps)


@pytest.mark.parametrize(
    "resize",
    [
        {"mode": "linear"},
        {"coordinate_transformation_mode": "half_pixel"},
        {"nearest_mode": "ceil"},
    ],
)
def test_other_resizes_are_not_simulated(resize: dict[str, str]) -> None:
    topology = analyse(ir.from_proto(pyramid(**resize)))
    assert not is_plain_pyramid_step(topology, topology.nodes["up"])
    assert Simulation.unsupported(topology)


def test_noise_of_objects_counts_more_than_that_of_background() -> None:
    model = ir.from_proto(pyramid())
    reference = torch.full((1, 10, VALUES), -8.0)
    reference[0, 3, 5] = 4.0  # one object
    assert output_weights(model, reference) is None  # a classifier's outputs all count
    model.metadata_props["resnet_opt.detector"] = json.dumps({"kind": "retinanet"})
    weights = output_weights(model, reference)
    assert weights is not None
    assert weights.shape == (1, 10, 1)
    background, tail = reference.clone(), reference.clone()
    background[0, 7, 5] += 1
    tail[0, 3, 5] -= 1
    assert sqnr(reference, background) == pytest.approx(sqnr(reference, tail))
    assert sqnr(reference, background, weights) > sqnr(reference, tail, weights) + 20
