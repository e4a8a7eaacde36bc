"""Flags from options: a command that takes a model gets one flag per field."""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from cyclopts import Group, Parameter
from pydantic.fields import FieldInfo

from optimizer.errors import UsageError
from optimizer.options import OptionInfo, Options, flag

__all__ = [
    "STDOUT",
    "Force",
    "Json",
    "NoCache",
    "Output",
    "PrecisionFlags",
    "argument",
    "with_flags",
]

Output = Annotated[Path, Parameter(name=("--output", "-o"), help="Output file.", metavar="FILE")]
Json = Annotated[
    bool,
    Parameter(name="--json", negative="", help="Print only the result, as JSON, to stdout."),
]
NoCache = Annotated[
    bool,
    Parameter(name="--no-cache", negative="", help="Rebuild everything, and do not use the cache."),
]

Force = Annotated[
    bool,
    Parameter(
        name="--force",
        negative="",
        help="Replace existing files that resnet-opt did not write, or that were edited since.",
    ),
]


@Parameter(name="*")
@dataclass(frozen=True)
class PrecisionFlags:
    """Precisions as flags of their own, as in other tools."""

    fp16: Annotated[bool, Parameter(negative="", help="Same as --precision fp16.")] = False
    int8: Annotated[bool, Parameter(negative="", help="Same as --precision int8.")] = False

    @property
    def precision(self) -> str | None:
        """The precision; ``None`` if no flag is given."""
        if self.fp16 and self.int8:
            raise UsageError("--fp16 and --int8 together", hint="build one engine per precision")
        return "fp16" if self.fp16 else "int8" if self.int8 else None


STDOUT = Path("-")
"""As ``-o``: write the result to standard output."""


def argument(help_: str, metavar: str) -> Parameter:
    """A positional argument."""
    return Parameter(help=help_, metavar=metavar)


_LONGEST_METAVAR = 9


def with_flags(command: Callable[..., None]) -> Callable[..., None]:
    """Replace a command's parameter ``options`` with one flag per field of its model.

    The model checks the values, so a mistake gives the same message on the command line, in a
    recipe and in Python.
    """
    signature = inspect.signature(command)
    hints = typing.get_type_hints(command, include_extras=True)
    model = hints.get("options")
    if model is None:
        return command
    expanded: list[inspect.Parameter] = []
    for parameter in signature.parameters.values():
        if parameter.name == "options":
            expanded += _flags(model)
        else:
            expanded.append(parameter.replace(annotation=hints[parameter.name]))
    expanded.sort(key=lambda parameter: parameter.kind)

    def parse(*arguments: Any, **keywords: Any) -> tuple[inspect.BoundArguments, Options]:
        """The command's own arguments, and the options from the flags."""
        given = {
            name: keywords.pop(name)
            for name in model.model_fields
            if name in keywords and name not in signature.parameters
        }
        return signature.bind_partial(*arguments, **keywords), model.of(None, given)

    @functools.wraps(command)
    def run(*arguments: Any, **keywords: Any) -> None:
        bound, options = parse(*arguments, **keywords)
        command(*bound.args, **bound.kwargs, options=options)

    run.parse = parse  # type: ignore[attr-defined]
    run.__signature__ = signature.replace(parameters=expanded)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in expanded}
    del run.__wrapped__
    return run


def _flags(model: type[Options]) -> Iterator[inspect.Parameter]:
    """One keyword parameter per field, with its flag, help and heading."""
    panels: dict[str, Group] = {}
    for name, field, panel in model.declared():
        group = panels.setdefault(panel, Group(panel, sort_key=10 + len(panels)))
        info = OptionInfo.of(field)
        kind = _kind(field)
        default = field.default
        choices = _choices(field.annotation)
        yield inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if field.is_required() else None,
            annotation=Annotated[
                kind if field.is_required() else kind | None,
                Parameter(
                    name=info.flags or flag(name),
                    help=_help(field, info),
                    group=group,
                    metavar=_metavar(name, field, info) if kind is not bool else None,
                    negative=f"--no-{name.replace('_', '-')}" if default is True else "",
                    negative_iterable="",
                    negative_none="",
                    show_default=False,
                    # An enumeration, because its members match in any case.
                    choices=Enum("Choices", {choice: choice for choice in choices})
                    if choices
                    else None,
                ),
            ],
        )


def _help(field: FieldInfo, info: OptionInfo) -> str:
    """The description, the engines that take the option, and the default."""
    text = field.description or ""
    owners = tuple(engine for engine in info.engines if engine not in {"tensorrt", "tensorrt-rtx"})
    if owners and not info.engines[0].startswith("tensorrt"):
        text = f"For {' and '.join(owners)}: {text[0].lower()}{text[1:]}"
    default = field.default
    if field.is_required() or isinstance(default, bool) or default in (None, (), {}):
        return text
    return f"{text} [default: {default}]"


def _kind(field: FieldInfo) -> Any:
    """Type of a flag before the model parses it: a switch, a text, or several texts."""
    annotation = _without_none(field.annotation)
    if annotation is bool:
        return bool
    if get_origin(annotation) in (tuple, dict):
        return list[str]
    return str


def _choices(annotation: Any) -> tuple[str, ...]:
    annotation = _without_none(annotation)
    if get_origin(annotation) is Literal:
        return tuple(str(choice) for choice in get_args(annotation))
    return ()


def _without_none(annotation: Any) -> Any:
    """``T`` of ``T | None``, without annotations."""
    if get_origin(annotation) is Annotated:
        return _without_none(get_args(annotation)[0])
    inner = [part for part in get_args(annotation) if part is not type(None)]
    if type(None) in get_args(annotation) and len(inner) == 1:
        return _without_none(inner[0])
    return annotation


def _metavar(name: str, field: FieldInfo, info: OptionInfo) -> str:
    if info.metavar:
        return info.metavar
    annotation = _without_none(field.annotation)
    if annotation is int:
        return "N"
    if annotation is Path:
        return "FILE"
    kind = get_args(annotation)[0] if get_origin(annotation) is tuple else annotation
    if kind is float or (info.metavar is None and len(name) > _LONGEST_METAVAR):
        return "VALUE"
    return name.upper().replace("_", "-")
