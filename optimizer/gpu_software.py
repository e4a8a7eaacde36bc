"""Whether the NVIDIA driver here serves the GPU libraries that are installed: one answer a machine.

Each library fails in its own way under a driver that is too old for it, and names its own remedy. What
is read here is the driver (by NVML, or the traces it leaves) and the CUDA version that each installed
library was made for; nothing is imported or loaded but the driver's own library.
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
"""The first driver for Linux that serves each CUDA version; a newer one serves it too."""
_INSTALL = {
    "tensorrt-11": ("tensorrt", "tensorrt-cuda12"),
    "tensorrt-10": ("tensorrt10", "tensorrt10-cuda12"),
    "tensorrt-rtx": ("tensorrt-rtx", "tensorrt-rtx-cuda12"),
    "cuda-python": ("cuda", "cuda12"),
}
"""Extras of this package by library: for CUDA 13, for CUDA 12."""


class Installed(BaseModel):
    """A library that uses the GPU, and the CUDA version it was made for."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    version: str
    cuda: int
    """Major version."""


class GpuSoftware(BaseModel):
    """What fits the driver, in one answer."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    driver: str | None
    cuda: str | None
    """The newest CUDA version that the driver serves."""
    kind: str
    """``desktop or server``, ``WSL``, ``Jetson``, ``container``."""
    fitting: list[Installed] = []
    too_new: list[Installed] = []
    answer: str
    hint: str | None = None
    notes: list[str] = []

    def lines(self) -> list[str]:
        """For the terminal."""
        found = [self.answer]
        if self.hint is not None:
            found.append(f"-> {self.hint}")
        return found + self.notes


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What is known of the driver.

    Attributes:
        driver: Its version, ``580.65.06``; ``None`` where NVML is not there.
        cuda: The newest CUDA version it serves, 13000 for 13.0; 0 if unknown.
        gpus: How many NVML shows.
        divided: Indices of GPUs that are divided into MIG slices.
        loads: Whether the driver's library for computing can be loaded.
        devices: Whether there are device files of NVIDIA's kernel module.
        kernel: The kernel's release.
        container: Whether this is a container.
        tegra: Whether this is a Jetson.
        architecture: Of the processor.
        visible: ``CUDA_VISIBLE_DEVICES``; ``None`` where it is not set.
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
        """In a word."""
        if self.tegra:
            return "Jetson"
        if self.wsl:
            return "WSL"
        return "container" if self.container else "desktop or server"


def gpu_software() -> GpuSoftware:
    """The answer for this machine."""
    return judge(read_machine(), installed_libraries())


def judge(machine: Machine, installed: list[Installed]) -> GpuSoftware:
    """Hold what is installed against the driver.

    Args:
        machine: The driver and where it runs.
        installed: The libraries that use the GPU.
    """
    major, minor = machine.cuda // 1000, machine.cuda % 1000 // 10
    served = f"{major}.{minor}" if machine.cuda else None
    known = machine.cuda > 0
    state = _State(
        machine,
        fitting=[one for one in installed if known and one.cuda <= major],
        too_new=[one for one in installed if known and one.cuda > major],
        served=served,
    )
    answer, hint = next(found for rule in _RULES if (found := rule(state)) is not None)
    return GpuSoftware(
        driver=machine.driver,
        cuda=served,
        kind=machine.kind,
        fitting=state.fitting,
        too_new=state.too_new,
        answer=answer,
        hint=hint,
        notes=_notes(machine),
    )


# --- the rules: the first one that has an answer gives it ------------------------------------------


@dataclass(frozen=True)
class _State:
    machine: Machine
    fitting: list[Installed] = field(default_factory=list)
    too_new: list[Installed] = field(default_factory=list)
    served: str | None = None


_Answer = tuple[str, str | None] | None


def _no_driver_library(state: _State) -> _Answer:
    machine = state.machine
    if machine.driver is not None or machine.tegra:
        return None
    if machine.container and machine.devices:
        return (
            "this container sees the device files of an NVIDIA GPU and not the driver's libraries",
            "start it with docker run --gpus all, with the NVIDIA Container Toolkit on the host",
        )
    if machine.devices:
        return (
            "NVIDIA's kernel module is loaded, and the driver's libraries are not installed",
            "install the driver's user-space packages of the same version",
        )
    if machine.wsl:
        return (
            "no NVIDIA driver in WSL",
            "install the NVIDIA driver in Windows, then wsl --shutdown; none is installed inside WSL",
        )
    return "no NVIDIA driver", "run it on a machine with an NVIDIA GPU and its driver"


def _jetson(state: _State) -> _Answer:
    machine = state.machine
    if not machine.tegra:
        return None
    if machine.cuda // 1000 >= 13:
        return None  # from JetPack 7 on, a Jetson takes the same wheels as a server
    return (
        (
            f"a Jetson with CUDA {state.served or 'of an unknown version'}: the wheels of pip are for "
            "servers, and JetPack 6 has TensorRT 10.3, which is too old (10.12 is needed)"
        ),
        "upgrade to JetPack 7, which takes the wheels of pip",
    )


def _hidden(state: _State) -> _Answer:
    visible = state.machine.visible
    if visible is None or visible.strip() not in {"", "-1"}:
        return None
    return (
        f'CUDA_VISIBLE_DEVICES="{visible}" hides every GPU of this machine',
        "unset CUDA_VISIBLE_DEVICES",
    )


def _only_nvml(state: _State) -> _Answer:
    machine = state.machine
    if machine.loads:
        return None
    if machine.container:
        return (
            (
                "this container has the driver's NVML and not its libcuda: it was started without the "
                "capability to compute"
            ),
            "docker run --gpus all -e NVIDIA_DRIVER_CAPABILITIES=compute,utility",
        )
    return (
        f"driver {machine.driver} is there, and its libcuda.so.1 cannot be loaded",
        "install the driver again, with its libraries for computing",
    )


def _too_old(state: _State) -> _Answer:
    if not state.too_new:
        return None
    machine, needed = state.machine, max(one.cuda for one in state.too_new)
    names = ", ".join(f"{one.name} {one.version}" for one in state.too_new)
    answer = (
        f"driver {machine.driver} serves CUDA {state.served}; installed for CUDA {needed}: {names}"
    )
    update = f"update the driver to {LEAST_DRIVER.get(needed, 'a newer one')} or later"
    if machine.wsl:
        update += " in Windows"
    if machine.cuda // 1000 != 12:
        return answer, update
    extras = sorted(_extras(state.too_new) | {"cuda12"})
    return answer, f'{update}, or pip install "resnet-opt[{",".join(extras)}]"'


def _nothing_installed(state: _State) -> _Answer:
    if state.fitting or not state.served:
        return None
    extra = "cuda" if state.machine.cuda >= 13000 else "cuda12"
    return (
        (
            f"driver {state.machine.driver} serves CUDA {state.served}; no library that uses the GPU is "
            "installed"
        ),
        f'pip install "resnet-opt[{extra}]"',
    )


def _all_fits(state: _State) -> _Answer:
    names = (
        ", ".join(f"{one.name} {one.version}" for one in state.fitting) or "nothing to hold it to"
    )
    served = f"CUDA {state.served}" if state.served else "an unknown CUDA version"
    return (
        f"driver {state.machine.driver} serves {served}, and so all that is installed: {names}",
        None,
    )


_RULES: tuple[Callable[[_State], _Answer], ...] = (
    _no_driver_library,
    _jetson,
    _hidden,
    _only_nvml,
    _too_old,
    _nothing_installed,
    _all_fits,
)


def _extras(libraries: list[Installed]) -> set[str]:
    """The extras for CUDA 12 that bring other builds of these libraries."""
    found = set()
    for one in libraries:
        name = one.name
        if name == "tensorrt":
            name = f"tensorrt-{one.version.partition('.')[0]}"
        found.add(_INSTALL.get(name, ("cuda", "cuda12"))[1])
    return found


def _notes(machine: Machine) -> list[str]:
    notes = []
    if machine.divided:
        which = ", ".join(map(str, machine.divided))
        notes.append(
            f"GPU {which} is divided into MIG slices: CUDA shows the first slice alone, and another one "
            "with CUDA_VISIBLE_DEVICES=MIG-… from nvidia-smi -L; clocks and energy are not told"
        )
    if machine.wsl and machine.driver is not None:
        notes.append("WSL: clocks and energy are not told, and pinned memory is limited")
    return notes


# --- reading ---------------------------------------------------------------------------------------


def read_machine(root: Path = Path("/"), environment: Mapping[str, str] | None = None) -> Machine:
    """What the driver of this machine tells.

    Args:
        root: Root of the file system.
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
    """The installed libraries that use a GPU, with the CUDA version each was made for."""
    found = []
    for name, cuda_of in _CUDA_OF.items():
        try:
            distribution = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue
        cuda = cuda_of(distribution)
        if cuda is not None:
            shown = re.sub(r"-cu\d+$", "", name)
            found.append(Installed(name=shown, version=distribution.version, cuda=cuda))
    return found


