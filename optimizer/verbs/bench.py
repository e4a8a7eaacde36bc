"""The verb ``bench``: latency and throughput of engines side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from optimizer.artifacts import OutputFile, check_outputs
from optimizer.options import BenchOptions, ForeignGraph, takes_options
from optimizer.progress import Progress
from optimizer.results import BenchResult, write_result
from optimizer.verbs.graph_engines import engines_of
from optimizer.verbs.planned_files import sample_files, samples_folder
from optimizer.verbs.validate import as_list

__all__ = ["bench"]


@takes_options(BenchOptions)
def bench(
    engines: Sequence[Path | str] | Path | str,
    options: BenchOptions,
    *,
    output: Path | str | None = None,
    raw_dir: Path | str | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> BenchResult:
    """Measure latency and throughput in interleaved rounds, each engine in its own process.

    Args:
        engines: Engines, checkpoints, or ONNX graphs, which ONNX Runtime computes; one or several.
        options: See below.
        output: File for the result (``.json``); the raw samples go into a folder beside it.
            ``None`` writes nothing.
        raw_dir: Folder for the raw samples, one NPZ file per engine and setting, if not the one
            beside ``output``.
        force: Also replace files that resnet-opt did not write, or that were edited since.
        progress: Receives progress updates.

    Returns:
        The result; its ``verdict`` is ``fail`` if an engine is slower than ``against``.

    Raises:
        UsageError: An invalid engine or option, or a batch outside an engine's range.
        EnvironmentFault: None of the engines can run on this machine, or LoadGen is not installed.
    """
    from optimizer.profiling.benchmark import bench as measure

    paths = [Path(engine) for engine in as_list(engines)]
    if output is not None:
        output = Path(output)
        raw_dir = raw_dir or samples_folder(output)
    files = [] if output is None else [OutputFile(output, "bench", has_manifest=False)]
    if raw_dir is not None:
        files += sample_files(Path(raw_dir))
    check_outputs(files, [*paths, options.against], force=force)
    given = [*paths, *([options.against] if options.against is not None else [])]
    with engines_of(given, options.of_kind(ForeignGraph), progress=progress) as opened:
        if options.against is not None:
            options = options.model_copy(update={"against": opened.pop()})
        raw = None if raw_dir is None else Path(raw_dir)
        result = measure(opened, options, raw_dir=raw, progress=progress)
    if output is not None:
        write_result(result, output)
    return result
