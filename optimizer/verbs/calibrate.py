"""The verb ``calibrate``: statistics of a graph's tensors on calibration images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from optimizer.artifacts import Cache, OutputFile, check_outputs
from optimizer.errors import UsageError
from optimizer.options import CalibrateOptions, ForeignGraph, takes_options
from optimizer.progress import Progress
from optimizer.verbs.outcomes import CalibrateResult
from optimizer.verbs.planned_files import float_graph_file

if TYPE_CHECKING:
    from optimizer.data import ImageDataset

__all__ = ["calibrate"]


@takes_options(CalibrateOptions)
def calibrate(
    graph: Path | str,
    output: Path | str,
    options: CalibrateOptions,
    *,
    images: ImageDataset | None = None,
    cache: Cache | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> CalibrateResult:
    """Collect calibration statistics in one pass, for every target and method.

    Args:
        graph: An FP32 graph; for a graph with Q/DQ, its float graph is calibrated.
        output: File for the statistics (``.npz``).
        options: See below.
        images: Dataset to use instead of ``calib``; all its images are used.
        cache: Artifact cache; ``None`` for no cache.
        force: Also replace files that resnet-opt did not write, or that were edited since.
        progress: Receives progress updates.

    Raises:
        UsageError: No images were given.
        DataError: Fewer than 8 images, or images that cannot be decoded.
        GraphError: The graph cannot be quantized, or its outputs are NaN.
    """
    from optimizer import precision
    from optimizer.models import is_model
    from optimizer.precision.foreign import needs_import

    graph, output = Path(graph), Path(output)
    if is_model(graph):
        raise UsageError(
            f"calibrate takes an ONNX file, and {graph} is a model",
            hint=f"resnet-opt export {graph} -o model.onnx, then resnet-opt calibrate model.onnx",
        )
    source = options.of_kind(ForeignGraph)
    files = [OutputFile(output, "statistics")]
    if needs_import(graph, source):
        files.append(float_graph_file(graph, output))
    check_outputs(files, [graph, options.calib, options.preprocessing_from], force=force)
    if images is None:
        images = _open(options)
    artifact = precision.calibrate(
        graph,
        images,
        output,
        source=source,
        cache=cache,
        progress=progress,
    )
    if not options.halves:
        return CalibrateResult.of(artifact)
    moved = precision.halves(graph, images, source=source, progress=progress)
    return CalibrateResult.of(artifact, halves=tuple(moved))


def _open(options: CalibrateOptions) -> ImageDataset:
    from optimizer.data import open_dataset

    if options.calib is None:
        raise UsageError(
            "calibration needs images", hint="--calib with digits:train, a folder or file.npz"
        )
    return open_dataset(
        options.calib,
        limit=options.calib_images,
        seed=options.seed,
        skip_bad_images=options.skip_bad_images,
        workers=options.workers,
        labelled=False,
    )
