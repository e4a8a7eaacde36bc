"""From an FP32 graph to a mixed engine, validated on images that the search did not use."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import optimizer
from optimizer.data import ImageDataset
from optimizer.errors import DataError, UsageError
from optimizer.graphs.facts import graph_facts
from optimizer.options import EncodingOptions, QuantizeOptions
from optimizer.precision.int8 import Encodings
from optimizer.results import SearchResult, read_result
from optimizer.search import mixed_search, search_path, split_images
from tests.search.networks import HOSTILE, OPTIONS, data, graph_file, labelled


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    return graph_file(tmp_path / "m.onnx")


def _result(output: Path) -> SearchResult:
    result = read_result(search_path(output))
    assert isinstance(result, SearchResult)
    return result


def test_a_mixed_engine(graph: Path, tmp_path: Path) -> None:
    calib, validation = data(tmp_path / "c.npz", 700, 1), data(tmp_path / "d.npz", 700, 2)
    output = tmp_path / "m.blob"
    engine = optimizer.build(
        graph,
        output,
        precision="mixed",
        engine="openvino",
        calib=calib,
        calib_images=64,
        data=validation,
        max_drop="3pp",
        options=OPTIONS,
        save_intermediates=tmp_path / "way",
    )
    result = _result(output)
    first, chosen = result.front[0], result.front[result.chosen]
    assert (first.kept, first.inside) == ([], False)
    assert HOSTILE in chosen.kept
    assert chosen.inside
    assert (result.cost_source, result.target) == ("measured", "openvino")
    assert result.timed_ms is not None
    assert all(ms > 0 for ms in result.timed_ms)
    assert result.int8_ms <= chosen.predicted_ms <= result.high_ms
    assert (result.calibration_images, result.search_images) == (64, 512)
    assert result.sensitivity[0].layer == HOSTILE
    assert HOSTILE in result.finding

    written = graph_facts(tmp_path / "m.blob.graph.onnx")
    assert (written.precision, written.keep) == ("mixed", chosen.kept)
    assert Encodings.load(tmp_path / "way" / "m.blob.graph.encodings.json").keep == chosen.kept
    assert engine.manifest.settings["precision"] == "mixed"
    audit = optimizer.audit(engine)
    assert audit.verdict == "pass", audit.reason
    assert audit.computed["fp32"] > 0

    verdict = result.validation
    assert verdict is not None
    assert verdict.dataset.n == 700
    assert verdict.verdict == "pass", verdict.finding
    hop = next(hop for hop in verdict.hops if hop.engine == "m.blob")
    assert hop.flips is not None
    assert hop.flips <= verdict.dataset.n * 0.03


def test_a_graph_within_the_budget_keeps_no_layers(graph: Path, tmp_path: Path) -> None:
    calib, validation = data(tmp_path / "c.npz", 64, 1), data(tmp_path / "d.npz", 64, 2)
    output = tmp_path / "q.onnx"
    optimizer.quantize(
        graph, output, precision="mixed", target="tensorrt-cpu", calib=calib, data=validation,
        max_drop="100pp", options=OPTIONS.model_copy(update={"equalize": True}),
    )  # fmt: skip
    result = _result(output)
    assert [point.kept for point in result.front] == [[]]
    assert result.chosen == 0
    assert "already within the budget" in result.finding
    assert (result.cost_source, result.timed_ms) == ("model", None)
    assert graph_facts(output).precision == "int8"
    again = optimizer.quantize(
        graph, output, precision="mixed", target="tensorrt-cpu", calib=calib, data=validation,
        max_drop="100pp", options=OPTIONS.model_copy(update={"equalize": True}),
    )  # fmt: skip
    assert again.cached
    assert _result(output).front == result.front


def test_the_search_starts_with_the_layers_to_keep(graph: Path, tmp_path: Path) -> None:
    calib, validation = data(tmp_path / "c.npz", 64, 1), data(tmp_path / "d.npz", 64, 2)
    output = tmp_path / "q.onnx"
    optimizer.quantize(
        graph, output, precision="mixed", calib=calib, data=validation, max_drop="100pp",
        options=EncodingOptions(keep=("fc", "conv1")),
    )  # fmt: skip
    assert _result(output).front[0].kept == ["conv1", "fc"]
    assert graph_facts(output).keep == ["conv1", "fc"]


def test_validation_needs_other_images(graph: Path, tmp_path: Path) -> None:
    calib = data(tmp_path / "c.npz", 64, 1)
    before = sorted(tmp_path.iterdir())
    for validation, message in (
        (calib, "32 of the 64 images"),
        (data(tmp_path / "c.npz", 64, 1), "32 of the 64 images"),
        (None, "other images to validate"),
    ):
        with pytest.raises(UsageError, match=message):
            optimizer.build(
                graph, tmp_path / "m.blob", precision="mixed", engine="openvino",
                calib=calib, data=validation,
            )  # fmt: skip
    with pytest.raises(UsageError, match="needs images"):
        optimizer.quantize(graph, tmp_path / "q.onnx", precision="mixed", data=calib)
    with pytest.raises(UsageError, match=r"cannot use stats\.npz"):
        optimizer.quantize(
            graph, tmp_path / "q.onnx", precision="mixed", calib=calib, stats="stats.npz"
        )
    assert sorted(tmp_path.iterdir()) == before


def test_the_search_uses_the_images_that_were_checked(
    graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Labels are mapped to the model's outputs in between, which must not change the split."""
    model = ir.load(graph)
    model.metadata_props["resnet_opt.classes"] = json.dumps(list("abcde"))
    ir.save(model, graph)
    batch, _ = labelled(64, 1)
    np.savez(tmp_path / "c.npz", images=batch, labels=np.arange(64) % 2, classes=["d", "b"])
    validation = data(tmp_path / "d.npz", 16, 2)
    options = QuantizeOptions(calib=str(tmp_path / "c.npz"), data=str(validation), calib_images=16)
    dataset = mixed_search.open_search_images(options)
    used = []

    def record(_graph: Path, calibration: ImageDataset, *_: object, **__: object) -> None:
        used.append(calibration)
        raise DataError("recorded")

    monkeypatch.setattr(mixed_search, "calibrate", record)
    with pytest.raises(DataError, match="recorded"):
        mixed_search.mixed(
            graph, tmp_path / "m.onnx", dataset, options, result=tmp_path / "m.search.json"
        )
    checked, _ = split_images(dataset, 16)
    assert used[0].positions.tolist() == checked.positions.tolist()
    assert set(used[0].labels) == {1, 3}


