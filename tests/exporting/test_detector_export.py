"""Exported detectors: one raw output, constant shapes, heads of their own per level."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from optimizer.exporting import export_onnx
from optimizer.exporting.rewrite import use_constant_shapes, use_scales_of_resizes
from optimizer.graphs.facts import graph_facts
from optimizer.graphs.topology import analyse
from optimizer.models import DetectorSpec, load_model
from optimizer.precision.int8.simulation import Simulation


@pytest.mark.long
@pytest.mark.parametrize("size", [64, 72])
def test_a_detector_is_exported(size: int, tmp_path: Path) -> None:
    """The export itself compares batches of 1 and 5 with PyTorch."""
    model = load_model("fcos_resnet18_fpn:random:4")
    model = replace(model, preprocessing=model.preprocessing.with_image_size(size))
    path = export_onnx(model, tmp_path / "fcos.onnx").path
    facts = graph_facts(path)
    assert facts.output_name == "head"
    assert facts.detector is not None
    assert DetectorSpec.from_dict(facts.detector) == model.detector
    assert facts.output_shape == (None, *model.detector.output_shape)
    proto = onnx.load(path)
    operators = Counter(node.op_type for node in proto.graph.node)
    assert not operators.keys() & {"Gather", "Sigmoid", "NonMaxSuppression"}
    # At 72 pixels a level is resized to a size, which has the batch in it, not by a factor.
    assert ("Shape" in operators) == (size == 72)
    topology = analyse(ir.from_proto(proto))  # refuses weights that two layers share
    heads = {name.split(".")[1] for name in topology.nodes if name.startswith("heads.")}
    assert heads == {"0", "1", "2", "3", "4"}
    # At 72 pixels a level has 9 positions and the next one 5: no whole factor.
    assert (not Simulation.unsupported(topology)) == (size == 64)


def _graph(nodes: list[onnx.NodeProto], output: list[object], **constants: np.ndarray) -> ir.Model:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4, 3, 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, output)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model)
    return ir.from_proto(onnx.shape_inference.infer_shapes(model))


def _run(model: ir.Model) -> np.ndarray:
    from onnx.reference import ReferenceEvaluator

    x = np.arange(2 * 36, dtype=np.float32).reshape(2, 4, 3, 3)
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto)
    return np.asarray(ReferenceEvaluator(proto).run(None, {"x": x})[0])


def test_a_shape_computed_from_the_batch_becomes_constant() -> None:
    nodes = [
        helper.make_node("Shape", ["x"], ["n"], name="n", start=0, end=1),
        helper.make_node("Concat", ["n", "rest"], ["shape"], name="shape", axis=0),
        helper.make_node("Reshape", ["x", "shape"], ["y"], name="reshape", allowzero=1),
    ]
    model = _graph(nodes, ["n", 9, 4], rest=np.array([9, 4], np.int64))
    model.graph.node(2).outputs[0].shape = ir.Shape([*model.graph.inputs[0].shape[:1], 9, 4])
    before = _run(model)
    assert use_constant_shapes(model)
    assert [node.op_type for node in model.graph] == ["Reshape"]
    np.testing.assert_array_equal(_run(model), before)
    assert not use_constant_shapes(model)


def test_a_reshape_back_to_the_shape_of_another_tensor_becomes_constant() -> None:
    """GroupNorm, as torch exports it."""
    nodes = [
        helper.make_node("Reshape", ["x", "groups"], ["grouped"], name="grouped"),
        helper.make_node(
            "InstanceNormalization", ["grouped", "one", "zero"], ["normal"], name="normal"
        ),
        helper.make_node("Shape", ["x"], ["shape"], name="shape"),
        helper.make_node("Reshape", ["normal", "shape"], ["y"], name="back"),
    ]
    constants = {
        "groups": np.array([0, 2, -1], np.int64),
        "one": np.ones(2, np.float32),
        "zero": np.zeros(2, np.float32),
    }
    model = _graph(nodes, ["n", 4, 3, 3], **constants)
    before = _run(model)
    assert use_constant_shapes(model)
    assert "Shape" not in {node.op_type for node in model.graph}
    np.testing.assert_array_equal(_run(model), before)


def test_a_reshape_that_changes_the_batch_is_left() -> None:
    nodes = [
        helper.make_node("Shape", ["x"], ["n"], name="n", start=0, end=1),
        helper.make_node("Mul", ["n", "two"], ["doubled"], name="doubled"),
        helper.make_node("Concat", ["doubled", "rest"], ["shape"], name="shape", axis=0),
        helper.make_node("Reshape", ["x", "shape"], ["y"], name="reshape"),
    ]
    constants = {"two": np.array([2], np.int64), "rest": np.array([18], np.int64)}
    model = _graph(nodes, ["m", 18], **constants)
    assert not use_constant_shapes(model)
    assert len(list(model.graph)) == 4


@pytest.mark.parametrize(("side", "changes"), [(6, True), (9, True), (5, False)])
def test_sizes_of_a_resize_become_whole_factors(side: int, changes: bool) -> None:
    nodes = [
        helper.make_node("Shape", ["x"], ["n"], name="n", start=0, end=2),
        helper.make_node("Concat", ["n", "sides"], ["sizes"], name="sizes", axis=0),
        helper.make_node(
            "Resize", ["x", "", "", "sizes"], ["y"], name="up", mode="nearest",
            coordinate_transformation_mode="asymmetric", nearest_mode="floor",
        ),
    ]  # fmt: skip
    model = _graph(nodes, ["n", 4, side, side], sides=np.array([side, side], np.int64))
    resize = model.graph.node(2)
    resize.outputs[0].shape = ir.Shape(["n", 4, side, side])
    before = _run(model)
    assert use_scales_of_resizes(model) == changes
    if changes:
        scales = resize.inputs[2]
        assert scales is not None
        assert scales.const_value is not None
        assert scales.const_value.numpy().tolist() == [1, 1, side / 3, side / 3]
        assert len(resize.inputs) == 3
    np.testing.assert_array_equal(_run(model), before)
