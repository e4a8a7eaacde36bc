"""NVIDIA's GPUs as the driver's NVML tells them.

What a machine does not tell is absent and never an error: integrated GPUs (GB10) know no memory of their
own, containers with a MIG slice or a list of allowed devices refuse single queries and whole GPUs.
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
        handles: The GPUs that NVML shows, each with its index; none where there is no driver.
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
        """What a query gives; ``None`` where it is refused or not known."""
        try:
            return query(*arguments)
        except self.library.NVMLError:
            return None

    def name(self, handle: Any) -> str:
        """The GPU's name."""
        return str(self.get(self.library.nvmlDeviceGetName, handle) or "NVIDIA GPU")

    def capability(self, handle: Any) -> tuple[int, int] | None:
        """The compute capability; ``None`` where it is not told."""
        found = self.get(self.library.nvmlDeviceGetCudaComputeCapability, handle)
        return None if found is None else (int(found[0]), int(found[1]))

    def memory(self, handle: Any) -> int | None:
        """The GPU's own memory in bytes; ``None`` where it is not told, or is the machine's."""
        found = self.get(self.library.nvmlDeviceGetMemoryInfo, handle)
        return None if found is None else int(found.total)

    def free_memory(self, handle: Any) -> int | None:
        """Of the GPU's own memory what nobody uses, in bytes; ``None`` where it is not told."""
        found = self.get(self.library.nvmlDeviceGetMemoryInfo, handle)
        return None if found is None else int(found.free)

    def is_divided(self, handle: Any) -> bool:
        """Whether the GPU is divided into MIG slices."""
        modes = self.get(self.library.nvmlDeviceGetMigMode, handle)
        return bool(modes and modes[0])

    def driver(self) -> str | None:
        """The driver's version, ``580.65.06``; ``None`` without one."""
        found = self.get(self.library.nvmlSystemGetDriverVersion) if self.present else None
        return None if found is None else str(found)

    def cuda(self) -> int:
        """The newest CUDA version that the driver supports, ``13000`` for 13.0; 0 if unknown."""
        found = self.get(self.library.nvmlSystemGetCudaDriverVersion) if self.present else None
        return int(found or 0)

    def close(self) -> None:
        """End the session; twice is harmless."""
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
