"""What this machine is: for ``doctor``, for the reports, and as a fingerprint for comparisons.

Importing this module imports none of the libraries it tells about.
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
    """The processor and how much of it this process may use."""

    model: str
    architecture: str
    flags: list[str]
    """Instruction sets that matter for ResNets."""
    physical_cores: int
    """Cores this process may use, hyper-threads not counted."""
    logical_cores: int
    """Hardware threads this process may use."""
    quota: float | None = None
    """Processor time a container may use, in cores; ``None`` where it is not limited."""


class Gpu(_Model):
    """One NVIDIA GPU, as NVML tells it."""

    index: int
    name: str
    memory_bytes: int | None
    """``None`` where the GPU has none of its own, or does not tell."""
    compute_capability: str | None
    driver: str | None


class BackendStatus(_Model):
    """What one backend can do here (see `optimizer.engines.Availability`)."""

    can_build: bool
    can_run: bool
    reason: str
    hint: str | None = None


class ProviderReport(_Model):
    """Whether a provider of ONNX Runtime can be used (see `optimizer.engines.providers`)."""

    usable: bool
    reason: str
    needs: list[str] = []
    """Libraries that this build of it links or opens, with their major versions."""
    missing: list[str] = []
    hint: str | None = None


class Environment(_Model):
    """All that decides what can be done here and how fast."""

    os: str
    python: str
    cpu: Cpu
    memory_bytes: int
    gpus: list[Gpu]
    """Empty where there is no NVIDIA driver."""
    libraries: dict[str, str | None]
    """Versions of the libraries that this package uses; ``None`` for one not installed."""
    backends: dict[str, BackendStatus]
    providers: dict[str, ProviderReport] = {}
    """Execution providers of ONNX Runtime, by the names that ``build --provider`` takes."""
    gpu_software: GpuSoftware | None = None
    """Whether the driver serves the installed GPU libraries, and the command if it does not."""
    fingerprint: str
    """The ``sha256`` of `fingerprint`."""


def describe() -> Environment:
    """Tell what this machine is and which engines can be built and run on it."""
    import psutil

    from optimizer.engines import backends
    from optimizer.engines.providers.status import statuses

    status = {}
    for name, backend in backends().items():
        found = backend.availability()
        status[name] = BackendStatus(
            can_build=found.can_build, can_run=found.can_run, reason=found.reason, hint=found.hint
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
            found.provider: ProviderReport(
                usable=found.usable,
                reason=found.reason,
                needs=found.needs,
                missing=found.missing,
                hint=found.hint,
            )
            for found in statuses()
        },
        gpu_software=gpu_software(),
        fingerprint=fingerprint()["sha256"],
    )


def fingerprint() -> dict[str, Any]:
    """Identify the machine, so that results of different ones are not taken for comparable.

    Versions of libraries and of the driver are left out: to see what an upgrade changed is a
    reason to compare.

    Returns:
        ``cpu``, ``flags``, ``cores``, ``quota``, ``memory_gib`` (rounded: the kernel's own share
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
    """NVIDIA's GPUs that can be seen; none where there is no driver."""
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

    Empty if this package was not installed but only lies on the path.
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
    """Processor time a container may use, in cores.

    Args:
        root: Where the control groups are mounted (version 2, or version 1).

    Returns:
        ``None`` where it is not limited or the system does not tell.
    """
    for quota_file, period_file in (
        ("cpu.max", None),
        ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"),
    ):
        try:
            words = (root / quota_file).read_text(encoding="ascii").split()
            if period_file is not None:
                words += (root / period_file).read_text(encoding="ascii").split()
        except OSError:
            continue
        if words[0] in {"max", "-1"}:
            return None
        return int(words[0]) / int(words[1])
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
