"""Reads the precision of a product from its kernel's name.

The names of TensorRT's kernels contain the types of their operands, in one of three forms::

    sm80_xmma_fprop_implicit_gemm_interleaved_i8f16_i8i32_f32_nchw_…    CUTLASS-like: A, C, B, accumulator
    ampere_h1688cudnn_128x128_ldg8_relu_…, turing_fp16_i8816cudnn_…     cuDNN: the tensor-core instruction
    sm50_xmma_conv_fprop_fused_conv_act_fp32_NCHW_fp32_NCHW_KCRS_…      direct convolutions: every tensor
"""

from __future__ import annotations

import re

__all__ = ["precision_in_tactic"]

_SHORT = {
    "i8": "int8",
    "tf32": "tf32",
    "bf16": "bf16",
    "f16": "fp16",
    "f32": "fp32",
    "e4m3": "fp8",
    "e5m2": "fp8",
}
_TYPE = "tf32|bf16|f16|f32|i8|e4m3|e5m2"
# "_f32f32_tf32f32_": the activation's type, and that of the weights if it differs.
_GROUPS = re.compile(rf"_({_TYPE})(?:{_TYPE})_(?:({_TYPE})(?:{_TYPE}|i32)?_)?")
_NAMED = (
    ("int8", r"(?:_|^)int8x4_|int8x4_icudnn|i8816cudnn|i16832|imma|_icudnn_|fused_conv_act_int8"),
    ("tf32", r"tf32"),
    ("fp16", r"_h(?:884|1688|16816)|_s(?:884|1688|16816)(?:cudnn|gemm)_fp16|hmma|hcudnn|hgemm"),
    ("fp16", r"fused_conv_act_fp16|_f16f16f(?:16|32)_"),
    ("fp32", r"_scudnn|_sgemm|fused_conv_act_fp32|ffma"),
)


def precision_in_tactic(name: str) -> str | None:
    """``int8``, ``fp16``, ``tf32`` … from a kernel's name; ``None`` if it contains no type."""
    match = _GROUPS.search(name + "_")
    if match is not None:
        return "tf32" if "tf32" in match.groups() else _SHORT[match[1]]
    text = name.lower()
    return next((precision for precision, mark in _NAMED if re.search(mark, text)), None)
