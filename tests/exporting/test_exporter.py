"""Exported graphs: names, canonical form, metadata, equality with PyTorch, and errors."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from optimizer.errors import GraphError, UsageError
from optimizer.exporting import export_onnx, verify
from optimizer.models import Model, load_model


@pytest.fixture(scope="module")
def model(small_checkpoint: Path) -> Model:
    return load_model(str(small_checkpoint))


def test_layers_are_named_after_modules(small_graph: Path, model: Model) -> None:
    proto = onnx.load(small_graph)
    weighted = {n.name for n in proto.graph.node if n.op_type in {"Conv", "Gemm"}}
    modules = {
        name
        for name, module in model.module.named_modules()
        if isinstance(module, (torch.nn.Conv2d, torch.nn.Linear))
    }
    assert weighted == modules
    initializers = {t.name for t in proto.graph.initializer}
    assert initializers == {f"{name}.{part}" for name in modules for part in ("weight", "bias")}
    names = [n.name for n in proto.graph.node]
    assert {"relu", "maxpool", "layer1.0.relu", "layer1.0.add", "avgpool", "flatten"} <= set(names)
    assert len(names) == len(set(names))


def test_the_graph_is_in_canonical_form(small_graph: Path) -> None:
    proto = onnx.load(small_graph)
    kinds = {n.op_type for n in proto.graph.node}
    assert kinds == {"Conv", "Relu", "MaxPool", "Add", "GlobalAveragePool", "Flatten", "Gemm"}
    assert [v.name for v in proto.graph.input] == ["images"]
    assert [v.name for v in proto.graph.output] == ["logits"]
    assert proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"


def test_metadata_is_stored_in_the_graph(small_graph: Path, model: Model) -> None:
    metadata = {p.key: p.value for p in onnx.load(small_graph).metadata_props}
    assert metadata["resnet_opt.arch"] == "resnet18"
    assert json.loads(metadata["resnet_opt.classes"]) == [str(d) for d in range(10)]
    assert json.loads(metadata["resnet_opt.preprocessing"]) == json.loads(
        json.dumps(model.preprocessing.to_dict())
    )
    assert metadata["resnet_opt.checkpoint_sha256"] == model.sha256


def test_the_file_contains_no_local_paths(small_graph: Path) -> None:
    content = small_graph.read_bytes()
    assert b"site-packages" not in content
    assert str(Path.home()).encode() + b"/" not in content


@pytest.mark.parametrize("opset", [18, 22])
def test_static_batch_and_opset(tmp_path: Path, model: Model, opset: int) -> None:
    artifact = export_onnx(model, tmp_path / "m.onnx", batch=3, opset=opset)
    assert not artifact.cached
    proto = onnx.load(artifact.path)
    assert proto.opset_import[0].version == opset
    assert proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value == 3
    assert artifact.manifest.settings["batch"] == 3


def test_normalization_in_the_graph_equals_normalization_before_it(
    tmp_path: Path, small_graph: Path, model: Model
) -> None:
    artifact = export_onnx(model, tmp_path / "u8.onnx", input="uint8-nhwc")
    pixels = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8)
    pixels[0] = 255  # a bright border reveals normalization that was folded past the padding
    (inside,) = onnxruntime.InferenceSession(artifact.path).run(None, {"images": pixels})
    normalized = model.preprocessing.normalize(pixels)
    (outside,) = onnxruntime.InferenceSession(small_graph).run(None, {"images": normalized})
    np.testing.assert_allclose(inside, outside, atol=1e-4 * np.abs(outside).max())


def test_an_existing_export_is_reused(small_graph: Path, model: Model) -> None:
    before = small_graph.stat().st_mtime_ns
    assert export_onnx(model, small_graph).cached
    assert small_graph.stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"input": "float16"}, "'float16' is not a choice"),
        ({"opset": 99}, "opset: 99 is too large"),
        ({"batch": 0}, "'0' is not a batch size"),
    ],
)
def test_options_out_of_range_are_rejected(
    tmp_path: Path, model: Model, options: dict, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        export_onnx(model, tmp_path / "m.onnx", **options)
    assert list(tmp_path.iterdir()) == []


def test_another_suffix_is_rejected(tmp_path: Path, model: Model) -> None:
    with pytest.raises(UsageError, match=r"does not end in \.onnx"):
        export_onnx(model, tmp_path / "m.engine")


def test_a_graph_that_differs_from_pytorch_is_not_kept(
    tmp_path: Path, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify, "TOLERANCE", 0.0)
    with pytest.raises(GraphError, match="the exported file differs from PyTorch"):
        export_onnx(model, tmp_path / "m.onnx", opset=19)
    assert list(tmp_path.iterdir()) == []


def test_a_frozen_batch_is_detected(small_graph: Path, tmp_path: Path, model: Model) -> None:
    proto = onnx.load(small_graph)
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2
    onnx.save(proto, tmp_path / "frozen.onnx")
    with pytest.raises(GraphError, match="frozen at 2"):
        verify.verify_file(tmp_path / "frozen.onnx", model, batch=None, input_kind="float32-nchw")


def test_a_model_of_nan_is_rejected(tmp_path: Path, model: Model) -> None:
    import copy

    broken = copy.deepcopy(model.module)
    broken.fc.bias.data[0] = float("nan")
    with pytest.raises(GraphError, match="NaN"):
        export_onnx(replace(model, module=broken, sha256="0" * 64), tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []
