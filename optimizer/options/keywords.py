"""Options as keywords, so that every verb can be called like ``build(..., precision="int8")``."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

from optimizer.errors import UsageError
from optimizer.options.declaration import Options

__all__ = ["takes_options"]

ResultT = TypeVar("ResultT")


def takes_options(
    model: type[Options],
) -> Callable[[Callable[..., ResultT]], Callable[..., ResultT]]:
    """Let a function that takes ``options`` also take their fields as keywords.

    Callers pass a model, keywords, or both; keywords override the model. An invalid option raises
    `optimizer.errors.UsageError` with its name. The function always receives a complete model. Its
    signature, and so ``help()`` and completion, lists every field.
    """

    def decorate(function: Callable[..., ResultT]) -> Callable[..., ResultT]:
        signature = inspect.signature(function)

        @functools.wraps(function)
        def verb(*arguments: Any, **keywords: Any) -> ResultT:
            named = {name: keywords.pop(name) for name in signature.parameters if name in keywords}
            try:
                bound = signature.bind_partial(*arguments, **named)
                bound.arguments["options"] = model.of(bound.arguments.get("options"), keywords)
                complete = signature.bind(*bound.args, **bound.kwargs)
            except TypeError as error:
                raise UsageError(f"{function.__name__}(): {error}") from None
            return function(*complete.args, **complete.kwargs)

        verb.__signature__ = _signature(signature, model)  # type: ignore[attr-defined]
        verb.__doc__ = f"{inspect.getdoc(function)}\n\n{_documentation(model)}"
        return verb

    return decorate


def _signature(signature: inspect.Signature, model: type[Options]) -> inspect.Signature:
    """The function's parameters, with ``options`` optional, and one keyword per field."""
    kinds = inspect.Parameter
    parameters = list(signature.parameters.values())
    if signature.parameters["options"].default is kinds.empty:
        parameters = [p.replace(default=None) if p.name == "options" else p for p in parameters]
    fields = [
        kinds(
            name,
            kinds.KEYWORD_ONLY,
            default=kinds.empty if field.is_required() else field.default,
            annotation=field.annotation,
        )
        for name, field, _ in model.declared()
    ]
    return signature.replace(parameters=[*parameters, *fields])


def _documentation(model: type[Options]) -> str:
    lines = [f"    {name}: {field.description}" for name, field, _ in model.declared()]
    return "\n".join([f"Options (keywords, or `optimizer.{model.__name__}`):", *lines])
