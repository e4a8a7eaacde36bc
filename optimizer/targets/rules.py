"""Target rules: how each engine wants an INT8 graph to be written, as data.

One calibration serves every target; what differs between them is written here and nowhere else.

* **TensorRT** (10, 11, RTX): signed activations with zero point 0, Q/DQ on the inputs of weighted
  layers and on the *residual* input of each Add only, so that convolution + Add + ReLU fuse; no
  Q/DQ on biases (the parser refuses them); FP16 around the INT8 layers.
* **OpenVINO** and **ONNX Runtime**: unsigned activations with zero point 0 after a ReLU (all 256
  levels, and the saturation is the ReLU), pooling on integers; FP32 around. OpenVINO adds inside
  the convolution before it, so the residual input alone is quantized there and what the convolution
  gives is not rounded (0.8 dB at the logits of a ResNet-50). ONNX Runtime adds integers or leaves
  INT8: both inputs are. It pools integers only if a pair follows at once, before the Flatten too,
  and its classifier computes on integers only with an INT32 bias: with a float one it dequantizes
  the weights at every call.
* **tensorrt-cpu**: the integers of TensorRT's graph, constants rounded as there, but stored
  unsigned (zero point 128) with FP32 around: a CPU that runs it tells what TensorRT will compute.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from optimizer.errors import UsageError
from optimizer.targets.hardware import CpuFeatures, cpu_features

__all__ = ["TARGETS", "PairLayout", "TargetRules", "rules_for"]

PairLayout = Literal["free", "channels", "matrix"]
"""Which products of a layer a kernel adds in 16 bits: none, neighbouring input channels, or
neighbours in the order height, width, channel. See `optimizer.precision.int8.rounding`."""


@dataclass(frozen=True, kw_only=True)
class TargetRules:
    """How one engine wants INT8 to be written.

    Attributes:
        name: The target's name on the command line.
        relu_dtype: Integers of a tensor after a ReLU: ``u8`` (0 to 255, zero point 0), or ``s8`` as
            any other tensor.
        signed_dtype: How integers of -128 to 127 are stored: ``s8`` with zero point 0, or ``u8``
            with zero point 128, which holds the same integers.
        add_inputs: Which inputs of an Add are quantized: ``residual`` or ``both``.
        pooling: Whether pooling computes on integers (its inputs and outputs are quantized).
        flatten: Whether the input of a Flatten is quantized, and not its output alone.
        absorb_relu: Whether a ReLU is left out where the saturation of the Q after it does its work.
        shift: Whether tensors after a ReLU may be quantized around their middle (zero point 0, the
            constant in the biases) where no consumer pads.
        asymmetric: Whether any zero point is taken; otherwise only 0 and the middle.
        weight_max: Largest absolute integer of a weight.
        pairs: Products that are added in 16 bits, where the CPU has no VNNI.
        high_precision: Type of what is not INT8: ``fp16`` or ``fp32``.
        constants: Type to which scales and biases are rounded; it may be narrower than
            ``high_precision``, to hold the very values of another target.
        bias: ``int32`` if the engine adds biases in units of the products, in 32 bits: that of a
            fully connected layer is then stored so, behind a DequantizeLinear. Biases of
            convolutions are written as floats everywhere (TensorRT refuses any other, and ONNX
            Runtime converts them by itself).
    """

    name: str
    relu_dtype: Literal["s8", "u8"]
    signed_dtype: Literal["s8", "u8"]
    add_inputs: Literal["residual", "both"]
    pooling: bool
    absorb_relu: bool
    shift: bool
    flatten: bool = False
    bias: Literal["float", "int32"] = "float"
    asymmetric: bool = False
    weight_max: int = 127
    pairs: PairLayout = "free"
    high_precision: Literal["fp16", "fp32"] = "fp32"
    constants: Literal["fp16", "fp32"] = "fp32"

    @property
    def constant_type(self) -> Literal["fp16", "fp32"]:
        """Type that scales and biases end up in."""
        return "fp16" if "fp16" in {self.high_precision, self.constants} else "fp32"


TARGETS: dict[str, TargetRules] = {
    "tensorrt": TargetRules(
        name="tensorrt",
        relu_dtype="s8",
        signed_dtype="s8",
        add_inputs="residual",
        pooling=False,
        absorb_relu=False,
        shift=True,
        high_precision="fp16",
        constants="fp16",
    ),
    "tensorrt-cpu": TargetRules(
        name="tensorrt-cpu",
        relu_dtype="s8",
        signed_dtype="u8",
        add_inputs="residual",
        pooling=False,
        absorb_relu=False,
        shift=True,
        constants="fp16",
    ),
    "openvino": TargetRules(
        name="openvino",
        relu_dtype="u8",
        signed_dtype="s8",
        add_inputs="residual",
        pooling=True,
        absorb_relu=True,
        shift=False,
        asymmetric=True,
    ),
    "onnxruntime": TargetRules(
        name="onnxruntime",
        relu_dtype="u8",
        signed_dtype="u8",
        add_inputs="both",
        pooling=True,
        flatten=True,
        bias="int32",
        absorb_relu=True,
        shift=False,
        asymmetric=True,
    ),
}
_PAIRS: dict[str, PairLayout] = {"openvino": "channels", "onnxruntime": "matrix"}
_ALIASES = {"tensorrt-rtx": "tensorrt"}


def rules_for(target: str, cpu: CpuFeatures | None = None) -> TargetRules:
    """Rules of a target on a machine.

    Args:
        target: ``tensorrt``, ``tensorrt-rtx``, ``tensorrt-cpu``, ``openvino`` or ``onnxruntime``.
        cpu: The CPU that will run the graph; ``None`` for this one. On x86 without VNNI the INT8
            kernels multiply u8 by s8 and add pairs of products in 16 bits with saturation
            (VPMADDUBSW), so neighbouring weights are kept from overflowing there.

    Raises:
        UsageError: No such target.
    """
    name = _ALIASES.get(target, target)
    if name not in TARGETS:
        known = ", ".join(sorted({*TARGETS, *_ALIASES}))
        raise UsageError(f"unknown target {target!r}", hint=f"one of {known}")
    rules = TARGETS[name]
    layout = _PAIRS.get(name)
    if layout is not None and not (cpu or cpu_features()).vnni:
        return replace(rules, pairs=layout)
    return rules
