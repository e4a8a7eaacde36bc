"""The verb ``latency-table``: time the layers of a network at several widths."""

from __future__ import annotations

from pathlib import Path

from optimizer.artifacts import Cache, OutputFile, check_outputs
from optimizer.errors import UsageError
from optimizer.options import LatencyTableOptions, TableOptions, takes_options
from optimizer.progress import Progress
from optimizer.results import LatencyTable

__all__ = ["latency_table"]


@takes_options(LatencyTableOptions)
def latency_table(
    model: Path | str,
    output: Path | str,
    options: LatencyTableOptions,
    *,
    cache: Cache | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> LatencyTable:
    """Measure the table that ``prune`` chooses by, for use here or on a machine without the engine.

    Args:
        model: A checkpoint or a model name; only its widths matter.
        output: The table (``.json``).
        options: See below.
        cache: Artifact cache; ``None`` for no cache.
        force: Also replace files that resnet-opt did not write, or that were edited since.
        progress: Receives progress updates.

    Returns:
        The table; its ``source`` is ``model`` if the engine cannot be timed on this machine.

    Raises:
        CheckpointError: There is no such model, or it cannot be pruned.
        UsageError: An invalid option.
        EnvironmentFault: No engine computes the precision.
        Inconclusive: The machine is too noisy.
    """
    from optimizer.models import load_model
    from optimizer.pruning import latency_table as measured
    from optimizer.pruning import read_table

    output = Path(output)
    if output.suffix != ".json":
        raise UsageError(f"{output.name} does not end in .json", hint=f"-o {output.stem}.json")
    check_outputs([OutputFile(output, "latency-table")], [model], force=force)
    loaded = load_model(
        model, arch=options.arch, image_size=options.image_size, weights=options.weights
    )
    artifact = measured(
        loaded, output, options.of_kind(TableOptions), cache=cache, progress=progress
    )
    return read_table(artifact.path)
