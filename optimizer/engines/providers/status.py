"""Whether a provider can be used on this machine, and what is missing if not."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, field
from pathlib import Path

from optimizer.engines.cuda import cuda_status, device_index
from optimizer.engines.cuda_bindings import HINT_DEVICE
from optimizer.engines.providers.shared_objects import (
    locate,
    needed,
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
    "needs_of",
    "provider_status",
    "statuses",
]

_DRIVER = {"libcuda", "libnvidia-ml"}
_HINTS = {
    # A wheel of CUDA 13 names its major version in the library, not in the package.
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
    """What came of looking for a provider, without loading anything.

    Attributes:
        provider: Its name.
        usable: Everything it links is here, and a GPU if it needs one.
        reason: One line: what is here, or what is missing.
        needs: The libraries its shared object links, with their major versions.
        missing: Those of them that are not found.
        hint: What would make it usable.
        no_device: Only the driver or a GPU is missing.
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
    folder = Path(spec.origin).parent
    path = (folder if provider.plugin else folder / "capi") / provider.shared_object
    return path if path.is_file() else None


def needs_of(provider: Provider, path: Path) -> list[str]:
    """What a provider's shared object links and opens, and the provider beneath it."""
    names = [*needed(path), *provider.opens]
    if provider.beneath is not None:
        beneath = PROVIDERS[provider.beneath]
        below = library_of(beneath)
        names += needs_of(beneath, below) if below is not None else []
    return list(dict.fromkeys(names))


def provider_status(provider: Provider) -> ProviderStatus:
    """Look for a provider, what it links, and a GPU."""
    if importlib.util.find_spec("onnxruntime") is None:
        reason = "onnxruntime is not installed"
        return ProviderStatus(provider.name, False, reason, hint=provider.hint)
    if not provider.on_gpu:
        return ProviderStatus(provider.name, True, "in every build of ONNX Runtime")
    path = library_of(provider)
    if path is None:
        what = provider.plugin or "this build of onnxruntime"
        missing = "is not installed" if provider.plugin else f"has no {provider.title} provider"
        return ProviderStatus(provider.name, False, f"{what} {missing}", hint=provider.hint)
    needs = needs_of(provider, path)
    beside = path.parent if provider.plugin else None
    missing_names = [name for name in needs if locate(name, beside) is None]
    if missing_names:
        reason = f"missing {', '.join(map(_with_others, missing_names))}"
        stems = {version_of(name)[0] for name in missing_names}
        return ProviderStatus(
            provider.name, False, reason, needs, missing_names,
            hint=_hint(missing_names, needs), no_device=stems <= _DRIVER,
        )  # fmt: skip
    status = cuda_status()
    if not status.devices:
        reason = f"all its libraries are here, but {status.fault}"
        return ProviderStatus(
            provider.name, False, reason, needs, hint=status.hint or HINT_DEVICE, no_device=True
        )
    gpu = status.devices[0]
    return ProviderStatus(provider.name, True, f"on {gpu.name} ({gpu.sm})", needs)


def statuses() -> list[ProviderStatus]:
    """All providers."""
    return [provider_status(provider) for provider in PROVIDERS.values()]


def check_usable(provider: Provider, device: str | None) -> int:
    """Refuse a provider that cannot be used here, or a GPU that is not there.

    Returns:
        The GPU's index.

    Raises:
        MissingLibrary: A library is missing; the message names each.
        MissingDevice: Only the driver or the GPU is.
        UsageError: ``device`` is no device's name.
    """
    index = device_index(device)
    found = provider_status(provider)
    if not found.usable:
        kind: type[ResnetOptError] = MissingDevice if found.no_device else MissingLibrary
        raise kind(
            f"ONNX Runtime's provider {provider.name} cannot be used here: {found.reason}",
            hint=found.hint,
        )
    devices = cuda_status().devices
    if index >= len(devices):
        raise MissingDevice(
            f"there is no cuda:{index}, only {len(devices)} GPU(s)", hint="--device cuda:0"
        )
    return index


def _with_others(name: str) -> str:
    others = other_versions(name)
    return f"{name} (here is {', '.join(others)})" if others else name


def check_computes(
    provider: Provider, precision: str, capability: tuple[int, int], *, storage_only: bool = False
) -> None:
    """Refuse a GPU that the library under a provider does not run on, or a precision on it.

    Raises:
        MissingDevice, UnsupportedPrecision: As the message says.
    """
    library = {"tensorrt": TENSORRT, "nv-tensorrt-rtx": TENSORRT_RTX}.get(provider.name)
    if library is None:
        return
    check_capability(library, capability)
    number = capability[0] * 10 + capability[1]
    check_precision(library, precision, [number], storage_only=storage_only)


def _hint(missing: list[str], needs: list[str]) -> str:
    """The commands that install what is missing; the driver only if nothing else is."""
    versions = dict(version_of(name) for name in needs)
    cuda = versions.get("libcudart", "13")
    commands = []
    for name in missing:
        stem, version = version_of(name)
        template = _HINTS.get(stem)
        if template is not None:
            following = int(version) + 1 if version.isdecimal() else version
            commands.append(template.format(cuda=cuda, version=version, next=following))
    if any(version_of(name)[0] in _DRIVER for name in missing):
        commands.append(HINT_DEVICE)
    unknown = [name for name in missing if version_of(name)[0] not in {*_HINTS, *_DRIVER}]
    commands += [f"install what provides {name}" for name in unknown]
    return "; ".join(dict.fromkeys(commands))
