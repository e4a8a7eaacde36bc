"""Half graphs computed as written: proven against onnx's reference evaluator."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

from optimizer.graphs.half_rounding import computed_as_written, first_overflow
from optimizer.graphs.taps import tapped, unoptimized_session
from optimizer.precision.fp8 import to_fp8
from optimizer.precision.half import to_half
from optimizer.targets.rules import TARGETS
from tests.precision.networks import images, network
from tests.precision.test_int8_graphs import lowered, statistics

FP16 = np.finfo(np.float16)


def scaled(factor: float, *, seed: int = 0) -> ir.Model:
    """A network whose last block is scaled up, and its last layer down by as much."""
    model = network(seed)
    for name in ("layer1.1.conv3", "layer1.0.downsample.0", "layer1.0.conv3"):
        for part in ("weight", "bias"):
            value = model.graph.initializers.get(f"{name}.{part}")
            if value is not None and value.const_value is not None:
                value.const_value = ir.tensor(value.const_value.numpy() * np.float32(factor))
    for name, scale in (("layer1.1.conv1.weight", factor), ("fc.weight", factor)):
        value = model.graph.initializers[name]
        assert value.const_value is not None
        value.const_value = ir.tensor(value.const_value.numpy() / np.float32(scale))
    return model


def write(model: ir.Model, path: Path) -> Path:
    ir.save(model, path)
    return path


def half(model: ir.Model, path: Path) -> Path:
    to_half(model, ir.DataType.FLOAT16)
    return write(model, path)


def tensors_of(path: Path) -> list[str]:
    return [o for node in onnx.load(path).graph.node for o in node.output]


def by_reference(path: Path, batch: NDArray[Any]) -> dict[str, NDArray[Any]]:
    """Every tensor, by onnx's reference evaluator."""
    model = onnx.load(path)
    names = tensors_of(path)
    del model.graph.output[:]
    model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(n) for n in names)
    with np.errstate(all="ignore"):
        values = ReferenceEvaluator(model).run(None, {"images": batch})
    return dict(zip(names, values, strict=True))


def by_emulation(path: Path, batch: NDArray[Any]) -> dict[str, NDArray[Any]]:
    model = computed_as_written(path)
    assert model is not None
    return tapped(model, tensors_of(path))(batch)


@pytest.mark.parametrize("seed", range(3))
def test_every_tensor_agrees_with_the_reference_evaluator(seed: int, tmp_path: Path) -> None:
    """Tensor by tensor, up to the rounding of sums, which the reference computes in FP16."""
    path, batch = half(network(seed), tmp_path / "half.onnx"), images(4, seed)
    expected, actual = by_reference(path, batch), by_emulation(path, batch)
    assert expected.keys() == actual.keys()
    for name, tensor in expected.items():
        assert actual[name].dtype == tensor.dtype, name
        largest = np.abs(tensor.astype(np.float64)).max()
        difference = np.abs(tensor.astype(np.float64) - actual[name]).max()
        assert difference <= 16 * FP16.eps * largest, name


def test_rounding_of_one_operation_is_exact(tmp_path: Path) -> None:
    """Add of two FP16 tensors: to nearest even, and infinite above 65,504 + half a step."""
    helper = onnx.helper
    nodes = [
        helper.make_node("Cast", ["images"], ["half"], "cast", to=10),
        helper.make_node("Add", ["half", "half"], ["sum"], "add"),
        helper.make_node("Relu", ["sum"], ["relu"], "relu"),
        helper.make_node("Cast", ["relu"], ["out"], "back", to=1),
    ]
    graph = helper.make_graph(
        nodes,
        "sum",
        [helper.make_tensor_value_info("images", 1, ["N", 3])],
        [helper.make_tensor_value_info("out", 1, ["N", 3])],
    )
    path = tmp_path / "sum.onnx"
    opset = [helper.make_opsetid("", 20)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=9), path)
    values = np.array([[0.1, 32752.0, 40000.0], [1e-8, -40000.0, 1 + 2**-11]], np.float32)
    exact = values.astype(np.float16)
    with np.errstate(over="ignore"):
        expected = np.maximum(exact + exact, np.float16(0)).astype(np.float32)
    model = computed_as_written(path)
    (actual,) = unoptimized_session(model.SerializeToString()).run(None, {"images": values})
    np.testing.assert_array_equal(actual, expected)
    assert np.isinf(actual[0, 2])
    # The library alone computes in FP32 and does not overflow: the reason for the emulation.
    (plain,) = unoptimized_session(path).run(None, {"images": values})
    assert np.isfinite(plain).all()


def test_overflow_is_where_the_reference_has_it(tmp_path: Path) -> None:
    path, batch = half(scaled(1e4), tmp_path / "half.onnx"), images(4)
    expected, actual = by_reference(path, batch), by_emulation(path, batch)
    infinite = [name for name, tensor in expected.items() if not np.isfinite(tensor).all()]
    assert infinite
    assert [name for name, t in actual.items() if not np.isfinite(t).all()] == infinite
    assert not np.isfinite(actual["logits"]).all()
    reason = first_overflow(computed_as_written(path), batch)
    assert reason is not None
    assert reason.startswith(f"{infinite[0]} reaches ")
    assert "above the FP16 maximum of 65,504" in reason


def test_graphs_without_half_tensors_are_left_alone(tmp_path: Path) -> None:
    assert computed_as_written(write(network(0), tmp_path / "fp32.onnx")) is None
    int8, _ = lowered(lambda: network(0), TARGETS["openvino"])
    assert computed_as_written(write(int8, tmp_path / "int8.onnx")) is None
    path = half(network(0), tmp_path / "half.onnx")
    model = computed_as_written(path)
    assert first_overflow(model, images(2)) is None


def test_int8_with_fp16_around_overflows_as_the_reference(tmp_path: Path) -> None:
    rules = replace(TARGETS["tensorrt-cpu"], high_precision="fp16", shift=False)
    batch = 3 * images(4)
    for factor, overflows in ((1.0, False), (4e3, True)):

        def build(factor: float = factor) -> ir.Model:
            return scaled(factor)

        model, _ = lowered(build, rules)
        path = write(model, tmp_path / f"int8-{factor}.onnx")
        expected, actual = by_reference(path, batch), by_emulation(path, batch)
        infinite = [
            [name for name, tensor in tensors.items() if not np.isfinite(tensor).all()]
            for tensors in (expected, actual)
        ]
        assert infinite[0] == infinite[1]
        assert ("logits" in infinite[0]) == overflows


def test_fp8_with_fp16_around_overflows(tmp_path: Path) -> None:
    for factor, overflows in ((1.0, False), (1e4, True)):
        model = scaled(factor)
        to_fp8(model, statistics(scaled(factor), [images(64, 1)]), high_precision="fp16")
        path = write(model, tmp_path / f"fp8-{factor}.onnx")
        outputs = by_emulation(path, images(4))["logits"]
        assert np.isfinite(outputs).all() != overflows


def test_bf16_is_rounded_to_eight_bits(tmp_path: Path) -> None:
    model = network(1)
    to_half(model, ir.DataType.BFLOAT16)
    emulated = computed_as_written(write(model, tmp_path / "bf16.onnx"))
    (outputs,) = unoptimized_session(emulated.SerializeToString()).run(None, {"images": images(2)})
    bits = outputs.view(np.uint32)
    assert (bits & 0xFFFF == 0).all()
