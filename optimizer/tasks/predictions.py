"""Per-image predictions of every hop in one NPZ file, for later comparison of runs.

The file contains the five largest logits of each hop and their classes: enough for top-1, top-5 and
flips, at 4 MB per hop for 50,000 images whatever the number of classes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from optimizer.artifacts import mark_zip, write_atomically
from optimizer.data.npz_arrays import read_arrays
from optimizer.errors import ArtifactError

if TYPE_CHECKING:
    from optimizer.data import ImageDataset

__all__ = ["Predictions", "Recorder", "read_predictions"]

SCHEMA_VERSION = 1
TOP = 5


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """Predictions for each image.

    Attributes:
        dataset_sha256: Digest of the dataset.
        image_ids: Names of the images, in dataset order.
        labels: N int64.
        classes: Hop name to N x k int32: classes of the k largest logits, largest first (k is 5, or
            the number of classes if that is smaller).
        logits: Hop name to N x k float32: the k largest logits.
    """

    dataset_sha256: str
    image_ids: tuple[str, ...]
    labels: NDArray[np.int64]
    classes: dict[str, NDArray[np.int32]]
    logits: dict[str, NDArray[np.float32]]

    def top1(self, hop: str) -> NDArray[np.int32]:
        """Predicted class of each image."""
        top: NDArray[np.int32] = self.classes[hop][:, 0]
        return top

    def write(self, path: Path) -> None:
        """Write the NPZ file atomically."""
        hops = list(self.classes)
        head = {
            "schema_version": SCHEMA_VERSION,
            "dataset_sha256": self.dataset_sha256,
            "hops": hops,
        }
        arrays: dict[str, NDArray] = {
            "head": np.array(json.dumps(head)),
            "image_ids": np.array(self.image_ids, dtype=np.str_),
            "labels": self.labels,
        }
        for number, hop in enumerate(hops):
            arrays[f"classes_{number}"] = self.classes[hop]
            arrays[f"logits_{number}"] = self.logits[hop]
        with write_atomically(path) as temporary, temporary.open("wb") as stream:
            np.savez_compressed(stream, allow_pickle=False, **arrays)
            stream.close()
            mark_zip(temporary, "predictions")


def read_predictions(path: Path) -> Predictions:
    """Read a predictions file.

    Raises:
        ArtifactError: The file is missing, damaged or has another schema version.
    """
    if not path.is_file():
        raise ArtifactError(
            f"no predictions file at {path}", hint="run resnet-opt validate again to write it"
        )
    try:
        arrays = read_arrays(path)
        head = _Head.model_validate_json(str(arrays["head"]))
        if head.task == "detection":
            raise ArtifactError(
                f"{path.name} holds detections, and only classifications can be compared later",
                hint="validate both detectors at once: resnet-opt validate OLD NEW",
            )
        if head.schema_version != SCHEMA_VERSION:
            raise ArtifactError(
                f"{path.name} has schema version {head.schema_version}, "
                f"but version {SCHEMA_VERSION} is required",
                hint="run resnet-opt validate again",
            )
        predictions = Predictions(
            dataset_sha256=head.dataset_sha256,
            image_ids=tuple(str(name) for name in arrays["image_ids"]),
            labels=arrays["labels"],
            classes={hop: arrays[f"classes_{i}"] for i, hop in enumerate(head.hops)},
            logits={hop: arrays[f"logits_{i}"] for i, hop in enumerate(head.hops)},
        )
        _check_shapes(predictions)
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ArtifactError(
            f"{path.name} is not a predictions file: {reason}", hint="run resnet-opt validate again"
        ) from error
    return predictions


class _Head(BaseModel):
    """The entry ``head`` of a file."""

    schema_version: int
    dataset_sha256: str = ""
    hops: list[str] = []
    task: str = "classification"


def _check_shapes(predictions: Predictions) -> None:
    """Raise ValueError for arrays of other shapes or types than are written."""
    count = len(predictions.image_ids)
    if predictions.labels.shape != (count,) or predictions.labels.dtype.kind != "i":
        raise ValueError(f"{count} images, but labels of shape {predictions.labels.shape}")
    for hop, classes in predictions.classes.items():
        logits = predictions.logits[hop]
        fits = classes.ndim == 2 and len(classes) == count and classes.shape == logits.shape
        if not fits or classes.dtype.kind != "i" or logits.dtype.kind != "f" or 0 in classes.shape:
            raise ValueError(f"{hop} has classes of shape {classes.shape}, logits {logits.shape}")


@dataclass
class Recorder:
    """Collects the largest logits of each hop, batch by batch."""

    indices: list[NDArray[np.int64]] = field(default_factory=list)
    classes: dict[str, list[NDArray[np.int32]]] = field(default_factory=dict)
    logits: dict[str, list[NDArray[np.float32]]] = field(default_factory=dict)

    def start_batch(self, indices: NDArray[np.int64]) -> None:
        """Start a batch of images at these dataset positions."""
        self.indices.append(indices)

    def add(self, hop: str, predictions: NDArray[np.float32]) -> None:
        """Add the logits of one hop for the current batch, N x classes float32."""
        logits = predictions
        # A stable sort of the negated logits breaks ties like argmax: lower class first.
        order = np.argsort(-logits, axis=1, kind="stable")[:, :TOP]
        self.classes.setdefault(hop, []).append(order.astype(np.int32))
        values = np.take_along_axis(logits, order, axis=1).astype(np.float32)
        self.logits.setdefault(hop, []).append(values)

    def forget(self, hop: str) -> None:
        """Drop a failed hop."""
        self.classes.pop(hop, None)
        self.logits.pop(hop, None)

    def merge(self, other: Recorder) -> None:
        """Add the images of another process."""
        self.indices.extend(other.indices)
        for ours, theirs in ((self.classes, other.classes), (self.logits, other.logits)):
            for hop in [hop for hop in ours if hop not in theirs]:
                del ours[hop]  # it failed in the other process
            for hop, batches in ours.items():
                batches.extend(theirs[hop])  # type: ignore[arg-type]

    def write(self, path: Path, dataset: ImageDataset, sha256: str) -> None:
        """See `PredictionRecord.write`."""
        indices = np.sort(np.concatenate(self.indices))
        names = [dataset.image_id(int(index)) for index in indices]
        self.finish(sha256, dataset.labels, names).write(path)

    def finish(
        self, dataset_sha256: str, labels: NDArray[np.int64], image_ids: Sequence[str]
    ) -> Predictions:
        """Sort everything into dataset order.

        Args:
            dataset_sha256: Digest of the dataset.
            labels: Labels of the whole dataset.
            image_ids: Names of the recorded images, in the order of their positions.
        """
        indices = np.concatenate(self.indices)
        order = np.argsort(indices, kind="stable")
        return Predictions(
            dataset_sha256=dataset_sha256,
            image_ids=tuple(image_ids),
            labels=labels[indices[order]],
            classes={hop: np.concatenate(parts)[order] for hop, parts in self.classes.items()},
            logits={hop: np.concatenate(parts)[order] for hop, parts in self.logits.items()},
        )
