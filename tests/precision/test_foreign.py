"""Third-party INT8 graphs as artifacts: read, lowered again, calibrated, or rejected."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import optimizer
from optimizer.artifacts import load_artifact
from optimizer.data import Preprocessing, open_dataset
from optimizer.engines.onnxruntime import as_written
from optimizer.errors import ArtifactError, DataError, GraphError, UsageError
from optimizer.exporting import export_onnx
from optimizer.graphs.facts import graph_facts
from optimizer.models import load_model, save_checkpoint
from optimizer.precision import calibrate, is_quantized, quantize
from optimizer.precision.int8 import Encodings
from tests.conftest import Quantized
from tests.precision.quantizers import by_onnxruntime
from tests.precision.test_int8_graphs import noise_db


@pytest.fixture(scope="module")
def for_openvino(small_quantized: Quantized) -> Path:
    """`small_graph` as this project lowers it for OpenVINO."""
    return small_quantized("int8", "openvino")


@pytest.fixture(scope="module")
def bare(for_openvino: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same graph without metadata, as other quantizers write it."""
    proto = onnx.load(for_openvino)
    del proto.metadata_props[:]
    path = tmp_path_factory.mktemp("bare") / "bare.onnx"
    onnx.save(proto, path)
    return path


def digits(limit: int = 32) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(limit, 3, 32, 32)).astype(np.float32)


def test_a_graph_is_lowered_for_another_target_without_data(
    for_openvino: Path, tmp_path: Path
) -> None:
    artifact = quantize(for_openvino, tmp_path / "t.onnx", precision="int8", target="tensorrt-cpu")
    assert [i.role for i in artifact.manifest.inputs] == ["model", "encodings", "source"]
    source = load_artifact(for_openvino)
    assert artifact.manifest.inputs[2].sha256 == source.manifest.sha256
    assert artifact.manifest.classes == source.manifest.classes
    between = load_artifact(tmp_path / "int8.float.onnx", kind="graph")
    assert artifact.manifest.inputs[0].sha256 == between.manifest.sha256
    assert [i.role for i in between.manifest.inputs] == ["source"]
    carried = load_artifact(tmp_path / "t.encodings.json", kind="encodings")
    assert [i.role for i in carried.manifest.inputs] == ["source", "model"]
    assert Encodings.load(carried.path).target == "tensorrt-cpu"
    images = digits()
    before, after = as_written(for_openvino).run(images), as_written(artifact.path).run(images)
    assert noise_db(before, after) > 20
    assert quantize(
        for_openvino, tmp_path / "t.onnx", precision="int8", target="tensorrt-cpu"
    ).cached


def test_missing_ranges_come_from_calibration(for_openvino: Path, tmp_path: Path) -> None:
    for_tensorrt = quantize(
        for_openvino, tmp_path / "t.onnx", precision="int8", target="tensorrt"
    ).path
    with pytest.raises(DataError, match=r"t\.onnx: openvino quantizes .*, which the source leaves"):
        quantize(for_tensorrt, tmp_path / "o.onnx", precision="int8")
    assert not (tmp_path / "o.onnx").exists()
    observed = calibrate(
        for_tensorrt, open_dataset("digits:train", limit=32), tmp_path / "t.stats.npz"
    )
    artifact = quantize(for_tensorrt, tmp_path / "o.onnx", precision="int8", stats=observed.path)
    encodings = load_artifact(tmp_path / "o.encodings.json")
    assert [i.role for i in encodings.manifest.inputs] == ["source", "model", "statistics"]
    assert encodings.manifest.details["notes"]
    images = digits()
    before, after = as_written(for_tensorrt).run(images), as_written(artifact.path).run(images)
    assert noise_db(before, after) > 10  # the images are noise, unlike those for calibration


def test_statistics_of_the_original_fp32_graph_are_rejected(
    for_openvino: Path, small_statistics: Path, tmp_path: Path
) -> None:
    with pytest.raises(ArtifactError, match="belongs to another graph"):
        quantize(for_openvino, tmp_path / "q.onnx", precision="int8", stats=small_statistics)


@pytest.mark.parametrize("donor_kind", ["graph", "checkpoint"])
def test_preprocessing_comes_from_a_graph_or_checkpoint(
    donor_kind: str, bare: Path, small_graph: Path, small_checkpoint: Path, tmp_path: Path
) -> None:
    with pytest.raises(
        GraphError, match=r"bare\.onnx does not state its preprocessing .*--preprocessing-from"
    ):
        quantize(bare, tmp_path / "q.onnx", precision="int8", target="openvino")
    donor = small_graph if donor_kind == "graph" else small_checkpoint
    artifact = quantize(
        bare,
        tmp_path / "q.onnx",
        precision="int8",
        target="openvino",
        preprocessing_from=str(donor),
    )
    expected, facts = graph_facts(small_graph), graph_facts(artifact.path)
    assert facts.preprocessing == expected.preprocessing
    assert facts.classes == expected.classes
    assert facts.metadata["input"] == expected.metadata["input"]
    assert (facts.precision, facts.metadata["target"]) == ("int8", "openvino")


def test_existing_metadata_is_not_overwritten(small_graph: Path, tmp_path: Path) -> None:
    """Regression: the donor's empty classes and contradicting preprocessing were used."""
    donor = save_checkpoint(
        replace(load_model("resnet18:random:10"), preprocessing=Preprocessing.digits(32)),
        tmp_path / "donor.safetensors", details={},
    ).path  # fmt: skip
    given = {"precision": "fp16", "preprocessing_from": str(donor)}
    artifact = quantize(small_graph, tmp_path / "h.onnx", **given)  # type: ignore[arg-type]
    assert graph_facts(artifact.path).classes == graph_facts(small_graph).classes
    with pytest.raises(
        GraphError, match=r"has preprocessing metadata that differs from .*donor\.onnx"
    ):
        quantize(
            small_graph, tmp_path / "h.onnx", precision="fp16",
            preprocessing_from=_other_graph(small_graph, tmp_path / "donor.onnx"),
        )  # fmt: skip


