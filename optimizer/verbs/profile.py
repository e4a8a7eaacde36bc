"""The verb ``profile``: the time of each layer of an engine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from optimizer.artifacts import Cache, OutputFile, check_outputs
from optimizer.errors import UsageError
from optimizer.options import ProfileOptions, takes_options
from optimizer.progress import Progress
from optimizer.results import ProfileResult, write_result
from optimizer.verbs.validate import as_list

__all__ = ["profile"]


@takes_options(ProfileOptions)
def profile(
    engines: Sequence[Path | str] | Path | str,
    options: ProfileOptions,
    *,
    output: Path | str | None = None,
    cache: Cache | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> ProfileResult:
    """Time engines by layer and compare the layers with this machine's measured ceilings.

    Args:
        engines: Engines or checkpoints; one or several.
        options: See below.
        output: File for the result (``.json``); ``None`` writes nothing.
        cache: Cache for the ceilings; ``None`` for the user's default cache.
        force: Also replace files that resnet-opt did not write, or that were edited since.
        progress: Receives progress updates.

    Raises:
        UsageError: An invalid engine or option, or a batch outside an engine's range.
        ArtifactError: The graph that an engine was built from is not beside it.
        EnvironmentFault: None of the engines can run on this machine.
    """
    from optimizer.profiling.layer_profile import profile as measure

    if options.remeasure and not options.ceilings:
        raise UsageError("--remeasure and --no-ceilings together", hint="leave one of them out")
    paths = [Path(engine) for engine in as_list(engines)]
    if output is not None:
        check_outputs([OutputFile(Path(output), "profile", has_manifest=False)], paths, force=force)
    result = measure(
        paths,
        options,
        cache=cache or Cache.default(),
        progress=progress,
    )
    if output is not None:
        write_result(result, Path(output))
    return result
