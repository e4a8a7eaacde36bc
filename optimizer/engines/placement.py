"""Decides on which device each engine runs; ``--device cuda:1`` applies to GPU engines only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from optimizer.artifacts import read_manifest
from optimizer.engines.cuda import check_device_exists, cuda_devices, device_index
from optimizer.errors import ArtifactError, UsageError

__all__ = [
    "PYTORCH_ON_CPU",
    "assign_devices",
    "check_device",
    "device_of",
    "runs_on",
    "runs_on_gpu",
]

_ON_CPU = {"openvino", "torch"}
_ON_GPU = {"tensorrt", "tensorrt-rtx"}
PYTORCH_ON_CPU = (
    "PyTorch cannot use the GPU here (built without CUDA, or the driver is too old): "
    "PyTorch ran on the CPU, and GPU engines are compared with that"
)


def runs_on_gpu(settings: Mapping[str, Any]) -> bool:
    """Whether an engine with these manifest settings runs on a GPU.

    Third-party backends are assumed to: they get the device and may refuse it.
    """
    backend = settings.get("backend")
    if backend == "onnxruntime":
        return bool((settings.get("options") or {}).get("provider", "cpu") != "cpu")
    return backend not in _ON_CPU


def device_of(path: Path, device: str | None) -> str | None:
    """The device to open a file on; ``None`` if it runs on the CPU."""
    if device is None:
        return None
    try:
        manifest = read_manifest(path)
    except ArtifactError:
        return None  # a checkpoint; anything else is reported when the file is opened
    return device if manifest.kind == "engine" and runs_on_gpu(manifest.settings) else None


def assign_devices(paths: Sequence[Path], device: str | None) -> dict[Path, str | None]:
    """Choose the device for each of several files that are compared with each other.

    PyTorch runs on the GPU if ``device`` names one or one of the engines runs on one, and if PyTorch
    can use it: comparing a GPU engine with PyTorch on a CPU proves nothing.

    Args:
        paths: Engines and checkpoints.
        device: The requested GPU; ``None`` for the first.

    Raises:
        UsageError: ``device`` is not a GPU, or none of the files runs on a GPU.
        MissingDevice: The machine has fewer GPUs.
    """
    _check_device_name(device)
    devices = {path: device_of(path, device) for path in paths}
    pytorch = [path for path in paths if _is_pytorch(path)]
    use_gpu = device is not None or any(runs_on(path, None) == "cuda:0" for path in paths)
    if pytorch and use_gpu and device_index(device) < _gpus_of_pytorch():
        devices |= dict.fromkeys(pytorch, f"cuda:{device_index(device)}")
    if not set(devices.values()) - {None}:
        check_device(paths, device)
    return devices


def runs_on(path: Path, device: str | None) -> str | None:
    """Where a file runs when it is opened on a device: ``cpu`` or ``cuda:0``.

    ``None`` for third-party backends, which may have other devices.

    Args:
        path: An engine or a checkpoint.
        device: The device from `assign_devices` or `device_of`.
    """
    if _is_pytorch(path):
        return device or "cpu"
    settings = read_manifest(path).settings
    if not runs_on_gpu(settings):
        return "cpu"
    if settings.get("backend") in _ON_GPU or settings.get("backend") == "onnxruntime":
        return f"cuda:{device_index(device)}"
    return device


def _is_pytorch(path: Path) -> bool:
    try:
        manifest = read_manifest(path)
    except ArtifactError:
        return True  # a checkpoint; anything else is reported when the file is opened
    return manifest.kind != "engine" or manifest.settings.get("backend") == "torch"


def _gpus_of_pytorch() -> int:
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def check_device(paths: Sequence[Path], device: str | None) -> None:
    """Refuse a device that none of the engines would use.

    Raises:
        UsageError: ``device`` is not a GPU, or all engines run on the CPU.
        MissingDevice: The machine has fewer GPUs.
    """
    if device is None:
        return
    _check_device_name(device)
    if all(device_of(path, device) is None for path in paths):
        raise UsageError(
            f"--device {device} is a GPU, but all engines run on the CPU", hint="remove --device"
        )


def _check_device_name(device: str | None) -> None:
    """Refuse what is not a GPU, and one that a machine with GPUs does not have.

    Without any GPU, the engine reports why there is none.
    """
    index, devices = device_index(device), cuda_devices()
    if devices:
        check_device_exists(index, devices)
