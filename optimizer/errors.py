"""Exceptions and their exit codes.

The tree (exit code in brackets)::

    ResnetOptError                 [1] anything this package raises on purpose
    + UsageError                   [2] the command or its input is wrong
    | - CheckpointError                weights that cannot be read or do not fit
    | - GraphError                     an ONNX file that is not a usable graph
    | - DataError                      images, labels or folders that cannot be used
    | - ArtifactError                  a missing, changed or incompatible artifact
    | - UnsupportedPrecision           a precision that the named engine does not compute
    + EnvironmentFault             [3] the machine lacks a device or a library
    | - MissingLibrary
    | - MissingDevice
    + BuildError                   [1] a backend failed to compile a graph it should accept
    + Verdict                      [-] the work was done, but the result is not a pass
      - AccuracyGateFailed         [4]
      - PerformanceRegression      [5]
      - Inconclusive               [6]
      - PrecisionAuditFailed       [7]

``message`` is one line that says what is wrong and where; ``hint`` is one line that says what to do.
"""

from __future__ import annotations

import errno
from typing import ClassVar

__all__ = [
    "AccuracyGateFailed",
    "ArtifactError",
    "BuildError",
    "CheckpointError",
    "DataError",
    "EnvironmentFault",
    "GraphError",
    "Inconclusive",
    "MissingDevice",
    "MissingLibrary",
    "PerformanceRegression",
    "PrecisionAuditFailed",
    "ResnetOptError",
    "UnsupportedPrecision",
    "UsageError",
    "Verdict",
    "file_system_fault",
]


class ResnetOptError(Exception):
    """Base class of everything that this package raises on purpose.

    Args:
        message: What is wrong, in one line.
        hint: What to do about it, in one line; a command if there is one.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message

    def __reduce__(self) -> tuple[object, ...]:
        # Child processes send errors to their parent by pickle; the hint must survive.
        return (_rebuild, (type(self), self.message, self.hint))


def _rebuild(kind: type[ResnetOptError], message: str, hint: str | None) -> ResnetOptError:
    return kind(message, hint=hint)


class UsageError(ResnetOptError):
    """The command line, the recipe or an input file is wrong."""

    exit_code = 2


class CheckpointError(UsageError):
    """Weights that cannot be read, are damaged, or belong to another architecture."""


class GraphError(UsageError):
    """An ONNX file that is damaged, or a graph that this package does not support."""


class DataError(UsageError):
    """A dataset that is empty, damaged, or does not fit the model."""


class ArtifactError(UsageError):
    """An artifact that is missing, changed since it was written, or incompatible."""


class UnsupportedPrecision(UsageError):  # noqa: N818 - the name says that it is an error
    """The engine does not compute the requested precision."""


class EnvironmentFault(ResnetOptError):  # noqa: N818
    """The machine lacks something; the command itself is correct."""

    exit_code = 3


class MissingLibrary(EnvironmentFault):
    """A Python package or shared library is not installed."""


class MissingDevice(EnvironmentFault):
    """There is no device of the required kind, or the library does not support it."""


_FILE_SYSTEM_ERRORS = {
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EISDIR, errno.ENOTDIR,
    errno.EFBIG, errno.ELOOP, errno.ENAMETOOLONG, errno.EIO, errno.EMFILE, errno.ENFILE,
}  # fmt: skip
"""Errors caused by the user's files, disk or limits, not by a bug."""
_FULL_DISK = ("No space left on device", "Disk quota exceeded", "File too large")


def file_system_fault(error: BaseException) -> EnvironmentFault | None:
    """An exception as a fault of disk or files, if that is its cause; else ``None``.

    Native libraries report a full disk as text in errors of their own.
    """
    hint = "choose another folder, or free disk space"
    if isinstance(error, OSError) and error.errno in _FILE_SYSTEM_ERRORS:
        message = f"{error.strerror}: {error.filename}" if error.filename else str(error.strerror)
        return EnvironmentFault(message, hint=hint)
    text = str(error)
    if any(phrase in text for phrase in _FULL_DISK):
        return EnvironmentFault(" ".join(text.split())[:300], hint=hint)
    return None


class BuildError(ResnetOptError):
    """A backend failed to compile a graph that passed all checks."""


class Verdict(ResnetOptError):  # noqa: N818
    """The work was done and its results are written, but the result is not a pass."""


class AccuracyGateFailed(Verdict):
    """The drop in accuracy is larger than allowed."""

    exit_code = 4


class PerformanceRegression(Verdict):
    """The candidate is slower than allowed."""

    exit_code = 5


class Inconclusive(Verdict):
    """The data is not sufficient for a decision."""

    exit_code = 6


class PrecisionAuditFailed(Verdict):
    """The engine does not compute in the requested precision."""

    exit_code = 7
