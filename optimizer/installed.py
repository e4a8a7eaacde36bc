"""What is installed, and whether its versions are those that this package declares to work with.

pip installs a package beside a conflicting version with no more than a warning, for example when
another requirement downgraded it. What follows is an ``ImportError`` or a wrong result.
"""

from __future__ import annotations

import platform
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement

from optimizer._version import __version__
from optimizer.processes import output_of

__all__ = [
    "Installation",
    "VersionConflict",
    "command_for",
    "commit_of",
    "conflicts_with",
    "version_conflicts",
]

DISTRIBUTION = "resnet-opt"
_ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Installation:
    """This package and everything beside it, for ``resnet-opt --version``.

    Attributes:
        version: The version.
        commit: The commit of a checkout, see `commit_of`; ``None`` where it is installed from a wheel.
        python: Version of the interpreter.
        libraries: Versions of all installed packages by name.
    """

    version: str
    commit: str | None
    python: str
    libraries: dict[str, str]

    @classmethod
    def here(cls) -> Installation:
        """What this process runs."""
        found = {d.name: d.version for d in metadata.distributions() if d.name}
        return cls(
            version=__version__,
            commit=commit_of(_ROOT),
            python=platform.python_version(),
            libraries={name: found[name] for name in sorted(found, key=str.lower)},
        )


def commit_of(folder: Path) -> str | None:
    """The commit of a checkout, with ``-modified`` if a tracked file was changed since.

    A folder inside of somebody else's checkout, as ``site-packages`` of a project often is, has none.
    """
    if not (folder / ".git").exists():
        return None
    git = ["git", "-C", str(folder)]
    commit = (output_of([*git, "rev-parse", "--short=12", "HEAD"]) or "").strip()
    changes = output_of([*git, "status", "--porcelain", "--untracked-files=no"])
    return (f"{commit}-modified" if changes else commit) or None


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
