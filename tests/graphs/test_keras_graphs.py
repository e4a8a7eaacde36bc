"""ONNX files that Keras exported (see benchmarks/keras_record.py), against Keras's own logits."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from keras_values import images

import optimizer
from optimizer.graphs.import_pass import import_graph
from optimizer.graphs.source_ends import open_source
from optimizer.graphs.taps import unoptimized_session

RECORDED = Path(__file__).parent / "recorded"
LIMIT = {"v1": 1e-5, "v2": 1e-3}


def recorded(version: str) -> tuple[Path, np.ndarray]:
    path = RECORDED / f"keras-{version}.onnx"
    return path, np.asarray(json.loads(path.with_suffix(".json").read_text())["logits"], np.float32)


def logits(model: ir.Model) -> np.ndarray:
    pixels = images(32).astype(np.float32) / 127.5 - 1
    batch = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))
    session = unoptimized_session(ir.to_proto(model).SerializeToString())
    found: np.ndarray = session.run(None, {session.get_inputs()[0].name: batch})[0]
    return found


@pytest.mark.parametrize("version", LIMIT)
def test_an_imported_graph_computes_what_keras_does(version: str) -> None:
    path, expected = recorded(version)
    graph = import_graph(open_source(path)).model
    assert np.abs(logits(graph) - expected).max() <= LIMIT[version] * np.abs(expected).max()
    kinds = Counter(node.op_type for node in graph.graph)
    assert kinds["Transpose"] == 0
    assert kinds["Gemm"] == 1
    # V1 folds every BatchNorm; those before the convolutions of V2 stay.
    assert kinds["Mul"] == (0 if version == "v1" else 5)
    assert graph.opset_imports[""] >= 20


@pytest.mark.slow
@pytest.mark.parametrize("target", ["openvino", "tensorrt-rtx"])
def test_pre_activation_is_int8_except_for_its_batchnorms(target: str, tmp_path: Path) -> None:
    path, _ = recorded("v2")
    noise = np.random.default_rng(0).integers(0, 256, (16, 32, 32, 3), np.uint8)
    np.savez(tmp_path / "noise.npz", images=noise, labels=np.arange(16) % 5)
    written = optimizer.quantize(
        path, tmp_path / "int8.onnx", precision="int8", target=target, mean=0.5, std=0.5,
        resize=32, crop=32, calib=tmp_path / "noise.npz", calib_images=16,
    ).path  # fmt: skip
    graph = onnx.load(written).graph
    producers = {output: node for node in graph.node for output in node.output}
    layers = [node for node in graph.node if node.op_type in {"Conv", "Gemm"}]
    assert len(layers) == 16

    def dequantized(name: str) -> bool:
        return name in producers and producers[name].op_type == "DequantizeLinear"

    in_float = [n.name for n in layers if not all(map(dequantized, n.input[:2]))]
    assert not in_float
    scaled = [node for node in graph.node if node.op_type == "Mul"]
    assert len(scaled) == 5
    assert not any(map(dequantized, (name for node in scaled for name in node.input)))


def test_v2_in_the_reader_of_v1_names_the_route(tmp_path: Path) -> None:
    """The structure alone decides: no weights are needed."""
    from optimizer.errors import CheckpointError
    from optimizer.models import load_model
    from tests.models.keras_files import write_keras

    def pre_activation(config: dict[str, Any]) -> None:
        layers = config["config"]["layers"]
        config["config"]["layers"] = [
            x for x in layers if x["name"] not in {"conv1_bn", "conv1_relu"}
        ]
        for layer in layers:
            for node in layer["inbound_nodes"]:
                history = node["args"][0]
                for one in history if isinstance(history, list) else [history]:
                    origin = one["config"]["keras_history"]
                    if origin[0] in {"conv1_bn", "conv1_relu"}:
                        origin[0] = "conv1_conv"

    path = write_keras("application", ".keras", tmp_path, change=pre_activation, only="conv1_")
    with pytest.raises(CheckpointError, match=r"pre-activation network \(ResNet V2\)") as caught:
        load_model(path)
    assert "model.export" in str(caught.value.hint)
