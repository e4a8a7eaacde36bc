"""Detect objects in single images with an engine, through the same path as validation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from optimizer.artifacts import OutputFile, check_outputs, read_manifest
from optimizer.data import open_image
from optimizer.data.images import IMAGE_FORMATS
from optimizer.errors import DataError
from optimizer.evaluation.classify import files_of, preprocessing_and_classes
from optimizer.evaluation.stored_predictions import PredictionStores
from optimizer.models import DetectorSpec, load_model
from optimizer.models.weights import CHECKPOINTS
from optimizer.options import ImageReading, PredictOptions, takes_options
from optimizer.progress import Progress
from optimizer.results import DetectionPrediction, FoundObject
from optimizer.tasks.box_drawing import write_annotated
from optimizer.tasks.boxes import BoxReader, Detections
from optimizer.tasks.packed_detections import pack_detections, unpack_detections

__all__ = ["detect", "detector_of"]


def detector_of(engine: Path) -> DetectorSpec | None:
    """How the outputs of an engine or a checkpoint become boxes; ``None`` for a classifier.

    Raises:
        ArtifactError, CheckpointError: It cannot be read.
    """
    if engine.suffix in CHECKPOINTS:
        return load_model(str(engine)).detector
    stored = read_manifest(engine).settings.get("detector")
    return None if stored is None else DetectorSpec.from_dict(stored)


@takes_options(PredictOptions)
def detect(
    engine: Path,
    spec: DetectorSpec,
    images: Sequence[Path],
    options: PredictOptions,
    *,
    stores: PredictionStores | None = None,
    progress: Progress | None = None,
    force: bool = False,
) -> list[DetectionPrediction]:
    """Detect objects with an engine or a checkpoint.

    Args:
        engine: The engine; preprocessing and class names come from its manifest.
        spec: From `detector_of`.
        images: Image files, or folders of them.
        options: See below; detections with smaller scores than ``score_threshold`` are left out,
            and ``annotate`` is the folder for the images with their boxes (PNG).
        stores: Stored predictions, which are used and extended; ``None`` stores none.
        progress: Receives progress updates.
        force: Also replace files in ``annotate`` that resnet-opt did not write, or that were edited.

    Raises:
        ArtifactError: The engine cannot be opened or does not state its preprocessing.
        DataError: There is no image, one cannot be decoded, or two would get the same name in
            ``annotate``.
        UsageError: ``device`` is not a GPU, the engine runs on the CPU, or a file in ``annotate`` is
            an input or somebody else's.
    """
    from PIL import Image

    from optimizer.engines import closing, open_engine
    from optimizer.engines.placement import check_device
    from optimizer.evaluation.predicted_files import FilePass, Reading

    files = [file for path in images for file in files_of(path)]
    if not files:
        raise DataError("no image to search", hint="give image files or a folder of images")
    outputs = _annotated_files(files, options.annotate)
    annotated = [
        OutputFile(path, "annotated", has_manifest=False, option="--annotate")
        for path in outputs.values()
    ]
    check_outputs(annotated, [engine, *files], force=force)
    check_device([engine], options.device)
    preprocessing, classes = preprocessing_and_classes(engine)
    names = list(classes or (f"class {index}" for index in range(spec.num_classes)))
    reader = BoxReader(spec, preprocessing)

    def read(raw: NDArray[Any], file: Path) -> Detections:
        with Image.open(file, formats=IMAGE_FORMATS) as image:  # only its header
            return reader.read(raw, image.size)

    reading = Reading("detection", read, pack_detections, unpack_detections)
    results = []
    with closing(open_engine(engine, device=options.device)) as session:
        job = FilePass(
            engine, session, preprocessing, reading, options.of_kind(ImageReading),
            options.device, stores, progress,
        )  # fmt: skip
        for file, found in job.predict(files):
            above, output = found.above(options.score_threshold), outputs.get(file)
            with Image.open(file, formats=IMAGE_FORMATS) as image:
                size = image.size
            if output is not None:
                write_annotated(open_image(file), above, names, output)
            results.append(_prediction(file, size, above, names, output))
    return results


def _annotated_files(files: Sequence[Path], folder: Path | None) -> dict[Path, Path]:
    """The file for each image with its boxes."""
    if folder is None:
        return {}
    outputs = [folder / f"{file.stem}.png" for file in files]
    if len(set(outputs)) < len(outputs):
        twice = next(path for path in outputs if outputs.count(path) > 1)
        raise DataError(
            f"two images would be written to {twice}", hint="give images with different names"
        )
    return dict(zip(files, outputs, strict=True))


def _prediction(
    file: Path, size: tuple[int, int], found: Detections, names: list[str], output: Path | None
) -> DetectionPrediction:
    objects = [
        FoundObject(
            name=names[index],
            index=index,
            score=score,
            box=(box[0], box[1], box[2], box[3]),
        )
        for box, score, index in zip(
            found.boxes.tolist(), found.scores.tolist(), found.classes.tolist(), strict=True
        )
    ]
    return DetectionPrediction(
        image=str(file),
        width=size[0],
        height=size[1],
        objects=objects,
        annotated=None if output is None else str(output),
    )
