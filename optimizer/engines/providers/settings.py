"""Reads and checks the provider and the provider options of an ONNX Runtime engine."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optimizer.engines.protocol import BuildSettings
from optimizer.engines.providers.table import CPU, PROVIDERS, Provider
from optimizer.errors import UsageError

__all__ = [
    "Choice",
    "find_provider",
    "lowering_target",
    "options_from_settings",
    "read_choice",
    "with_build_settings",
    "with_cache",
]

DEFAULT_PROFILE = (1, 8, 32)
"""Default batch sizes of providers that compile; the same as for TensorRT engines."""


@dataclass(frozen=True)
class Choice:
    """A provider and its options, as strings for ONNX Runtime."""

    provider: Provider
    options: Mapping[str, str]


def find_provider(name: str) -> Provider:
    """The provider with this name.

    Raises:
        UsageError: There is no such provider; the hint lists those that exist.
    """
    if name not in PROVIDERS:
        raise UsageError(
            f"ONNX Runtime has no provider {name!r} here", hint=f"one of {', '.join(PROVIDERS)}"
        )
    return PROVIDERS[name]


def lowering_target(engine: str, provider: str | None) -> str:
    """The quantization target for an engine; for ONNX Runtime it depends on the provider.

    Raises:
        UsageError: Unknown provider, or the engine has no providers.
    """
    if provider is None:
        return engine
    if engine != "onnxruntime":
        raise UsageError(
            f"--provider {provider} is an option of ONNX Runtime, not of {engine}",
            hint="--engine onnxruntime",
        )
    return find_provider(provider).target


def read_choice(options: Mapping[str, Any]) -> Choice:
    """Read ``provider`` and ``provider_options`` from a build's options.

    Raises:
        UsageError: Unknown provider, or the provider does not have one of the options.
    """
    provider = find_provider(str(options.get("provider") or CPU.name))
    given = {name: str(value) for name, value in (options.get("provider_options") or {}).items()}
    for name in given:
        _check_option(provider, name)
    return Choice(provider, given)


def _check_option(provider: Provider, name: str) -> None:
    if name in provider.options:
        return
    reasons = dict(provider.refused)
    if name in reasons:
        raise UsageError(
            f"option {name} of provider {provider.name} is not allowed: {reasons[name]}",
            hint="remove it",
        )
    suggestions = difflib.get_close_matches(name, sorted(provider.options), n=3)
    names = ", ".join(suggestions or sorted(provider.options))
    raise UsageError(
        f"provider {provider.name} has no option {name!r}",
        hint=f"one of {names}" if names else "remove it",
    )


def with_build_settings(
    choice: Choice, settings: BuildSettings, input_name: str, shape: tuple[int | None, ...]
) -> Choice:
    """Translate general build settings into options of the provider.

    FP32 means FP32: TF32, the default of CUDA and TensorRT, is turned off if there is an option for
    it. A provider that compiles gets shapes, because otherwise it compiles again for every new batch
    size.

    Args:
        choice: The provider and the user's options, which take precedence.
        settings: The settings of the build.
        input_name: Name of the graph's input.
        shape: Shape of the graph's input; ``None`` for dynamic dimensions.

    Raises:
        UsageError: The provider does not have one of the settings.
    """
    provider = choice.provider
    options: dict[str, str] = {}
    if "use_tf32" in provider.options:
        options["use_tf32"] = "0"
    if provider.profile_options is not None and shape[0] is None:
        low, best, high = _profile(settings)
        rest = "x".join("?" if size is None else str(size) for size in shape[1:])
        if "?" in rest:
            raise UsageError(
                f"provider {provider.name} needs a fixed image size, but {input_name} has a dynamic one",
                hint="export it with --image-size",
            )
        options |= {
            f"{provider.profile_options}_{which}_shapes": f"{input_name}:{batch}x{rest}"
            for which, batch in (("min", low), ("opt", best), ("max", high))
        }
    options |= options_from_settings(provider, settings)
    return Choice(provider, {**options, **choice.options})


def with_cache(choice: Choice, folder: Path) -> Choice:
    """Make a provider that compiles cache its engines in a folder; the user's options take precedence.

    Without a cache, every process that opens the engine compiles it again, which takes minutes.
    """
    supported = choice.provider.options
    options: dict[str, str] = {}
    if "trt_engine_cache_path" in supported:
        options = {"trt_engine_cache_enable": "1", "trt_engine_cache_path": str(folder)}
    elif "nv_runtime_cache_path" in supported:
        options = {"nv_runtime_cache_path": str(folder)}
    if not options or set(options) & set(choice.options):
        return choice
    folder.mkdir(parents=True, exist_ok=True)
    return Choice(choice.provider, {**choice.options, **options})


def _profile(settings: BuildSettings) -> tuple[int, int, int]:
    low, best, high = settings.profile or DEFAULT_PROFILE
    if not 1 <= low <= best <= high:
        raise UsageError(
            f"profile {low}:{best}:{high} is not in order",
            hint="--profile min:opt:max, as in 1:8:32",
        )
    return low, best, high


def options_from_settings(provider: Provider, settings: BuildSettings) -> dict[str, str]:
    """Workspace and optimization level as options of the provider.

    Raises:
        UsageError: The provider does not have one of the settings.
    """
    _profile(settings)
    if settings.timing_cache is not None:
        raise UsageError(
            f"--timing-cache does not apply to provider {provider.name}",
            hint="--provider-option trt_timing_cache_enable=1 and trt_timing_cache_path=FOLDER"
            if "trt_timing_cache_path" in provider.options
            else "remove it",
        )
    requested = (
        (
            "--workspace",
            settings.workspace_bytes,
            ("trt_max_workspace_size", "nv_max_workspace_size"),
        ),
        ("--opt-level", settings.opt_level, ("trt_builder_optimization_level",)),
        ("--profile", settings.profile if provider.profile_options is None else None, ()),
        ("--target", settings.targets or None, ()),
    )
    options: dict[str, str] = {}
    for flag, value, names in requested:
        if value is None:
            continue
        supported = [name for name in names if name in provider.options]
        if not supported:
            raise UsageError(f"provider {provider.name} has no {flag}", hint=f"remove {flag}")
        options[supported[0]] = str(value)
    return options