def _other_graph(graph: Path, path: Path) -> str:
    proto = onnx.load(graph)
    for entry in proto.metadata_props:
        if entry.key == "resnet_opt.preprocessing":
            entry.value = json.dumps(Preprocessing.imagenet(32).to_dict())
    onnx.save(proto, path)
    return str(path)


def test_the_float_graph_does_not_overwrite_an_input(
    bare: Path, small_graph: Path, tmp_path: Path
) -> None:
    teller = tmp_path / "bare.float.onnx"
    teller.write_bytes(small_graph.read_bytes())
    with pytest.raises(UsageError, match=r"the output would overwrite the input bare\.float\.onnx"):
        quantize(bare, tmp_path / "q.onnx", precision="int8", preprocessing_from=str(teller))
    assert teller.read_bytes() == small_graph.read_bytes()
    with pytest.raises(UsageError, match="the output would overwrite the input"):
        optimizer.quantize(bare, teller, precision="int8", preprocessing_from=str(teller))


def test_an_fp32_graph_can_take_its_preprocessing_from_another(
    small_graph: Path, tmp_path: Path
) -> None:
    proto = onnx.load(small_graph)
    del proto.metadata_props[:]
    onnx.save(proto, tmp_path / "bare.onnx")
    artifact = quantize(
        tmp_path / "bare.onnx",
        tmp_path / "h.onnx",
        precision="fp16",
        preprocessing_from=str(small_graph),
    )
    assert graph_facts(artifact.path).precision == "fp16"
    assert graph_facts(artifact.path).preprocessing == graph_facts(small_graph).preprocessing


def test_a_donor_without_preprocessing_or_that_does_not_fit_is_rejected(
    bare: Path, small_graph: Path, tmp_path: Path
) -> None:
    with pytest.raises(GraphError, match=r"bare\.onnx does not state its preprocessing either"):
        quantize(bare, tmp_path / "q.onnx", precision="int8", preprocessing_from=str(bare))
    for change, message in (
        ({"crop": 64, "resize": 64}, "takes images of 32 x 32, the preprocessing produces 64 x 64"),
        ({}, "has 10 outputs, but there are 3 class names"),
    ):
        proto = onnx.load(small_graph)
        for entry in proto.metadata_props:
            if entry.key == "resnet_opt.preprocessing":
                values = json.loads(entry.value) | change
                values.pop("sha256", None)
                entry.value = json.dumps(values)
            if entry.key == "resnet_opt.classes" and not change:
                entry.value = json.dumps(["a", "b", "c"])
        onnx.save(proto, tmp_path / "other.onnx")
        with pytest.raises(GraphError, match=message):
            quantize(
                bare,
                tmp_path / "q.onnx",
                precision="int8",
                preprocessing_from=str(tmp_path / "other.onnx"),
            )


def test_fp32_gives_the_float_graph(for_openvino: Path, tmp_path: Path) -> None:
    artifact = quantize(for_openvino, tmp_path / "f.onnx", precision="fp32")
    assert graph_facts(artifact.path).precision == "fp32"
    assert not is_quantized(artifact.path)
    assert [i.role for i in artifact.manifest.inputs] == ["source"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["f.onnx", "f.onnx.json"]


def test_the_float_graph_is_not_overwritten(for_openvino: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is also the name of the float graph"):
        quantize(for_openvino, tmp_path / "int8.float.onnx", precision="int8")


@pytest.mark.long
def test_a_graph_with_uint8_input(small_checkpoint: Path, tmp_path: Path) -> None:
    """The Cast of the uint8 input stays, those around INT8 are removed."""
    pixels = export_onnx(
        load_model(str(small_checkpoint)), tmp_path / "pixels.onnx", input="uint8-nhwc"
    ).path
    some = open_dataset("digits:train", limit=16)
    observed = calibrate(pixels, some, tmp_path / "s.npz").path
    first = quantize(
        pixels, tmp_path / "t.onnx", precision="int8", target="tensorrt", stats=observed
    ).path
    second = quantize(first, tmp_path / "again.onnx", precision="int8", target="tensorrt").path
    assert graph_facts(second).metadata["input"] == "uint8-nhwc"
    images = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    before, after = as_written(first).run(images), as_written(second).run(images)
    np.testing.assert_array_equal(after, before)


def test_a_third_party_graph_is_compiled_unchanged_and_audited(
    small_graph: Path, tmp_path: Path
) -> None:
    """Weights with other names: the layers of ONNX Runtime's engine are still identified."""
    import optimizer

    model = by_onnxruntime(ir.load(small_graph), activations="u8", batch=digits())
    for value in list(model.graph.initializers.values()):
        value.name = f"constant_{str(value.name).replace('.', '_')}"
    ir.save(model, tmp_path / "foreign.onnx")
    engine = optimizer.build(
        tmp_path / "foreign.onnx", tmp_path / "e.onnx", precision="int8", engine="onnxruntime"
    )
    audit = optimizer.audit(engine)
    assert audit.verdict == "pass", audit.reason


def test_files_that_are_not_graphs_are_rejected(tmp_path: Path) -> None:
    (tmp_path / "x.onnx").write_bytes(b"not a graph")
    with pytest.raises(GraphError, match=r"x\.onnx is not an ONNX file"):
        quantize(tmp_path / "x.onnx", tmp_path / "q.onnx", precision="int8")
    with pytest.raises(GraphError, match="no such file"):
        is_quantized(tmp_path / "y.onnx")
