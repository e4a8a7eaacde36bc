"""The same faults end to end through `optimizer.validate`.

`test_faults` checks the hops individually; here each fault is introduced where users would introduce
it and passes through real builds, neighbouring files and the engine.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import optimizer
from optimizer.errors import AccuracyGateFailed, DataError
from optimizer.evaluation import raise_for_verdict
from optimizer.exporting import export_onnx
from optimizer.models import load_model, save_checkpoint
from optimizer.precision import quantize
from optimizer.results import ValidateResult
from tests.evaluation.conftest import Workshop, largest_fall

pytestmark = [pytest.mark.long, pytest.mark.usefixtures("one_thread")]


@pytest.fixture(scope="module")
def other(workshop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The export of another network that is as accurate as the reference."""
    path = tmp_path_factory.mktemp("other") / "other.onnx"
    export_onnx(load_model(str(workshop.other_checkpoint)), path)
    return path


def _validated(workshop: Workshop, engine: Path, **options: Any) -> ValidateResult:
    defaults = {
        "reference": str(workshop.checkpoint),
        "data": str(workshop.folder / "test.npz"),
        "limit": 200,
        "max_drop": "5pp",
    }
    return optimizer.validate([engine], **{**defaults, **options})


def _edited(source: Path, target: Path, edit: Callable[[onnx.ModelProto], None]) -> Path:
    proto = onnx.load(source)
    edit(proto)
    onnx.save(proto, target)
    return target


