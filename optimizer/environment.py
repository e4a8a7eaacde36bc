"""Describes this machine: for ``doctor``, for reports, and as a fingerprint for comparisons.

Importing this module imports none of the libraries it reports on.
"""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from optimizer.artifacts import content_key
from optimizer.gpu_software import GpuSoftware, gpu_software
from optimizer.nvml import Nvml
from optimizer.targets.hardware import cpu_features

__all__ = [
    "BackendStatus",
    "Cpu",
    "Environment",
    "Gpu",
    "ProviderReport",
    "cpu_quota",
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
    """Physical cores this process may use."""
    logical_cores: int
    """Hardware threads this process may use."""
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


def describe() -> Environment:
    """Describe this machine and which engines can be built and run on it."""
    import psutil

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
    return Environment(
        os=_os(),
        python=platform.python_version(),
        cpu=Cpu(
            model=features.model,
            architecture=platform.machine(),
            flags=features.flags,
            physical_cores=features.physical_cores,
            logical_cores=_logical_cores(),
            quota=cpu_quota(),
        ),
        memory_bytes=psutil.virtual_memory().total,
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
    )


def fingerprint() -> dict[str, Any]:
    """Identify the machine, so that results of different machines are not compared by mistake.

    Library and driver versions are left out, because the effect of an upgrade is worth comparing.

    Returns:
        ``cpu``, ``flags``, ``cores``, ``quota``, ``memory_gib`` (rounded, because the kernel's share
        varies), ``gpus``, and ``sha256`` over all of them.
    """
    import psutil

    features = cpu_features()
    facts: dict[str, Any] = {
        "cpu": features.model,
        "flags": features.flags,
        "cores": features.physical_cores,
        "quota": cpu_quota(),
        "memory_gib": round(psutil.virtual_memory().total / _GIB),
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


def cpu_quota(root: Path = Path("/sys/fs/cgroup")) -> float | None:
    """The CPU quota of the container, in cores.

    Args:
        root: Where the control groups (version 1 or 2) are mounted.

    Returns:
        ``None`` if it is unlimited or unknown.
    """
    for quota_file, period_file in (
        ("cpu.max", None),
        ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"),
    ):
        try:
            values = (root / quota_file).read_text(encoding="ascii").split()
            if period_file is not None:
                values += (root / period_file).read_text(encoding="ascii").split()
        except OSError:
            continue
        if values[0] in {"max", "-1"}:
            return None
        return int(values[0]) / int(values[1])
    return None


def _logical_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _os() -> str:
    try:
        name = platform.freedesktop_os_release().get("PRETTY_NAME")
    except OSError:
        name = None
    kernel = f"{platform.system()} {platform.release()}"
    return f"{name} ({kernel})" if name else kernel
