"""Intermediate tensors of a graph, for any batch and any way of listing its inputs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from optimizer.graphs.taps import tapped
from tests.precision.networks import images, network
from tests.precision.test_int8_graphs import run


@pytest.mark.parametrize("batch", [None, 3])
@pytest.mark.parametrize("listed", [False, True], ids=["inputs", "initializers first"])
def test_tapped_tensors_match_the_graph(tmp_path: Path, batch: int | None, listed: bool) -> None:
    names = ["images", "relu", "layer1.0.relu", "logits"]
    model = network(0)
    expected = run(model, images(7), names[1:3])
    logits = run(model, images(7))[0]
    proto = ir.to_proto(model)
    if batch is not None:
        for value in (*proto.graph.input, *proto.graph.output):
            value.type.tensor_type.shape.dim[0].dim_value = batch
        del proto.graph.value_info[:]
    if listed:  # as exporters of IR version 3 do
        for tensor in proto.graph.initializer:
            kind = onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            proto.graph.input.insert(0, kind)
    onnx.save(proto, tmp_path / "n.onnx")
    tapped_values = tapped(tmp_path / "n.onnx", names)(images(7))
    assert list(tapped_values) == [*names[1:], names[0]]
    np.testing.assert_array_equal(tapped_values["images"], images(7))
    for name, values in zip(names[1:], [*expected, logits], strict=True):
        np.testing.assert_allclose(tapped_values[name], values, rtol=1e-4, atol=1e-5)


def test_opening_a_graph_does_not_load_an_engine() -> None:
    modules = ("onnx_files", "metadata", "facts", "importing", "topology", "taps")
    code = (
        f"import sys\nfor name in {modules}:\n    __import__(f'optimizer.graphs.{{name}}')\n"
        "print({'onnxruntime', 'torch', 'openvino'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
