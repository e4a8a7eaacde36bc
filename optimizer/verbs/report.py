"""The verb ``report``: write the report of one or several runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from optimizer.options import ReportOptions, takes_options
from optimizer.verbs.validate import as_list

__all__ = ["report"]


@takes_options(ReportOptions)
def report(
    run_dirs: Sequence[Path | str] | Path | str, output: Path | str, options: ReportOptions
) -> Path:
    """Write the report of one run, or of several side by side.

    Args:
        run_dirs: Run folders of ``run`` or ``demo``; one or several.
        output: ``.html``, ``.md`` or ``.csv``.
        options: See below.

    Returns:
        ``output``.

    Raises:
        UsageError: No folder, an unknown suffix, or one profile for several runs.
        ArtifactError: The results of a run are missing or damaged.
    """
    from optimizer.reporting import write_report

    output = Path(output)
    write_report([Path(folder) for folder in as_list(run_dirs)], output, profile=options.profile)
    return output
