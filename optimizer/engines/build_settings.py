"""Converts build options into settings for backends, and recorded settings back into flags."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from optimizer.engines.protocol import BuildSettings
from optimizer.graphs.facts import GraphFacts
from optimizer.options import BuildOptions, EngineOptions, TensorRtOptions, to_flags
from optimizer.options.engine_options import check_names

__all__ = ["check_supported", "flags_of", "settings_of"]

_FIELDS = {
    "target": "targets",
    "workspace": "workspace_bytes",
    "opt_level": "opt_level",
    "timing_cache": "timing_cache",
    "threads": "threads",
}
"""Options that are fields of `BuildSettings`, with the names of the fields."""
_BACKEND_OPTIONS = tuple(
    name
    for model in (EngineOptions, TensorRtOptions)
    for name in model.model_fields
    if name not in {*_FIELDS, "profile", "min_share"}
)
"""Options that are passed to the backend by name."""


def settings_of(options: BuildOptions, facts: GraphFacts | None) -> BuildSettings:
    """Convert build options into `BuildSettings`.

    Args:
        options: Options that the engine supports.
        facts: Facts of the graph; ``None`` for a checkpoint.
    """
    given = options.as_given()
    backend_options = {name: getattr(options, name) for name in _BACKEND_OPTIONS if name in given}
    profile, *further = options.profile or (None,)
    if further:
        backend_options["profiles"] = further
    return BuildSettings(
        precision=options.precision,
        batch=facts.input_shape[0] if facts else None,
        profile=profile,
        options=backend_options,
        **{field: getattr(options, name) for name, field in _FIELDS.items()},
    )


def flags_of(settings: Mapping[str, Any]) -> str:
    """The ``build`` flags that reproduce recorded settings.

    Args:
        settings: The settings of an engine's manifest.
    """
    backend_options = dict(settings.get("options") or {})
    profiles = [settings.get("profile"), *(backend_options.pop("profiles", None) or ())]
    raw: dict[str, Any] = {
        "precision": settings.get("precision"),
        "engine": settings.get("backend"),
        "profile": [":".join(map(str, profile)) for profile in profiles if profile],
        **{name: settings.get(field) for name, field in _FIELDS.items()},
        **backend_options,
    }
    if raw["workspace"] is not None:
        raw["workspace"] = f"{raw['workspace']}B"
    if raw.get("fixed_batch") == []:
        raw["fixed_batch"] = "none"
    if raw.get("hardware_compatibility") == "none":
        del raw["hardware_compatibility"]
    given = {name: value for name, value in raw.items() if _is_given(value)}
    return shlex.join(to_flags(BuildOptions.parse(given)))


def check_supported(engine: str, settings: BuildSettings) -> None:
    """Refuse settings that belong to other engines.

    Raises:
        UsageError: Names the setting and its engine.
    """
    given = {name: getattr(settings, field) for name, field in _FIELDS.items()}
    given |= {"profile": settings.profile, **settings.options}
    given["profile"] = given.pop("profiles", None) or given["profile"]
    check_names(
        BuildOptions,
        [name for name, value in given.items() if _is_given(value)],
        [engine],
    )


def _is_given(value: Any) -> bool:
    """Whether a setting was requested; zero is a value although it equals ``False``."""
    return value is not None and value is not False and value not in ([], ())