def test_kept_layers_of_an_int8_graph(graph: Path, tmp_path: Path) -> None:
    """Without a search, the engine is still labelled as mixed."""
    calib = data(tmp_path / "c.npz", 64, 1)
    options = EncodingOptions(keep=("fc", HOSTILE))
    for engine in ("openvino", "onnxruntime"):
        output = tmp_path / f"m.{engine}"
        made = optimizer.build(
            graph, output, precision="int8", engine=engine, calib=calib, options=options,
            save_intermediates=tmp_path / "way",
        )  # fmt: skip
        assert made.manifest.settings["precision"] == "mixed"
        assert made.manifest.settings["keep"] == [HOSTILE, "fc"]
        written = onnx.load(tmp_path / f"m.{engine}.graph.onnx")
        properties = {p.key: p.value for p in written.metadata_props}
        assert json.loads(properties["resnet_opt.keep"]) == [HOSTILE, "fc"]
    with pytest.raises(UsageError, match="is used unchanged"):
        optimizer.quantize(
            graph, tmp_path / "q.onnx", precision="int8", options=options,
            encodings=tmp_path / "way" / "m.openvino.graph.encodings.json",
        )  # fmt: skip
    with pytest.raises(UsageError, match="FP16 has none"):
        optimizer.quantize(graph, tmp_path / "q.onnx", precision="fp16", options=options)
