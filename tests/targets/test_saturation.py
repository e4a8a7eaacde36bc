"""Checks which products INT8 kernels add in 16 bits on a CPU without VNNI, and that rounding the
weights accordingly keeps every sum exact. Otherwise results would silently be wrong."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from optimizer.precision.int8.rounding import WeightGrid, nearest
from optimizer.targets.hardware import cpu_features
from optimizer.targets.rules import rules_for

pytestmark = pytest.mark.skipif(
    cpu_features().vnni, reason="this CPU has VNNI: INT8 products are added in 32 bits"
)

LAYERS = {
    "1x1": ((16, 1, 1), (4, 4), 0, 1),
    "1x1 of 5 channels": ((5, 1, 1), (4, 4), 0, 1),
    "3x3": ((8, 3, 3), (6, 6), 1, 1),
    "3x3 with stride": ((8, 3, 3), (7, 7), 1, 2),
    "3x3 of 5 channels": ((5, 3, 3), (6, 6), 1, 1),
    "stem": ((3, 7, 7), (24, 24), 3, 2),
    "fc": ((16,), (), 0, 1),
    "fc of 7 inputs": ((7,), (), 0, 1),
}
ENGINES = ("openvino", "onnxruntime")
STORED = ("u8", "s8")


class Layer:
    """One weighted layer between Q/DQ pairs, with scales of one for inputs and weights."""

    def __init__(self, name: str, weight: NDArray[np.int8], stored: str, step: float) -> None:
        kernel, spatial, self.pad, self.stride = LAYERS[name]
        self.weight = weight
        self.shape = (kernel[0], *spatial)
        self.step = np.float32(step)
        self.low, self.high = (0, 255) if stored == "u8" else (-128, 127)
        self.dtype = np.uint8 if stored == "u8" else np.int8

    def proto(self) -> onnx.ModelProto:
        constants = {
            "one": np.float32(1.0),
            "zero": self.dtype(0),
            "w": self.weight,
            "w.scale": np.ones(len(self.weight), np.float32),
            "w.zero": np.zeros(len(self.weight), np.int8),
            "b": np.zeros(len(self.weight), np.float32),
            "step": self.step,
            "middle": np.uint8(128),
        }
        node = helper.make_node
        layer = (
            node("Gemm", ["x.d", "w.d", "b"], ["y"], transB=1)
            if self.weight.ndim == 2
            else node(
                "Conv", ["x.d", "w.d", "b"], ["y"], pads=[self.pad] * 4, strides=[self.stride] * 2
            )
        )
        nodes = [
            node("QuantizeLinear", ["x", "one", "zero"], ["x.q"]),
            node("DequantizeLinear", ["x.q", "one", "zero"], ["x.d"]),
            node("DequantizeLinear", ["w", "w.scale", "w.zero"], ["w.d"], axis=0),
            layer,
            node("QuantizeLinear", ["y", "step", "middle"], ["y.q"]),
            node("DequantizeLinear", ["y.q", "step", "middle"], ["out"]),
        ]
        graph = helper.make_graph(
            nodes,
            "layer",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", *self.shape])],
            [helper.make_tensor_value_info("out", TensorProto.FLOAT, None)],
            [numpy_helper.from_array(np.asarray(a), name) for name, a in constants.items()],
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)

    def exact(self, x: NDArray[np.float32]) -> NDArray[np.float64]:
        """Sums of the integer products."""
        import torch

        if self.weight.ndim == 2:
            return x.astype(np.float64) @ self.weight.T.astype(np.float64)
        values = torch.nn.functional.conv2d(
            torch.from_numpy(x).double(),
            torch.from_numpy(self.weight).double(),
            stride=self.stride,
            padding=self.pad,
        )
        return values.numpy()

    def excess(self, engine: str, x: NDArray[np.float32], folder: Path) -> NDArray[np.float64]:
        """Error of the engine in output steps; the output must not be clipped."""
        exact = self.exact(x)
        assert np.abs(exact).max() < 126 * self.step
        return np.abs(_compute(engine, self.proto(), x, folder) - exact) / self.step


def _compute(
    engine: str, proto: onnx.ModelProto, x: NDArray[np.float32], folder: Path
) -> NDArray[np.float32]:
    path = folder / "layer.onnx"
    onnx.save(proto, path)
    if engine == "openvino":
        import openvino as ov

        core = ov.Core()
        hint = {"INFERENCE_PRECISION_HINT": "f32"}
        compiled = core.compile_model(core.read_model(path), "CPU", hint)
        types = {
            str(op.get_rt_info()["runtimePrecision"].astype(str))
            for op in compiled.get_runtime_model().get_ordered_ops()
            if op.get_rt_info()["layerType"].astype(str) in {"Convolution", "FullyConnected"}
        }
        assert types <= {"u8", "i8"}
        return np.array(compiled([x])[0])
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    options.log_severity_level = 3
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    kinds = {node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node}
    assert kinds & {"QLinearConv", "QGemm"}
    return np.asarray(session.run(None, {"x": x})[0])


def _positions(name: str) -> int:
    return int(np.prod(LAYERS[name][0]))


def _weight(name: str, rows: NDArray[np.int8]) -> NDArray[np.int8]:
    """Rows in (height, width, channel) order as a weight tensor."""
    kernel = LAYERS[name][0]
    if len(kernel) == 1:
        return rows
    shaped = rows.reshape(len(rows), *kernel[1:], kernel[0])
    return np.ascontiguousarray(np.moveaxis(shaped, -1, 1))


def _layout_pairs(name: str, layout: str) -> set[tuple[int, int]]:
    """Pairs according to the rule, as positions in (height, width, channel) order."""
    channels, total = LAYERS[name][0][0], _positions(name)
    if layout == "matrix":
        return {(i, i + 1) for i in range(0, total - 1, 2)}
    return {
        (start + i, start + i + 1)
        for start in range(0, total, channels)
        for i in range(0, channels - 1, 2)
    }


@pytest.mark.parametrize("stored", STORED)
@pytest.mark.parametrize("name", sorted(LAYERS))
@pytest.mark.parametrize("engine", ENGINES)
def test_paired_products_match_the_rules(
    engine: str, name: str, stored: str, tmp_path: Path
) -> None:
    """Each output has the largest weight at two positions; it is wrong iff they are a pair."""
    total = _positions(name)
    every = list(itertools.combinations(range(total), 2))
    near = [pair for pair in every if pair[1] - pair[0] <= 3]
    far = np.random.default_rng(0).choice(len(every), min(len(every), 300), replace=False)
    tested = sorted({*near, *(every[i] for i in far)})
    rows = np.zeros((len(tested), total), np.int8)
    for row, pair in zip(rows, tested, strict=True):
        row[list(pair)] = 127
    layer = Layer(name, _weight(name, rows), stored, 600.0)
    x = np.full((1, *layer.shape), layer.high, np.float32)
    worst = layer.excess(engine, x, tmp_path)[0].reshape(len(tested), -1).max(axis=1)
    wrong = {pair for pair, off in zip(tested, worst, strict=True) if off > 1}
    assert wrong == _layout_pairs(name, rules_for(engine).pairs) & set(tested)


@pytest.mark.parametrize("stored", STORED)
@pytest.mark.parametrize("name", sorted(LAYERS))
@pytest.mark.parametrize("engine", ENGINES)
def test_weights_rounded_for_the_engine_never_saturate(
    engine: str, name: str, stored: str, tmp_path: Path
) -> None:
    """Compared with exact integers, with the largest inputs and weights."""
    rng = np.random.default_rng(3)
    outputs, total = 64, _positions(name)
    scaled = rng.choice([-180.0, -127.0, -70.0, 60.0, 90.0, 127.0, 180.0], size=(outputs, total))
    weight = _weight(name, scaled.astype(np.float32))
    layer = Layer(name, weight[:0].astype(np.int8), stored, 1.0)
    x = rng.choice([layer.low, layer.high], size=(4, *layer.shape)).astype(np.float32)
    x[0], x[1] = layer.high, layer.low

    def worst(grid: WeightGrid) -> float:
        layer.weight = nearest(weight, grid).astype(np.int8)
        layer.step = np.float32(np.abs(layer.exact(x)).max() / 120)
        return float(layer.excess(engine, x, tmp_path).max())

    assert worst(WeightGrid.of(rules_for(engine), 1)) <= 0.51
    assert worst(WeightGrid(127)) > 0.51, (
        "unrestricted rounding should saturate, or the test proves nothing"
    )
