"""Features of this machine's CPU, which determine target rules and engines."""

from __future__ import annotations

import functools
import platform
from dataclasses import dataclass
from pathlib import Path

from optimizer.processes import usable_cores

__all__ = ["CpuFeatures", "cpu_features"]


@dataclass(frozen=True)
class CpuFeatures:
    """CPU model, cores and the instruction sets relevant for ResNets.

    Attributes:
        model: The CPU's name as reported by the system.
        physical_cores: Cores available to this process, without hyper-threads and within the
            container's CPU quota (`optimizer.processes.usable_cores`).
        avx2, avx512: Vector extensions for FP32.
        vnni: INT8 dot products with 32-bit accumulation (AVX-512 VNNI, AVX-VNNI, or AMX). Without
            it, x86 INT8 kernels add pairs of products in 16 bits, which saturate when weights use
            all 8 bits.
        amx_int8, amx_bf16: Matrix (tile) instructions.
        bf16: BF16 dot products (AVX-512 BF16 or AMX).
    """

    model: str
    physical_cores: int
    avx2: bool
    avx512: bool
    vnni: bool
    amx_int8: bool
    amx_bf16: bool
    bf16: bool

    @property
    def flags(self) -> list[str]:
        """Readable names of the available instruction sets."""
        names = {
            "AVX2": self.avx2,
            "AVX-512": self.avx512,
            "VNNI": self.vnni,
            "BF16": self.bf16,
            "AMX-INT8": self.amx_int8,
            "AMX-BF16": self.amx_bf16,
        }
        return [name for name, present in names.items() if present]


@functools.cache
def cpu_features() -> CpuFeatures:
    """Detect the features of the CPU this process runs on.

    On Linux they are read from ``/proc/cpuinfo``; elsewhere every x86 feature is assumed absent. Arm
    cores, whose INT8 dot products accumulate in 32 bits, are reported as having ``vnni``.
    """
    model, flags = _cpuinfo()
    arm = platform.machine().lower() in {"aarch64", "arm64"}
    return CpuFeatures(
        model=model,
        physical_cores=usable_cores(),
        avx2="avx2" in flags,
        avx512="avx512f" in flags,
        vnni=arm or bool(flags & {"avx512_vnni", "avx_vnni", "amx_int8"}),
        amx_int8="amx_int8" in flags,
        amx_bf16="amx_bf16" in flags,
        bf16=bool(flags & {"avx512_bf16", "amx_bf16"}),
    )


def _cpuinfo() -> tuple[str, set[str]]:
    path = Path("/proc/cpuinfo")
    model, flags = "", set[str]()
    if path.is_file():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            match key.strip():
                case "model name":
                    model = model or value.strip()
                case "flags" | "Features":
                    flags = flags or set(value.split())
    return model or platform.processor() or platform.machine(), flags
