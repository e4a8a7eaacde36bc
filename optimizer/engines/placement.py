"""On which device engines run: ``--device cuda:1`` is for those that run on a GPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from optimizer.artifacts import read_manifest
from optimizer.engines.cuda import device_index
from optimizer.errors import ArtifactError, UsageError

__all__ = ["PYTORCH_ON_CPU", "check_device", "device_of", "placed", "runs_on", "runs_on_gpu"]

_ON_CPU = {"openvino", "torch"}
_ON_GPU = {"tensorrt", "tensorrt-rtx"}
PYTORCH_ON_CPU = (
    "PyTorch here cannot use the GPU (a build without CUDA, or one that the driver is too old for): "
    "it was computed on the CPU, and engines of the GPU are compared with that"
)


def runs_on_gpu(settings: Mapping[str, Any]) -> bool:
    """Whether an engine with these manifest settings runs on a GPU.

    A third party's backend is taken to have devices: it is told which, and may refuse it.
    """
    backend = settings.get("backend")
    if backend == "onnxruntime":
        return bool((settings.get("options") or {}).get("provider", "cpu") != "cpu")
    return backend not in _ON_CPU


def device_of(path: Path, device: str | None) -> str | None:
    """The device to open a file on: ``None`` for what runs on the CPU."""
    if device is None:
        return None
    try:
        manifest = read_manifest(path)
    except ArtifactError:
        return None  # a checkpoint; whatever else is wrong is told when the file is opened
    return device if manifest.kind == "engine" and runs_on_gpu(manifest.settings) else None


def placed(paths: Sequence[Path], device: str | None) -> dict[Path, str | None]:
    """The device to open each of several files on, that are compared with each other.

    PyTorch runs where the engines beside it run: on the GPU if that was named or if one of them is
    an engine of a GPU, and if PyTorch can use it. Beside PyTorch on a CPU such an engine proves
    nothing.

    Args:
        paths: Engines and checkpoints.
        device: The GPU that was asked for; ``None`` for the first.

    Raises:
        UsageError: ``device`` is no GPU's name, or nothing here runs on a GPU.
    """
    found = {path: device_of(path, device) for path in paths}
    pytorch = [path for path in paths if _is_pytorch(path)]
    wanted = device is not None or any(runs_on(path, None) == "cuda:0" for path in paths)
    if pytorch and wanted and device_index(device) < _gpus_of_pytorch():
        found |= dict.fromkeys(pytorch, f"cuda:{device_index(device)}")
    if not set(found.values()) - {None}:
        check_device(paths, device)
    return found


def runs_on(path: Path, device: str | None) -> str | None:
    """``cpu`` or ``cuda:0``, where a file opened on a device runs.

    ``None`` for the backend of a third party, which has devices of its own.

    Args:
        path: An engine or a checkpoint.
        device: What `placed` or `device_of` says.
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
        return True  # a checkpoint; whatever else is wrong is told when the file is opened
    return manifest.kind != "engine" or manifest.settings.get("backend") == "torch"


def _gpus_of_pytorch() -> int:
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def check_device(paths: Sequence[Path], device: str | None) -> None:
    """Refuse a device that none of the engines would use.

    Raises:
        UsageError: ``device`` is no GPU's name, or all engines run on the CPU.
    """
    if device is None:
        return
    device_index(device)
    if all(device_of(path, device) is None for path in paths):
        raise UsageError(
            f"--device {device} is a GPU, and nothing here runs on one", hint="leave it out"
        )
