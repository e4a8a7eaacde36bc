"""Small residual networks as ONNX graphs, in every precision of the backends.

The names are those of the exporter: a node is named after the PyTorch module it computes, and the
Q/DQ nodes around it ``<node>.<tensor>.quantize`` and ``.dequantize``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

__all__ = [
    "CLASSES",
    "IMAGE",
    "MODULES",
    "Network",
    "as_written",
    "images",
    "save_resnet",
    "small_resnet",
]

CLASSES = 5
IMAGE = 16
MODULES = (
    "conv1",
    "layer1.0.conv1",
    "layer1.0.conv2",
    "layer2.0.conv1",
    "layer2.0.conv2",
    "layer2.0.downsample.0",
    "fc",
)
"""The modules with weights, as PyTorch names them."""
SCALE = 0.08
"""Scale of every quantized activation: their values reach about 127 times this."""

_TYPES = {
    "fp32": TensorProto.FLOAT,
    "fp16": TensorProto.FLOAT16,
    "bf16": TensorProto.BFLOAT16,
}
_QUANTIZED = {"int8": TensorProto.INT8, "fp8": TensorProto.FLOAT8E4M3FN}


@dataclass
class Network:
    """A graph under construction: nodes and initializers in the order they were added."""

    high: str = "fp32"
    quantized: str | None = None
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    initializers: list[onnx.TensorProto] = field(default_factory=list)

    def node(self, op: str, name: str, inputs: list[str], **attributes: object) -> str:
        """Add a node; its output carries its name."""
        output = f"{name}.out"
        self.nodes.append(helper.make_node(op, inputs, [output], name=name, **attributes))
        return output

    def constant(self, name: str, values: np.ndarray) -> str:
        self.initializers.append(numpy_helper.from_array(values, name))
        return name

    def floats(self, name: str, values: np.ndarray) -> str:
        """An initializer in the high precision of this graph."""
        return self.constant(
            name, values.astype(helper.tensor_dtype_to_np_dtype(_TYPES[self.high]))
        )

    def quantize(self, name: str, tensor: str, scale: float) -> str:
        """Q and DQ of an activation, per tensor, zero point 0."""
        if self.quantized is None:
            return tensor
        kind = helper.tensor_dtype_to_np_dtype(_QUANTIZED[self.quantized])
        scale_name = self.floats(f"{name}.scale", np.array(scale))
        zero = self.constant(f"{name}.zero_point", np.array(0).astype(kind))
        low = self.node("QuantizeLinear", f"{name}.quantize", [tensor, scale_name, zero])
        return self.node("DequantizeLinear", f"{name}.dequantize", [low, scale_name, zero])

    def weight(self, name: str, values: np.ndarray) -> str:
        """A weight in the high precision, or quantized per output channel and followed by a DQ."""
        if self.quantized is None:
            return self.floats(f"{name}.weight", values)
        kind = helper.tensor_dtype_to_np_dtype(_QUANTIZED[self.quantized])
        top = 127.0 if self.quantized == "int8" else 448.0
        scales = np.abs(values).reshape(len(values), -1).max(axis=1) / top
        wide = values / scales.reshape(-1, *([1] * (values.ndim - 1)))
        stored = np.clip(np.rint(wide), -127, 127) if self.quantized == "int8" else wide
        weight = self.constant(f"{name}.weight", stored.astype(kind))
        scale = self.floats(f"{name}.weight.scale", scales)
        zero = self.constant(f"{name}.weight.zero_point", np.zeros(len(values)).astype(kind))
        return self.node(
            "DequantizeLinear", f"{name}.weight.dequantize", [weight, scale, zero], axis=0
        )

    def conv(
        self, name: str, tensor: str, inputs: int, outputs: int, *, kernel: int = 3, stride: int = 1
    ) -> str:
        values = self.rng.normal(
            0, (2 / (inputs * kernel * kernel)) ** 0.5, (outputs, inputs, kernel, kernel)
        )
        source = self.quantize(f"{name}.input", tensor, SCALE)
        bias = self.floats(f"{name}.bias", self.rng.normal(0, 0.1, outputs))
        pad = kernel // 2
        return self.node(
            "Conv",
            name,
            [source, self.weight(name, values), bias],
            kernel_shape=[kernel, kernel],
            strides=[stride, stride],
            pads=[pad] * 4,
        )

    def block(self, name: str, tensor: str, inputs: int, outputs: int, *, stride: int = 1) -> str:
        """A BasicBlock; only the residual input of its Add is quantized."""
        inner = self.conv(f"{name}.conv1", tensor, inputs, outputs, stride=stride)
        inner = self.node("Relu", f"{name}.relu", [inner])
        inner = self.conv(f"{name}.conv2", inner, outputs, outputs)
        residual = tensor
        if stride != 1 or inputs != outputs:
            residual = self.conv(
                f"{name}.downsample.0", tensor, inputs, outputs, kernel=1, stride=stride
            )
        residual = self.quantize(f"{name}.add.residual", residual, SCALE)
        total = self.node("Add", f"{name}.add", [inner, residual])
        return self.node("Relu", f"{name}.relu_1", [total])


def small_resnet(
    precision: str = "fp32",
    *,
    high: str | None = None,
    batch: int | str = "batch",
    width: int = 32,
    image: int = IMAGE,
    opset: int = 20,
) -> onnx.ModelProto:
    """A ResNet of two blocks, `IMAGE` pixels wide, with weights drawn from a fixed seed.

    Args:
        precision: ``fp32``, ``fp16``, ``bf16``, ``int8`` or ``fp8``.
        high: The type around the quantized layers; FP16 by default.
        batch: Name of the symbolic batch dimension, or a fixed batch.
        width: Channels of the first stage.
        image: Height and width of the input.
        opset: Version of the ONNX operators.
    """
    quantized = precision if precision in _QUANTIZED else None
    high = high or ("fp16" if quantized else precision)
    if high == "bf16":
        opset = max(opset, 22)
    net = Network(high, quantized)
    tensor = "images"
    if high != "fp32":
        tensor = net.node("Cast", "images.cast", [tensor], to=_TYPES[high])
    tensor = net.conv("conv1", tensor, 3, width)
    tensor = net.node("Relu", "relu", [tensor])
    tensor = net.node(
        "MaxPool", "maxpool", [tensor], kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4
    )
    tensor = net.block("layer1.0", tensor, width, width)
    tensor = net.block("layer2.0", tensor, width, 2 * width, stride=2)
    tensor = net.node("GlobalAveragePool", "avgpool", [tensor])
    tensor = net.node("Flatten", "flatten", [tensor], axis=1)
    values = net.rng.normal(0, 0.1, (CLASSES, 2 * width))
    source = net.quantize("fc.input", tensor, SCALE)
    bias = net.floats("fc.bias", net.rng.normal(0, 0.1, CLASSES))
    tensor = net.node("Gemm", "fc", [source, net.weight("fc", values), bias], transB=1)
    last = "Cast" if high != "fp32" else "Identity"
    attributes = {"to": TensorProto.FLOAT} if high != "fp32" else {}
    net.nodes.append(helper.make_node(last, [tensor], ["logits"], name="logits.cast", **attributes))
    shape: list[int | str] = [batch, 3, image, image]
    graph = helper.make_graph(
        net.nodes,
        "small_resnet",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, CLASSES])],
        net.initializers,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def save_resnet(path: Path, precision: str = "fp32", **options: object) -> Path:
    """Write `small_resnet` to ``path``."""
    onnx.save(small_resnet(precision, **options), path)  # type: ignore[arg-type]
    return path


def images(count: int, *, image: int = IMAGE) -> np.ndarray:
    """A batch of inputs, N x 3 x H x W float32, from a fixed seed."""
    return np.random.default_rng(1).normal(size=(count, 3, image, image)).astype(np.float32)


def as_written(path: Path, batch: np.ndarray) -> np.ndarray:
    """The outputs of a graph, computed without optimizations.

    Uses ONNX Runtime; for BF16 and FP8, for which it has no CPU kernels, ONNX's reference evaluator.
    """
    import onnxruntime as ort
    from onnx.reference import ReferenceEvaluator

    model = onnx.load(path)
    types = {tensor.data_type for tensor in model.graph.initializer}
    if types & {TensorProto.BFLOAT16, TensorProto.FLOAT8E4M3FN}:
        return np.asarray(ReferenceEvaluator(model).run(None, {"images": batch})[0])
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"images": batch})[0])
