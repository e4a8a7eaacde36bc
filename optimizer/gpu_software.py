"""Checks whether the NVIDIA driver supports the installed GPU libraries.

With a driver that is too old, each library fails in its own way and suggests its own remedy. This module
reads the driver (with NVML, or from device files) and the CUDA version that each installed library was
built for, and gives one answer. It loads nothing but the driver's own library.
"""

from __future__ import annotations

import ctypes
import os
import platform
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from optimizer.nvml import Nvml

__all__ = [
    "LEAST_DRIVER",
    "GpuSoftware",
    "Installed",
    "Machine",
    "gpu_software",
    "installed_libraries",
    "judge",
    "read_machine",
]

LEAST_DRIVER = {12: "525.60.13", 13: "580.65.06"}
"""The oldest Linux driver that supports each CUDA major version."""
_INSTALL = {
    "tensorrt-11": ("tensorrt", "tensorrt-cuda12"),
    "tensorrt-10": ("tensorrt10", "tensorrt10-cuda12"),
    "tensorrt-rtx": ("tensorrt-rtx", "tensorrt-rtx-cuda12"),
    "cuda-python": ("cuda", "cuda12"),
}
"""Extras of this package by library: (for CUDA 13, for CUDA 12)."""


class Installed(BaseModel):
    """An installed GPU library, and the CUDA version it was built for."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    version: str
    cuda: int
    """Major version."""


class GpuSoftware(BaseModel):
    """Which libraries the driver supports, and what to do if it does not support all."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    driver: str | None
    cuda: str | None
    """The newest CUDA version that the driver supports."""
    kind: str
    """``desktop or server``, ``WSL``, ``Jetson``, ``container``."""
    fitting: list[Installed] = []
    too_new: list[Installed] = []
    answer: str
    hint: str | None = None
    notes: list[str] = []

    def lines(self) -> list[str]:
        """The answer, hint and notes as lines for the terminal."""
        lines = [self.answer]
        if self.hint is not None:
            lines.append(f"-> {self.hint}")
        return lines + self.notes


@dataclass(frozen=True, kw_only=True)
class Machine:
    """The driver and its environment.

    Attributes:
        driver: The driver version, ``580.65.06``; ``None`` without NVML.
        cuda: The newest CUDA version it supports, 13000 for 13.0; 0 if unknown.
        gpus: The number of GPUs that NVML reports.
        divided: Indices of GPUs that are partitioned with MIG.
        loads: Whether the driver's ``libcuda`` can be loaded.
        devices: Whether the device files of NVIDIA's kernel module exist.
        kernel: The kernel release.
        container: Whether this is a container.
        tegra: Whether this is a Jetson.
        architecture: The processor architecture.
        visible: ``CUDA_VISIBLE_DEVICES``; ``None`` if it is not set.
    """

    driver: str | None = None
    cuda: int = 0
    gpus: int = 0
    divided: tuple[int, ...] = ()
    loads: bool = False
    devices: bool = False
    kernel: str = ""
    container: bool = False
    tegra: bool = False
    architecture: str = "x86_64"
    visible: str | None = None

    @property
    def wsl(self) -> bool:
        """Whether the kernel is that of the Windows Subsystem for Linux."""
        return "microsoft" in self.kernel.lower()

    @property
    def kind(self) -> str:
        """The kind of machine, for reports."""
        if self.tegra:
            return "Jetson"
        if self.wsl:
            return "WSL"
        return "container" if self.container else "desktop or server"


def gpu_software() -> GpuSoftware:
    """Check this machine."""
    return judge(read_machine(), installed_libraries())


def judge(machine: Machine, installed: list[Installed]) -> GpuSoftware:
    """Compare the installed libraries with the driver.

    Args:
        machine: The driver and its environment.
        installed: The installed GPU libraries.
    """
    major, minor = machine.cuda // 1000, machine.cuda % 1000 // 10
    supported = f"{major}.{minor}" if machine.cuda else None
    is_known = machine.cuda > 0
    state = _State(
        machine,
        fitting=[library for library in installed if is_known and library.cuda <= major],
        too_new=[library for library in installed if is_known and library.cuda > major],
        supported=supported,
    )
    answer, hint = next(result for rule in _RULES if (result := rule(state)) is not None)
    return GpuSoftware(
        driver=machine.driver,
        cuda=supported,
        kind=machine.kind,
        fitting=state.fitting,
        too_new=state.too_new,
        answer=answer,
        hint=hint,
        notes=_notes(machine),
    )


