"""Checks that options are given only for engines that take them."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

from optimizer.errors import UsageError
from optimizer.options.declaration import OptionInfo, Options, flag

__all__ = ["check_engine", "check_names", "options_of"]

BUILT_IN = ("openvino", "onnxruntime", "torch", "tensorrt", "tensorrt-rtx")
"""Engines whose options are declared in this package; third-party engines check their own."""


def options_of(options: Options, engine: str) -> dict[str, Any]:
    """The given options that an engine takes, as a user would write them."""
    return {
        name: value
        for name, value in options.as_given().items()
        if engine in (_info(type(options), name).engines or (engine,))
    }


def check_engine(options: Options, engines: Collection[str]) -> None:
    """Refuse an option that none of the engines takes.

    Args:
        options: The options as they were given.
        engines: The engines that will be built; ``auto`` may become any of them.

    Raises:
        UsageError: An option is for other engines; the message names both.
    """
    check_names(type(options), options.as_given(), engines)


def check_names(model: type[Options], given: Iterable[str], engines: Collection[str]) -> None:
    """Refuse the first of the given options that none of the engines takes.

    Args:
        model: The model that declares the options.
        given: Names of the options.
        engines: As for `check_engine`.

    Raises:
        UsageError: An option is for other engines, or unknown.
    """
    if not set(engines) <= set(BUILT_IN):
        return
    for name in given:
        if name not in model.model_fields:
            raise UsageError(f"{_join(engines)} has no option {name!r}", hint="leave it out")
        info = _info(model, name)
        if info.engines and not set(engines) & set(info.engines):
            flag_name = info.flags[0] if info.flags else flag(name)
            raise UsageError(
                f"{flag_name} is for {_join(info.engines)}, not for {_join(engines)}",
                hint=f"leave it out, or --engine {info.engines[0]}",
            )


def _info(model: type[Options], name: str) -> OptionInfo:
    return OptionInfo.of(model.model_fields[name])


def _join(names: Collection[str]) -> str:
    """``a, b and c``."""
    *most, last = names
    return f"{', '.join(most)} and {last}" if most else last
