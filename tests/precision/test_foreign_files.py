"""ONNX files of other exporters through the verbs: description, conversion, engines, validation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import optimizer
from optimizer.errors import GraphError, UsageError
from optimizer.graphs.facts import graph_facts
from optimizer.precision.foreign import needs_import
from tests.graphs.dresses import CLASSES, SIZE, Dress, write

PREPROCESSING = {"resize": SIZE, "crop": SIZE, "mean": [0.3] * 3, "std": [0.4] * 3}
MXNET = Dress(opset=8, ir_version=3, batchnorm="kept", constants="inputs")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Labelled uint8 images: patterns in one colour per class."""
    rng = np.random.default_rng(0)
    labels = np.arange(40) % CLASSES
    images = rng.integers(0, 256, (40, SIZE, SIZE, 3), dtype=np.uint8) // 2
    images += (20 * labels[:, None, None, None]).astype(np.uint8)
    path = tmp_path_factory.mktemp("data") / "data.npz"
    np.savez(path, images=images, labels=labels)
    return str(path)


def card(model: Path, **changes: Any) -> Path:
    path = model.with_name(model.name + ".card.json")
    path.write_text(json.dumps({"preprocessing": PREPROCESSING | changes}))
    return path


def test_a_card_beside_the_file_is_taken(tmp_path: Path, data: str) -> None:
    model = write(tmp_path / "zoo.onnx", MXNET)
    card(model)
    artifact = optimizer.quantize(
        model, tmp_path / "out" / "int8.onnx", target="openvino", calib=data, calib_images=16
    )
    assert artifact.manifest.preprocessing is not None
    assert artifact.manifest.preprocessing["crop"] == SIZE
    raw = json.loads((tmp_path / "out" / "zoo.float.onnx.json").read_text())
    changes = raw["details"]["changes"]
    assert changes[0].startswith("preprocessing from zoo.onnx.card.json: shorter side 16")
    assert "6 x BatchNorm folded into the layer before it: conv1.bn" in changes[3]
    assert raw["details"]["images_compared"] == 8
    assert raw["details"]["difference"] < 1e-4
    result = optimizer.validate(artifact.path, reference=model, data=data)
    assert [hop.name for hop in result.hops] == ["reference", "onnx fp32", "graph int8"]
    assert "preprocessing from zoo.onnx.card.json" in (result.hops[0].executor or "")
    assert result.hops[1].flips == 0
    assert result.hops[2].sqnr_db is not None
    assert result.hops[2].sqnr_db > 20


def test_flags_state_the_preprocessing(tmp_path: Path, data: str) -> None:
    model = write(tmp_path / "m.onnx", Dress(pool="ReduceMean", flat="Reshape"))
    flags: dict[str, Any] = {"mean": "0.3", "std": "0.4,0.4,0.4", "resize": SIZE}
    artifact = optimizer.calibrate(
        model, tmp_path / "m.stats.npz", calib=data, calib_images=16, **flags
    )
    assert artifact.manifest.preprocessing is not None
    stated = {name: artifact.manifest.preprocessing[name] for name in PREPROCESSING}
    assert stated == PREPROCESSING
    with pytest.raises(UsageError, match="not a list of numbers"):
        optimizer.calibrate(model, tmp_path / "n.npz", calib=data, mean="grey")
    with pytest.raises(UsageError, match="2 numbers for 3 channels"):
        optimizer.calibrate(model, tmp_path / "n.npz", calib=data, mean="0.1,0.2")


def test_a_card_may_be_anywhere_and_flags_change_it(tmp_path: Path) -> None:
    model = write(tmp_path / "m.onnx", Dress(size=("h", "w")))
    elsewhere = card(tmp_path / "other", color="BGR").rename(tmp_path / "my.json")
    artifact = optimizer.quantize(
        model,
        tmp_path / "fp32.onnx",
        precision="fp32",
        preprocessing_from=str(elsewhere),
        crop=24,
    )
    stated = artifact.manifest.preprocessing
    assert stated is not None
    assert (stated["color"], stated["crop"], stated["resize"]) == ("BGR", 24, 24)
    changes = artifact.manifest.details["changes"]
    assert changes[0].startswith("preprocessing from my.json with --crop: shorter side 24")
    assert "dynamic height and width fixed at 24 x 24: images" in changes
    assert graph_facts(artifact.path).input_shape == (None, 3, 24, 24)


