"""The registry of backends: built-in ones, and third-party ones by entry point."""

from __future__ import annotations

import importlib
import logging
from importlib import metadata

from optimizer.engines.protocol import Backend
from optimizer.errors import MissingLibrary, UsageError

__all__ = ["ENTRY_POINTS", "backends", "broken_backends", "get_backend", "register"]

ENTRY_POINTS = "resnet_opt.engines"
_BUILT_IN = {
    "openvino": "optimizer.engines.openvino:OpenVino",
    "onnxruntime": "optimizer.engines.onnxruntime:OnnxRuntime",
    "torch": "optimizer.engines.torch:TorchEager",
    "tensorrt": "optimizer.engines.tensorrt:TensorRt",
    "tensorrt-rtx": "optimizer.engines.tensorrt:TensorRtRtx",
}
_registered: dict[str, Backend] = {}
_reported: set[str] = set()
_log = logging.getLogger(__name__)


def register(backend: Backend) -> None:
    """Add a backend in this process.

    Raises:
        UsageError: Another backend has this name.
    """
    if backend.name in _BUILT_IN or _registered.get(backend.name, backend) is not backend:
        raise UsageError(f"an engine named {backend.name} exists already")
    _registered[backend.name] = backend


def backends() -> dict[str, Backend]:
    """All backends by name, including those whose library is not installed.

    Third-party backends that cannot be loaded are left out; see `broken_backends`.
    """
    available = {name: _create(target) for name, target in _BUILT_IN.items()}
    return {**available, **_third_party()[0], **_registered}


def broken_backends() -> dict[str, str]:
    """Third-party backends that cannot be loaded, each with the reason."""
    return _third_party()[1]


def _third_party() -> tuple[dict[str, Backend], dict[str, str]]:
    """Backends of other packages by name, and the reason for each that cannot be loaded."""
    loaded: dict[str, Backend] = {}
    broken: dict[str, str] = {}
    for entry in metadata.entry_points(group=ENTRY_POINTS):
        if entry.name in _BUILT_IN or entry.name in loaded:
            continue
        try:
            loaded[entry.name] = entry.load()()
        except (Exception, SystemExit) as error:  # noqa: BLE001 - other people's code fails anyhow
            lines = str(error).strip().splitlines()
            reason = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
            package = f"of {entry.dist.name} " if entry.dist is not None else ""
            broken[entry.name] = f"the plugin {entry.value} {package}cannot be loaded: {reason}"
            if entry.name not in _reported:
                _reported.add(entry.name)
                _log.warning("engine %s is left out: %s", entry.name, broken[entry.name])
    return loaded, broken


def get_backend(name: str) -> Backend:
    """The backend with this name.

    Raises:
        UsageError: There is no such backend; the hint lists those that exist.
        MissingLibrary: It is a third-party backend that cannot be loaded.
    """
    if name in _BUILT_IN:
        return _create(_BUILT_IN[name])
    available = backends()
    if name not in available and (reason := broken_backends().get(name)):
        raise MissingLibrary(
            f"engine {name} cannot be used: {reason}", hint="update or uninstall that package"
        )
    if name not in available:
        raise UsageError(f"unknown engine {name!r}", hint=f"one of auto, {', '.join(available)}")
    return available[name]


def _create(target: str) -> Backend:
    module, _, attribute = target.partition(":")
    backend: Backend = getattr(importlib.import_module(module), attribute)()
    return backend
