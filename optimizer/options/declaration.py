"""Base of every options model: how a field is declared, and how an error is reported.

An option is defined once, as a field of a frozen pydantic model. The command line's flags and their
help, the recipe's keys, ``docs/recipe.md`` and the keywords of ``import optimizer`` all come from
that field, so the same mistake gives the same message in each of them.
"""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from optimizer.errors import UsageError

__all__ = ["REQUIRED", "OptionInfo", "Options", "flag", "option", "to_flags"]

REQUIRED: Any = ...
"""The default of an option that must be given."""


@dataclass(frozen=True, kw_only=True)
class OptionInfo:
    """Properties of an option that pydantic does not store.

    Attributes:
        engines: The engines that take it; empty if every engine does, or if it concerns none.
        metavar: Placeholder for the value in help; ``None`` for the option's name.
        negative: Whether ``--no-NAME`` exists; by default only if the option is on.
        flags: Its flags, where they differ from ``--name-of-the-field``.
    """

    engines: tuple[str, ...] = ()
    metavar: str | None = None
    negative: bool = False
    flags: tuple[str, ...] = ()

    @staticmethod
    def of(field: FieldInfo) -> OptionInfo:
        """The information that `option` stored in a field."""
        info = next((item for item in field.metadata if isinstance(item, OptionInfo)), None)
        return info or OptionInfo()


def option(
    default: Any,
    description: str,
    *,
    engines: tuple[str, ...] = (),
    metavar: str | None = None,
    flags: tuple[str, ...] = (),
    **limits: Any,
) -> Any:
    """Declare an option.

    Args:
        default: Its default, as a user would write it (``"10s"``); `REQUIRED` if it has none.
        description: One sentence for help and documentation.
        engines: See `OptionInfo`.
        metavar: See `OptionInfo`.
        flags: See `OptionInfo`.
        **limits: Limits by pydantic's names: ``ge``, ``gt``, ``le``, ``lt``.
    """
    info = OptionInfo(engines=engines, metavar=metavar, negative=default is True, flags=flags)
    field = Field(default, description=description, **limits)
    field.metadata.append(info)
    return field


def flag(name: str) -> str:
    """The flag of a field: ``--max-drop`` of ``max_drop``."""
    return "--" + name.replace("_", "-")


OtherT = TypeVar("OtherT", bound="Options")


class Options(BaseModel):
    """The options of a stage: frozen and validated.

    A value that has a unit is given as text with the unit (``"10s"``, ``"1pp"``, ``"95%"``,
    ``"4GiB"``) and stored as a number in the base unit of its kind (seconds, percentage points, a
    fraction, bytes).
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, arbitrary_types_allowed=False
    )
    panel: ClassVar[str] = ""
    """Heading of the options that this class declares; empty for the heading of the subclass."""

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise usage_error(error, type(self)) from None

    # pydantic then still validates nested models itself, and knows where in them a mistake is.
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]

    @classmethod
    def parse(cls, raw: Mapping[str, Any], where: str = "") -> Self:
        """Validate a mapping of names to values.

        Args:
            raw: Values as a user gives them.
            where: Their source, for messages (``recipe.yaml``).

        Raises:
            UsageError: An unknown option or an invalid value; the message names it.
        """
        try:
            return cls.model_validate(dict(raw))
        except ValidationError as error:
            raise usage_error(error, cls, where) from None

    @classmethod
    def of(cls, options: Options | None, changes: Mapping[str, Any]) -> Self:
        """The model, or a group of its options, with changes by keyword.

        A keyword that is ``None`` changes nothing, like a flag that is not given.

        Raises:
            UsageError: An unknown option or an invalid value; the message names it.
        """
        given = {name: value for name, value in changes.items() if value is not None}
        if options is None:
            return cls.parse(given)
        is_group = isinstance(options, Options) and type(options) is not cls
        if is_group and issubclass(cls, type(options)):
            options = options.of_kind(cls)  # a group of options that is part of this model
        if not isinstance(options, cls):
            raise UsageError(
                f"options must be {cls.__name__}, not {type(options).__name__}",
                hint="pass the options as keywords",
            )
        if not given:
            return options
        return cls.parse({**options.as_given(), **given})

    def as_given(self) -> dict[str, Any]:
        """The options that differ from their defaults, as a user would write them."""
        values = self.model_dump(mode="json", by_alias=True)
        defaults = _defaults(type(self))
        return {name: value for name, value in values.items() if value != defaults.get(name, _NONE)}

    def of_kind(self, kind: type[OtherT], **changes: Any) -> OtherT:
        """Another model with the options that it shares with this one, and ``changes``."""
        shared = {k: v for k, v in self.as_given().items() if k in kind.model_fields}
        return kind.parse({**shared, **changes})

    def written(self) -> dict[str, Any]:
        """All options as a user would write them, in the order of help.

        Options without a value are left out, and engine-specific ones unless they were given.
        """
        values = self.model_dump(mode="json", by_alias=True)
        given = self.as_given()
        written: dict[str, Any] = {}
        for name, field, _ in self.declared():
            key = field.alias or name
            value = getattr(self, name)
            if isinstance(value, Options):
                written[key] = value.written()
            elif isinstance(value, tuple) and value and isinstance(value[0], Options):
                written[key] = [item.written() for item in value]
            elif values[key] is not None and (key in given or not OptionInfo.of(field).engines):
                written[key] = values[key]
        return written

    @classmethod
    def declared(cls) -> Iterator[tuple[str, FieldInfo, str]]:
        """Name, field and help panel of every option; a class's own before those it inherits."""
        seen: set[str] = set()
        for owner in cls.__mro__:
            for name in inspect.get_annotations(owner):
                if name in cls.model_fields and name not in seen:
                    seen.add(name)
                    panel = getattr(owner, "panel", None) or cls.panel or "Options"
                    yield name, cls.model_fields[name], panel


