"""The verb ``calibrate``: statistics of a graph's tensors on images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from optimizer.artifacts import Cache, check_output
from optimizer.errors import UsageError
from optimizer.options import CalibrateOptions, takes_options
from optimizer.progress import Progress
from optimizer.verbs.outcomes import CalibrateResult

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
    progress: Progress | None = None,
) -> CalibrateResult:
    """Take calibration statistics: one pass that serves every target and method.

    Args:
        graph: An FP32 graph; of a Q/DQ graph, the float graph it stands for is calibrated.
        output: Where the statistics go (``.npz``).
        options: See below.
        images: Images that are open already, instead of ``calib``; all of them are used.
        cache: Where artifacts are kept by key.
        progress: Where steps are reported.

    Raises:
        UsageError: No images.
        DataError: Fewer than 8 images, or images that cannot be decoded.
        GraphError: The graph cannot be quantized, or gives NaN.
    """
    from optimizer import precision

    graph, output = Path(graph), Path(output)
    check_output(output, [graph, options.calib, options.preprocessing_from])
    if images is None:
        images = _open(options)
    made = precision.calibrate(
        graph,
        images,
        output,
        preprocessing_from=options.preprocessing_from,
        cache=cache,
        progress=progress,
    )
    if not options.halves:
        return CalibrateResult.of(made)
    moved = precision.halves(
        graph, images, preprocessing_from=options.preprocessing_from, progress=progress
    )
    return CalibrateResult.of(made, halves=tuple(moved))


def _open(options: CalibrateOptions) -> ImageDataset:
    from optimizer.data import open_dataset

    if options.calib is None:
        raise UsageError(
            "calibration needs images", hint="--calib digits:train, a folder or file.npz"
        )
    return open_dataset(
        options.calib,
        limit=options.calib_images,
        seed=options.seed,
        skip_bad_images=options.skip_bad_images,
        workers=options.workers,
        labelled=False,
    )
