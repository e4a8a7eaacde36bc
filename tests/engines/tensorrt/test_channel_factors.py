"""The graph that TensorRT-RTX compiles in the place of an INT8 graph: the same numbers, fewer bytes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from optimizer.engines.protocol import BuildSettings
from optimizer.engines.tensorrt import TensorRtRtx
from optimizer.engines.tensorrt.channel_factors import write_with_factors
from optimizer.progress import Silent

from . import graphs

CONVOLUTIONS = len(graphs.MODULES) - 1


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    return graphs.save_resnet(tmp_path / "model.onnx", "int8", high="fp16")


def test_it_computes_the_same(graph: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.onnx"
    assert write_with_factors(graph, other) == CONVOLUTIONS
    onnx.checker.check_model(str(other), full_check=True)
    batch = graphs.images(8)
    expected, actual = graphs.as_written(graph, batch), graphs.as_written(other, batch)
    # A sum that is rounded before its factor may fall on the other side of a step of the next Q.
    assert np.abs(actual - expected).max() <= 3e-2 * np.abs(expected).max()


def test_integers_stay_and_scales_multiply_out(graph: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.onnx"
    write_with_factors(graph, other)
    before, after = (
        {x.name: numpy_helper.to_array(x) for x in onnx.load(path).graph.initializer}
        for path in (graph, other)
    )
    for name in graphs.MODULES[:-1]:
        np.testing.assert_array_equal(before[f"{name}.weight"], after[f"{name}.weight"])
        common = float(after[f"{name}.common_scale"])
        assert np.log2(common) == round(np.log2(common)), "a power of two is exact"
        factors = after[f"{name}.factor"].reshape(-1).astype(np.float64)
        np.testing.assert_array_equal(
            (factors * common).astype(np.float16), before[f"{name}.weight.scale"]
        )
        sums = 128.0 * np.abs(before[f"{name}.weight"].astype(np.float64)).sum(axis=(1, 2, 3))
        assert (sums * graphs.SCALE * common).max() < 65504 / 2, "no image overflows FP16"
    nodes = {node.name: node for node in onnx.load(other).graph.node}
    conv = nodes["conv1"]
    assert len(conv.input) == 2
    assert [nodes[f"conv1.{part}"].op_type for part in ("scale", "bias")] == ["Mul", "Add"]
    assert nodes["fc"].op_type == "Gemm"


@pytest.mark.parametrize(("precision", "high"), [("fp16", None), ("fp8", "fp16"), ("int8", "fp32")])
def test_what_is_left_as_it_is(tmp_path: Path, precision: str, high: str | None) -> None:
    graph = graphs.save_resnet(tmp_path / "model.onnx", precision, high=high)
    assert write_with_factors(graph, tmp_path / "other.onnx") == 0
    assert not (tmp_path / "other.onnx").exists()


@pytest.mark.parametrize("channels", [1, None], ids=["one", "all"])
def test_channels_that_are_next_to_nothing(
    graph: Path, tmp_path: Path, channels: int | None
) -> None:
    """BatchNorm leaves some; their factors have few digits in FP16, which no output shows."""
    replace_scale(graph, "conv1.weight.scale", slice(channels), 4.2e-7)
    other = tmp_path / "other.onnx"
    assert write_with_factors(graph, other) == CONVOLUTIONS
    batch = graphs.images(8)
    expected, actual = graphs.as_written(graph, batch), graphs.as_written(other, batch)
    assert np.abs(actual - expected).max() <= 3e-2 * np.abs(expected).max()


def test_sums_that_would_overflow(graph: Path, tmp_path: Path) -> None:
    replace_scale(graph, "conv1.input.scale", (), 30_000.0)
    assert write_with_factors(graph, tmp_path / "other.onnx") == CONVOLUTIONS - 1


def replace_scale(graph: Path, name: str, where: object, value: float) -> None:
    model = onnx.load(graph)
    for tensor in model.graph.initializer:
        if tensor.name == name:
            scales = numpy_helper.to_array(tensor).copy()
            scales[where] = np.float16(value)  # type: ignore[index]
            tensor.CopyFrom(numpy_helper.from_array(scales, name))
    onnx.save(model, graph)


def test_the_engine_moves_fewer_bytes(
    rtx: TensorRtRtx, graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By real builds, with and without."""
    import optimizer.engines.tensorrt.compiling as compiling

    settings = BuildSettings(precision="int8", targets=("sm86",), profile=(1, 2, 4))
    built = rtx.build(graph, tmp_path / "a.rtx", settings, Silent())
    (note,) = [note for note in built.notes if "a factor per channel" in note]
    assert note.startswith(f"{CONVOLUTIONS} INT8 convolutions")
    monkeypatch.setattr(compiling, "write_with_factors", lambda *_: 0)
    plain = rtx.build(graph, tmp_path / "b.rtx", settings, Silent())
    with_factors, without = (
        {
            name: layer
            for layer in one.layers
            for name in layer.torch_names
            if name in graphs.MODULES
        }
        for one in (built, plain)
    )
    assert set(with_factors) == set(without) == set(graphs.MODULES)
    assert {layer.precision for layer in with_factors.values()} == {"int8"}
    assert len(built.layers) <= len(plain.layers)
    moved = [sum(layer.bytes or 0 for layer in one.layers) for one in (built, plain)]
    assert moved[0] < moved[1]


@pytest.mark.parametrize(
    ("target", "options"), [("sm75", {"storage_only": True}), ("sm86", {"refittable": True})]
)
def test_where_it_is_not_done(
    rtx: TensorRtRtx, graph: Path, tmp_path: Path, target: str, options: dict[str, bool]
) -> None:
    from optimizer.errors import MissingDevice

    settings = BuildSettings(
        precision="int8", targets=(target,), profile=(1, 2, 4), options=options
    )
    try:
        built = rtx.build(graph, tmp_path / "a.rtx", settings, Silent())
    except MissingDevice as error:
        pytest.skip(error.message)  # refittable engines need a driver
    assert not [note for note in built.notes if "a factor per channel" in note]
