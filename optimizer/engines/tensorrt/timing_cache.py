"""Timing caches, which save the builder from timing the same kernels again.

A cache is valid for one GPU model, CUDA version, library version and set of flags; the library
checks this itself. If the cache is a folder, it contains one file per library version and device. A
file that the library does not accept is left as it is: it may be anything.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from optimizer.artifacts import folder_locked, write_atomically

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
    note = (
        f"timing cache {path.name} is not one of this library version and device: it is not used and "
        "stays as it is (--timing-cache FOLDER keeps one for each)"
    )
    return [note]


def store_timing_cache(config: Any, path: Path) -> None:
    """Write the builder's cache, merged with what is in the file, unless that is something else."""
    timing_cache = config.get_timing_cache()
    if timing_cache is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with folder_locked(path.parent):
        if path.is_file() and (content := path.read_bytes()):
            others = config.create_timing_cache(content)
            if others is None or not timing_cache.combine(others, False):
                return
        with write_atomically(path) as temporary:
            temporary.write_bytes(timing_cache.serialize())
