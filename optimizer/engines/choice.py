"""Chooses the engine for a precision on this machine (``--engine auto``)."""

from __future__ import annotations

from typing import NamedTuple

from optimizer.engines.providers.status import provider_status
from optimizer.engines.providers.table import CUDA
from optimizer.engines.registry import get_backend
from optimizer.errors import MissingDevice
from optimizer.targets.hardware import cpu_features

__all__ = ["Chosen", "choose_engine"]

_ON_CPU = {
    "fp32": ("openvino", "onnxruntime"),
    "int8": ("openvino", "onnxruntime"),
    "mixed": ("openvino", "onnxruntime"),
    "bf16": ("openvino",),
}
"""Fastest first."""


class Chosen(NamedTuple):
    """An engine, and the provider for ONNX Runtime; ``None`` for its CPU provider and other engines."""

    engine: str
    provider: str | None = None


def choose_engine(precision: str) -> Chosen:
    """Return the engine for a precision on this machine.

    TensorRT on a GPU comes first, then TensorRT-RTX on a GPU, then ONNX Runtime's CUDA provider, which
    has FP32 and FP16. On a CPU, OpenVINO computes FP32,
    INT8 and mixed precision, and BF16 if the CPU has the instructions. ONNX Runtime is preferred
    for FP32 on CPUs with 256-bit vectors, where its kernels are faster
    (``reports/cpu-avx2/peers.md``; for 512 bits see ``reports/cpu/peers.md``). Everything else (FP16,
    FP8, BF16 without the instructions) is compiled ahead of time by TensorRT-RTX, to run elsewhere.

    Raises:
        MissingDevice: No engine on this machine computes or compiles the precision.
    """
    for name in ("tensorrt", "tensorrt-rtx"):
        if get_backend(name).availability().can_run:
            return Chosen(name)
    if precision in CUDA.computed and provider_status(CUDA).usable:
        return Chosen("onnxruntime", CUDA.name)
    cpu = cpu_features()
    on_cpu = _ON_CPU.get(precision, ())
    if precision == "fp32" and cpu.avx2 and not cpu.avx512:
        on_cpu = on_cpu[::-1]
    if precision != "bf16" or cpu.bf16:
        for name in on_cpu:
            if get_backend(name).availability().can_run:
                return Chosen(name)
    ahead = get_backend("tensorrt-rtx").availability()
    if ahead.can_build:
        return Chosen("tensorrt-rtx")
    raise MissingDevice(
        f"no engine on this machine computes {precision.upper()}: {ahead.reason}", hint=ahead.hint
    )
