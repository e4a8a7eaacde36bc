"""Whether a provider can be used on this machine, and what is missing otherwise."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, field
from pathlib import Path

from optimizer.engines.cuda import check_device_exists, cuda_status, device_index
from optimizer.engines.cuda_bindings import HINT_DEVICE
from optimizer.engines.providers.shared_objects import (
    linked_libraries,
    locate,
    other_versions,
    version_of,
)
from optimizer.engines.providers.table import PROVIDERS, Provider
from optimizer.engines.tensorrt.capability import check_capability, check_precision
from optimizer.engines.tensorrt.library import TENSORRT, TENSORRT_RTX
from optimizer.errors import MissingDevice, MissingLibrary, ResnetOptError

__all__ = [
    "ProviderStatus",
    "check_computes",
    "check_usable",
    "library_of",
    "provider_status",
    "required_libraries",
    "statuses",
]

_DRIVER = {"libcuda", "libnvidia-ml"}
_HINTS = {
    # CUDA 13 wheels have the major version in the library's name, not in the package's.
    "libcudart": "pip install nvidia-cuda-runtime",
    "libcublas": "pip install nvidia-cublas",
    "libcublasLt": "pip install nvidia-cublas",
    "libcurand": "pip install nvidia-curand",
    "libcufft": "pip install nvidia-cufft",
    "libcudnn": "pip install nvidia-cudnn-cu{cuda}",
    "libnvinfer": 'pip install "tensorrt-cu{cuda}>={version},<{next}"',
    "libnvinfer_plugin": 'pip install "tensorrt-cu{cuda}>={version},<{next}"',
    "libnvonnxparser": 'pip install "tensorrt-cu{cuda}>={version},<{next}"',
}


@dataclass(frozen=True)
class ProviderStatus:
    """Status of a provider, determined without loading it.

    Attributes:
        provider: Name of the provider.
        usable: Whether its libraries, and a GPU if it needs one, are present.
        reason: One line: what is present, or what is missing.
        needs: The libraries that it needs, with their major versions.
        missing: Those that were not found.
        hint: How to make it usable.
        no_device: Whether only the driver or a GPU is missing.
    """

    provider: str
    usable: bool
    reason: str
    needs: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    hint: str | None = None
    no_device: bool = False


def library_of(provider: Provider) -> Path | None:
    """The provider's shared object on this machine; ``None`` if it is not installed."""
    assert provider.shared_object is not None
    module = provider.plugin or "onnxruntime"
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        return None
    package = Path(spec.origin).parent
    path = (package if provider.plugin else package / "capi") / provider.shared_object
    return path if path.is_file() else None


def required_libraries(provider: Provider, path: Path) -> list[str]:
    """The libraries that a provider and its fallback link or open."""
    names = [*linked_libraries(path), *provider.opens]
    if provider.fallback is not None:
        fallback = PROVIDERS[provider.fallback]
        fallback_path = library_of(fallback)
        if fallback_path is not None:
            names += required_libraries(fallback, fallback_path)
    return list(dict.fromkeys(names))


def provider_status(provider: Provider) -> ProviderStatus:
    """Check that a provider, the libraries it needs, and a GPU are present."""
    if importlib.util.find_spec("onnxruntime") is None:
        reason = "onnxruntime is not installed"
        return ProviderStatus(provider.name, False, reason, hint=provider.hint)
    if not provider.on_gpu:
        return ProviderStatus(provider.name, True, "included in every build of ONNX Runtime")
    path = library_of(provider)
    if path is None:
        reason = (
            f"{provider.plugin} is not installed"
            if provider.plugin
            else f"this build of onnxruntime has no {provider.title} provider"
        )
        return ProviderStatus(provider.name, False, reason, hint=provider.hint)
    needs = required_libraries(provider, path)
    folder = path.parent if provider.plugin else None
    missing_names = [name for name in needs if locate(name, folder) is None]
    if missing_names:
        reason = f"missing {', '.join(map(_with_other_versions, missing_names))}"
        stems = {version_of(name)[0] for name in missing_names}
        return ProviderStatus(
            provider.name, False, reason, needs, missing_names,
            hint=_hint(missing_names, needs), no_device=stems <= _DRIVER,
        )  # fmt: skip
    status = cuda_status()
    if not status.devices:
        reason = f"all its libraries are present, but {status.fault}"
        return ProviderStatus(
            provider.name, False, reason, needs, hint=status.hint or HINT_DEVICE, no_device=True
        )
    gpu = status.devices[0]
    return ProviderStatus(provider.name, True, f"on {gpu.name} ({gpu.sm})", needs)


def statuses() -> list[ProviderStatus]:
    """The status of every provider."""
    return [provider_status(provider) for provider in PROVIDERS.values()]


def check_usable(provider: Provider, device: str | None) -> int:
    """Refuse a provider that cannot be used here, or a GPU that does not exist.

    Returns:
        The GPU's index.

    Raises:
        MissingLibrary: Libraries are missing; the message names them.
        MissingDevice: Only the driver or the GPU is missing.
        UsageError: ``device`` is not a valid device name.
    """
    index = device_index(device)
    status = provider_status(provider)
    if not status.usable:
        kind: type[ResnetOptError] = MissingDevice if status.no_device else MissingLibrary
        raise kind(
            f"ONNX Runtime's provider {provider.name} cannot be used here: {status.reason}",
            hint=status.hint,
        )
    check_device_exists(index, cuda_status().devices)
    return index


def _with_other_versions(name: str) -> str:
    others = other_versions(name)
    return f"{name} ({', '.join(others)} is installed)" if others else name


def check_computes(
    provider: Provider, precision: str, capability: tuple[int, int], *, storage_only: bool = False
) -> None:
    """Refuse a GPU or precision that the library behind a provider does not support.

    Raises:
        MissingDevice: The library does not run on this GPU.
        UnsupportedPrecision: The GPU does not compute this precision.
    """
    library = {"tensorrt": TENSORRT, "nv-tensorrt-rtx": TENSORRT_RTX}.get(provider.name)
    if library is None:
        return
    check_capability(library, capability)
    number = capability[0] * 10 + capability[1]
    check_precision(library, precision, [number], storage_only=storage_only)


def _hint(missing: list[str], needs: list[str]) -> str:
    """The commands that install missing libraries, and a hint if the driver is missing."""
    versions = dict(version_of(name) for name in needs)
    cuda = versions.get("libcudart", "13")
    commands = []
    for name in missing:
        stem, version = version_of(name)
        template = _HINTS.get(stem)
        if template is not None:
            next_major = int(version) + 1 if version.isdecimal() else version
            commands.append(template.format(cuda=cuda, version=version, next=next_major))
    if any(version_of(name)[0] in _DRIVER for name in missing):
        commands.append(HINT_DEVICE)
    unknown = [name for name in missing if version_of(name)[0] not in {*_HINTS, *_DRIVER}]
    commands += [f"install the package that contains {name}" for name in unknown]
    return "; ".join(dict.fromkeys(commands))
