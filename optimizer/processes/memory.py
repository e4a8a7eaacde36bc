"""Memory of this process: measuring it, and returning freed memory to the system."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

__all__ = ["memory_bytes", "release_memory"]


def release_memory() -> None:
    """Return freed memory to the system, if the C library supports it (glibc).

    After some tensors of tens of megabytes, glibc allocates later ones on its heap too and keeps
    freed memory between live blocks. This lowers the peak of quantizing ResNet-50 at 224 pixels by
    0.4 GB.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:
        trim(0)


def memory_bytes() -> tuple[int, int | None]:
    """Peak and current resident memory of this process in bytes; the latter ``None`` outside Linux.

    The peak is Linux's ``VmHWM``, because ``getrusage`` inherits the larger peak of the parent.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        fields = dict(line.partition(":")[::2] for line in status.read_text().splitlines())
        if "VmHWM" in fields and "VmRSS" in fields:
            peak, now = (int(fields[k].split()[0]) * 1024 for k in ("VmHWM", "VmRSS"))
            return peak, now
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit, None