# --- the rules: the first answer counts ------------------------------------------


@dataclass(frozen=True)
class _State:
    machine: Machine
    fitting: list[Installed] = field(default_factory=list)
    too_new: list[Installed] = field(default_factory=list)
    supported: str | None = None


_Answer = tuple[str, str | None] | None


def _no_driver_library(state: _State) -> _Answer:
    machine = state.machine
    if machine.driver is not None or machine.tegra:
        return None
    if machine.container and machine.devices:
        return (
            "this container has the device files of an NVIDIA GPU, but not the driver's libraries",
            "start it with docker run --gpus all, with the NVIDIA Container Toolkit on the host",
        )
    if machine.devices:
        return (
            "NVIDIA's kernel module is loaded, but the driver's libraries are not installed",
            "install the driver's user-space packages of the same version",
        )
    if machine.wsl:
        return (
            "no NVIDIA driver in WSL",
            "install the NVIDIA driver in Windows (not in WSL), then run wsl --shutdown",
        )
    return "no NVIDIA driver", "run it on a machine with an NVIDIA GPU and its driver"


def _jetson(state: _State) -> _Answer:
    machine = state.machine
    if not machine.tegra:
        return None
    if machine.cuda // 1000 >= 13:
        return None  # since JetPack 7, a Jetson uses the same wheels as a server
    return (
        (
            f"a Jetson with CUDA {state.supported or 'of an unknown version'}: the pip wheels are for "
            "servers, and JetPack 6 has TensorRT 10.3, which is too old (10.12 is needed)"
        ),
        "upgrade to JetPack 7, which supports the pip wheels",
    )


def _all_gpus_hidden(state: _State) -> _Answer:
    visible = state.machine.visible
    if visible is None or visible.strip() not in {"", "-1"}:
        return None
    return (
        f'CUDA_VISIBLE_DEVICES="{visible}" hides every GPU of this machine',
        "unset CUDA_VISIBLE_DEVICES",
    )


def _no_libcuda(state: _State) -> _Answer:
    machine = state.machine
    if machine.loads:
        return None
    if machine.container:
        return (
            (
                "this container has the driver's NVML but not its libcuda: it was started without the "
                "driver capability 'compute'"
            ),
            "start it with docker run --gpus all -e NVIDIA_DRIVER_CAPABILITIES=compute,utility",
        )
    return (
        f"driver {machine.driver} is installed, but its libcuda.so.1 cannot be loaded",
        "reinstall the driver with its compute libraries",
    )


def _too_old(state: _State) -> _Answer:
    if not state.too_new:
        return None
    machine, needed = state.machine, max(library.cuda for library in state.too_new)
    names = ", ".join(f"{library.name} {library.version}" for library in state.too_new)
    answer = f"driver {machine.driver} supports CUDA {state.supported}; installed for CUDA {needed}: {names}"
    update = f"update the driver to {LEAST_DRIVER.get(needed, 'a newer one')} or later"
    if machine.wsl:
        update += " in Windows"
    if machine.cuda // 1000 != 12:
        return answer, update
    extras = sorted(_extras(state.too_new) | {"cuda12"})
    return answer, f'{update}, or pip install "resnet-opt[{",".join(extras)}]"'


def _nothing_installed(state: _State) -> _Answer:
    if state.fitting or not state.supported:
        return None
    extra = "cuda" if state.machine.cuda >= 13000 else "cuda12"
    return (
        (
            f"driver {state.machine.driver} supports CUDA {state.supported}; no GPU library is installed"
        ),
        f'pip install "resnet-opt[{extra}]"',
    )


def _all_supported(state: _State) -> _Answer:
    names = ", ".join(f"{library.name} {library.version}" for library in state.fitting) or "none"
    supported = f"CUDA {state.supported}" if state.supported else "an unknown CUDA version"
    return (
        f"driver {state.machine.driver} supports {supported} and all installed GPU libraries: {names}",
        None,
    )


