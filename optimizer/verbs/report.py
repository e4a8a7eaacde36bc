"""The verb ``report``: write the report of one or several runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from optimizer.artifacts import check_outputs
from optimizer.options import ReportOptions, takes_options
from optimizer.verbs.validate import as_list

__all__ = ["report"]


@takes_options(ReportOptions)
def report(
    run_dirs: Sequence[Path | str] | Path | str,
    output: Path | str,
    options: ReportOptions,
    *,
    force: bool = False,
) -> Path:
    """Write the report of one run, or of several side by side.

    Args:
        run_dirs: Run folders of ``run`` or ``demo``; one or several.
        output: ``.html``, ``.md`` or ``.csv``.
        options: See below.
        force: Also replace files that resnet-opt did not write, or that were edited since.

    Returns:
        ``output``.

    Raises:
        UsageError: No folder, an unknown suffix, or one profile for several runs.
        ArtifactError: The results of a run are missing or damaged.
    """
    from optimizer.reporting import report_file, write_report

    output = Path(output)
    folders = [Path(folder) for folder in as_list(run_dirs)]
    results = [folder / name for folder in folders for name in ("results.json", "profile.json")]
    check_outputs([report_file(output)], [*results, options.profile], force=force)
    write_report(folders, output, profile=options.profile)
    return output