def test_without_a_description_the_ways_to_give_one_are_named(tmp_path: Path, data: str) -> None:
    model = write(tmp_path / "m.onnx", MXNET)
    command: dict[str, Any] = {"calib": data, "calib_images": 16}
    with pytest.raises(GraphError, match=r"m\.onnx does not state its preprocessing") as raised:
        optimizer.quantize(model, tmp_path / "int8.onnx", **command)
    assert "m.onnx.card.json" in (raised.value.hint or "")
    card(model)  # the advice works
    assert optimizer.quantize(model, tmp_path / "int8.onnx", **command).path.is_file()
    (tmp_path / "m.onnx.card.json").write_text('{"preprocessing": {"crop": "big"}}')
    with pytest.raises(UsageError, match=r"cannot use .*m\.onnx\.card\.json: preprocessing\.crop"):
        optimizer.quantize(model, tmp_path / "other.onnx", **command)


def test_an_imported_graph_needs_no_second_import(tmp_path: Path) -> None:
    model = write(tmp_path / "m.onnx", Dress(batchnorm="kept"))
    card(model)
    artifact = optimizer.quantize(model, tmp_path / "fp32.onnx", precision="fp32")
    assert needs_import(model)
    assert not needs_import(artifact.path)


@pytest.mark.parametrize(
    ("dress", "message"),
    [
        (Dress(size=(SIZE, 24)), "takes images of 16 x 24, but preprocessing here gives squares"),
        (Dress(channels=1), "takes images with 1 channels"),
        (Dress(size=(32, 32)), "takes images of 32 x 32, the preprocessing produces 16 x 16"),
    ],
)
def test_images_that_do_not_fit_are_refused_before_any_work(
    dress: Dress, message: str, tmp_path: Path, data: str
) -> None:
    model = write(tmp_path / "m.onnx", dress)
    card(model)
    with pytest.raises(GraphError, match=message):
        optimizer.quantize(model, tmp_path / "out" / "q.onnx", calib=data, calib_images=16)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("nhwc", [False, True])
def test_a_network_for_other_images_is_used_on_squares_if_asked(
    nhwc: bool, tmp_path: Path, data: str
) -> None:
    """The advice of the refusal works when it is followed."""
    model = write(tmp_path / "wide.onnx", Dress(size=(SIZE, 24), nhwc=nhwc, pool="ReduceMean"))
    options = {"mean": 0.3, "std": 0.4, "resize": SIZE}
    with pytest.raises(GraphError, match="takes images of 16 x 24") as refused:
        optimizer.build(model, tmp_path / "e.ort.onnx", engine="onnxruntime", **options)
    assert str(refused.value.hint).startswith("--crop ")
    options["crop"] = SIZE
    engine = optimizer.build(
        model, tmp_path / "e.ort.onnx", engine="onnxruntime", save_intermediates=tmp_path, **options
    )
    changes = (
        engine.manifest.inputs
        and json.loads((tmp_path / "wide.float.onnx.json").read_text())["details"]["changes"]
    )
    assert any("16 x 24 by 16 x 16" in line for line in changes)
    result = optimizer.validate(engine.path, reference=model, data=data, **options)
    assert [hop.flips for hop in result.hops[1:]] == [0] * (len(result.hops) - 1)


def test_a_network_for_one_size_only_is_refused(tmp_path: Path) -> None:
    def fixed(model: Any) -> None:
        """Average over a map of a fixed size, written as Reshape and ReduceMean."""
        pool = next(node for node in model.graph.node if node.op_type == "GlobalAveragePool")
        pool.op_type, output = "Reshape", pool.output[0]
        pool.input.append("map.shape")
        pool.output[0] = "map"
        shapes = {"map.shape": [-1, 12, 24], "map.axes": [2]}
        for name, values in shapes.items():
            tensor = onnx.numpy_helper.from_array(np.array(values, np.int64), name)
            model.graph.initializer.append(tensor)
        mean = onnx.helper.make_node(
            "ReduceMean", ["map", "map.axes"], [output], "mean", keepdims=0
        )
        model.graph.node.insert(list(model.graph.node).index(pool) + 1, mean)

    model = write(tmp_path / "fixed.onnx", Dress(size=(SIZE, 24), edit=fixed))
    with pytest.raises(
        GraphError, match=r"does not compute on squares .*16 x 24 by 32 x 32"
    ) as caught:
        optimizer.quantize(model, tmp_path / "q.onnx", precision="fp32", mean=0.3, std=0.4, crop=32)
    assert "global average pooling" in str(caught.value.hint)


