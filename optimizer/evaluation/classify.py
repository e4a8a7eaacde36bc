"""Classify single images with an engine, through the same path as validation."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from optimizer.artifacts import read_manifest
from optimizer.errors import ArtifactError, DataError
from optimizer.models.model_sources import is_checkpoint
from optimizer.options import ImageReading, PredictOptions, takes_options
from optimizer.progress import Progress
from optimizer.results import Prediction
from optimizer.tasks.one_output import as_classes

if TYPE_CHECKING:
    from optimizer.data import Preprocessing
    from optimizer.evaluation.stored_predictions import PredictionStores

__all__ = ["files_of", "predict", "preprocessing_and_classes"]


@takes_options(PredictOptions)
def predict(
    engine: Path,
    images: Sequence[Path],
    options: PredictOptions,
    *,
    stores: PredictionStores | None = None,
    progress: Progress | None = None,
) -> list[Prediction]:
    """Classify images with an engine or a checkpoint.

    Args:
        engine: The engine; preprocessing and class names come from its manifest.
        images: Image files, or folders whose images are all classified.
        options: See below; ``top`` is the number of classes to return per image, ``device`` the GPU
            to run the engine on.
        stores: Stored predictions, which are used and extended; ``None`` stores none.
        progress: Receives progress updates.

    Raises:
        ArtifactError: The engine cannot be opened, does not state its preprocessing, or has another
            number of class names than outputs.
        DataError: There is no image, one is missing or cannot be decoded, or the outputs are not
            finite.
        UsageError: ``device`` is not a GPU, or the engine runs on the CPU.
    """
    from optimizer.engines import closing, open_engine
    from optimizer.engines.opening import gives_probabilities
    from optimizer.engines.placement import check_device
    from optimizer.evaluation.predicted_files import FilePass, Reading

    files = [file for path in images for file in files_of(path)]
    if not files:
        raise DataError("no image to classify", hint="give image files or a folder of images")
    check_device([engine], options.device)
    preprocessing, classes = preprocessing_and_classes(engine)

    def read(outputs: NDArray[Any], file: Path) -> NDArray[np.float32]:
        _check_outputs(outputs, classes, engine, file)
        return outputs

    reading = Reading(
        "classification",
        lambda outputs, file: read(as_classes(outputs[None])[0], file),
        lambda rows: {"outputs": np.stack(rows)},
        lambda arrays: list(arrays["outputs"]),
    )
    are_probabilities = gives_probabilities(engine)
    with closing(open_engine(engine, device=options.device)) as session:
        job = FilePass(
            engine, session, preprocessing, reading, options.of_kind(ImageReading),
            options.device, stores, progress,
        )  # fmt: skip
        return [
            _prediction(file, outputs, classes, options.top, are_probabilities=are_probabilities)
            for file, outputs in job.predict(files)
        ]


def _prediction(
    file: Path,
    outputs: NDArray[np.float32],
    classes: Sequence[str] | None,
    top: int,
    *,
    are_probabilities: bool,
) -> Prediction:
    probabilities = outputs.astype(np.float64)
    if not are_probabilities:
        probabilities = np.exp(probabilities - probabilities.max())
        probabilities /= probabilities.sum()
    best = np.argsort(-probabilities, kind="stable")[:top].tolist()
    return Prediction(
        image=str(file),
        classes=[classes[i] if classes else f"class {i}" for i in best],
        indices=best,
        probabilities=probabilities[best].tolist(),
    )


def _check_outputs(
    outputs: NDArray[Any], classes: Sequence[str] | None, engine: Path, image: Path
) -> None:
    if not np.isfinite(outputs).all():
        raise DataError(
            f"{engine.name} returns NaN or infinite values for {image.name}",
            hint="resnet-opt validate shows at which step of the conversion they appear",
        )
    if classes is not None and len(classes) != len(outputs):
        raise ArtifactError(
            f"{engine.name} has {len(outputs)} outputs, but names {len(classes)} classes",
            hint="correct the class names where the network comes from, and build it again",
        )


def files_of(path: Path) -> list[Path]:
    """The file itself, or all images of a folder.

    Raises:
        DataError: There is nothing at the path, or no image in the folder.
    """
    from optimizer.data import open_dataset

    if path.is_dir():
        dataset = open_dataset(path, labelled=False)
        return [path / dataset.image_id(index) for index in range(len(dataset))]
    if not path.exists():
        raise DataError(f"no such file: {path}", hint="check the path")
    return [path]


def preprocessing_and_classes(engine: Path) -> tuple[Preprocessing, Sequence[str] | None]:
    """Preprocessing and class names of an engine or a checkpoint.

    Raises:
        ArtifactError: The engine does not state its preprocessing.
    """
    from optimizer.data import Preprocessing

    if is_checkpoint(engine):
        from optimizer.models import load_model

        model = load_model(str(engine))
        return model.preprocessing, model.classes
    manifest = read_manifest(engine)
    raw: Any = manifest.preprocessing
    if raw is None:
        raise ArtifactError(
            f"{engine.name} does not state its preprocessing",
            hint="build it from a graph written by resnet-opt export",
        )
    return Preprocessing.from_dict(json.loads(json.dumps(raw))), manifest.classes
