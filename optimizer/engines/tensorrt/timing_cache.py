"""Timing caches, which save the builder from timing the same kernels again.

A cache is valid for one GPU model, CUDA version, library version and set of flags; the library
checks this itself. If the cache is a folder, it contains one file per library version and device.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from optimizer.artifacts import write_atomically

__all__ = ["cache_file", "store_timing_cache", "use_timing_cache"]


def cache_file(path: Path, library: str, version: str, device: str) -> Path:
    """The cache file for a library and a device: ``path`` itself, or a file in it if it is a folder."""
    if path.is_dir() or path.suffix == "":
        return path / f"{library}-{version}-{device.replace(' ', '_')}.cache"
    return path


def use_timing_cache(config: Any, path: Path) -> list[str]:
    """Load a cache file into the builder's configuration; an empty cache if the file is unusable.

    Returns:
        Notes for the user.
    """
    blob = path.read_bytes() if path.is_file() else b""
    timing_cache = config.create_timing_cache(blob)
    if timing_cache is not None and config.set_timing_cache(timing_cache, False):
        return []
    config.set_timing_cache(config.create_timing_cache(b""), False)
    return [f"timing cache {path.name} is for another device or version: started an empty one"]


def store_timing_cache(config: Any, path: Path) -> None:
    """Write the builder's cache, merged with what other processes have written to the file."""
    from filelock import FileLock

    timing_cache = config.get_timing_cache()
    if timing_cache is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(path.name + ".lock")):
        if path.is_file():
            others = config.create_timing_cache(path.read_bytes())
            if others is not None:  # a damaged file is replaced
                timing_cache.combine(others, False)
        with write_atomically(path) as temporary:
            temporary.write_bytes(timing_cache.serialize())
