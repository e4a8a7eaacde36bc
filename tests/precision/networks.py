"""Small random residual networks, as the exporter writes them, for property tests."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

SIZE = 8


class Builder:
    """Writes nodes with PyTorch's names and random constants."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[ir.Node] = []
        self.constants: list[ir.Value] = []

    def _constant(self, name: str, array: np.ndarray) -> ir.Value:
        tensor = ir.tensor(array.astype(np.float32), name=name)
        value = ir.Value(
            name=name,
            shape=ir.Shape(array.shape),
            type=ir.TensorType(tensor.dtype),
            const_value=tensor,
        )
        self.constants.append(value)
        return value

    def _emit(
        self, op: str, inputs: list[ir.Value], name: str, shape: tuple, **attributes: object
    ) -> ir.Value:
        node = ir.node(op, inputs, attributes=attributes, name=name)
        out = node.outputs[0]
        out.name, out.dtype, out.shape = name, ir.DataType.FLOAT, ir.Shape(["batch", *shape])
        self.nodes.append(node)
        return out

    def conv(self, x: ir.Value, name: str, out: int, kernel: int, stride: int = 1) -> ir.Value:
        channels, size = int(x.shape[1]), int(x.shape[2])
        weight = self.rng.normal(size=(out, channels, kernel, kernel)) / np.sqrt(
            channels * kernel**2
        )
        weight *= np.exp(self.rng.normal(scale=0.7, size=(out, 1, 1, 1)))
        values = [
            x,
            self._constant(f"{name}.weight", weight),
            self._constant(f"{name}.bias", 0.3 * self.rng.normal(size=out)),
        ]
        pad = kernel // 2
        spatial = (size + 2 * pad - kernel) // stride + 1
        return self._emit(
            "Conv", values, name, (out, spatial, spatial),
            kernel_shape=[kernel, kernel], pads=[pad] * 4, strides=[stride] * 2,
        )  # fmt: skip

    def relu(self, x: ir.Value, name: str) -> ir.Value:
        return self._emit("Relu", [x], name, tuple(x.shape[1:]))

    def add(self, a: ir.Value, b: ir.Value, name: str) -> ir.Value:
        return self._emit("Add", [a, b], name, tuple(a.shape[1:]))

    def model(self, x: ir.Value, y: ir.Value) -> ir.Model:
        graph = ir.Graph(
            [x],
            [y],
            nodes=self.nodes,
            initializers=self.constants,
            opset_imports={"": 20},
            name="net",
        )
        return ir.Model(graph, ir_version=10)


def network(seed: int, *, blocks: int = 2, width: int = 4, bottleneck: bool = True) -> ir.Model:
    """Stem with max pooling, residual blocks (the first with a downsample), pooling, fc."""
    build = Builder(seed)
    x = ir.Value(
        name="images",
        shape=ir.Shape(["batch", 3, SIZE, SIZE]),
        type=ir.TensorType(ir.DataType.FLOAT),
    )
    y = build.relu(build.conv(x, "conv1", width, 3), "relu")
    y = build._emit(
        "MaxPool", [y], "maxpool", (width, SIZE // 2, SIZE // 2),
        kernel_shape=[3, 3], pads=[1] * 4, strides=[2, 2],
    )  # fmt: skip
    for index in range(blocks):
        y = _block(build, y, f"layer1.{index}", width, bottleneck=bottleneck)
    channels = int(y.shape[1])
    y = build._emit("GlobalAveragePool", [y], "avgpool", (channels, 1, 1))
    y = build._emit("Flatten", [y], "flatten", (channels,), axis=1)
    weight = build._constant("fc.weight", build.rng.normal(size=(5, channels)))
    bias = build._constant("fc.bias", build.rng.normal(size=5))
    y = build._emit("Gemm", [y, weight, bias], "fc", (5,), transB=1)
    y.name = "logits"
    return build.model(x, y)


def _block(build: Builder, x: ir.Value, name: str, width: int, *, bottleneck: bool) -> ir.Value:
    channels, out = int(x.shape[1]), 2 * width
    if bottleneck:
        y = build.relu(build.conv(x, f"{name}.conv1", width, 1), f"{name}.relu")
        y = build.relu(build.conv(y, f"{name}.conv2", width, 3), f"{name}.relu_1")
        y = build.conv(y, f"{name}.conv3", out, 1)
    else:
        y = build.relu(build.conv(x, f"{name}.conv1", out, 3), f"{name}.relu")
        y = build.conv(y, f"{name}.conv2", out, 3)
    shortcut = x if channels == out else build.conv(x, f"{name}.downsample.0", out, 1)
    return build.relu(build.add(y, shortcut, f"{name}.add"), f"{name}.relu_2")


def v1_network(seed: int, *, size: int = 32, width: int = 16) -> ir.Model:
    """Three stages of two blocks; the second and third halve the image in 1 x 1 convolutions."""
    build = Builder(seed)
    x = ir.Value(
        name="images",
        shape=ir.Shape(["batch", 3, size, size]),
        type=ir.TensorType(ir.DataType.FLOAT),
    )
    y = build.relu(build.conv(x, "conv1", width, 3, 2), "relu")
    for stage, stride in enumerate((1, 2, 2), start=1):
        inner = width * 2 ** (stage - 1)
        y = _v1_block(build, y, f"layer{stage}.0", inner, stride)
        y = _v1_block(build, y, f"layer{stage}.1", inner, 1)
    channels = int(y.shape[1])
    y = build._emit("GlobalAveragePool", [y], "avgpool", (channels, 1, 1))
    y = build._emit("Flatten", [y], "flatten", (channels,), axis=1)
    weight = build._constant("fc.weight", build.rng.normal(size=(5, channels)) / channels**0.5)
    bias = build._constant("fc.bias", build.rng.normal(size=5))
    y = build._emit("Gemm", [y, weight, bias], "fc", (5,), transB=1)
    y.name = "logits"
    return build.model(x, y)


def _v1_block(build: Builder, x: ir.Value, name: str, width: int, stride: int) -> ir.Value:
    out = 4 * width
    y = build.relu(build.conv(x, f"{name}.conv1", width, 1, stride), f"{name}.relu")
    y = build.relu(build.conv(y, f"{name}.conv2", width, 3), f"{name}.relu_1")
    y = build.conv(y, f"{name}.conv3", out, 1)
    same = int(x.shape[1]) == out and stride == 1
    shortcut = x if same else build.conv(x, f"{name}.downsample.0", out, 1, stride)
    return build.relu(build.add(y, shortcut, f"{name}.add"), f"{name}.relu_2")


def images(n: int, seed: int = 0) -> np.ndarray:
    """Noise with a random brightness per image: N x 3 x SIZE x SIZE float32."""
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(n, 3, SIZE, SIZE)) + rng.normal(size=(n, 3, 1, 1))).astype(np.float32)
