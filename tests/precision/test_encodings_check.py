"""Encodings that were edited by hand: every wrong entry is named, and none becomes a graph."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from optimizer.errors import ArtifactError, UsageError
from optimizer.graphs.onnx_files import write_graph
from optimizer.graphs.taps import tapped
from optimizer.graphs.topology import Topology, analyse
from optimizer.options import EncodingOptions
from optimizer.precision.int8 import Collector, Encodings, check_encodings, compute_encodings
from optimizer.targets.rules import TARGETS
from tests.precision.networks import images, network

TENSOR, LAYER = "layer1.0.relu", "layer1.0.conv2"
Edit = Callable[[dict[str, Any]], object]


@pytest.fixture(scope="module")
def encoded(tmp_path_factory: Any) -> Callable[[str], tuple[Topology, dict[str, Any]]]:
    """The topology of a network, and its encodings for a target as JSON."""
    path = tmp_path_factory.mktemp("net") / "net.onnx"
    write_graph(network(3), path)
    topology = analyse(network(3))
    observed = {name: topology.after_relu(name) for name in topology.observed_tensors()}
    collector = Collector(observed, tapped(path, list(observed)))
    collector.add(images(16))
    statistics = collector.statistics
    options = EncodingOptions(method="minmax", bias_correction="none")
    made: dict[str, dict[str, Any]] = {}

    def encode(target: str) -> tuple[Topology, dict[str, Any]]:
        if target not in made:
            encodings = compute_encodings(
                network(3), statistics, TARGETS[target], "0" * 64, options
            )
            made[target] = encodings.model_dump(mode="json")
        return topology, json.loads(json.dumps(made[target]))

    return encode


def _check(path: Path, topology: Topology, raw: dict[str, Any], target: str) -> None:
    path.write_text(json.dumps(raw))
    check_encodings(Encodings.load(path), topology, TARGETS[target], path.name)


@pytest.mark.parametrize("target", sorted(TARGETS))
def test_computed_encodings_pass_for_every_target(
    encoded: Any, tmp_path: Path, target: str
) -> None:
    topology, raw = encoded(target)
    _check(tmp_path / "e.json", topology, raw, target)


def _tensor(field: str, value: object) -> Edit:
    return lambda raw: raw["tensors"][TENSOR].update({field: value})


def _layer(field: str, value: object) -> Edit:
    return lambda raw: raw["layers"][LAYER].update({field: value})


def _element(field: str, value: object) -> Edit:
    return lambda raw: raw["layers"][LAYER][field].__setitem__(1, value)


WRONG: list[tuple[Edit, str]] = [
    *((_tensor("scale", scale), r"tensors\.layer1\.0\.relu\.scale")
      for scale in (0, -1.0, float("nan"), float("inf"), True, "0.1", None, 1e39, 1e-46, 3e36)),
    *((_tensor("zero_point", zero), r"tensors\.layer1\.0\.relu\.zero_point")
      for zero in (256, -1, 2**70, 0.5)),
    (_tensor("dtype", "s4"), r"tensors\.layer1\.0\.relu\.dtype"),
    (_tensor("shifted", True), r"tensors\.layer1\.0\.relu\.shifted"),
    (_tensor("sacle", 0.1), r"tensors\.layer1\.0\.relu\.sacle"),
    *((_element(field, value), rf"layers\.layer1\.0\.conv2\.{field}\.1")
      for field in ("weight_scale", "output_factor", "input_factor")
      for value in (0, -2.0, float("nan"), 1e308, 1e-320)),
    *((_element("bias", value), r"layers\.layer1\.0\.conv2\.bias\.1")
      for value in (float("nan"), float("-inf"), 1e308, "1")),
    *((_layer(field, [1.0, 1.0]), rf"layers\.layer1\.0\.conv2\.{field} has 2 values")
      for field in ("weight_scale", "bias", "input_factor", "output_factor")),
    (_layer("weight_max", 129), r"layers\.layer1\.0\.conv2\.weight_max"),
    (_layer("pairs", "matrix"), r"layers\.layer1\.0\.conv2\.pairs"),
    (_element("output_factor", 1.5), "so the network would compute something else"),
    (lambda raw: raw["tensors"].pop(TENSOR), r"tensors\.layer1\.0\.relu is missing"),
    (lambda raw: raw["layers"].pop(LAYER), r"layers\.layer1\.0\.conv2 is missing"),
    (lambda raw: raw["tensors"].update(rleu=raw["tensors"][TENSOR]), r"rleu is not in the graph"),
    (lambda raw: raw["layers"].update(conv=raw["layers"][LAYER]), r"layers\.conv is not in the"),
    (lambda raw: raw.update(tensors=[]), "invalid at tensors"),
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(WRONG)))
def test_a_wrong_entry_is_named(encoded: Any, tmp_path: Path, number: int) -> None:
    edit, message = WRONG[number]
    topology, raw = encoded("openvino")
    edit(raw)
    with pytest.raises(ArtifactError, match=message) as caught:
        _check(tmp_path / "e.json", topology, raw, "openvino")
    assert caught.value.hint


@pytest.mark.parametrize(
    ("target", "edit", "message"),
    [
        ("tensorrt", _tensor("zero_point", 3), "zero_point is 3, which tensorrt does not"),
        ("tensorrt", _tensor("dtype", "u8"), "dtype is u8, which tensorrt does not"),
        ("tensorrt", _tensor("scale", 7e4), "float16"),
        ("tensorrt", _tensor("scale", 1e-9), "too small for fp16"),
        ("tensorrt-cpu", _tensor("zero_point", 0), "zero_point is 0, which tensorrt-cpu does not"),
        ("onnxruntime", _tensor("dtype", "s8"), "dtype is s8, which onnxruntime does not"),
    ],
)
def test_what_the_target_cannot_store_is_refused(
    encoded: Any, tmp_path: Path, target: str, edit: Edit, message: str
) -> None:
    topology, raw = encoded(target)
    edit(raw)
    with pytest.raises(ArtifactError, match=message):
        _check(tmp_path / "e.json", topology, raw, target)


def test_a_layer_to_keep_that_does_not_exist(encoded: Any, tmp_path: Path) -> None:
    topology, raw = encoded("openvino")
    raw["keep"] = ["conv9"]
    with pytest.raises(UsageError, match="no layer 'conv9'"):
        _check(tmp_path / "e.json", topology, raw, "openvino")


def test_tensors_of_kept_layers_may_be_left_out(encoded: Any, tmp_path: Path) -> None:
    topology, raw = encoded("openvino")
    raw["keep"] = [LAYER]
    del raw["tensors"][TENSOR]
    _check(tmp_path / "e.json", topology, raw, "openvino")


@pytest.mark.parametrize("content", [b"\xff\xfe{", b"", b"[" * 100_000, b'{"a":' + b"9" * 5000])
def test_what_is_not_json_is_an_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "e.json").write_bytes(content)
    with pytest.raises(ArtifactError, match=r"e\.json is invalid"):
        Encodings.load(tmp_path / "e.json")


def test_a_file_too_large_for_encodings_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "e.json").open("wb") as stream:
        stream.truncate(1 << 30)
    with pytest.raises(ArtifactError, match="too many for encodings"):
        Encodings.load(tmp_path / "e.json")
