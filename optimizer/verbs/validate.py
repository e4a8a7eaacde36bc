"""The verb ``validate``: accuracy of engines against the reference, hop by hop."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from optimizer.artifacts import Cache, OutputFile, check_outputs
from optimizer.errors import UsageError
from optimizer.options import ForeignGraph, HopOptions, ValidateOptions, takes_options
from optimizer.progress import Progress
from optimizer.results import Gates, ValidateResult, write_result
from optimizer.verbs.planned_files import predictions_path

if TYPE_CHECKING:
    from optimizer.data import ImageDataset
    from optimizer.models import Model
    from optimizer.models.native import NativeModel

__all__ = ["validate"]


@takes_options(ValidateOptions)
def validate(
    engines: Sequence[Path | str] | Path | str,
    options: ValidateOptions,
    *,
    output: Path | str | None = None,
    graphs: Mapping[Path, Path] | None = None,
    images: ImageDataset | None = None,
    predictions: Path | str | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> ValidateResult:
    """Compare engines with the reference, hop by hop, on the same images.

    Args:
        engines: Engines, graphs or checkpoints; one or several.
        options: See below.
        output: File for the result (``.json``); the predictions go into ``.predictions.npz``
            beside it. ``None`` writes nothing.
        graphs: The FP32 ONNX file of each engine, if they are of several networks; others are found
            as ``exported`` says.
        images: Dataset to use instead of ``data``; all its images are used.
        predictions: File for the predictions of each image (``.npz``), if not beside ``output``.
        force: Also replace files that resnet-opt did not write, or that were edited since.
        progress: Receives progress updates.

    Returns:
        The result, whose ``verdict`` may be ``fail`` or ``inconclusive``;
        `optimizer.raise_for_verdict` turns it into an exception.

    Raises:
        ArtifactError: A file is not an artifact, was changed, or its source file is missing.
        DataError: The images cannot be used or do not fit the network.
    """
    from optimizer.data import open_dataset
    from optimizer.engines.placement import check_device, device_of
    from optimizer.evaluation import Chain
    from optimizer.evaluation import validate as compare_hops
    from optimizer.evaluation.chain import find_exported_model
    from optimizer.evaluation.stored_predictions import open_stores
    from optimizer.processes.ranks import is_first_process

    paths = [Path(engine) for engine in as_list(engines)]
    writes = is_first_process()  # first, because torchrun's variables may be wrong
    if not paths:
        raise UsageError("no engine to validate", hint="name at least one engine")
    if output is not None:
        output = Path(output)
        predictions = predictions or predictions_path(output)
    _check_files(paths, options, output, predictions, force=force)
    check_device(paths, options.device)
    foreign = options.of_kind(ForeignGraph)
    chains = [
        Chain.of(
            path,
            model=(graphs or {}).get(path) or options.exported or find_exported_model(path),
            device=device_of(path, options.device),
            source=foreign,
        )
        for path in paths
    ]
    if images is None:
        images = open_dataset(
            options.data,
            limit=options.limit,
            seed=options.seed,
            skip_bad_images=options.skip_bad_images,
            workers=options.workers,
            labels_from=options.labels_from,
            image_folder=options.image_folder,
        )
    with (
        _reference(options) as source,
        open_stores(Cache.default(), options.cache_limit) as stores,
    ):
        result = compare_hops(
            chains,
            source,
            images,
            Gates(
                max_drop_pp=options.max_drop,
                max_flips=options.max_flips,
                max_lost=options.max_lost,
                score_threshold=options.score_threshold,
            ),
            options.of_kind(HopOptions),
            predictions=None if predictions is None else Path(predictions),
            stores=stores,
            progress=progress,
        )
    if output is not None and writes:
        write_result(result, output)
    return result


def _check_files(
    engines: Sequence[Path],
    options: ValidateOptions,
    output: Path | None,
    predictions: Path | str | None,
    *,
    force: bool,
) -> None:
    from optimizer.engines.opening import graph_of

    files = [] if output is None else [OutputFile(output, "validate", has_manifest=False)]
    if predictions is not None:
        files.append(OutputFile(Path(predictions), "predictions", has_manifest=False))
    graphs = [graph_of(engine) for engine in engines]
    read = [*engines, *graphs, options.reference, options.data, options.exported]
    check_outputs(files, read, force=force)


@contextlib.contextmanager
def _reference(options: ValidateOptions) -> Iterator[Model | NativeModel | Path]:
    """What every hop is compared with, while it is open."""
    from optimizer.models import load_model
    from optimizer.models.native import NativeModel, open_native

    if options.reference.endswith(".onnx"):
        if options.framework_python is not None:
            raise UsageError(
                f"--framework-python is for Keras models, and {options.reference} is an ONNX file",
                hint="leave it out",
            )
        yield Path(options.reference)
        return
    model = load_model(
        options.reference,
        arch=options.arch,
        image_size=options.image_size,
        weights=options.weights,
    )
    opened = open_native(options.reference, model, options.framework_python)
    with (
        contextlib.closing(opened) if isinstance(opened, NativeModel) else contextlib.nullcontext()
    ):
        yield opened


def as_list(paths: Sequence[Path | str] | Path | str) -> list[Path | str]:
    """A single path or several, as a list."""
    return [paths] if isinstance(paths, (str, Path)) else list(paths)
