"""The verb ``predict``: classify images, or detect objects in them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from optimizer.artifacts import Cache
from optimizer.errors import UsageError
from optimizer.options import ForeignGraph, PredictOptions, takes_options
from optimizer.options.declaration import flag
from optimizer.progress import Progress
from optimizer.results import DetectionPrediction, Prediction
from optimizer.verbs.graph_engines import engines_of
from optimizer.verbs.validate import as_list

__all__ = ["predict"]


@takes_options(PredictOptions)
def predict(
    engine: Path | str,
    images: Sequence[Path | str] | Path | str,
    options: PredictOptions,
    *,
    force: bool = False,
    progress: Progress | None = None,
) -> list[Prediction] | list[DetectionPrediction]:
    """Classify images with an engine or a checkpoint, or detect objects with a detector.

    Args:
        engine: An engine, a checkpoint, or an ONNX graph, which ONNX Runtime computes.
        images: Image files, or folders of them; one or several. Of more than 256 images, what is
            complete is kept in the cache, and found by the next run.
        options: See below.
        force: Also replace annotated images that resnet-opt did not write, or that were edited since.
        progress: Receives progress updates.

    Returns:
        One prediction per image that is not skipped; the network decides of which kind.

    Raises:
        DataError: An image cannot be decoded.
        ArtifactError, CheckpointError: The engine cannot be opened.
        UsageError: An option for detectors and a classifier, or the reverse.
    """
    paths = [Path(image) for image in as_list(images)]
    foreign = options.of_kind(ForeignGraph)
    with engines_of([Path(engine)], foreign, needs_preprocessing=True) as (opened,):
        return _predict(opened, str(engine), paths, options, force=force, progress=progress)


def _predict(
    engine: Path,
    name: str,
    paths: list[Path],
    options: PredictOptions,
    *,
    force: bool,
    progress: Progress | None,
) -> list[Prediction] | list[DetectionPrediction]:
    from optimizer.evaluation.classify import predict as classify
    from optimizer.evaluation.detect import detect, detector_of
    from optimizer.evaluation.stored_predictions import open_stores

    detector = detector_of(engine)
    given = options.model_fields_set
    if detector is None:
        if wrong := sorted({"score_threshold", "annotate"} & given):
            raise UsageError(
                f"{flag(wrong[0])} is for detectors, and {name} is a classifier",
                hint="leave it out",
            )
        with open_stores(Cache.default(), options.cache_limit) as stores:
            return classify(engine, paths, options, stores=stores, progress=progress)
    if "top" in given:
        raise UsageError(
            f"--top is for classifiers, and {name} is a detector",
            hint="use --score-threshold to show more or fewer detections",
        )
    with open_stores(Cache.default(), options.cache_limit) as stores:
        return detect(
            engine, detector, paths, options, stores=stores, progress=progress, force=force
        )
