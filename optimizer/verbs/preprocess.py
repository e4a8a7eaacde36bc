"""The verb ``preprocess``: compare image decoders and resizers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from optimizer.options import PreprocessOptions, takes_options
from optimizer.progress import Progress

if TYPE_CHECKING:
    from optimizer.evaluation.decoders import Difference

__all__ = ["preprocess"]


@takes_options(PreprocessOptions)
def preprocess(
    diff: str | Path, options: PreprocessOptions, *, progress: Progress | None = None
) -> list[Difference]:
    """Compare other decoders and resizers with this package's on the same images.

    Without a model, ImageNet's usual preprocessing is applied.

    Args:
        diff: A folder of images.
        options: See below.
        progress: Receives progress updates.

    Returns:
        One difference per pipeline that can do this preprocessing.

    Raises:
        UsageError: The data has no image files.
        DataError: An image cannot be read.
    """
    from optimizer.data import Preprocessing, open_dataset
    from optimizer.evaluation.decoders import compare_decoders
    from optimizer.models import load_model

    dataset = open_dataset(
        str(diff),
        limit=options.limit,
        seed=options.seed,
        skip_bad_images=options.skip_bad_images,
        labelled=False,
    )
    if options.skip_bad_images:
        dataset = dataset.verify()
    model = None
    if options.model is not None:
        model = load_model(options.model, arch=options.arch, weights=options.weights)
    preprocessing = Preprocessing.imagenet() if model is None else model.preprocessing
    return compare_decoders(dataset, preprocessing, model=model, progress=progress)
