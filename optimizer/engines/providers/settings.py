"""Which provider an engine of ONNX Runtime asks for, and its options, read and checked."""

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
    "own_options",
    "read_choice",
    "with_build_settings",
    "with_cache",
]

DEFAULT_PROFILE = (1, 8, 32)
"""Batches of a provider that compiles, if none are given; the same as of the TensorRT engines."""


@dataclass(frozen=True)
class Choice:
    """A provider and its options, as strings, as ONNX Runtime takes them."""

    provider: Provider
    options: Mapping[str, str]


def find_provider(name: str) -> Provider:
    """The provider of this name.

    Raises:
        UsageError: There is none; the message lists those there are.
    """
    if name not in PROVIDERS:
        raise UsageError(
            f"ONNX Runtime has no provider {name!r} here", hint=f"one of {', '.join(PROVIDERS)}"
        )
    return PROVIDERS[name]


def lowering_target(engine: str, provider: str | None) -> str:
    """Whose rules an INT8 graph for an engine follows; ONNX Runtime's provider decides.

    Raises:
        UsageError: No such provider, or an engine that has none.
    """
    if provider is None:
        return engine
    if engine != "onnxruntime":
        raise UsageError(
            f"--provider {provider} is a setting of ONNX Runtime, not of {engine}",
            hint="--engine onnxruntime",
        )
    return find_provider(provider).target


def read_choice(options: Mapping[str, Any]) -> Choice:
    """Read ``provider`` and ``provider_options`` of a build's options.

    Raises:
        UsageError: An unknown provider, or an option that it does not have.
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
            f"option {name} of provider {provider.name} is not taken: {reasons[name]}",
            hint="leave it out",
        )
    close = difflib.get_close_matches(name, sorted(provider.options), n=3)
    known = ", ".join(close or sorted(provider.options))
    raise UsageError(
        f"provider {provider.name} has no option {name!r}",
        hint=f"one of {known}" if known else "leave it out",
    )


def with_build_settings(
    choice: Choice, settings: BuildSettings, input_name: str, shape: tuple[int | None, ...]
) -> Choice:
    """Put what a build says in general terms into the provider's own options.

    FP32 means FP32: TF32, which both CUDA and TensorRT use for it unless told otherwise, is turned
    off where there is an option for it. A provider that compiles gets shapes to compile for, since
    it would otherwise compile again for every new batch size.

    Args:
        choice: The provider and what the user says of it, which wins.
        settings: The build.
        input_name: Name of the graph's input.
        shape: Its shape; ``None`` where dynamic.

    Raises:
        UsageError: A setting that the provider does not have.
    """
    provider = choice.provider
    made: dict[str, str] = {}
    if "use_tf32" in provider.options:
        made["use_tf32"] = "0"
    if provider.profile_options is not None and shape[0] is None:
        low, best, high = _profile(settings)
        rest = "x".join("?" if size is None else str(size) for size in shape[1:])
        if "?" in rest:
            raise UsageError(
                f"provider {provider.name} needs a fixed image size, {input_name} has a dynamic one",
                hint="export it with --image-size",
            )
        made |= {
            f"{provider.profile_options}_{which}_shapes": f"{input_name}:{batch}x{rest}"
            for which, batch in (("min", low), ("opt", best), ("max", high))
        }
    made |= own_options(provider, settings)
    return Choice(provider, {**made, **choice.options})


def with_cache(choice: Choice, folder: Path) -> Choice:
    """Let a provider that compiles keep what it made in a folder; what the user says of it wins.

    Without that it compiles again in every process that opens the engine, for minutes.
    """
    options = choice.provider.options
    made: dict[str, str] = {}
    if "trt_engine_cache_path" in options:
        made = {"trt_engine_cache_enable": "1", "trt_engine_cache_path": str(folder)}
    elif "nv_runtime_cache_path" in options:
        made = {"nv_runtime_cache_path": str(folder)}
    if not made or set(made) & set(choice.options):
        return choice
    folder.mkdir(parents=True, exist_ok=True)
    return Choice(choice.provider, {**choice.options, **made})


def _profile(settings: BuildSettings) -> tuple[int, int, int]:
    low, best, high = settings.profile or DEFAULT_PROFILE
    if not 1 <= low <= best <= high:
        raise UsageError(
            f"profile {low}:{best}:{high} is not in order",
            hint="--profile min:opt:max, as in 1:8:32",
        )
    return low, best, high


def own_options(provider: Provider, settings: BuildSettings) -> dict[str, str]:
    """Workspace and optimization level, by the names the provider has for them.

    Raises:
        UsageError: A setting that the provider does not have.
    """
    _profile(settings)
    if settings.timing_cache is not None:
        raise UsageError(
            f"--timing-cache would be used once: provider {provider.name} compiles at every start",
            hint="--provider-option trt_timing_cache_enable=1 and trt_timing_cache_path=FOLDER"
            if "trt_timing_cache_path" in provider.options
            else "leave it out",
        )
    asked = (
        (
            "--workspace",
            settings.workspace_bytes,
            ("trt_max_workspace_size", "nv_max_workspace_size"),
        ),
        ("--opt-level", settings.opt_level, ("trt_builder_optimization_level",)),
        ("--profile", settings.profile if provider.profile_options is None else None, ()),
        ("--target", settings.targets or None, ()),
    )
    found: dict[str, str] = {}
    for flag, value, names in asked:
        if value is None:
            continue
        mine = [name for name in names if name in provider.options]
        if not mine:
            raise UsageError(f"provider {provider.name} has no {flag}", hint="leave it out")
        found[mine[0]] = str(value)
    return found
