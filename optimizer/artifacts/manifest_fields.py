"""Types of the settings and details in a manifest that other stages read.

Settings and details are open: each kind of artifact has its own, and third-party backends add theirs.
Those listed here have one type wherever they occur. A manifest can be edited, so they are checked
when it is read, and not where they are used.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo

__all__ = ["check_details", "check_settings"]

_Count = Annotated[int, Field(ge=0, lt=2**31)]


class _Known(BaseModel):
    model_config = ConfigDict(extra="allow", allow_inf_nan=False, protected_namespaces=())


class _Settings(_Known):
    arch: str | None = None
    backend: str | None = None
    batch: _Count | list[_Count] | tuple[_Count, ...] | None = None
    keep: list[str] | tuple[str, ...] | None = None
    options: dict[str, Any] | None = None
    precision: str | None = None
    profile: tuple[_Count, _Count, _Count] | None = None
    target: str | None = None
    targets: list[str] | tuple[str, ...] | None = None
    threads: _Count | list[_Count] | tuple[_Count, ...] | None = None


class _Details(_Known):
    build_s: Annotated[float, Field(ge=0)] | None = None
    built_on: dict[str, Any] | None = None
    expected_top1: Annotated[float, Field(ge=0, le=1)] | None = None
    image_size: _Count | None = None
    notes: list[str] | None = None


def check_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the settings unchanged.

    Raises:
        ValueError: A known setting has another type; so for `check_details`.
    """
    _check(_Settings, settings)
    return settings


def check_details(details: dict[str, Any], manifest: ValidationInfo) -> dict[str, Any]:
    """Return the details unchanged; see `check_settings`. Only engines list their layers."""
    from optimizer.results import LayerInfo

    _check(_Details, details)
    if manifest.data.get("kind") != "engine":
        return details
    layers = details.get("layers", [])
    if not isinstance(layers, list):
        raise ValueError("layers is not a list")  # noqa: TRY004 - pydantic reports ValueErrors
    for number, layer in enumerate(layers):
        try:
            LayerInfo.model_validate(layer)
        except ValidationError as error:
            raise ValueError(f"layers.{number}.{_first(error)}") from error
    return details


def _check(kind: type[_Known], values: dict[str, Any]) -> None:
    try:
        kind.model_validate(values)
    except ValidationError as error:
        raise ValueError(_first(error)) from error


def _first(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    return f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"
