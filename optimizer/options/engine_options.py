"""Which engine takes which option, by what the fields say of themselves."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

from optimizer.errors import UsageError
from optimizer.options.base import OptionInfo, Options, flag

__all__ = ["check_engine", "options_of"]


def options_of(options: Options, engine: str) -> dict[str, Any]:
    """The given options that an engine takes, as a user would write them."""
    given = options.as_given()
    foreign = {name for name, engines in _restricted(options) if engine not in engines}
    return {name: value for name, value in given.items() if name not in foreign}


def check_engine(options: Options, engines: Collection[str]) -> None:
    """Refuse an option that none of the engines takes.

    Args:
        options: The options as they were given.
        engines: The engines that will be built; ``auto`` may become any of them.

    Raises:
        UsageError: An option was given that belongs to other engines; the message names both.
    """
    if "auto" in engines:
        return
    given = options.as_given()
    for name, takers in _restricted(options):
        if name in given and not set(engines) & set(takers):
            raise UsageError(
                f"{option_flag(options, name)} is for {listed(takers)}, not for {listed(engines)}",
                mend=f"leave it out, or --engine {takers[0]}",
            )


def listed(names: Collection[str]) -> str:
    """``a, b and c``."""
    *most, last = names
    return f"{', '.join(most)} and {last}" if most else last


def option_flag(options: Options, name: str) -> str:
    """The first flag of an option."""
    flags = OptionInfo.of(type(options).model_fields[name]).flags
    return flags[0] if flags else flag(name)


def _restricted(options: Options) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Options that belong to some engines, and those engines."""
    for name, field in type(options).model_fields.items():
        engines = OptionInfo.of(field).engines
        if engines:
            yield name, engines
