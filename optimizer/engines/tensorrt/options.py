"""The options of a build that only TensorRT has, read and checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from optimizer.engines.protocol import BuildSettings
from optimizer.engines.tensorrt.library import Library
from optimizer.errors import UsageError

__all__ = ["Options", "read_options"]

Profile = tuple[int, int, int]
_COMPATIBILITY = ("none", "ampere-plus", "same-compute-capability")


@dataclass(frozen=True, kw_only=True)
class Options:
    """What ``BuildSettings.options`` may hold.

    Attributes:
        tf32: Let FP32 layers compute in TF32; off, because an FP32 engine is a reference.
        sparsity: Use 2:4 sparse kernels where weights have that pattern.
        hardware_compatibility: Further GPUs an engine runs on: ``none``, ``ampere-plus``,
            ``same-compute-capability``.
        version_compatible: Make an engine that later versions of the library can run.
        strip_weights: Leave the weights out; they are put in by a refit.
        refittable: Let weights be replaced later.
        profiles: Further optimization profiles, (min, opt, max) batches.
        storage_only: Accept an engine that computes in another precision than it stores.
    """

    tf32: bool = False
    sparsity: bool = False
    hardware_compatibility: str = "none"
    version_compatible: bool = False
    strip_weights: bool = False
    refittable: bool = False
    profiles: tuple[Profile, ...] = ()
    storage_only: bool = False


def read_options(library: Library, settings: BuildSettings) -> Options:
    """Read the options of a build.

    Raises:
        UsageError: An option that does not exist, has a wrong value, or that the library lacks.
    """
    known = {field.name: field for field in fields(Options)}
    for name in settings.options:
        if name not in known:
            raise UsageError(
                f"{library.name} has no option {name!r}", mend=f"one of {', '.join(known)}"
            )
    options = Options(**_checked(settings.options))
    if settings.opt_level is not None and not 0 <= settings.opt_level <= 5:
        raise UsageError(f"optimization level {settings.opt_level}", mend="--opt-level 0 to 5")
    if settings.workspace_bytes is not None and settings.workspace_bytes < 1:
        raise UsageError(
            f"a workspace of {settings.workspace_bytes} bytes", mend="--workspace 4GiB"
        )
    if library.portable and options.version_compatible:
        raise UsageError(
            f"{library.title} has no version-compatible engines",
            mend="build again after an update, or --engine tensorrt",
        )
    return options


def _checked(raw: Mapping[str, Any]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, value in raw.items():
        if name == "hardware_compatibility":
            if value not in _COMPATIBILITY:
                raise UsageError(
                    f"hardware compatibility {value!r}", mend=f"one of {', '.join(_COMPATIBILITY)}"
                )
            values[name] = value
        elif name == "profiles":
            values[name] = tuple(_profile(item) for item in value)
        elif isinstance(value, bool):
            values[name] = value
        else:
            raise UsageError(f"option {name} is {value!r}", mend="true or false")
    return values


def _profile(item: Sequence[int]) -> Profile:
    if len(item) != 3 or not all(isinstance(n, int) for n in item):
        raise UsageError(f"profile {item!r}", mend="three batch sizes, 1:8:32")
    low, best, high = item
    return low, best, high
