"""Reads and checks the build options that only TensorRT has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from optimizer.engines.protocol import BuildSettings
from optimizer.engines.tensorrt.library import Library, version_tuple
from optimizer.errors import UsageError

__all__ = [
    "SPECIALIZATION",
    "Options",
    "Profile",
    "check_runtime_options",
    "check_version",
    "read_options",
]

Profile = tuple[int, int, int]
_DROPS_A_BIAS = (11, 3)
SPECIALIZATION = ("eager", "lazy", "none")
_CHOICES = {
    "hardware_compatibility": ("none", "ampere-plus", "same-compute-capability"),
    "specialization": SPECIALIZATION,
}


@dataclass(frozen=True, kw_only=True)
class Options:
    """The possible entries of ``BuildSettings.options``.

    Attributes:
        tf32: Let FP32 layers compute in TF32; off by default because an FP32 engine is a reference.
        sparsity: Use 2:4 sparse kernels for weights that have that pattern.
        hardware_compatibility: Other GPUs the engine runs on: ``none``, ``ampere-plus``,
            ``same-compute-capability``.
        version_compatible: Build an engine that later versions of the library can run.
        strip_weights: Leave the weights out; a refit adds them.
        refittable: Allow the weights to be replaced later.
        profiles: Additional optimization profiles, (min, opt, max) batches.
        storage_only: Accept an engine that computes in another precision than it stores.
        cuda_graph: Run the engine as a CUDA graph; recorded, and applied when it is opened.
        specialization: TensorRT-RTX: when to compile kernels for the exact shapes that run
            (``eager``, ``lazy``, ``none``); recorded, and applied when the engine is opened.
        runtime_cache: TensorRT-RTX: name of the file beside the engine that stores the kernels
            compiled for the present GPU; recorded, and applied when the engine is opened.
    """

    tf32: bool = False
    sparsity: bool = False
    hardware_compatibility: str = "none"
    version_compatible: bool = False
    strip_weights: bool = False
    refittable: bool = False
    profiles: tuple[Profile, ...] = ()
    storage_only: bool = False
    cuda_graph: bool = False
    specialization: str | None = None
    runtime_cache: str | None = None


def read_options(library: Library, settings: BuildSettings) -> Options:
    """Read the options of a build.

    Raises:
        UsageError: An option does not exist, has an invalid value, or is not supported.
    """
    names = [field.name for field in fields(Options)]
    for name in settings.options:
        if name not in names:
            raise UsageError(
                f"{library.name} has no option {name!r}", hint=f"one of {', '.join(names)}"
            )
    options = Options(**_checked(settings.options))
    if settings.opt_level is not None and not 0 <= settings.opt_level <= 5:
        raise UsageError(f"optimization level {settings.opt_level}", hint="--opt-level 0 to 5")
    if settings.workspace_bytes is not None and settings.workspace_bytes < 1:
        raise UsageError(
            f"a workspace of {settings.workspace_bytes} bytes", hint="--workspace 4GiB"
        )
    if library.portable and options.version_compatible:
        raise UsageError(
            f"{library.title} has no version-compatible engines",
            hint="build again after an update, or --engine tensorrt",
        )
    check_runtime_options(library, options.specialization, options.runtime_cache)
    return options


def check_version(library: Library, options: Options, version: str | None) -> None:
    """Reject options for which a version of the library is documented to give wrong results.

    Raises:
        UsageError: TensorRT 11.3 with ``refittable``: "A GEMM bias can be dropped and treated as
            zero", even without a refit (its page on refitting), and a ResNet ends in a GEMM.
    """
    release = version_tuple(version or "")[:2]
    if options.refittable and not library.portable and release == _DROPS_A_BIAS:
        raise UsageError(
            f"{library.title} {version} may drop the classifier's bias in refittable engines",
            hint=f"another version: pip install --upgrade {library.name}, or leave --refittable out",
        )


def check_runtime_options(library: Library, specialization: object, runtime_cache: object) -> None:
    """Check options that only TensorRT-RTX has, which compiles kernels at run time.

    ``None`` means that an option is not set.

    Raises:
        UsageError: One of them is set for TensorRT, which compiles all kernels during a build.
    """
    requested = {"specialization": specialization, "runtime cache": runtime_cache}
    unsupported = next((name for name, value in requested.items() if value is not None), None)
    if unsupported is not None and not library.portable:
        raise UsageError(
            f"{library.title} compiles all kernels during a build: it has no {unsupported}",
            hint="leave it out, or --engine tensorrt-rtx",
        )


def _checked(raw: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _value(name, value) for name, value in raw.items()}


def _value(name: str, value: Any) -> Any:
    label = name.replace("_", " ")
    if name in _CHOICES:
        if value not in _CHOICES[name]:
            raise UsageError(f"{label} {value!r}", hint=f"one of {', '.join(_CHOICES[name])}")
        return value
    if name == "profiles":
        return tuple(_profile(item) for item in value)
    if name == "runtime_cache":
        # A manifest supplies this name later, and a file of this name is written.
        if not isinstance(value, str) or Path(value).name != value or value in {".", ".."}:
            raise UsageError(
                f"runtime cache {value!r} is not a file name",
                hint="give a name without a folder: the file is stored beside the engine",
            )
        return value
    if isinstance(value, bool):
        return value
    raise UsageError(f"option {name} is {value!r}", hint="true or false")


def _profile(item: Sequence[int]) -> Profile:
    if len(item) != 3 or not all(isinstance(n, int) for n in item):
        raise UsageError(f"profile {item!r}", hint="three batch sizes, 1:8:32")
    low, best, high = item
    return low, best, high
