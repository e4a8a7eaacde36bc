"""What can go wrong, and the exit code that says so.

The tree (exit code in brackets)::

    ResnetOptError                 [1] anything this package raises on purpose
    + UsageError                   [2] the command or its input is wrong
    | - CheckpointError                weights that cannot be read or do not fit
    | - GraphError                     an ONNX file that is not a usable graph
    | - DataError                      images, labels or folders that cannot be used
    | - ArtifactError                  a missing, changed, foreign or incomplete artifact
    | - UnsupportedPrecision           a precision that the named engine does not compute
    + EnvironmentFault             [3] the machine lacks a device or a library
    | - MissingLibrary
    | - MissingDevice
    + BuildError                   [1] a backend failed to compile a graph it should accept
    + Verdict                      [-] the work was done and the answer is no
      - AccuracyGateFailed         [4]
      - PerformanceRegression      [5]
      - Inconclusive               [6]
      - PrecisionAuditFailed       [7]

A message is one line that says what is wrong; ``hint`` is one line that says what to do about it.
"""

from __future__ import annotations

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
]


class ResnetOptError(Exception):
    """Root of everything raised on purpose.

    Args:
        message: What is wrong, in one line.
        hint: What the reader can do about it, in one line; a command where there is one.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message

    def __reduce__(self) -> tuple[object, ...]:
        # Errors cross process borders (builds run in subprocesses) and must keep their hint.
        return (_rebuild, (type(self), self.message, self.hint))


def _rebuild(kind: type[ResnetOptError], message: str, hint: str | None) -> ResnetOptError:
    return kind(message, hint=hint)


class UsageError(ResnetOptError):
    """The command line, the recipe or an input file is wrong."""

    exit_code = 2


class CheckpointError(UsageError):
    """Weights that cannot be read, are damaged, or belong to another architecture."""


class GraphError(UsageError):
    """An ONNX file that is damaged or is not a graph this package can work on."""


class DataError(UsageError):
    """A dataset that is empty, damaged, or does not fit the model."""


class ArtifactError(UsageError):
    """An artifact that is missing, was changed since it was written, or belongs elsewhere."""


class UnsupportedPrecision(UsageError):  # noqa: N818 - reads as the sentence it is
    """The named engine does not compute the asked precision."""


class EnvironmentFault(ResnetOptError):  # noqa: N818
    """The machine lacks something; the command itself is right."""

    exit_code = 3


class MissingLibrary(EnvironmentFault):
    """A Python package or shared library is not installed."""


class MissingDevice(EnvironmentFault):
    """No device of the needed kind, or one that the library does not support."""


class BuildError(ResnetOptError):
    """A backend failed to compile a graph that passed every check before it."""


class Verdict(ResnetOptError):  # noqa: N818
    """The work was done, its results are written, and the answer is no."""


class AccuracyGateFailed(Verdict):
    """The drop in accuracy is larger than allowed."""

    exit_code = 4


class PerformanceRegression(Verdict):
    """The candidate is slower than allowed."""

    exit_code = 5


class Inconclusive(Verdict):
    """The data at hand cannot decide the question."""

    exit_code = 6


class PrecisionAuditFailed(Verdict):
    """The engine does not compute what was asked for."""

    exit_code = 7
