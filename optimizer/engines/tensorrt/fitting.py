"""Checks from an engine's manifest whether it runs on this machine, before the library opens the file.

Sources: the engine compatibility pages of TensorRT 10.16, 11.4 and TensorRT-RTX. A TensorRT engine
is specific to one version and one GPU model unless it was built to be compatible; a version-compatible
one runs on later versions with the same major version, and one of TensorRT 10 also on 11. A
TensorRT-RTX engine is specific to one version and to the compute capabilities it was compiled for.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from optimizer.artifacts import Manifest, library_versions
from optimizer.engines.cuda import CudaDevice, CudaStatus
from optimizer.engines.opening import rebuild_command
from optimizer.engines.tensorrt.capability import sm_name
from optimizer.engines.tensorrt.library import Library, version_tuple
from optimizer.errors import ArtifactError

__all__ = [
    "changes",
    "check_has_weights",
    "check_machine",
    "device_misfits",
    "driver_misfits",
    "library_misfits",
]

_AMPERE = 80


def check_machine(
    library: Library, path: Path, manifest: Manifest, gpu: CudaDevice, status: CudaStatus
) -> None:
    """Compare what an engine was built for with a GPU and the installed libraries.

    Raises:
        ArtifactError: The engine does not run here; ``hint`` is the command that builds it for this
            machine.
    """
    installed = library_versions(*library.distributions)
    misfits = [
        *library_misfits(library, manifest, installed),
        *device_misfits(library, manifest, gpu),
        *driver_misfits(manifest, status.driver),
    ]
    if misfits:
        command = rebuild_command(path, manifest, target=gpu.sm if library.portable else None)
        if gpu.index and not library.portable:  # TensorRT builds on the first visible GPU
            command = f"CUDA_VISIBLE_DEVICES={gpu.index} {command}"
        raise ArtifactError(
            f"{path.name} does not fit this machine: {'; '.join(misfits)}", hint=command
        )


def check_has_weights(path: Path, manifest: Manifest) -> None:
    """Check that an engine contains its weights.

    Raises:
        ArtifactError: It was built with ``strip_weights`` and has not been refitted.
    """
    if _options(manifest).get("strip_weights"):
        raise ArtifactError(
            f"{path.name} has no weights: it was built with --strip-weights",
            hint=f"resnet-opt refit {path.name} MODEL -o {path.stem}-full{path.suffix}",
        )


def library_misfits(library: Library, manifest: Manifest, installed: dict[str, str]) -> list[str]:
    """Differences in the library; empty if the engine can be read.

    Args:
        library: The library of the engine.
        manifest: The engine's manifest.
        installed: Installed versions, by distribution.
    """
    built_by = {n: v for n, v in manifest.libraries.items() if n in library.distributions}
    built, now = _version(library, built_by), _version(library, installed)
    if built is None or now is None:
        return []
    compatible = bool(_options(manifest).get("version_compatible"))
    if built != now and not (compatible and _runs_later(built, now)):
        difference = f"{library.title} {built} at build, {now} here"
        if compatible:
            difference += " (version-compatible engines run on later versions with the same major)"
        return [difference]
    flavours = _flavours(built_by), _flavours(installed)
    if not compatible and all(flavours) and not flavours[0] & flavours[1]:
        built_for, here_for = map(_join_versions, flavours)
        return [f"{library.title} for CUDA {built_for} at build, for CUDA {here_for} here"]
    return []


def device_misfits(library: Library, manifest: Manifest, gpu: CudaDevice) -> list[str]:
    """Differences in the GPU; empty if the engine runs on it."""
    number = gpu.capability[0] * 10 + gpu.capability[1]
    if library.portable:
        return _target_misfits(library, manifest, number)
    device = manifest.device or {}
    name, capability = device.get("name"), device.get("compute_capability")
    level = _options(manifest).get("hardware_compatibility", "none")
    if level == "ampere-plus":
        if number >= _AMPERE:
            return []
        return [f"built for sm{_AMPERE} and later, this GPU is {gpu.sm}"]
    if capability is not None and capability != gpu.sm:
        return [f"compute capability {capability} at build, {gpu.sm} here"]
    if level == "none" and name is not None and name != gpu.name:
        return [f"{name} at build, {gpu.name} here"]
    return []


def driver_misfits(manifest: Manifest, cuda: str | None) -> list[str]:
    """Differences in the driver: one for an older CUDA major version than at build time.

    Args:
        manifest: The engine's manifest.
        cuda: The newest CUDA version that the installed driver supports.
    """
    built = _built_on(manifest).get("cuda")
    if built is None or cuda is None or version_tuple(cuda)[0] >= version_tuple(built)[0]:
        return []
    return [f"a driver for CUDA {built} at build, for CUDA {cuda} here"]


def changes(manifest: Manifest | None, driver: str | None, cuda: str | None) -> list[str]:
    """Minor differences, reported only if the library rejects an engine."""
    built = _built_on(manifest) if manifest is not None else {}
    current = {"driver": driver, "cuda": cuda}
    return [
        f"{'CUDA' if name == 'cuda' else name} {built[name]} at build, {now} here"
        for name, now in current.items()
        if name in built and now is not None and built[name] != now
    ]


def _target_misfits(library: Library, manifest: Manifest, number: int) -> list[str]:
    listed = [
        int(str(name).removeprefix("sm")) for name in manifest.settings.get("capabilities", ())
    ]
    numbers = listed or list(library.default_capabilities)
    if number in numbers or (not manifest.settings.get("targets") and number > max(numbers)):
        return []
    return [f"compiled for {', '.join(map(sm_name, numbers))}, this GPU is {sm_name(number)}"]


def _runs_later(built: str, now: str) -> bool:
    before, after = version_tuple(built), version_tuple(now)
    return after >= before and (after[0] == before[0] or (before[0], after[0]) == (10, 11))


def _version(library: Library, versions: dict[str, str]) -> str | None:
    return next((versions[name] for name in library.distributions if name in versions), None)


def _flavours(names: Iterable[str]) -> set[str]:
    """The CUDA major versions of distributions: ``{"13"}`` for ``tensorrt-cu13``."""
    return {match[1] for name in names if (match := re.search(r"-cu(\d+)$", name))}


def _options(manifest: Manifest) -> dict[str, Any]:
    return dict(manifest.settings.get("options") or {})


def _built_on(manifest: Manifest) -> dict[str, str]:
    return dict(manifest.details.get("built_on") or {})


def _join_versions(numbers: set[str]) -> str:
    return " and ".join(sorted(numbers))
