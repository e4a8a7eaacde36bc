"""Reports: HTML, Markdown, CSV and the terminal summary, all from the same results.

Nothing is measured or judged here: every number of a report comes from a `RunResult` and the
optional `ProfileResult`. A value that is in neither is shown as a dash with a footnote.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from optimizer.artifacts import (
    DisabledCache,
    Input,
    OutputFile,
    Plan,
    produce,
    write_marked_text,
)
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
    "report_file",
    "write_report",
]

SUFFIXES = (".html", ".md", ".csv")


def load_run(folder: Path) -> RunResult:
    """Read the results of a run folder.

    Raises:
        ArtifactError: ``results.json`` is missing, unreadable, or not the result of a run.
    """
    if folder.is_file():
        raise ArtifactError(
            f"{folder} is a file, but a report is made from a run folder",
            hint="give the folder written by resnet-opt run or demo",
        )
    if not folder.is_dir():
        raise ArtifactError(f"no such folder: {folder}", hint="give the folder written by a run")
    path = folder / "results.json"
    if not path.is_file():
        raise ArtifactError(
            f"{folder} has no results.json",
            hint="give a folder written by resnet-opt run or demo; an interrupted run has no results",
        )
    result = read_result(path)
    if not isinstance(result, RunResult):
        raise ArtifactError(
            f"{path} contains the result of {result.kind}, not of a run",
            hint="give the folder written by resnet-opt run or demo",
        )
    return result


def load_profile(path: Path) -> ProfileResult:
    """Read a profile.

    Raises:
        ArtifactError: The file cannot be read or contains another kind of result.
    """
    result = read_result(path)
    if not isinstance(result, ProfileResult):
        raise ArtifactError(
            f"{path} contains the result of {result.kind}, not of profile",
            hint="give the file written by resnet-opt profile",
        )
    return result


def write_report(run_dirs: Sequence[Path], output: Path, *, profile: Path | None = None) -> None:
    """Write the report of one or several runs; the suffix of ``output`` selects the format.

    Links are relative, from the folder of ``output`` to the run folders.

    Args:
        run_dirs: Folders with a ``results.json``; several are shown side by side.
        output: ``.html``, ``.md`` or ``.csv``.
        profile: The profile of a single run; ``None`` uses the ``profile.json`` in each run folder,
            if there is one. A CSV report contains no layers.

    Raises:
        UsageError: No folder, an unsupported suffix, or one profile for several runs.
        ArtifactError: See `load_run` and `load_profile`.
    """
    if not run_dirs:
        raise UsageError("no run folder to report on", hint="give at least one run folder")
    suffix = output.suffix.lower()
    if suffix not in SUFFIXES:
        raise UsageError(
            f"{output.name} has no supported report suffix",
            hint=f"use one of {', '.join(SUFFIXES)}",
        )
    if profile is not None and len(run_dirs) > 1:
        raise UsageError(
            "one profile cannot be used for several runs",
            hint="store each profile as profile.json in its run folder",
        )
    runs = [(load_run(folder), _relative_to_report(output, folder)) for folder in run_dirs]
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
            _write_csv([run for run, _ in runs], run_dirs, output)
            return
    write_marked_text(output, text, "report")


def report_file(output: Path) -> OutputFile:
    """The file that `write_report` writes, for the check before the work."""
    return OutputFile(output, "report", has_manifest=output.suffix.lower() == ".csv")


def _write_csv(runs: Sequence[RunResult], run_dirs: Sequence[Path], output: Path) -> None:
    """Write a CSV report with a manifest, since CSV has no comments that could hold a mark."""
    inputs = [Input.of("results", folder / "results.json") for folder in run_dirs]
    plan = Plan(kind="report", settings={"format": "csv"}, inputs=inputs)

    def write(path: Path) -> dict[str, int]:
        path.write_text(csv_of(runs), encoding="utf-8")
        return {"runs": len(runs)}

    produce(plan, output, write, cache=DisabledCache())


def _profile_of(folder: Path, explicit: Path | None) -> ProfileResult | None:
    path = explicit or folder / "profile.json"
    return load_profile(path) if explicit is not None or path.is_file() else None


def _relative_to_report(output: Path, folder: Path) -> Path:
    return Path(os.path.relpath(folder.resolve(), output.parent.resolve()))