_NONE = object()
_LONGEST_SHOWN = 80


def value_type(field: FieldInfo) -> Any:
    """The type of an option's value, with its limits and how it is read and written."""
    if not field.metadata:
        return field.annotation
    return Annotated[(field.annotation, *field.metadata)]


def to_flags(options: Options) -> list[str]:
    """The options that differ from their defaults as command-line arguments."""
    arguments: list[str] = []
    given = options.as_given()
    for name, field, _ in type(options).declared():
        value = given.get(field.alias or name)
        flags = OptionInfo.of(field).flags
        flag_name = flags[0] if flags else flag(name)
        if value is True:
            arguments.append(flag_name)
        elif value is False:
            arguments.append(f"--no-{flag_name.removeprefix('--')}")
        elif isinstance(value, dict):
            for key, item in value.items():
                arguments += [flag_name, f"{key}={item}"]
        elif isinstance(value, list):
            arguments += [flag_name, ",".join(map(str, value))] if value else []
        elif value is not None:
            arguments += [flag_name, str(value)]
    return arguments


@functools.cache
def _defaults(model: type[Options]) -> dict[str, Any]:
    """The default of each option, as a user would write it; required options have none."""
    defaults: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        if not field.is_required():
            adapter = TypeAdapter(value_type(field))
            value = adapter.validate_python(field.default)
            defaults[field.alias or name] = adapter.dump_python(value, mode="json")
    return defaults


def usage_error(error: ValidationError, model: type[BaseModel], where: str = "") -> UsageError:
    """Convert the first of the errors that pydantic found."""
    first = error.errors(include_url=False)[0]
    path = [str(part) for part in first["loc"]]
    name = ".".join(path)
    problem, hint = _problem(first, model, path)
    head = ", ".join(part for part in (where, name) if part)
    return UsageError(f"{head}: {problem}" if head else problem, hint=hint)


def _problem(
    details: ErrorDetails, model: type[BaseModel], path: list[str]
) -> tuple[str, str | None]:
    """What is wrong with a value, and a hint."""
    kind, value, context = details["type"], details["input"], details.get("ctx", {})
    match kind:
        case "extra_forbidden":
            close = difflib.get_close_matches(path[-1], _names(model, path[:-1]), n=1)
            return "no such option", f"did you mean {close[0]}?" if close else None
        case "missing":
            return "is required", None
        case "literal_error":
            choices = context["expected"].replace(" or ", ", ").replace("'", "")
            return f"{_shown(value)} is not a choice", f"one of {choices}"
        case "int_parsing" | "int_type" | "int_from_float":
            return f"{_shown(value)} is not a whole number", None
        case "float_parsing" | "float_type" | "finite_number":
            return f"{_shown(value)} is not a number", None
        case "bool_parsing" | "bool_type":
            return f"{_shown(value)} is not true or false", None
        case "string_type" | "path_type":
            return (
                f"{_shown(value)} is not text",
                "put a text that looks like a date or number in quotes",
            )
        case "greater_than_equal":
            return f"{_shown(value, str)} is too small", f"at least {context['ge']}"
        case "greater_than":
            return f"{_shown(value, str)} is too small", f"more than {context['gt']}"
        case "less_than_equal":
            return f"{_shown(value, str)} is too large", f"at most {context['le']}"
        case "value_error":
            cause = context["error"]
            if isinstance(cause, ReadableError):
                return cause.message, cause.hint
            return str(cause), None
        case _:
            return details["msg"], None


def _shown(value: object, convert: Callable[[object], str] = repr) -> str:
    """A value as a message shows it: not longer than it is worth reading."""
    try:
        text = convert(value)
    except (ValueError, RecursionError):  # integers of thousands of digits have no decimal text
        return f"a {type(value).__name__} that is too long to show"
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}…"


def _names(model: type[BaseModel], path: list[str]) -> list[str]:
    """Names of the options of the section that a path leads to; empty if it leads to none."""
    for part in path:
        field = model.model_fields.get(part)
        inner = getattr(field, "annotation", None)
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            return []
        model = inner
    return [field.alias or name for name, field in model.model_fields.items()]


class ReadableError(ValueError):
    """Raised in validators: what is wrong, and a hint."""

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
