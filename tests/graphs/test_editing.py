"""Edits preserve a graph's results and the names of its inputs and outputs."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from optimizer.graphs.editing import add_constant, bypass, fresh_name, insert_after, make_cast
from tests.precision.networks import images, network
from tests.precision.test_int8_graphs import run


def _identity(model: ir.Model, value: ir.Value) -> ir.Node:
    """Insert an Identity between a tensor and all its readers."""
    uses = list(value.uses())
    node = ir.node("Identity", [value], name="same")
    node.outputs[0].name, node.outputs[0].type = "same", value.type
    node.outputs[0].shape = value.shape
    insert_after(model.graph, value, node)
    for use in uses:
        use.node.replace_input_with(use.idx, node.outputs[0])
    return node


@pytest.mark.parametrize("tensor", ["images", "maxpool"])
def test_a_node_is_inserted_and_bypassed_again(tensor: str) -> None:
    model = network(0)
    (expected,) = run(model, images(2))
    values = {v.name: v for v in [*model.graph.inputs, *(n.outputs[0] for n in model.graph)]}
    node = _identity(model, values[tensor])
    assert len(model.graph) == len(network(0).graph) + 1
    onnx.checker.check_model(ir.to_proto(model), full_check=True)  # nodes are in order
    np.testing.assert_array_equal(run(model, images(2))[0], expected)
    bypass(model.graph, node)
    assert [n.name for n in model.graph] == [n.name for n in network(0).graph]
    np.testing.assert_array_equal(run(model, images(2))[0], expected)


def test_a_graph_output_keeps_its_name_when_its_node_is_bypassed() -> None:
    model = network(0)
    (expected,) = run(model, images(2))
    logits = model.graph.outputs[0]
    logits.name = "before"
    node = ir.node("Identity", [logits], name="last")
    node.outputs[0].name, node.outputs[0].type = "logits", logits.type
    model.graph.append(node)
    model.graph.outputs[0] = node.outputs[0]
    bypass(model.graph, node)
    assert [v.name for v in model.graph.outputs] == ["logits"]
    np.testing.assert_array_equal(run(model, images(2))[0], expected)


def test_casts_and_constants_have_the_requested_type() -> None:
    model = network(0)
    source = model.graph.inputs[0]
    cast = make_cast(source, ir.DataType.FLOAT16, name="c", output="half")
    assert (cast.outputs[0].name, cast.outputs[0].dtype) == ("half", ir.DataType.FLOAT16)
    assert cast.outputs[0].shape == source.shape
    value = add_constant(model.graph, "k", np.zeros((2, 3), np.int8))
    assert (value.dtype, list(value.shape or ())) == (ir.DataType.INT8, [2, 3])
    assert model.graph.initializers["k"] is value


def test_fresh_names() -> None:
    assert fresh_name("a", {"b"}, "_") == "a"
    assert fresh_name("a", {"a", "a_"}, "_") == "a__"
