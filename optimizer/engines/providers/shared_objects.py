"""What a provider's shared object links, and where on this machine it is found."""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import os
import re
import sys
from pathlib import Path

from optimizer.processes import output_of

__all__ = ["locate", "needed", "other_versions", "preload", "version_of"]

# What every Linux with glibc and a C++ runtime has.
_SYSTEM = re.compile(r"^(lib(c|m|dl|rt|pthread|stdc\+\+|gcc_s|z)\.so\.|ld-linux)")
_DISTRIBUTION_FOLDERS = ("tensorrt_libs",)
"""Packages beside ``nvidia`` whose own folder holds libraries."""


def needed(path: Path) -> list[str]:
    """The libraries a shared object links (its ``DT_NEEDED`` entries), those of the system left out.

    Raises:
        ValueError: The file is no shared object.
    """
    from elftools.common.exceptions import ELFError
    from elftools.elf.dynamic import DynamicSection
    from elftools.elf.elffile import ELFFile

    with path.open("rb") as file:
        try:
            section = ELFFile(file).get_section_by_name(".dynamic")
        except ELFError as error:
            raise ValueError(f"{path.name} is no shared object: {error}") from error
        tags = section.iter_tags("DT_NEEDED") if isinstance(section, DynamicSection) else ()
        # pyelftools gives each kind of tag an attribute of its own.
        names = [str(getattr(tag, "needed")) for tag in tags]  # noqa: B009
    return [name for name in names if not _SYSTEM.match(name)]


def locate(name: str, beside: Path | None = None) -> Path | None:
    """Where the loader, or a Python package, has a library.

    Args:
        name: Its soname, ``libcudnn.so.9``.
        beside: A further folder to look into; there also by a longer version
            (``libcudart.so.13.4.36``).
    """
    if beside is not None:
        for found in sorted(beside.glob(f"{name}*")):
            return found
    for folder in (*_package_folders(), *_library_path()):
        if (folder / name).is_file():
            return folder / name
    listed = _loader_cache().get(name)
    return Path(listed) if listed is not None else None


def other_versions(name: str) -> list[str]:
    """Other major versions of a library that are here: ``libnvinfer.so.11`` for ``libnvinfer.so.10``."""
    stem, version = version_of(name)
    pattern = re.compile(rf"{re.escape(stem)}\.so\.(\d+)$")
    names = {
        path.name
        for folder in (*_package_folders(), *_library_path())
        for path in folder.glob(f"{stem}.so.*")
    }
    names |= _loader_cache().keys()
    return sorted(n for n in names if (match := pattern.match(n)) and match[1] != version)


def preload(names: list[str], beside: Path | None = None) -> None:
    """Load libraries that lie where the loader does not look, in the order given.

    One that cannot be loaded is left for the provider to name. Two rounds, since they link
    each other.
    """
    left = [path for name in names if (path := locate(name, beside)) is not None]
    for _ in range(2):
        failed = []
        for path in left:
            try:
                ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
            except OSError:
                failed.append(path)
        left = failed


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
        for place in (spec.submodule_search_locations or []) if spec is not None else []:
            root = Path(place)
            folders += [*root.glob("*/lib"), root] if package == "nvidia" else [root]
    return tuple(folders)


def _library_path() -> list[Path]:
    return [Path(part) for part in os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep) if part]


@functools.cache
def _loader_cache() -> dict[str, str]:
    """The loader's own list, name to path; empty where there is no ``ldconfig``."""
    if sys.platform != "linux":
        return {}
    for command in ("ldconfig", "/sbin/ldconfig", "/usr/sbin/ldconfig"):
        listing = output_of([command, "-p"])
        if listing is None:
            continue
        rows = (line.split(" => ") for line in listing.splitlines() if " => " in line)
        found: dict[str, str] = {}
        for left, path in rows:
            found.setdefault(left.split()[0], path.strip())
        return found
    return {}
