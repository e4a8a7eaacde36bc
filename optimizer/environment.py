"""Describes this machine: for ``doctor``, for reports, and as a fingerprint for comparisons.

Importing this module imports none of the libraries it reports on.
"""

from __future__ import annotations

import platform
from importlib import metadata
from typing import Any

from pydantic import BaseModel, ConfigDict

from optimizer.artifacts import content_key
from optimizer.gpu_software import GpuSoftware, gpu_software
from optimizer.installed import command_for, version_conflicts
from optimizer.nvml import Nvml
from optimizer.processes import cpu_quota, hardware_threads, total_memory
from optimizer.targets.hardware import cpu_features

__all__ = [
    "BackendStatus",
    "Cpu",
    "Environment",
    "Gpu",
    "ProviderReport",
    "describe",
    "fingerprint",
    "gpus",
    "libraries",
]

DISTRIBUTION = "resnet-opt"
_GIB = 2**30


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Cpu(_Model):
    """The processor, and how much of it this process may use."""

    model: str
    architecture: str
    flags: list[str]
    """Instruction sets that are relevant for ResNets."""
    physical_cores: int
    """Physical cores this process may use, within the container's quota."""
    logical_cores: int
    """Hardware threads this process may use, within the container's quota."""
    quota: float | None = None
    """CPU quota of the container, in cores; ``None`` if unlimited."""


class Gpu(_Model):
    """An NVIDIA GPU, as reported by NVML."""

    index: int
    name: str
    memory_bytes: int | None
    """``None`` if the GPU has no memory of its own, or does not report it."""
    compute_capability: str | None
    driver: str | None


class BackendStatus(_Model):
    """What a backend can do on this machine (see `optimizer.engines.Availability`)."""

    can_build: bool
    can_run: bool
    reason: str
    hint: str | None = None


class ProviderReport(_Model):
    """Whether a provider of ONNX Runtime can be used (see `optimizer.engines.providers`)."""

    usable: bool
    reason: str
    needs: list[str] = []
    """Libraries that the installed build links or loads, with their major versions."""
    missing: list[str] = []
    hint: str | None = None


class Environment(_Model):
    """The hardware and software of this machine."""

    os: str
    python: str
    cpu: Cpu
    memory_bytes: int
    """The machine's memory, or the container's limit."""
    gpus: list[Gpu]
    """Empty without an NVIDIA driver."""
    libraries: dict[str, str | None]
    """Versions of the libraries that this package uses; ``None`` if not installed."""
    backends: dict[str, BackendStatus]
    providers: dict[str, ProviderReport] = {}
    """Execution providers of ONNX Runtime, by their names for ``build --provider``."""
    gpu_software: GpuSoftware | None = None
    """Whether the driver supports the installed GPU libraries, and what to do if not."""
    fingerprint: str
    """The ``sha256`` of `fingerprint`."""
    version_conflicts: list[str] = []
    """Installed versions that this package does not work with, each in one line."""
    version_hint: str | None = None
    """The command that installs versions that do; ``None`` without a conflict."""


def describe() -> Environment:
    """Describe this machine and which engines can be built and run on it."""
    from optimizer.engines import backends
    from optimizer.engines.providers.status import statuses
    from optimizer.engines.registry import broken_backends

    status = {
        name: BackendStatus(
            can_build=False, can_run=False, reason=reason, hint="update or uninstall that package"
        )
        for name, reason in broken_backends().items()
    }
    for name, backend in backends().items():
        available = backend.availability()
        status[name] = BackendStatus(
            can_build=available.can_build,
            can_run=available.can_run,
            reason=available.reason,
            hint=available.hint,
        )
    features = cpu_features()
    conflicts = version_conflicts()
    return Environment(
        os=_os(),
        python=platform.python_version(),
        cpu=Cpu(
            model=features.model,
            architecture=platform.machine(),
            flags=features.flags,
            physical_cores=features.physical_cores,
            logical_cores=hardware_threads(),
            quota=cpu_quota(),
        ),
        memory_bytes=total_memory(),
        gpus=gpus(),
        libraries=libraries(),
        backends=status,
        providers={
            provider.provider: ProviderReport(
                usable=provider.usable,
                reason=provider.reason,
                needs=provider.needs,
                missing=provider.missing,
                hint=provider.hint,
            )
            for provider in statuses()
        },
        gpu_software=gpu_software(),
        fingerprint=fingerprint()["sha256"],
        version_conflicts=[conflict.text for conflict in conflicts],
        version_hint=command_for(conflicts),
    )


def fingerprint() -> dict[str, Any]:
    """Identify the machine, so that results of different machines are not compared by mistake.

    Library and driver versions are left out, because the effect of an upgrade is worth comparing.

    Returns:
        ``cpu``, ``flags``, ``cores``, ``quota``, ``memory_gib`` (rounded, because the kernel's share
        varies), ``gpus``, and ``sha256`` over all of them.
    """
    features = cpu_features()
    facts: dict[str, Any] = {
        "cpu": features.model,
        "flags": features.flags,
        "cores": features.physical_cores,
        "quota": cpu_quota(),
        "memory_gib": round(total_memory() / _GIB),
        "gpus": [
            {
                "name": g.name,
                "memory_gib": None if g.memory_bytes is None else round(g.memory_bytes / _GIB),
            }
            for g in gpus()
        ],
    }
    return {**facts, "sha256": content_key(facts)}


def gpus() -> list[Gpu]:
    """The visible NVIDIA GPUs; none without a driver."""
    with Nvml() as nvml:
        return [_gpu(nvml, index, handle) for index, handle in nvml.handles]


def _gpu(nvml: Nvml, index: int, handle: Any) -> Gpu:
    capability = nvml.capability(handle)
    return Gpu(
        index=index,
        name=nvml.name(handle),
        memory_bytes=nvml.memory(handle),
        compute_capability=None if capability is None else f"{capability[0]}.{capability[1]}",
        driver=nvml.driver(),
    )


def libraries() -> dict[str, str | None]:
    """Versions of this package's dependencies and optional libraries, without importing them.

    Empty if this package is on the path but not installed.
    """
    import re

    try:
        requirements = metadata.requires(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        return {}
    names = {
        match.group(0)
        for line in requirements
        if 'extra == "dev"' not in line and (match := re.match(r"[A-Za-z0-9._-]+", line))
    }
    return {name: _version(name) for name in sorted(names, key=str.lower)}


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _os() -> str:
    try:
        name = platform.freedesktop_os_release().get("PRETTY_NAME")
    except OSError:
        name = None
    kernel = f"{platform.system()} {platform.release()}"
    return f"{name} ({kernel})" if name else kernel
