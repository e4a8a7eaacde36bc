"""Target rules: how an INT8 graph must be written for each engine.

One calibration serves all targets; the differences between them are defined only here.

* **TensorRT** (10, 11, RTX): signed activations with zero point 0; Q/DQ on the inputs of weighted
  layers and only on the *residual* input of each Add, so that convolution + Add + ReLU fuse; no
  Q/DQ on biases (the parser rejects them); FP16 outside the INT8 layers.
* **OpenVINO** and **ONNX Runtime**: unsigned activations with zero point 0 after a ReLU (all 256
  levels, and saturation replaces the ReLU), pooling on integers, FP32 elsewhere. OpenVINO fuses the
  Add into the preceding convolution, so only the residual input is quantized and the convolution's
  output is not rounded (0.8 dB at the logits of a ResNet-50). It moves the strides of a ResNet v1's
  1 x 1 convolutions upwards across the quantization, which leaves layers in FP32, so two of them
  that read one tensor share a pooling with that stride. ONNX Runtime adds integers or leaves
  INT8, so both inputs are quantized. It pools integers only if a Q/DQ pair follows directly, also
  before the Flatten, and its classifier computes on integers only with an INT32 bias: with a float
  bias it dequantizes the weights on every call.
* **tensorrt-cpu**: the integers and rounded constants of the TensorRT graph, but stored unsigned
  (zero point 128) with FP32 elsewhere, so that a CPU can reproduce TensorRT's results.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from optimizer.errors import UsageError
from optimizer.targets.hardware import CpuFeatures, cpu_features

__all__ = ["TARGETS", "PairLayout", "TargetRules", "rules_for"]

PairLayout = Literal["free", "channels", "matrix"]
"""Products of a layer that a kernel adds in 16 bits: none, those of neighbouring input channels, or
neighbours in (height, width, channel) order. See `optimizer.precision.int8.rounding`."""


@dataclass(frozen=True, kw_only=True)
class TargetRules:
    """How an INT8 graph must be written for one engine.

    Attributes:
        name: The target's name on the command line.
        relu_dtype: Integer type of a tensor after a ReLU: ``u8`` (0 to 255, zero point 0), or ``s8``
            like any other tensor.
        signed_dtype: How integers of -128 to 127 are stored: ``s8`` with zero point 0, or the
            equivalent ``u8`` with zero point 128.
        add_inputs: Which inputs of an Add are quantized: ``residual`` or ``both``.
        pooling: Whether pooling computes on integers (its inputs and outputs are quantized).
        flatten: Whether the input of a Flatten is quantized, not only its output.
        absorb_relu: Whether a ReLU is removed if the saturation of the following Q replaces it.
        shift: Whether tensors after a ReLU may be quantized around their midpoint (zero point 0,
            with the offset in the biases) if no consumer pads.
        asymmetric: Whether any zero point is allowed; otherwise only 0 and the midpoint.
        weight_max: Largest absolute integer of a weight.
        pairs: Products that are added in 16 bits if the CPU has no VNNI.
        high_precision: Type of everything that is not INT8: ``fp16`` or ``fp32``.
        constants: Type to which scales and biases are rounded; may be narrower than
            ``high_precision`` in order to reproduce the values of another target.
        bias: ``int32`` if the engine adds the bias of a fully connected layer to the integer sums;
            it is then stored as INT32 with a DequantizeLinear. Biases of convolutions are always
            floats (TensorRT rejects anything else, and ONNX Runtime converts them itself).
        shared_strides: Whether 1 x 1 convolutions with stride that read the same tensor read every
            s-th pixel of it instead (`optimizer.graphs.shared_strides`).
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
    shared_strides: bool = False
    asymmetric: bool = False
    weight_max: int = 127
    pairs: PairLayout = "free"
    high_precision: Literal["fp16", "fp32"] = "fp32"
    constants: Literal["fp16", "fp32"] = "fp32"

    @property
    def constant_type(self) -> Literal["fp16", "fp32"]:
        """Type of the stored scales and biases."""
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
        shared_strides=True,
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
        cpu: The CPU that will run the graph; ``None`` for this one. On x86 without VNNI, INT8
            kernels multiply u8 by s8 and add pairs of products in 16 bits with saturation
            (VPMADDUBSW), so neighbouring weights must be limited to avoid overflow.

    Raises:
        UsageError: Unknown target.
    """
    name = _ALIASES.get(target, target)
    if name not in TARGETS:
        names = ", ".join(sorted({*TARGETS, *_ALIASES}))
        raise UsageError(f"unknown target {target!r}", hint=f"use one of {names}")
    rules = TARGETS[name]
    layout = _PAIRS.get(name)
    if layout is not None and not (cpu or cpu_features()).vnni:
        return replace(rules, pairs=layout)
    return rules
