"""The device to train on, and the versions of libraries that a command asks for."""

from __future__ import annotations

import platform
from typing import TYPE_CHECKING

from optimizer.errors import EnvironmentFault, MissingDevice, UsageError
from optimizer.options import TrainOptions
from optimizer.training.distribution import world_of_environment

if TYPE_CHECKING:
    import torch

__all__ = ["check_versions", "device_of"]


def device_of(options: TrainOptions) -> torch.device:
    """The device to train on; under a launcher each process takes the GPU of its local rank.

    Raises:
        MissingDevice: There is no such GPU, or no CUDA at all.
        UsageError: Another kind of device, or FP16 on a CPU.
    """
    import torch

    name, available = options.device, torch.cuda.is_available()
    if name == "auto":
        name = "cuda" if available else "cpu"
    kind, _, number = name.partition(":")
    if kind not in ("cpu", "cuda") or (number and not number.isdecimal()):
        raise UsageError(f"{name!r} is not a device to train on", hint="auto, cpu, cuda or cuda:1")
    if kind == "cpu":
        if options.amp == "fp16":
            raise UsageError(
                "FP16 training needs a GPU: CPUs do not compute the gradients of all layers in it",
                hint="--amp bf16, or off",
            )
        if options.sync_batchnorm:
            raise UsageError(
                "SyncBatchNorm needs GPUs: PyTorch does not compute it on a CPU",
                hint="leave out --sync-batchnorm, or use a larger batch",
            )
        return torch.device("cpu")
    count = torch.cuda.device_count() if available else 0
    index = int(number) if number else world_of_environment().local_rank
    if index >= count:
        raise MissingDevice(
            f"there is no GPU {name}: PyTorch finds {count or 'none'}",
            hint="--device cpu, or see resnet-opt doctor",
        )
    return torch.device("cuda", index)


def check_versions(options: TrainOptions) -> None:
    """Hold the minimum versions against this machine.

    Raises:
        EnvironmentFault: A version is lower than asked for, or the library is missing.
    """
    import torch

    cudnn = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
    found = {
        "Python": (options.min_python, platform.python_version()),
        "CUDA": (options.min_cuda, torch.version.cuda),
        "cuDNN": (options.min_cudnn, None if cudnn is None else _cudnn_version(cudnn)),
    }
    for name, (minimum, version) in found.items():
        if minimum is None:
            continue
        if version is None:
            raise EnvironmentFault(
                f"{name} {minimum} or later is asked for, but this PyTorch ({torch.__version__}) has none",
                hint="install PyTorch for CUDA, or leave the option out",
            )
        if _numbers(version) < _numbers(minimum):
            raise EnvironmentFault(
                f"{name} {minimum} or later is asked for, but this machine has {version}",
                hint=f"install a newer {name}, or leave the option out",
            )


def _cudnn_version(number: int) -> str:
    """``9.19.0`` of 91900, and ``7.6.5`` of 7605."""
    major = 10_000 if number >= 90_000 else 1_000
    return f"{number // major}.{number % major // 100}.{number % 100}"


def _numbers(version: str) -> tuple[int, ...]:
    plain = version.partition("+")[0]
    return tuple(int(part) if part.isdecimal() else 0 for part in plain.split("."))
