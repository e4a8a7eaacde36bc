"""Metadata round-trips through a model and a file."""

from __future__ import annotations

import json
from pathlib import Path

import onnx_ir as ir
import pytest

from optimizer.data import Preprocessing
from optimizer.errors import GraphError
from optimizer.graphs.metadata import (
    Metadata,
    metadata_of,
    preprocessed_metadata,
    remove_precision_metadata,
    write_metadata,
)
from tests.precision.networks import network

PREPROCESSING = Preprocessing.digits(32).to_dict()


def test_a_graph_without_metadata() -> None:
    metadata = Metadata.of_model(network(0))
    assert metadata == {}
    assert (metadata.arch, metadata.precision, metadata.target) == ("", "fp32", "")
    assert (metadata.preprocessing, metadata.classes, metadata.shifted) == (None, None, None)
    assert (metadata.keep, metadata.notes, metadata.absorbed) == ([], [], {})


def test_entries_round_trip(tmp_path: Path) -> None:
    model = network(0)
    model.metadata_props["author"] = "somebody else"
    write_metadata(
        model, arch="resnet18", precision="int8", target="openvino", keep=("conv1", "fc"),
        notes=["fc stays"], absorbed={"relu": "conv1"}, shifted=[], classes=["a", "ä"],
        preprocessing=PREPROCESSING, batch="dynamic",
    )  # fmt: skip
    ir.save(model, tmp_path / "n.onnx")
    for metadata in (Metadata.of_model(model), metadata_of(tmp_path / "n.onnx")):
        assert (metadata.arch, metadata.precision) == ("resnet18", "int8")
        assert (metadata.target, metadata["batch"]) == ("openvino", "dynamic")
        assert (metadata.keep, metadata.notes) == (["conv1", "fc"], ["fc stays"])
        assert (metadata.absorbed, metadata.shifted) == ({"relu": "conv1"}, [])
        assert (metadata.classes, metadata.preprocessing) == (["a", "ä"], PREPROCESSING)
        assert "author" not in metadata
    assert model.metadata_props["resnet_opt.keep"] == '["conv1", "fc"]'
    write_metadata(model, precision="fp16", keep=None)
    assert Metadata.of_model(model).keep == ["conv1", "fc"]
    remove_precision_metadata(model)
    assert set(Metadata.of_model(model)) == {
        "arch", "precision", "classes", "preprocessing", "batch"
    }  # fmt: skip
    assert model.metadata_props["author"] == "somebody else"


def test_no_class_names_are_none() -> None:
    model = network(0)
    write_metadata(model, classes=[])
    assert Metadata.of_model(model).classes is None


def test_missing_preprocessing_is_an_error(tmp_path: Path) -> None:
    model = network(0)
    ir.save(model, tmp_path / "n.onnx")
    with pytest.raises(GraphError, match=r"n\.onnx does not say which preprocessing"):
        preprocessed_metadata(tmp_path / "n.onnx")
    write_metadata(model, preprocessing=PREPROCESSING)
    ir.save(model, tmp_path / "n.onnx")
    assert preprocessed_metadata(tmp_path / "n.onnx").preprocessing == PREPROCESSING


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("preprocessing", "{"),
        ("preprocessing", "[1]"),
        ("preprocessing", "[" * 100_000),
        ("preprocessing", json.dumps({**PREPROCESSING, "sha256": None, "mean": 5})),
        ("preprocessing", json.dumps({**PREPROCESSING, "sha256": None, "crop": 8.5})),
        ("preprocessing", json.dumps(PREPROCESSING).replace("[0.", "[1e400, 0.", 1)),
        ("classes", "5"),
        ("classes", "[1, 2]"),
        ("keep", '{"a": 1}'),
        ("notes", "[[]]"),
        ("absorbed", '{"a": 1}'),
        ("shifted", "true"),
        ("precision", "int9"),
    ],
)
def test_malformed_entries_are_named(name: str, text: str) -> None:
    with pytest.raises(GraphError, match=f"metadata entry resnet_opt.{name}") as caught:
        getattr(Metadata({name: text}), name)
    assert "\n" not in str(caught.value)
