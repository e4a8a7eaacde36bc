"""Where models come from: one `Source` per kind of file or name, found by suffix or prefix.

A new source is a module with a `Source`, listed in `_BUILT_IN`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from optimizer.models.model import Model
    from optimizer.models.native import NativeModel

__all__ = ["Source", "forms", "is_checkpoint", "source_of_file", "source_of_name", "sources"]

_BUILT_IN = (
    "optimizer.models.checkpoint:PYTORCH",
    "optimizer.models.keras_source:KERAS",
    "optimizer.models.pretrained:TIMM",
)


@dataclass(frozen=True, kw_only=True)
class Source:
    """One kind of files and names that models are loaded from.

    Attributes:
        forms: Examples for messages that list what is accepted.
        suffixes: Ends of names of files that are models wherever an engine is accepted too.
        other_suffixes: Further ends that are read where only a model is expected.
        prefix: How names begin, such as ``timm:``; empty if it has no names.
        load_file: Loads a file; the other arguments are the architecture and which of several
            networks to use, if the user states them.
        load_name: Loads a name without the prefix; the second argument is the image size in
            pixels, if the user states it.
        native: Runs a model of this source with its own framework, see
            `optimizer.models.native.open_native`; ``None`` if that is PyTorch.
    """

    forms: tuple[str, ...]
    suffixes: tuple[str, ...] = ()
    other_suffixes: tuple[str, ...] = ()
    prefix: str = ""
    load_file: Callable[[Path, str | None, str | None], Model] | None = None
    load_name: Callable[[str, int | None], Model] | None = None
    native: Callable[[str, Model, Path | None], NativeModel] | None = None


@cache
def sources() -> tuple[Source, ...]:
    """All sources, in the order in which messages list them."""
    found = []
    for target in _BUILT_IN:
        module, _, attribute = target.partition(":")
        found.append(getattr(importlib.import_module(module), attribute))
    return tuple(found)


def is_checkpoint(path: Path) -> bool:
    """Whether a file is a model by its name, where an engine is accepted too."""
    return any(_ends(path, source.suffixes) for source in sources())


def source_of_file(path: Path) -> Source | None:
    """The source that reads a file, by the end of its name."""
    for source in sources():
        if _ends(path, (*source.suffixes, *source.other_suffixes)):
            return source
    return None


def source_of_name(name: str) -> Source | None:
    """The source whose prefix a name has."""
    return next((s for s in sources() if s.prefix and name.startswith(s.prefix)), None)


def forms() -> str:
    """What is accepted as a model, for messages."""
    return ", ".join(form for source in sources() for form in source.forms)


def _ends(path: Path, suffixes: tuple[str, ...]) -> bool:
    return path.name.endswith(suffixes)
