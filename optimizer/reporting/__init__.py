"""Reports: HTML, Markdown, CSV and the terminal's summary, all from the same results.

Nothing is measured, judged or looked up here: every word and number of a report comes from a
`RunResult` and the `ProfileResult` beside it, and a value that is in neither is a dash with a
footnote.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from optimizer.artifacts import write_text_atomically
from optimizer.errors import ArtifactError, UsageError
from optimizer.reporting.markdown import render_markdown
from optimizer.reporting.page import render_html
from optimizer.reporting.spreadsheet import csv_of, render_csv
from optimizer.reporting.terminal import render_console
from optimizer.results import ProfileResult, RunResult, read_result

__all__ = [
    "load_profile",
    "load_run",
    "render_console",
    "render_csv",
    "render_html",
    "render_markdown",
    "write_report",
]

SUFFIXES = (".html", ".md", ".csv")


def load_run(folder: Path) -> RunResult:
    """Read the results of a run folder.

    Raises:
        ArtifactError: No ``results.json`` in it, or one that cannot be read or is no run's.
    """
    if folder.is_file():
        raise ArtifactError(
            f"{folder} is a file, a report is made of the folder of a run",
            hint="name the folder that resnet-opt run or demo wrote",
        )
    if not folder.is_dir():
        raise ArtifactError(f"no such folder: {folder}", hint="name the folder that a run wrote")
    path = folder / "results.json"
    if not path.is_file():
        raise ArtifactError(
            f"{folder} has no results.json",
            hint="name the folder that resnet-opt run or demo wrote; an interrupted run has none",
        )
    result = read_result(path)
    if not isinstance(result, RunResult):
        raise ArtifactError(
            f"{path} holds the result of {result.kind}, not of a run",
            hint="name the folder that resnet-opt run or demo wrote",
        )
    return result


def load_profile(path: Path) -> ProfileResult:
    """Read a profile.

    Raises:
        ArtifactError: It cannot be read, or is another result.
    """
    result = read_result(path)
    if not isinstance(result, ProfileResult):
        raise ArtifactError(
            f"{path} holds the result of {result.kind}, not of profile",
            hint="name what resnet-opt profile wrote",
        )
    return result


def write_report(run_dirs: Sequence[Path], output: Path, *, profile: Path | None = None) -> None:
    """Write the report of one or several runs; the suffix of ``output`` decides the format.

    Links in it are relative, from the folder of ``output`` to the run folders.

    Args:
        run_dirs: Folders with a ``results.json``; several are shown side by side.
        output: ``.html``, ``.md`` or ``.csv``.
        profile: The profile of the one run; ``None`` for the ``profile.json`` in the folder of
            each, where there is one. A CSV has no layers.

    Raises:
        UsageError: No folder, another suffix, or one profile for several runs.
        ArtifactError: As `load_run` and `load_profile`.
    """
    if not run_dirs:
        raise UsageError("no run folder to report on", hint="name at least one run folder")
    suffix = output.suffix.lower()
    if suffix not in SUFFIXES:
        raise UsageError(
            f"a report cannot be written as {output.name}",
            hint=f"end its name in {', '.join(SUFFIXES)}",
        )
    if profile is not None and len(run_dirs) > 1:
        raise UsageError(
            "one profile belongs to one run, not to several",
            hint="put it into its run folder as profile.json",
        )
    runs = [(load_run(folder), _seen_from(output, folder)) for folder in run_dirs]
    profiles = [_profile_of(folder, profile) for folder in run_dirs]
    match suffix:
        case ".html":
            text = render_html(runs, profiles)
        case ".md":
            text = "\n".join(
                render_markdown(run, folder, layers)
                for (run, folder), layers in zip(runs, profiles, strict=True)
            )
        case _:
            text = csv_of([run for run, _ in runs])
    write_text_atomically(output, text)


def _profile_of(folder: Path, given: Path | None) -> ProfileResult | None:
    path = given or folder / "profile.json"
    return load_profile(path) if given is not None or path.is_file() else None


def _seen_from(output: Path, folder: Path) -> Path:
    return Path(os.path.relpath(folder.resolve(), output.parent.resolve()))
