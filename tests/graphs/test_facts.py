"""Facts read from a graph, and the files that are rejected before any engine reads them."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from optimizer.errors import GraphError
from optimizer.graphs.facts import graph_facts, layer_flops


def test_facts_of_a_classifier(small_graph: Path) -> None:
    facts = graph_facts(small_graph)
    assert facts.input_shape == (None, 3, 32, 32)
    assert facts.output_shape == (None, 10)
    assert (facts.input_name, facts.output_name) == ("images", "logits")
    assert (facts.image_size, facts.precision, facts.input_dtype) == (32, "fp32", "float32")
    assert facts.classes == [str(digit) for digit in range(10)]


def test_a_graph_quantized_by_another_tool_is_int8_despite_its_metadata(tmp_path: Path) -> None:
    from tests.precision.networks import network
    from tests.precision.quantizers import by_pairs

    model = by_pairs(network(0))
    model.metadata_props["resnet_opt.precision"] = "fp32"  # quantizers keep the exporter's metadata
    ir.save(model, tmp_path / "q.onnx")
    assert graph_facts(tmp_path / "q.onnx").precision == "int8"
    ir.save(network(0), tmp_path / "f.onnx")
    assert graph_facts(tmp_path / "f.onnx").precision == "fp32"


def test_flops_of_resnet18_at_32_px(small_graph: Path) -> None:
    flops = layer_flops(small_graph)
    assert flops["conv1"] == 2 * 64 * 3 * 7 * 7 * 16 * 16
    assert flops["fc"] == 2 * 512 * 10
    assert len(flops) == 21


def _write(tmp_path: Path, content: bytes) -> Path:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    return path


def _tiny(inputs: int = 1, shape: tuple = ("n", 3, 4, 4), opset: int = 20) -> onnx.ModelProto:
    sources = [
        helper.make_tensor_value_info(f"x{i}", TensorProto.FLOAT, list(shape))
        for i in range(inputs)
    ]
    nodes = [helper.make_node("Flatten", ["x0"], ["y"])]
    target = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 48])
    graph = helper.make_graph(nodes, "g", sources, [target])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds no graph"),
        (
            b"this is a text file about networks\n",
            "not an ONNX file or is truncated|holds no graph",
        ),
        (
            _tiny().SerializeToString()[:-7],
            "not an ONNX file or is truncated|rejected by onnx.checker",
        ),
        (_tiny(opset=99).SerializeToString(), "opset 99"),
        (_tiny(inputs=2).SerializeToString(), r"2 inputs \(x0, x1\)"),
        (
            _tiny(shape=("n", 48)).SerializeToString(),
            "is N x 48, but images are N x channels x height x width",
        ),
    ],
    ids=["empty", "text", "truncated", "opset", "inputs", "rank"],
)
def test_bad_files_are_rejected(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(GraphError, match=message):
        graph_facts(_write(tmp_path, content))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(GraphError, match="no such file"):
        graph_facts(tmp_path / "nowhere.onnx")


def test_missing_weights_are_not_reported_as_a_broken_file(
    tmp_path: Path, small_graph: Path
) -> None:
    path = tmp_path / "outside.onnx"
    onnx.save_model(
        onnx.load(small_graph), path, save_as_external_data=True, location="w.bin", size_threshold=0
    )
    graph_facts(path)
    (tmp_path / "w.bin").unlink()
    with pytest.raises(GraphError, match=r"weights of outside\.onnx cannot be read"):
        graph_facts(path)
