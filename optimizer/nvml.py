"""NVIDIA GPUs, read with the driver's NVML.

Values that a machine does not report are ``None``, never an error: integrated GPUs (GB10) have no memory
of their own, and containers with a MIG slice or a device list deny some queries and whole GPUs.
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

__all__ = ["Nvml"]


class Nvml:
    """A session with NVML; a context manager.

    Attributes:
        present: Whether there is a driver.
        handles: The GPUs that NVML reports, each with its index; empty without a driver.
    """

    def __init__(self) -> None:
        import pynvml

        self.library: Any = pynvml
        self.handles: list[tuple[int, Any]] = []
        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError:
            self.present = False
            return
        self.present = True
        for index in range(self.get(pynvml.nvmlDeviceGetCount) or 0):
            handle = self.get(pynvml.nvmlDeviceGetHandleByIndex, index)
            if handle is not None:
                self.handles.append((index, handle))

    def get(self, query: Callable[..., Any], *arguments: Any) -> Any:
        """The result of a query; ``None`` if it fails or is not supported."""
        try:
            return query(*arguments)
        except self.library.NVMLError:
            return None

    def at(self, address: str) -> tuple[int, Any] | None:
        """The index and handle of the GPU at a PCI address, ``0000:17:00``; ``None`` if unknown."""
        handle = self.get(self.library.nvmlDeviceGetHandleByPciBusId, f"{address}.0")
        if handle is None:
            return None
        index = self.get(self.library.nvmlDeviceGetIndex, handle)
        return None if index is None else (int(index), handle)

    def address(self, handle: Any) -> str | None:
        """The GPU's PCI address, ``0000:17:00``; ``None`` if unknown."""
        info = self.get(self.library.nvmlDeviceGetPciInfo, handle)
        if info is None:
            return None
        return f"{int(info.domain):04x}:{int(info.bus):02x}:{int(info.device):02x}"

    def name(self, handle: Any) -> str:
        """The GPU's name."""
        return str(self.get(self.library.nvmlDeviceGetName, handle) or "NVIDIA GPU")

    def capability(self, handle: Any) -> tuple[int, int] | None:
        """The compute capability; ``None`` if unknown."""
        version = self.get(self.library.nvmlDeviceGetCudaComputeCapability, handle)
        return None if version is None else (int(version[0]), int(version[1]))

    def memory(self, handle: Any) -> int | None:
        """The GPU's own memory in bytes; ``None`` if unknown or shared with the host."""
        memory = self.get(self.library.nvmlDeviceGetMemoryInfo, handle)
        return None if memory is None else int(memory.total)

    def free_memory(self, handle: Any) -> int | None:
        """The free part of the GPU's own memory in bytes; ``None`` if unknown."""
        memory = self.get(self.library.nvmlDeviceGetMemoryInfo, handle)
        return None if memory is None else int(memory.free)

    def is_divided(self, handle: Any) -> bool:
        """Whether the GPU is divided into MIG slices."""
        modes = self.get(self.library.nvmlDeviceGetMigMode, handle)
        return bool(modes and modes[0])

    def driver(self) -> str | None:
        """The driver version, ``580.65.06``; ``None`` without a driver."""
        version = self.get(self.library.nvmlSystemGetDriverVersion) if self.present else None
        return None if version is None else str(version)

    def cuda(self) -> int:
        """The newest CUDA version that the driver supports, ``13000`` for 13.0; 0 if unknown."""
        version = self.get(self.library.nvmlSystemGetCudaDriverVersion) if self.present else None
        return int(version or 0)

    def close(self) -> None:
        """End the session; calling it again does nothing."""
        if self.present:
            self.present = False
            self.handles = []
            self.get(self.library.nvmlShutdown)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
