"""The registry of backends: built-in ones, and third-party ones by entry point."""

from __future__ import annotations

import importlib
from importlib import metadata

from optimizer.engines.protocol import Backend
from optimizer.errors import UsageError

__all__ = ["ENTRY_POINTS", "backends", "get_backend", "register"]

ENTRY_POINTS = "resnet_opt.engines"
_BUILT_IN = {
    "openvino": "optimizer.engines.openvino:OpenVino",
    "onnxruntime": "optimizer.engines.onnxruntime:OnnxRuntime",
    "torch": "optimizer.engines.torch:TorchEager",
    "tensorrt": "optimizer.engines.tensorrt:TensorRt",
    "tensorrt-rtx": "optimizer.engines.tensorrt:TensorRtRtx",
}
_registered: dict[str, Backend] = {}


def register(backend: Backend) -> None:
    """Add a backend in this process.

    Raises:
        UsageError: Another backend has this name.
    """
    if backend.name in _BUILT_IN or _registered.get(backend.name, backend) is not backend:
        raise UsageError(f"an engine named {backend.name} exists already")
    _registered[backend.name] = backend


def backends() -> dict[str, Backend]:
    """All backends by name, including those whose library is not installed."""
    available = {name: _create(target) for name, target in _BUILT_IN.items()}
    for entry in metadata.entry_points(group=ENTRY_POINTS):
        if entry.name not in available:
            available[entry.name] = entry.load()()
    return {**available, **_registered}


def get_backend(name: str) -> Backend:
    """The backend with this name.

    Raises:
        UsageError: There is no such backend; the hint lists those that exist.
    """
    if name in _BUILT_IN:
        return _create(_BUILT_IN[name])
    available = backends()
    if name not in available:
        raise UsageError(f"unknown engine {name!r}", hint=f"one of auto, {', '.join(available)}")
    return available[name]


def _create(target: str) -> Backend:
    module, _, attribute = target.partition(":")
    backend: Backend = getattr(importlib.import_module(module), attribute)()
    return backend
