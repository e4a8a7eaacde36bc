"""Target rules: how each engine wants an INT8 graph to be written, as data.

One calibration serves every target; what differs between them is written here and nowhere else.

* **TensorRT** (10, 11, RTX): signed activations with zero point 0, Q/DQ on the inputs of weighted
  layers and on the *residual* input of each Add only, so that convolution + Add + ReLU fuse; no
  Q/DQ on biases (the parser refuses them); FP16 around the INT8 layers.
* **OpenVINO** and **ONNX Runtime**: unsigned activations with zero point 0 after a ReLU (all 256
  levels, and the saturation is the ReLU), quantized convolution outputs, so that Adds and pooling
  run in INT8 too; FP32 around.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from optimizer.errors import UsageError
from optimizer.targets.hardware import CpuFeatures, cpu_features

__all__ = ["TARGETS", "TargetRules", "rules_for"]


@dataclass(frozen=True, kw_only=True)
class TargetRules:
    """How one engine wants INT8 to be written.

    Attributes:
        name: The target's name on the command line.
        relu_dtype: Integer type of a tensor after a ReLU: ``u8`` with zero point 0, or ``s8``.
        signed_dtype: Integer type of a tensor of both signs: ``s8`` with zero point 0, or ``u8``
            with zero point 128, which holds the same integers.
        add_inputs: Which inputs of an Add are quantized: ``residual`` or ``both``.
        pooling: Whether pooling computes on integers (its inputs and outputs are quantized).
        absorb_relu: Whether a ReLU is left out where the saturation of the Q after it does its work.
        shift: Whether tensors after a ReLU may be quantized around their middle (zero point 0, the
            constant in the biases) where no consumer pads.
        weight_max: Largest absolute integer of a weight: 127, or 64 where products of two pairs
            are added in 16 bits (255 * 64 * 2 = 32,640 still fits).
        high_precision: Type of what is not INT8: ``fp16`` or ``fp32``.
        bias: ``float``; no target here takes Q/DQ on a bias without harm.
    """

    name: str
    relu_dtype: Literal["s8", "u8"]
    signed_dtype: Literal["s8", "u8"]
    add_inputs: Literal["residual", "both"]
    pooling: bool
    absorb_relu: bool
    shift: bool
    weight_max: int = 127
    high_precision: Literal["fp16", "fp32"] = "fp32"


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
    ),
    "openvino": TargetRules(
        name="openvino",
        relu_dtype="u8",
        signed_dtype="s8",
        add_inputs="both",
        pooling=True,
        absorb_relu=True,
        shift=False,
    ),
    "onnxruntime": TargetRules(
        name="onnxruntime",
        relu_dtype="u8",
        signed_dtype="u8",
        add_inputs="both",
        pooling=True,
        absorb_relu=True,
        shift=False,
    ),
}
_ALIASES = {"tensorrt-rtx": "tensorrt"}


def rules_for(target: str, cpu: CpuFeatures | None = None) -> TargetRules:
    """Rules of a target on a machine.

    Args:
        target: ``tensorrt``, ``tensorrt-rtx``, ``openvino`` or ``onnxruntime``.
        cpu: The CPU that will run the graph; ``None`` for this one. On x86 without VNNI the INT8
            kernels multiply u8 by s8 and add pairs of products in 16 bits with saturation
            (VPMADDUBSW), so weights are kept to 7 bits there, where the sum cannot overflow.

    Raises:
        UsageError: No such target.
    """
    name = _ALIASES.get(target, target)
    if name not in TARGETS:
        known = ", ".join(sorted({*TARGETS, *_ALIASES}))
        raise UsageError(f"unknown target {target!r}", mend=f"one of {known}")
    rules = TARGETS[name]
    if name != "tensorrt" and not (cpu or cpu_features()).vnni:
        return replace(rules, weight_max=64)
    return rules