_RULES: tuple[Callable[[_State], _Answer], ...] = (
    _no_driver_library,
    _jetson,
    _all_gpus_hidden,
    _no_libcuda,
    _too_old,
    _nothing_installed,
    _all_supported,
)


def _extras(libraries: list[Installed]) -> set[str]:
    """The extras that install builds of these libraries for CUDA 12."""
    extras = set()
    for library in libraries:
        name = library.name
        if name == "tensorrt":
            name = f"tensorrt-{library.version.partition('.')[0]}"
        extras.add(_INSTALL.get(name, ("cuda", "cuda12"))[1])
    return extras


def _notes(machine: Machine) -> list[str]:
    notes = []
    if machine.divided:
        indices = ", ".join(map(str, machine.divided))
        notes.append(
            f"GPU {indices} is divided into MIG slices: CUDA uses only the first; choose another with "
            "CUDA_VISIBLE_DEVICES=MIG-… from nvidia-smi -L. Clocks and energy are not available"
        )
    if machine.wsl and machine.driver is not None:
        notes.append("WSL: clocks and energy are not available, and pinned memory is limited")
    return notes


# --- reading ---------------------------------------------------------------------------------------


def read_machine(root: Path = Path("/"), environment: Mapping[str, str] | None = None) -> Machine:
    """Read the driver of this machine and its environment.

    Args:
        root: The root of the file system.
        environment: Environment variables; ``None`` for those of this process.
    """
    variables = os.environ if environment is None else environment
    kernel, architecture = platform.release(), platform.machine()
    with Nvml() as nvml:
        return Machine(
            driver=nvml.driver(),
            cuda=nvml.cuda(),
            gpus=len(nvml.handles),
            divided=tuple(index for index, handle in nvml.handles if nvml.is_divided(handle)),
            loads=_libcuda_loads(),
            devices=(root / "dev/nvidiactl").exists() or (root / "dev/nvidia0").exists(),
            kernel=kernel,
            container=_in_container(root),
            tegra="tegra" in kernel or (root / "etc/nv_tegra_release").exists(),
            architecture=architecture,
            visible=variables.get("CUDA_VISIBLE_DEVICES"),
        )


def _libcuda_loads() -> bool:
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


def _in_container(root: Path) -> bool:
    marks = (".dockerenv", "run/.containerenv", ".singularity.d")
    return any((root / mark).exists() for mark in marks)


def installed_libraries() -> list[Installed]:
    """The installed GPU libraries, with the CUDA version each was built for."""
    libraries = []
    for name, cuda_of in _CUDA_OF.items():
        try:
            distribution = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue
        cuda = cuda_of(distribution)
        if cuda is not None:
            plain_name = re.sub(r"-cu\d+$", "", name)
            libraries.append(Installed(name=plain_name, version=distribution.version, cuda=cuda))
    return libraries


def _cuda_from_requirements(distribution: metadata.Distribution) -> int | None:
    """The CUDA version from requirements: ``nvidia-cublas-cu12``, ``cuda-toolkit==13``."""
    text = "\n".join(distribution.requires or [])
    match = (
        re.search(r"nvidia-[a-z-]+-cu(\d+)", text)
        or re.search(r"(?:cuda-toolkit|nvidia-cuda-runtime)[^\n]*?[=~>]=?\s*(\d+)\.", text)
        or re.search(r"\+cu(\d\d)", distribution.version)
    )
    return int(match[1]) if match else None


def _cuda_from_version(distribution: metadata.Distribution) -> int | None:
    return int(distribution.version.partition(".")[0])


def _cuda_from_name(distribution: metadata.Distribution) -> int | None:
    match = re.search(r"-cu(\d+)$", distribution.metadata["Name"].replace("_", "-"))
    return int(match[1]) if match else None


_CUDA_OF: dict[str, Callable[[metadata.Distribution], int | None]] = {
    "torch": _cuda_from_requirements,
    "onnxruntime-gpu": _cuda_from_requirements,
    "cuda-python": _cuda_from_version,
    "tensorrt-cu13": _cuda_from_name,
    "tensorrt-cu12": _cuda_from_name,
    "tensorrt-rtx-cu13": _cuda_from_name,
    "tensorrt-rtx-cu12": _cuda_from_name,
}
