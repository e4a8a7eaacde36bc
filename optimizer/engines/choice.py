"""Which engine computes a precision on this machine: the capability matrix, applied."""

from __future__ import annotations

from optimizer.engines.registry import get_backend
from optimizer.errors import MissingDevice
from optimizer.targets.hardware import cpu_features

__all__ = ["choose_engine"]

_ON_CPU = {
    "fp32": ("openvino", "onnxruntime"),
    "int8": ("openvino", "onnxruntime"),
    "mixed": ("openvino", "onnxruntime"),
    "bf16": ("openvino",),
}
"""The fastest first."""


def choose_engine(precision: str) -> str:
    """The fastest engine here that computes a precision.

    A GPU with TensorRT, then a GPU with TensorRT-RTX, comes first. On a CPU, FP32, INT8 and
    a mix of them go to OpenVINO, BF16 too if the CPU has the instructions; but FP32 goes to ONNX
    Runtime where vectors have 256 bits, where its kernels are the faster ones
    (``reports/cpu-avx2/peers.md``; with 512 bits ``reports/cpu/peers.md``). What is left (FP16, FP8,
    BF16 without instructions) is compiled ahead of time by TensorRT-RTX: built here, run elsewhere.

    Raises:
        MissingDevice: Nothing here computes or compiles it.
    """
    for name in ("tensorrt", "tensorrt-rtx"):
        if get_backend(name).availability().can_run:
            return name
    cpu = cpu_features()
    on_cpu = _ON_CPU.get(precision, ())
    if precision == "fp32" and cpu.avx2 and not cpu.avx512:
        on_cpu = on_cpu[::-1]
    if precision != "bf16" or cpu.bf16:
        for name in on_cpu:
            if get_backend(name).availability().can_run:
                return name
    ahead = get_backend("tensorrt-rtx").availability()
    if ahead.can_build:
        return "tensorrt-rtx"
    raise MissingDevice(
        f"nothing on this machine computes {precision.upper()}: {ahead.reason}", hint=ahead.hint
    )