def _array(proto: onnx.ModelProto, name: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    tensor = next(t for t in proto.graph.initializer if t.name == name)
    changed = np.ascontiguousarray(change(numpy_helper.to_array(tensor)))
    tensor.CopyFrom(numpy_helper.from_array(changed, name))


def _built(graph: Path, precision: str = "fp32", **options: Any) -> Path:
    return optimizer.build(
        graph, graph.with_suffix(".blob"), precision=precision, engine="openvino", **options
    ).path


def _as_int8(workshop: Workshop, fp32: Path) -> Path:
    """An INT8 engine of the given FP32 graph, with its own statistics."""
    calib = str(workshop.folder / "train.npz")
    return _built(fp32, "int8", calib=calib, calib_images=64)


def test_swapped_colour_channels(workshop: Workshop, tmp_path: Path) -> None:
    """In the export: the first layer swaps red and blue, and quantization inherits it."""
    swapped = _edited(
        workshop.onnx,
        tmp_path / "model.onnx",
        lambda proto: _array(proto, "conv1.weight", lambda w: w[:, ::-1]),
    )
    result = _validated(workshop, _as_int8(workshop, swapped), exported=swapped)
    assert [hop.name for hop in result.hops] == [
        "reference",
        "onnx fp32",
        "graph int8",
        "model.blob",
    ]
    assert (result.verdict, result.first_failing_hop) == ("fail", "onnx fp32")
    assert "the loss comes from the export (onnx fp32), not from" in result.finding
    with pytest.raises(AccuracyGateFailed):
        raise_for_verdict(result)


def test_swapped_colour_channels_of_the_images(workshop: Workshop, tmp_path: Path) -> None:
    """In the data: the reference itself loses accuracy, so no engine is judged."""
    with np.load(workshop.folder / "test.npz") as file:
        arrays = dict(file)
    arrays["images"] = arrays["images"][..., ::-1]
    np.savez(tmp_path / "bgr.npz", **arrays)
    known = tmp_path / "known.safetensors"
    save_checkpoint(load_model(str(workshop.checkpoint)), known, details={"expected_top1": 0.97})
    assert _validated(workshop, workshop.engine, reference=str(known)).verdict == "pass"
    with pytest.raises(AccuracyGateFailed, match="the data or the preprocessing is wrong"):
        _validated(workshop, workshop.engine, reference=str(known), data=str(tmp_path / "bgr.npz"))


def test_a_wrong_mean(workshop: Workshop, tmp_path: Path) -> None:
    """Inside an engine with uint8 input, where the manifest does not show it."""
    pixels = tmp_path / "pixels.onnx"
    export_onnx(workshop.model, pixels, input="uint8-nhwc")
    assert _validated(workshop, _built(pixels)).verdict == "pass"
    wrong = _edited(
        pixels,
        tmp_path / "wrong.onnx",
        lambda proto: _array(proto, "normalize.shift", lambda shift: shift - 3.0),
    )
    result = _validated(workshop, _built(wrong))
    assert (result.verdict, result.first_failing_hop) == ("fail", "onnx fp32")
    assert "the loss comes from the export (onnx fp32), not from the engine" in result.finding


def test_a_shuffled_class_list(workshop: Workshop, tmp_path: Path) -> None:
    """Of the engine: the hop fails. Of the data: it is refused."""

    def shuffle(proto: onnx.ModelProto) -> None:
        entry = next(p for p in proto.metadata_props if p.key == "resnet_opt.classes")
        entry.value = entry.value.replace('"0"', '"x"').replace('"1"', '"0"').replace('"x"', '"1"')

    shuffled = _edited(workshop.onnx, tmp_path / "shuffled.onnx", shuffle)
    result = _validated(workshop, _built(shuffled))
    assert (result.verdict, result.first_failing_hop) == ("fail", "onnx fp32")
    assert (
        "shuffled.blob.graph.onnx has the reference's classes in a different order"
        in result.finding
    )

    with np.load(workshop.folder / "test.npz") as file:
        arrays = dict(file)
    arrays["classes"] = arrays["classes"][::-1]
    np.savez(tmp_path / "data.npz", **arrays)
    with pytest.raises(DataError, match="classes in another order"):
        _validated(workshop, workshop.engine, data=str(tmp_path / "data.npz"))


def test_one_layers_scale_times_four(workshop: Workshop, tmp_path: Path) -> None:
    name = "layer2.0.downsample.0.weight.scale"
    broken = _edited(
        workshop.int8,
        tmp_path / "broken.onnx",
        lambda proto: _array(proto, name, lambda scale: scale * 4),
    )
    engine = _built(broken, "int8")
    result = _validated(workshop, engine, exported=workshop.onnx, layers=True)
    assert (result.verdict, result.first_failing_hop) == ("fail", "graph int8")
    assert (
        "the loss comes from quantization (graph int8), not from the export or the engine"
        in result.finding
    )
    fall = largest_fall(result.layers["graph int8"])
    assert fall is not None
    assert fall[0] == "layer2.0"


def test_a_graph_with_a_fixed_batch_size(workshop: Workshop, tmp_path: Path) -> None:
    """Fixed by editing the file; the engine accepts only batches of two but is not at fault."""

    def freeze(proto: onnx.ModelProto) -> None:
        for value in (*proto.graph.input, *proto.graph.output):
            value.type.tensor_type.shape.dim[0].dim_value = 2

    frozen = _edited(workshop.onnx, tmp_path / "frozen.onnx", freeze)
    result = _validated(workshop, _built(frozen))
    assert (result.verdict, result.first_failing_hop) == ("fail", "onnx fp32")
    assert "the batch size of frozen.blob.graph.onnx is fixed at 2" in result.finding


def test_an_engine_of_another_checkpoint(workshop: Workshop, other: Path) -> None:
    """As accurate as the right one: only the metadata and the flips show the difference."""
    engine = _built(other)
    accurate = _validated(workshop, engine)
    assert accurate.verdict != "fail"
    assert "other.blob.graph.onnx was exported from a different checkpoint" in accurate.finding
    flips = _validated(workshop, engine, max_flips=0.001)
    assert (flips.verdict, flips.first_failing_hop) == ("fail", "onnx fp32")
    assert "the loss comes from the export (onnx fp32)" in flips.finding
    assert "other.blob.graph.onnx was exported from a different checkpoint" in flips.finding


def test_an_engine_of_another_checkpoint_between_the_right_files(
    workshop: Workshop, other: Path, tmp_path: Path
) -> None:
    """The right export, and an engine whose graph comes from different weights."""
    stats = tmp_path / "stats.npz"
    optimizer.calibrate(other, stats, calib=str(workshop.folder / "train.npz"), calib_images=64)
    graph = tmp_path / "graph.onnx"
    quantize(other, graph, precision="int8", target="openvino", stats=stats)
    result = _validated(workshop, _built(graph, "int8"), exported=workshop.onnx, max_flips=0.001)
    assert (result.verdict, result.first_failing_hop) == ("fail", "graph int8")
    assert "graph.onnx was exported from a different checkpoint" in result.finding
