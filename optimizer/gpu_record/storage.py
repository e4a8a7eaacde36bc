"""The record's file: a ZIP archive of JSON documents, one a step, complete after every step."""

from __future__ import annotations

import getpass
import json
import platform
import re
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from optimizer.errors import ArtifactError

__all__ = ["Cleaner", "RecordFile", "read_record"]

SCHEMA = 1
_LONGEST = 200_000
"""Characters of one text; the inspector's answer for a ResNet-18 takes some tens of thousands."""


class Cleaner:
    """Takes what belongs to the user out of texts: folders, and the names of user and machine.

    Args:
        folders: Further folders whose names are replaced, by what stands in their place.
    """

    def __init__(self, folders: Mapping[Path, str] | None = None) -> None:
        known = {
            **(folders or {}),
            Path(tempfile.gettempdir()): "<tmp>",
            Path(sys.prefix): "<python>",
            Path.cwd(): "<cwd>",
            Path.home(): "<home>",
        }
        # The longest first: a folder of the home is not "<home>/...".
        self._places = sorted(
            ((str(path), mark) for path, mark in known.items() if len(str(path)) > 1),
            key=lambda item: -len(item[0]),
        )
        names = [platform.node(), _user()]
        self._names = [re.compile(rf"\b{re.escape(name)}\b") for name in names if len(name) > 3]

    def text(self, text: str) -> str:
        """A text without them."""
        for path, mark in self._places:
            text = text.replace(path, mark)
        for name in self._names:
            text = name.sub("<name>", text)
        return text[:_LONGEST]

    def clean(self, value: Any) -> Any:
        """A JSON value whose texts hold none of them."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, Mapping):
            return {str(key): self.clean(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.clean(item) for item in value]
        return value


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's user without a name
        return ""


class RecordFile:
    """A record that is being written.

    Args:
        path: The file; one that is there is replaced.
        cleaner: What is taken out.
    """

    def __init__(self, path: Path, cleaner: Cleaner) -> None:
        self._path = path
        self._cleaner = cleaner
        self._number = 0
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("record.json", json.dumps({"schema": SCHEMA}))

    def add(self, name: str, document: Mapping[str, Any]) -> None:
        """Write one step; the file is complete after it."""
        self._number += 1
        text = json.dumps(self._cleaner.clean({"step": name, **document}), indent=1)
        with zipfile.ZipFile(self._path, "a", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(f"{self._number:02}-{name}.json", text)


def read_record(path: Path) -> list[dict[str, Any]]:
    """The steps of a record, in the order in which they were made.

    Raises:
        ArtifactError: It is no record, or one of a newer version.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = sorted(archive.namelist())
            documents = {name: json.loads(archive.read(name)) for name in names}
    except (OSError, zipfile.BadZipFile, ValueError) as error:
        raise ArtifactError(f"{path.name} is no record of a GPU: {error}") from error
    schema = documents.pop("record.json", {}).get("schema")
    if schema != SCHEMA:
        raise ArtifactError(
            f"{path.name} is a record of schema {schema}, this version reads {SCHEMA}",
            hint="update resnet-opt",
        )
    return list(documents.values())
