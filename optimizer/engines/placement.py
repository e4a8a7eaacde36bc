"""On which device engines run: ``--device cuda:1`` is for those that run on a GPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from optimizer.artifacts import read_manifest
from optimizer.engines.cuda import device_index
from optimizer.errors import ArtifactError, UsageError

__all__ = ["check_device", "device_of", "runs_on_gpu"]

_ON_CPU = {"openvino", "torch"}


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
            f"--device {device} is a GPU, and nothing here runs on one", mend="leave it out"
        )
