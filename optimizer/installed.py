"""Whether the installed versions are those that this package declares to work with.

pip installs a package beside a conflicting version with no more than a warning, for example when
another requirement downgraded it. What follows is an ``ImportError`` or a wrong result.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import metadata

from packaging.requirements import InvalidRequirement, Requirement

__all__ = ["VersionConflict", "command_for", "conflicts_with", "version_conflicts"]

DISTRIBUTION = "resnet-opt"


@dataclass(frozen=True)
class VersionConflict:
    """A package whose version is outside the declared range.

    Attributes:
        requirement: The name and the range, as pip takes them.
        installed: The installed version; ``None`` if the package is missing.
    """

    requirement: str
    installed: str | None

    @property
    def text(self) -> str:
        """The conflict in one line."""
        found = "is not installed" if self.installed is None else f"has version {self.installed}"
        name = Requirement(self.requirement).name
        return f"{name} {found}, but {DISTRIBUTION} needs {self.requirement}"


def version_conflicts() -> list[VersionConflict]:
    """The conflicts of this environment; none if this package is on the path but not installed."""
    try:
        return conflicts_with(metadata.requires(DISTRIBUTION) or [])
    except metadata.PackageNotFoundError:
        return []


def conflicts_with(requirements: Iterable[str]) -> list[VersionConflict]:
    """Compare requirements with what is installed.

    Requirements of other platforms and of extras are left out: an extra that nobody asked for may
    be missing, and one that is installed in another version is reported by what uses it.

    Args:
        requirements: As in the metadata of a distribution, with markers.
    """
    conflicts = []
    for line in requirements:
        try:
            requirement = Requirement(line)
        except InvalidRequirement:  # of a newer standard than the installed packaging
            continue
        marker = requirement.marker
        if marker is not None and not marker.evaluate({"extra": ""}):
            continue
        installed = _version(requirement.name)
        if installed is None or not requirement.specifier.contains(installed, prereleases=True):
            text = f"{requirement.name}{requirement.specifier}"
            conflicts.append(VersionConflict(text, installed))
    return conflicts


def command_for(conflicts: Sequence[VersionConflict]) -> str | None:
    """The command that resolves conflicts; ``None`` without any."""
    if not conflicts:
        return None
    return shlex.join(["pip", "install", *(conflict.requirement for conflict in conflicts)])


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
