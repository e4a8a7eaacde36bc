"""Detect objects in single images with an engine, through the same path as validation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from optimizer.artifacts import OutputFile, check_outputs, read_manifest
from optimizer.data import open_image
from optimizer.errors import DataError
from optimizer.evaluation.classify import files_of, preprocessing_and_classes
from optimizer.models import DetectorSpec, load_model
from optimizer.models.weights import CHECKPOINTS
from optimizer.results import DetectionPrediction, FoundObject
from optimizer.tasks.box_drawing import write_annotated
from optimizer.tasks.boxes import BoxReader, Detections

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


def detect(
    engine: Path,
    spec: DetectorSpec,
    images: Sequence[Path],
    *,
    threshold: float = 0.3,
    folder: Path | None = None,
    device: str | None = None,
    force: bool = False,
) -> list[DetectionPrediction]:
    """Detect objects with an engine or a checkpoint.

    Args:
        engine: The engine; preprocessing and class names come from its manifest.
        spec: From `detector_of`.
        images: Image files, or folders of them.
        threshold: Detections with smaller scores are left out.
        folder: Folder for the images with their boxes (PNG); ``None`` writes none.
        device: The GPU to run the engine on; ``None`` for the first.
        force: Also replace files in ``folder`` that resnet-opt did not write, or that were edited.

    Raises:
        ArtifactError: The engine cannot be opened or does not state its preprocessing.
        DataError: There is no image, one cannot be decoded, or two would get the same name in
            ``folder``.
        UsageError: ``device`` is not a GPU, the engine runs on the CPU, or a file in ``folder`` is
            an input or somebody else's.
    """
    from optimizer.engines import closing, open_engine
    from optimizer.engines.placement import check_device

    files = [file for path in images for file in files_of(path)]
    if not files:
        raise DataError("no image to search", hint="give image files or a folder of images")
    outputs = [None if folder is None else folder / f"{file.stem}.png" for file in files]
    if folder is not None and len(set(outputs)) < len(outputs):
        twice = next(path for path in outputs if outputs.count(path) > 1)
        raise DataError(
            f"two images would be written to {twice}", hint="give images with different names"
        )
    annotated = [
        OutputFile(path, "annotated", has_manifest=False, option="--annotate")
        for path in outputs
        if path is not None
    ]
    check_outputs(annotated, [engine, *files], force=force)
    check_device([engine], device)
    preprocessing, classes = preprocessing_and_classes(engine)
    names = list(classes or (f"class {index}" for index in range(spec.num_classes)))
    reader = BoxReader(spec, preprocessing)
    results = []
    with closing(open_engine(engine, device=device)) as session:
        pixels = session.input.dtype == "uint8"
        apply = preprocessing.apply_uint8 if pixels else preprocessing.apply
        for file, output in zip(files, outputs, strict=True):
            image = open_image(file)
            raw = session.run(apply(image)[None])[0]
            found = reader.read(raw, image.size).above(threshold)
            if output is not None:
                write_annotated(image, found, names, output)
            results.append(_prediction(file, image.size, found, names, output))
    return results


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
