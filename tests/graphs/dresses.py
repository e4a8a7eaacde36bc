"""A small residual network as different exporters write it: one function, many files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

SIZE, CHANNELS, CLASSES = 16, 6, 5
TYPES = {
    np.float32: TensorProto.FLOAT,
    np.float16: TensorProto.FLOAT16,
    np.float64: TensorProto.DOUBLE,
}


@dataclass(frozen=True, kw_only=True)
class Dress:
    """How an exporter writes the network; the defaults are those of `resnet-opt export`.

    Attributes:
        batchnorm: ``folded``, ``kept``, or ``training``.
        pool, flat, head, tail: Operators of the last layers.
        constants: ``initializers``, ``inputs`` as well (IR version 3), or ``nodes``.
        outputs: ``scores``, ``argmax``, ``argmax+scores`` or ``scores+features``.
        edit: Further changes of the finished model.
    """

    opset: int = 20
    ir_version: int = 10
    dtype: Any = np.float32
    batch: Any = "N"
    size: tuple[Any, Any] = (SIZE, SIZE)
    channels: int = 3
    names: bool = True
    nhwc: bool = False
    batchnorm: str = "folded"
    bias: bool = True
    pool: str = "GlobalAveragePool"
    flat: str = "Flatten"
    head: str = "Gemm"
    tail: str | None = None
    dropout: str | None = None
    constants: str = "initializers"
    outputs: str = "scores"
    scale: float = 1.0
    edit: Callable[[Any], None] = field(default=lambda _model: None)


class _Writer:
    def __init__(self, dress: Dress) -> None:
        self.dress, self.rng = dress, np.random.default_rng(7)
        self.nodes: list[Any] = []
        self.tensors: list[Any] = []

    def constant(self, name: str, array: np.ndarray) -> str:
        if array.dtype.kind == "f":
            array = array.astype(self.dress.dtype)
        tensor = numpy_helper.from_array(np.array(array, order="C"), name)
        if self.dress.constants == "nodes":
            self.nodes.append(helper.make_node("Constant", [], [name], value=tensor))
        else:
            self.tensors.append(tensor)
        return name

    def node(self, kind: str, inputs: list[str], name: str, **attributes: Any) -> str:
        count = attributes.pop("count", 1)
        outputs = [name, *(f"{name}.{i}" for i in range(1, count))]
        label = name if self.dress.names else ""
        self.nodes.append(helper.make_node(kind, inputs, outputs, label, **attributes))
        return name

    def conv(self, x: str, name: str, shape: tuple[int, int, int], stride: int = 1) -> str:
        """shape: output channels, input channels, kernel."""
        out, inner, kernel = shape
        weight = self.rng.normal(size=(out, inner, kernel, kernel)) / np.sqrt(inner * kernel**2)
        gamma, variance = self.rng.uniform(0.5, 1.5, out), self.rng.uniform(0.5, 1.5, out)
        beta, mean = self.rng.normal(size=out) * 0.2, self.rng.normal(size=out) * 0.2
        pads = {"pads": [kernel // 2] * 4, "strides": [stride] * 2, "kernel_shape": [kernel] * 2}
        factor = gamma / np.sqrt(variance + 1e-5)
        if self.dress.batchnorm == "folded":
            weight = weight * factor[:, None, None, None]
            inputs = [x, self.constant(f"{name}.weight", weight)]
            if self.dress.bias:
                inputs.append(self.constant(f"{name}.bias", beta - mean * factor))
            return self.node("Conv", inputs, name, **pads)
        y = self.node("Conv", [x, self.constant(f"{name}.weight", weight)], name, **pads)
        arrays = {"gamma": gamma, "beta": beta, "mean": mean, "variance": variance}
        inputs = [y, *(self.constant(f"{name}.bn.{k}", v) for k, v in arrays.items())]
        extra: dict[str, Any] = {}
        if self.dress.batchnorm == "training":
            extra = {"training_mode": 1, "count": 3} if self.dress.opset >= 14 else {"count": 5}
        return self.node("BatchNormalization", inputs, f"{name}.bn", epsilon=1e-5, **extra)

    def network(self) -> str:
        dress, width = self.dress, CHANNELS
        x = "images"
        if dress.nhwc:
            x = self.node("Transpose", [x], "to_nchw", perm=[0, 3, 1, 2])
        x = self.node("Relu", [self.conv(x, "conv1", (width, dress.channels, 3))], "relu")
        x = self.node("MaxPool", [x], "maxpool", kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
        for stage, stride in ((1, 1), (2, 2)):
            block = f"layer{stage}.0"
            out = width * stride
            y = self.conv(x, f"{block}.conv1", (out, width, 3), stride)
            y = self.conv(self.node("Relu", [y], f"{block}.relu1"), f"{block}.conv2", (out, out, 3))
            if stride == 2:
                x = self.conv(x, f"{block}.downsample.0", (out, width, 1), 2)
            x = self.node("Relu", [self.node("Add", [y, x], f"{block}.add")], f"{block}.relu")
            width = out
        return self.last_layers(x, width)

    def last_layers(self, x: str, width: int) -> str:
        dress = self.dress
        if dress.pool == "ReduceMean":
            keep = int(dress.flat != "none")
            if dress.opset >= 18:
                axes = self.constant("pool.axes", np.array([-1, -2]))
                x = self.node("ReduceMean", [x, axes], "pool", keepdims=keep)
            else:
                x = self.node("ReduceMean", [x], "pool", axes=[2, 3], keepdims=keep)
        elif dress.pool == "AveragePool":
            side = SIZE // 4
            x = self.node("AveragePool", [x], "pool", kernel_shape=[side, side])
        else:
            x = self.node("GlobalAveragePool", [x], "pool")
        if dress.flat == "Flatten":
            x = self.node("Flatten", [x], "flat", axis=1)
        elif dress.flat == "Reshape":
            x = self.node(
                "Reshape", [x, self.constant("flat.shape", np.array([-1, width]))], "flat"
            )
        elif dress.flat == "Reshape0":
            x = self.node("Reshape", [x, self.constant("flat.shape", np.array([0, -1]))], "flat")
        elif dress.flat == "Squeeze" and dress.opset >= 13:
            x = self.node("Squeeze", [x, self.constant("flat.axes", np.array([2, 3]))], "flat")
        elif dress.flat == "Squeeze":
            x = self.node("Squeeze", [x], "flat", axes=[2, 3])
        if dress.dropout is not None:
            inputs = [x]
            if dress.dropout == "training":
                inputs += [self.constant("ratio", np.array(0.5, np.float32))]
                inputs += [self.constant("training", np.array(True))]
            x = self.node("Dropout", inputs, "dropout")
        self.features = x
        weight = self.rng.normal(size=(CLASSES, width)) * dress.scale
        bias = self.rng.normal(size=CLASSES)
        last = "fc" if dress.tail else "scores"
        if dress.head == "MatMul":
            x = self.node("MatMul", [x, self.constant("fc.kernel", weight.T)], "fc.matmul")
            x = self.node("Add", [x, self.constant("fc.bias", bias)], last)
        else:
            inputs = [x, self.constant("fc.weight", weight), self.constant("fc.bias", bias)]
            x = self.node("Gemm", inputs, last, transB=1)
        if dress.tail:
            x = self.node(dress.tail, [x], "scores", axis=1)
        return x


def write(path: Path, dress: Dress) -> Path:
    """Write the network in a dress; without metadata, as other exporters do."""
    onnx.save(model_of(dress), path)
    return path


def model_of(dress: Dress) -> Any:
    """The network in a dress as `onnx.ModelProto`."""
    writer = _Writer(dress)
    scores = writer.network()
    kind = TYPES[dress.dtype]
    channels, sides = [dress.channels], list(dress.size)
    shape = [dress.batch, *(sides + channels if dress.nhwc else channels + sides)]
    inputs = [helper.make_tensor_value_info("images", kind, shape)]
    if dress.constants == "inputs":
        inputs += [
            helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in writer.tensors
        ]
    outputs = [helper.make_tensor_value_info(scores, kind, [dress.batch, CLASSES])]
    if dress.outputs.startswith("argmax"):
        writer.node("ArgMax", [scores], "best", axis=1, keepdims=0)
        best = helper.make_tensor_value_info("best", TensorProto.INT64, [dress.batch])
        outputs = [best, *outputs] if dress.outputs.endswith("scores") else [best]
    if dress.outputs.endswith("features"):
        features = helper.make_tensor_value_info(writer.features, kind, [dress.batch, 2 * CHANNELS])
        outputs.append(features)
    graph = helper.make_graph(writer.nodes, "net", inputs, outputs, writer.tensors)
    opset = helper.make_opsetid("", dress.opset)
    model = helper.make_model(graph, opset_imports=[opset], ir_version=dress.ir_version)
    dress.edit(model)
    return model
