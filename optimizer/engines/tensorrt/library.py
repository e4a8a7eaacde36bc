"""The differences between ``tensorrt`` and ``tensorrt_rtx`` and between their releases, and their import.

Everything else in this package is one code path. A library module is always called ``trt`` here,
and its objects ``builder``, ``network``, ``parser``, ``config``, ``profile``, ``runtime``,
``engine``, ``context``, ``inspector``, ``refitter``, ``timing_cache``: the contract tests collect
the attributes used on these names and look each up in every supported version.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
import warnings
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from optimizer.errors import MissingLibrary

__all__ = [
    "TENSORRT",
    "TENSORRT_RTX",
    "Library",
    "LibraryStatus",
    "compute_capability",
    "find",
    "load",
    "refit_flag",
    "version_tuple",
]


@dataclass(frozen=True)
class Library:
    """One of the two libraries.

    Attributes:
        name: The backend's name on the command line.
        title: The name for messages.
        module: The Python module.
        distributions: The names of its distributions.
        extra: The extra of this package that installs it.
        minimum: The oldest supported version.
        too_old: Why older versions are not supported.
        portable: Whether it compiles for named compute capabilities without a GPU.
        capabilities: Compute capabilities it compiles for; ``None`` for that of the present GPU.
        default_capabilities: The compute capabilities that an engine runs on by default.
    """

    name: str
    title: str
    module: str
    distributions: tuple[str, ...]
    extra: str
    minimum: tuple[int, int]
    too_old: str
    portable: bool
    capabilities: tuple[int, ...] | None = None
    default_capabilities: tuple[int, ...] = ()

    @property
    def hint(self) -> str:
        """The command that installs it."""
        return f'pip install "resnet-opt[{self.extra}]"'


TENSORRT = Library(
    name="tensorrt",
    title="TensorRT",
    module="tensorrt",
    distributions=("tensorrt", "tensorrt-cu13", "tensorrt-cu12"),
    extra="tensorrt",
    minimum=(10, 12),
    too_old="strong typing is complete from 10.12 on, and JetPack's 10.3 lacks it",
    portable=False,
)
TENSORRT_RTX = Library(
    name="tensorrt-rtx",
    title="TensorRT-RTX",
    module="tensorrt_rtx",
    distributions=("tensorrt-rtx",),
    extra="tensorrt-rtx",
    minimum=(1, 7),
    too_old="versions before 1.7 are not tested",
    portable=True,
    capabilities=(75, 80, 86, 89, 120, 121),
    default_capabilities=(80, 86, 89, 120),
)


@dataclass(frozen=True)
class LibraryStatus:
    """The result of looking for a library: its module, or why it cannot be used."""

    module: Any | None
    version: str | None
    fault: str | None
    hint: str | None


def find(library: Library) -> LibraryStatus:
    """Look for a library, and import it if its version is supported."""
    spec = importlib.util.find_spec(library.module)
    if spec is None or spec.origin is None:  # a folder of that name is not the library
        return LibraryStatus(None, None, f"{library.module} is not installed", library.hint)
    version = _installed_version(library)
    if version is not None and version_tuple(version) < library.minimum:
        return LibraryStatus(None, version, _too_old(library, version), library.hint)
    try:
        with warnings.catch_warnings():
            # pybind11 warns at import about its own use of Python's C API.
            warnings.simplefilter("ignore", DeprecationWarning)
            trt = importlib.import_module(library.module)
    except (ImportError, OSError) as error:
        line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        fault = f"{library.module} is installed but cannot be imported: {line}"
        return LibraryStatus(None, version, fault, f"{library.hint} --force-reinstall")
    version = str(trt.__version__)
    if version_tuple(version) < library.minimum:
        return LibraryStatus(None, version, _too_old(library, version), library.hint)
    return LibraryStatus(trt, version, None, None)


def load(library: Library) -> Any:
    """Import a library.

    Raises:
        MissingLibrary: It is not installed, cannot be imported, or is too old.
    """
    installed = find(library)
    if installed.module is None:
        raise MissingLibrary(str(installed.fault), hint=installed.hint)
    return installed.module


def compute_capability(rtx: Any, name: str) -> Any | None:
    """TensorRT-RTX's constant for ``sm89`` and the like; ``None`` if this release does not have it."""
    return getattr(rtx.ComputeCapability, name.upper(), None)


def refit_flag(trt: Any) -> Any | None:
    """The flag that keeps a serialized engine refittable; ``None`` for TensorRT 10.12, which lacks it."""
    return getattr(trt.SerializationFlag, "INCLUDE_REFIT", None)


def version_tuple(version: str) -> tuple[int, ...]:
    """``10.16.1.11`` as integers; anything after the digits of a part is ignored."""
    return tuple(int(match[0]) for part in version.split(".") if (match := re.match(r"\d+", part)))


def _too_old(library: Library, version: str) -> str:
    needed = ".".join(map(str, library.minimum))
    return f"{library.title} {version} is older than {needed}: {library.too_old}"


def _installed_version(library: Library) -> str | None:
    for name in library.distributions:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return None
