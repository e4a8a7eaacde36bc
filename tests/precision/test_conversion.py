"""Calibrate, encode, quantize: artifacts, keys, and early rejection of bad input."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest

from optimizer.artifacts import load_artifact, manifest_path
from optimizer.data import open_dataset
from optimizer.errors import ArtifactError, DataError, GraphError, UsageError
from optimizer.options import EncodingOptions
from optimizer.precision import calibrate, quantize
from optimizer.precision.int8 import Encodings


def _changed(graph: Path, path: Path) -> Path:
    """The same network with one weight changed."""
    proto = onnx.load(graph)
    weight = next(t for t in proto.graph.initializer if t.name == "conv1.weight")
    array = onnx.numpy_helper.to_array(weight).copy()
    array.flat[0] += 1
    weight.CopyFrom(onnx.numpy_helper.from_array(array, "conv1.weight"))
    onnx.save(proto, path)
    return path


def test_one_calibration_serves_every_target(
    small_graph: Path, small_statistics: Path, tmp_path: Path
) -> None:
    for target in ("tensorrt", "tensorrt-rtx", "openvino", "onnxruntime"):
        artifact = quantize(
            small_graph,
            tmp_path / f"{target}.onnx",
            precision="int8",
            target=target,
            stats=small_statistics,
        )
        assert artifact.manifest.settings["precision"] == "int8"
        encodings = Encodings.load(tmp_path / f"{target}.encodings.json")
        assert encodings.target == artifact.manifest.settings["target"]
        assert [i.role for i in artifact.manifest.inputs] == ["model", "encodings"]
        assert artifact.manifest.classes == [str(digit) for digit in range(10)]


def test_encodings_of_another_target_or_graph_are_rejected(
    small_graph: Path, small_statistics: Path, tmp_path: Path
) -> None:
    quantize(
        small_graph,
        tmp_path / "o.onnx",
        precision="int8",
        target="openvino",
        stats=small_statistics,
    )
    encodings = tmp_path / "o.encodings.json"
    with pytest.raises(ArtifactError, match="the encodings are for openvino"):
        quantize(
            small_graph,
            tmp_path / "t.onnx",
            precision="int8",
            target="tensorrt",
            encodings=encodings,
        )
    other = _changed(small_graph, tmp_path / "other.onnx")
    with pytest.raises(ArtifactError, match="another graph"):
        quantize(
            other, tmp_path / "t.onnx", precision="int8", target="openvino", encodings=encodings
        )
    assert not (tmp_path / "t.onnx").exists()


def test_stale_statistics_are_rejected(
    small_graph: Path, small_statistics: Path, tmp_path: Path
) -> None:
    other = _changed(small_graph, tmp_path / "other.onnx")
    with pytest.raises(ArtifactError, match="belongs to another graph"):
        quantize(other, tmp_path / "q.onnx", precision="int8", stats=small_statistics)
    changed = tmp_path / "s.npz"
    shutil.copy(small_statistics, changed)
    with pytest.raises(ArtifactError, match="has no manifest"):
        quantize(small_graph, tmp_path / "q.onnx", precision="int8", stats=changed)
    shutil.copy(manifest_path(small_statistics), manifest_path(changed))
    with changed.open("ab") as stream:
        stream.write(b"x")
    with pytest.raises(ArtifactError, match="sha256 differs"):
        quantize(small_graph, tmp_path / "q.onnx", precision="int8", stats=changed)


def test_another_range_method_gives_another_artifact(
    small_graph: Path, small_statistics: Path, tmp_path: Path
) -> None:
    output = tmp_path / "q.onnx"
    first = quantize(small_graph, output, precision="int8", stats=small_statistics)
    again = quantize(small_graph, output, precision="int8", stats=small_statistics)
    assert again.cached
    other = quantize(
        small_graph,
        output,
        precision="int8",
        stats=small_statistics,
        options=EncodingOptions(method="minmax"),
    )
    assert not other.cached
    assert other.manifest.sha256 != first.manifest.sha256


def test_the_manifest_of_statistics_lists_their_inputs(
    small_graph: Path, small_statistics: Path
) -> None:
    manifest = load_artifact(small_statistics, kind="statistics").manifest
    assert {i.role for i in manifest.inputs} == {"graph", "calibration"}
    assert manifest.preprocessing is not None
    assert manifest.details["tensors"] > 20


def test_invalid_requests_are_rejected(small_graph: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="precision: 'int3' is not a choice"):
        quantize(small_graph, tmp_path / "q.onnx", precision="int3")
    with pytest.raises(UsageError, match="unknown target"):
        quantize(small_graph, tmp_path / "q.onnx", precision="int8", target="tpu")
    with pytest.raises(UsageError, match="needs calibration data"):
        quantize(small_graph, tmp_path / "q.onnx", precision="int8")
    with pytest.raises(UsageError, match="method: 'magic' is not a choice"):
        quantize(small_graph, tmp_path / "q.onnx", precision="int8", method="magic")
    assert list(tmp_path.iterdir()) == []


def test_too_few_images_are_rejected(small_graph: Path, tmp_path: Path) -> None:
    few = open_dataset("digits:train", limit=10).select(np.arange(5))
    with pytest.raises(DataError, match="5 calibration images"):
        calibrate(small_graph, few, tmp_path / "s.npz")


def test_a_graph_without_preprocessing_metadata_is_rejected(
    tmp_path: Path, small_graph: Path
) -> None:
    proto = onnx.load(small_graph)
    del proto.metadata_props[:]
    onnx.save(proto, tmp_path / "bare.onnx")
    with pytest.raises(GraphError, match="does not state its preprocessing"):
        quantize(tmp_path / "bare.onnx", tmp_path / "q.onnx", precision="fp16")
