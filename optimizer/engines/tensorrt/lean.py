"""The lean runtime, which TensorRT embeds in a version-compatible engine.

The wheels of ``tensorrt`` do not contain it. The builder opens ``libnvinfer_lean.so.11`` by that name at
the end of a build that takes minutes. So its presence is checked first, and it is loaded from its own
wheel.
"""

from __future__ import annotations

import ctypes
import re
from importlib import metadata
from pathlib import Path

from optimizer.engines.tensorrt.library import Library, version_tuple
from optimizer.errors import MissingLibrary

__all__ = ["check_lean_runtime", "load_lean_runtime"]


def check_lean_runtime(library: Library, version: str | None) -> None:
    """Check before a version-compatible build that the lean runtime is installed.

    Raises:
        MissingLibrary: The lean runtime of this version is not installed; ``hint`` is the command
            that installs it.
    """
    if version is None:
        return  # the library itself is missing, which is reported elsewhere
    runtimes = _in_wheels()
    if any(wheel == version for wheel, _ in runtimes) or _on_library_path(version):
        return
    others = sorted({wheel for wheel, _ in runtimes})
    state = f"installed is {' and '.join(others)}" if others else "it is not installed"
    raise MissingLibrary(
        f"a version-compatible engine needs the lean runtime of {library.title} {version}: {state}",
        hint=f'pip install "tensorrt-lean{_flavour(library)}=={version}"',
    )


def load_lean_runtime(version: str) -> None:
    """Load the lean runtime, so that the library finds it by name.

    Raises:
        MissingLibrary: It cannot be loaded.
    """
    for wheel, path in _in_wheels():
        if wheel == version:
            try:
                ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
            except OSError as error:
                raise MissingLibrary(f"the lean runtime cannot be loaded: {error}") from error
            return


def _in_wheels() -> list[tuple[str, Path]]:
    """Versions and paths of the lean runtimes that pip installed."""
    runtimes = []
    for distribution in metadata.distributions():
        name = (distribution.metadata["Name"] or "").lower().replace("_", "-")
        if not name.startswith("tensorrt-lean"):
            continue
        runtimes += [
            (distribution.version, Path(str(distribution.locate_file(file))))
            for file in distribution.files or []
            if re.fullmatch(r"libnvinfer_lean\.so\.\d+", file.name)
        ]
    return runtimes


def _on_library_path(version: str) -> bool:
    try:
        ctypes.CDLL(f"libnvinfer_lean.so.{version_tuple(version)[0]}")
    except OSError:
        return False
    return True


def _flavour(library: Library) -> str:
    """``-cu13`` if the wheels for that CUDA version are installed."""
    for name in library.distributions:
        flavour = re.search(r"-cu\d+$", name)
        if flavour is None:
            continue
        try:
            metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
        return flavour[0]
    return ""
