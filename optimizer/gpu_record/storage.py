"""The record's file: a ZIP archive with one JSON document per step, valid after every step."""

from __future__ import annotations

import getpass
import json
import platform
import re
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from optimizer.artifacts import mark_zip, write_atomically
from optimizer.errors import ArtifactError

__all__ = ["Cleaner", "RecordFile", "read_record"]

SCHEMA = 1
_MAX_CHARACTERS = 200_000
"""Maximum length of a text; the inspector's output for a ResNet-18 has tens of thousands."""


# An absolute path of two or more parts; parts may contain single spaces.
_PATH = re.compile(r"(?<![\w.<>~)\]-])/(?:[^\s/:;,'\"<>]+(?: [^\s/:;,'\"<>]+)*/)+[^\s/:;,'\"<>()]*")
_SYSTEM = ("/usr/", "/lib/", "/lib64/", "/proc/", "/sys/", "/dev/", "/_src/", "/home/jenkins/")
"""Paths that are the same on every machine; Jenkins is in the texts of NVIDIA's libraries."""
_INSTALLED = re.compile(r"/(?:site|dist)-packages/.*")
_LIBRARY = re.compile(r"[\w.+-]+\.(?:so[\w.]*|cpp|cc|cu|h|py)$")
_COMMON_NAMES = {"root", "user", "ubuntu", "localhost"}
"""Names that say nothing about anybody, and that occur in texts of the libraries."""


class Cleaner:
    """Removes personal data from texts: paths, and the names of user and machine.

    Of a path outside of the system's folders, only the part in ``site-packages`` or the name of a
    library's file is left.

    Args:
        folders: Additional folders to replace, with their replacements.
    """

    def __init__(self, folders: Mapping[Path, str] | None = None) -> None:
        replacements = {
            **(folders or {}),
            Path(tempfile.gettempdir()): "<tmp>",
            Path(sys.prefix): "<python>",
            Path.cwd(): "<cwd>",
            **_home(),
        }
        # Longest first, so that a folder inside the home folder gets its own replacement.
        self._paths = sorted(
            ((str(path), mark) for path, mark in replacements.items() if len(str(path)) > 1),
            key=lambda item: -len(item[0]),
        )
        machine = platform.node()
        names = {machine, machine.partition(".")[0], _user()} - _COMMON_NAMES
        self._names = [
            re.compile(rf"(?<![^\W_]){re.escape(name)}(?![^\W_])", re.IGNORECASE)
            for name in sorted(names, key=len, reverse=True)
            if len(name) > 2
        ]

    def text(self, text: str) -> str:
        """A text without personal data."""
        for path, mark in self._paths:
            text = text.replace(path + "/", mark + "/").replace(path, mark)
        text = _PATH.sub(_without_folders, text)
        for mark in ("<home>", "<cwd>", "<tmp>"):
            text = re.sub(rf"{mark}/[^\s:;,'\"<>]*", partial(_of_folder, mark), text)
        for name in self._names:
            text = name.sub("<name>", text)
        return text[:_MAX_CHARACTERS]

    def clean(self, value: Any) -> Any:
        """A JSON value without personal data in its texts."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, Mapping):
            return {self.text(str(key)): self.clean(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.clean(item) for item in value]
        return value


def _home() -> dict[Path, str]:
    try:
        return {Path.home(): "<home>"}
    except RuntimeError:  # a user without one, as in containers
        return {}


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a user without a name, as in containers
        return ""


def _without_folders(match: re.Match[str]) -> str:
    """A path with its private folders replaced."""
    path = match[0]
    return path if path.startswith(_SYSTEM) else "<path>" + _public_part(path)


def _of_folder(mark: str, match: re.Match[str]) -> str:
    return mark + _public_part(match[0])


def _public_part(path: str) -> str:
    """What of a path says nothing about its owner, beginning with a slash; may be empty."""
    if (installed := _INSTALLED.search(path)) is not None:
        return installed[0]
    name = path.rpartition("/")[2]
    return f"/{name}" if _LIBRARY.fullmatch(name) else ""


class RecordFile:
    """A record being written.

    Args:
        path: The file; an existing one is replaced.
        cleaner: Removes personal data.
    """

    def __init__(self, path: Path, cleaner: Cleaner) -> None:
        self._path = path
        self._cleaner = cleaner
        self._number = 0
        with write_atomically(path) as temporary:
            with zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
                archive.writestr("record.json", json.dumps({"schema": SCHEMA}))
            mark_zip(temporary, "record")

    def add(self, name: str, document: Mapping[str, Any]) -> None:
        """Write one step; the file is valid afterwards."""
        self._number += 1
        text = json.dumps(self._cleaner.clean({"step": name, **document}), indent=1)
        with write_atomically(self._path) as temporary:
            shutil.copyfile(self._path, temporary)
            with zipfile.ZipFile(temporary, "a", zipfile.ZIP_DEFLATED) as archive:
                archive.comment = b""
                archive.writestr(f"{self._number:02}-{name}.json", text)
            mark_zip(temporary, "record")


def read_record(path: Path) -> list[dict[str, Any]]:
    """The steps of a record, in order.

    Raises:
        ArtifactError: The file is not a record, or is a record of a newer version.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = sorted(archive.namelist())
            documents = {name: json.loads(archive.read(name)) for name in names}
    except (OSError, zipfile.BadZipFile, ValueError) as error:
        raise ArtifactError(f"{path.name} is not a GPU record: {error}") from error
    schema = documents.pop("record.json", {}).get("schema")
    if schema != SCHEMA:
        raise ArtifactError(
            f"{path.name} is a record with schema {schema}, this version reads schema {SCHEMA}",
            hint="update resnet-opt",
        )
    return list(documents.values())