def _by_its_requirements(distribution: metadata.Distribution) -> int | None:
    """From what it requires: ``nvidia-cublas-cu12``, ``cuda-bindings<14,>=13``, ``cuda-toolkit==13``."""
    text = "\n".join(distribution.requires or [])
    match = (
        re.search(r"nvidia-[a-z-]+-cu(\d+)", text)
        or re.search(r"(?:cuda-toolkit|nvidia-cuda-runtime)[^\n]*?[=~>]=?\s*(\d+)\.", text)
        or re.search(r"\+cu(\d\d)", distribution.version)
    )
    return int(match[1]) if match else None


def _by_its_version(distribution: metadata.Distribution) -> int | None:
    return int(distribution.version.partition(".")[0])


def _by_its_name(distribution: metadata.Distribution) -> int | None:
    match = re.search(r"-cu(\d+)$", distribution.metadata["Name"].replace("_", "-"))
    return int(match[1]) if match else None


_CUDA_OF: dict[str, Callable[[metadata.Distribution], int | None]] = {
    "torch": _by_its_requirements,
    "onnxruntime-gpu": _by_its_requirements,
    "cuda-python": _by_its_version,
    "tensorrt-cu13": _by_its_name,
    "tensorrt-cu12": _by_its_name,
    "tensorrt-rtx-cu13": _by_its_name,
    "tensorrt-rtx-cu12": _by_its_name,
}
