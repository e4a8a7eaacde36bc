"""The verb ``predict``: classify images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from optimizer.options import PredictOptions, takes_options
from optimizer.results import Prediction
from optimizer.verbs.validate import as_list

__all__ = ["predict"]


@takes_options(PredictOptions)
def predict(
    engine: Path | str, images: Sequence[Path | str] | Path | str, options: PredictOptions
) -> list[Prediction]:
    """Classify images with an engine or a checkpoint.

    Args:
        engine: An engine or a checkpoint.
        images: Image files, or folders of them; one or several.
        options: See below.

    Returns:
        One prediction per image.

    Raises:
        DataError: An image cannot be decoded.
        ArtifactError, CheckpointError: The engine cannot be opened.
    """
    from optimizer.evaluation.classify import predict as classify

    paths = [Path(image) for image in as_list(images)]
    return classify(Path(engine), paths, top=options.top, device=options.device)
