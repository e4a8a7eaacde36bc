"""The verb ``bench``: latency and throughput, engines side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from optimizer.options import BenchOptions, takes_options
from optimizer.progress import Progress
from optimizer.results import BenchResult
from optimizer.verbs.validate import as_list

__all__ = ["bench"]


@takes_options(BenchOptions)
def bench(
    engines: Sequence[Path | str] | Path | str,
    options: BenchOptions,
    *,
    raw_dir: Path | str | None = None,
    progress: Progress | None = None,
) -> BenchResult:
    """Measure latency and throughput, interleaved and each engine in a process of its own.

    Args:
        engines: Engines or checkpoints; one or several.
        options: See below.
        raw_dir: Where the raw samples go, one NPZ file per engine and setting.
        progress: Where steps are reported.

    Returns:
        The result; its ``verdict`` is ``fail`` if an engine is slower than ``against``.

    Raises:
        UsageError: An engine, a batch outside an engine's range, or an option is wrong.
        EnvironmentFault: None of the engines can run on this machine, or LoadGen is not installed.
    """
    from optimizer.profiling import bench as measure

    return measure(
        [Path(engine) for engine in as_list(engines)],
        options,
        raw_dir=None if raw_dir is None else Path(raw_dir),
        progress=progress,
    )
