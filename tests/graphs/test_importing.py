"""Graphs of other exporters are normalized without changing their results."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from optimizer.errors import GraphError
from optimizer.graphs.importing import load_graph, tidy
from optimizer.targets.rules import TARGETS
from tests.precision.networks import images, network
from tests.precision.test_int8_graphs import lowered, noise_db, run

TARGET_NAMES = ["tensorrt-cpu", "openvino", "onnxruntime"]


def test_constants_of_other_exporters(tmp_path: Path) -> None:
    """Initializers among the inputs, constants as nodes, one bias for two layers, a bias of 1 x N."""
    model = network(2)
    graph = model.graph
    for value in list(graph.initializers.values()):
        graph.inputs.append(value)
    shared = graph.initializers["layer1.1.conv1.bias"]
    other = next(n for n in graph if n.name == "layer1.1.conv2")
    other.replace_input_with(2, shared)
    bias = graph.initializers["fc.bias"]
    assert bias.const_value is not None
    bias.const_value = ir.tensor(bias.const_value.numpy().reshape(1, -1), name="fc.bias")
    bias.shape = ir.Shape([1, 5])
    path = tmp_path / "other.onnx"
    ir.save(model, path)
    batch = images(8, 3)
    (expected,) = ort.InferenceSession(path).run(None, {"images": batch})
    tidied = load_graph(path)
    assert [v.name for v in tidied.graph.inputs] == ["images"]
    np.testing.assert_allclose(run(tidied, batch)[0], expected, rtol=1e-5)
    for target in TARGET_NAMES:
        result, _ = lowered(lambda: load_graph(path), TARGETS[target])
        onnx.checker.check_model(ir.to_proto(result), full_check=True)
        assert noise_db(expected, run(result, batch)[0]) > 20


def test_an_old_operator_set_is_upgraded_or_rejected(tmp_path: Path) -> None:
    """Operator set 11 was the exporters' default for years and has no per-channel scales."""
    proto = ir.to_proto(network(0))
    proto.ir_version = 6
    del proto.opset_import[:]
    proto.opset_import.append(onnx.helper.make_opsetid("", 11))
    onnx.save(proto, tmp_path / "old.onnx")
    model = load_graph(tmp_path / "old.onnx")
    assert (model.graph.opset_imports[""], model.ir_version) == (13, 8)
    result, _ = lowered(lambda: load_graph(tmp_path / "old.onnx"), TARGETS["openvino"])
    onnx.checker.check_model(ir.to_proto(result), full_check=True)
    assert noise_db(run(network(0), images(8))[0], run(result, images(8))[0]) > 14
    proto.opset_import[0].domain = "ai.onnx"  # another name of the same domain
    proto.opset_import.append(onnx.helper.make_opsetid("", 11))
    onnx.save(proto, tmp_path / "named.onnx")
    assert load_graph(tmp_path / "named.onnx").graph.opset_imports == {"": 13}
    proto.graph.node[1].op_type = "Unheard"
    onnx.save(proto, tmp_path / "odd.onnx")
    with pytest.raises(
        GraphError, match=r"odd\.onnx is rejected by onnx\.checker.*Unheard.*export it again"
    ):
        load_graph(tmp_path / "odd.onnx")


def test_a_tidy_graph_is_unchanged() -> None:
    model = network(2)
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    tidy(model)
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before
