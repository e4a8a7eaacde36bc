"""The libraries that a provider's shared object links, and where they are on this machine."""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import os
import re
import sys
from pathlib import Path

from optimizer.processes import output_of

__all__ = ["linked_libraries", "locate", "other_versions", "preload", "version_of"]

# Present on every Linux with glibc and a C++ runtime.
_SYSTEM = re.compile(r"^(lib(c|m|dl|rt|pthread|stdc\+\+|gcc_s|z)\.so\.|ld-linux)")
_DISTRIBUTION_FOLDERS = ("tensorrt_libs",)
"""Packages besides ``nvidia`` whose folder contains libraries."""


def linked_libraries(path: Path) -> list[str]:
    """The libraries a shared object links (its ``DT_NEEDED`` entries), without system libraries.

    Raises:
        ValueError: The file is not a shared object.
    """
    from elftools.common.exceptions import ELFError
    from elftools.elf.dynamic import DynamicSection
    from elftools.elf.elffile import ELFFile

    with path.open("rb") as file:
        try:
            section = ELFFile(file).get_section_by_name(".dynamic")
        except ELFError as error:
            raise ValueError(f"{path.name} is not a shared object: {error}") from error
        tags = section.iter_tags("DT_NEEDED") if isinstance(section, DynamicSection) else ()
        # pyelftools adds an attribute named after the kind of tag.
        names = [str(getattr(tag, "needed")) for tag in tags]  # noqa: B009
    return [name for name in names if not _SYSTEM.match(name)]


def locate(name: str, folder: Path | None = None) -> Path | None:
    """Find a library in Python packages or on the loader's path.

    Args:
        name: Its soname, such as ``libcudnn.so.9``.
        folder: A folder to search first; files with a longer version (``libcudart.so.13.4.36``)
            match there too.
    """
    if folder is not None:
        for path in sorted(folder.glob(f"{name}*")):
            return path
    for searched in (*_package_folders(), *_library_path()):
        if (searched / name).is_file():
            return searched / name
    listed = _loader_cache().get(name)
    return Path(listed) if listed is not None else None


def other_versions(name: str) -> list[str]:
    """Other installed major versions: ``libnvinfer.so.11`` for ``libnvinfer.so.10``."""
    stem, version = version_of(name)
    pattern = re.compile(rf"{re.escape(stem)}\.so\.(\d+)$")
    names = {
        path.name
        for folder in (*_package_folders(), *_library_path())
        for path in folder.glob(f"{stem}.so.*")
    }
    names |= _loader_cache().keys()
    return sorted(n for n in names if (match := pattern.match(n)) and match[1] != version)


def preload(names: list[str], folder: Path | None = None) -> None:
    """Load libraries that are outside the loader's path.

    Failures are ignored; the provider reports them. There are two rounds, because the libraries
    link each other.
    """
    remaining = [path for name in names if (path := locate(name, folder)) is not None]
    for _ in range(2):
        failed = []
        for path in remaining:
            try:
                ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
            except OSError:
                failed.append(path)
        remaining = failed


def version_of(name: str) -> tuple[str, str]:
    """``libnvinfer.so.10`` as (``libnvinfer``, ``10``)."""
    stem, _, version = name.partition(".so.")
    return stem, version


@functools.cache
def _package_folders() -> tuple[Path, ...]:
    """Library folders of NVIDIA's wheels."""
    folders: list[Path] = []
    for package in ("nvidia", *_DISTRIBUTION_FOLDERS):
        try:
            spec = importlib.util.find_spec(package)
        except (ImportError, ValueError):
            continue
        for location in (spec.submodule_search_locations or []) if spec is not None else []:
            root = Path(location)
            folders += [*root.glob("*/lib"), root] if package == "nvidia" else [root]
    return tuple(folders)


def _library_path() -> list[Path]:
    return [Path(part) for part in os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep) if part]


@functools.cache
def _loader_cache() -> dict[str, str]:
    """The loader's cache, name to path; empty without ``ldconfig``."""
    if sys.platform != "linux":
        return {}
    for command in ("ldconfig", "/sbin/ldconfig", "/usr/sbin/ldconfig"):
        listing = output_of([command, "-p"])
        if listing is None:
            continue
        rows = (line.split(" => ") for line in listing.splitlines() if " => " in line)
        cache: dict[str, str] = {}
        for entry, path in rows:
            cache.setdefault(entry.split()[0], path.strip())
        return cache
    return {}