def test_external_weights_are_read_and_written_as_one_file(tmp_path: Path, data: str) -> None:
    write(tmp_path / "whole.onnx", Dress())
    model = tmp_path / "in" / "model.onnx"
    model.parent.mkdir()
    onnx.save_model(
        onnx.load(tmp_path / "whole.onnx"), model, save_as_external_data=True,
        location="model.onnx.data", size_threshold=0,
    )  # fmt: skip
    card(model)
    engine = optimizer.build(model, tmp_path / "out" / "e.ort.onnx", engine="onnxruntime")
    assert not list((tmp_path / "out").glob("*.data"))
    result = optimizer.validate(engine.path, reference=model, data=data)
    assert [hop.status for hop in result.hops] == ["ok"] * len(result.hops)
    assert all(hop.flips in (None, 0) for hop in result.hops)


def test_a_half_file_stays_what_it_is(tmp_path: Path, data: str) -> None:
    model = write(tmp_path / "half.onnx", Dress(dtype=np.float16))
    card(model)
    assert graph_facts(model).precision == "fp16"
    assert graph_facts(write(tmp_path / "double.onnx", Dress(dtype=np.float64))).precision == "fp64"
    artifact = optimizer.quantize(model, tmp_path / "out.onnx", precision="fp16", calib=data)
    stored = {t.name: t.raw_data for t in onnx.load(model).graph.initializer}
    written = {t.name: t.raw_data for t in onnx.load(artifact.path).graph.initializer}
    assert written == stored
    result = optimizer.validate(artifact.path, reference=model, data=data)
    assert result.hops[-1].flips == 0


def test_probabilities_are_compared_with_probabilities(tmp_path: Path, data: str) -> None:
    """Logits as reference, and a file that ends in Softmax."""
    logits = write(tmp_path / "logits.onnx", Dress())
    softmax = write(tmp_path / "softmax.onnx", Dress(tail="Softmax"))
    card(logits)
    card(softmax)
    engine = optimizer.build(softmax, tmp_path / "s.ort.onnx", engine="onnxruntime")
    for candidate in (softmax, engine.path):
        result = optimizer.validate(candidate, reference=logits, data=data)
        for hop in result.hops[1:]:
            assert hop.flips == 0
            assert hop.sqnr_db is None or hop.sqnr_db > 80


def test_one_of_several_outputs(tmp_path: Path, data: str) -> None:
    model = write(tmp_path / "two.onnx", Dress(outputs="scores+features"))
    card(model)
    with pytest.raises(GraphError, match="2 outputs") as raised:
        optimizer.build(model, tmp_path / "e.ort.onnx", engine="onnxruntime")
    assert "--output-name scores" in (raised.value.hint or "")
    engine = optimizer.build(
        model, tmp_path / "e.ort.onnx", engine="onnxruntime", output_name="scores"
    )
    result = optimizer.validate(
        [engine.path, model], reference=model, data=data, output_name="scores"
    )
    assert all(hop.flips in (None, 0) for hop in result.hops)


def test_the_reference_takes_its_preprocessing_from_the_engine(tmp_path: Path, data: str) -> None:
    model = write(tmp_path / "m.onnx", MXNET)
    flags: dict[str, Any] = {"mean": "0.3", "std": "0.4", "crop": SIZE, "resize": SIZE}
    engine = optimizer.build(model, tmp_path / "e.ort.onnx", engine="onnxruntime", **flags)
    result = optimizer.validate(engine.path, reference=model, data=data)
    assert "preprocessing from e.ort.onnx" in (result.hops[0].executor or "")
    assert result.hops[-1].flips == 0


def test_layers_to_keep_are_checked_by_the_names_after_the_import(
    tmp_path: Path, data: str
) -> None:
    model = write(tmp_path / "m.onnx", Dress(opset=13, names=False))
    card(model)
    command: dict[str, Any] = {"calib": data, "calib_images": 16}
    with pytest.raises(UsageError, match="no layer 'layer9'"):
        optimizer.quantize(model, tmp_path / "q.onnx", keep="layer9", **command)
    kept = optimizer.quantize(model, tmp_path / "q.onnx", keep="layer1.0.conv1", **command)
    assert graph_facts(kept.path).keep == ["layer1.0.conv1"]
