"""Detections of every hop in one NPZ file, for later comparison of runs."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from optimizer.artifacts import write_atomically
from optimizer.tasks.boxes import Detections

if TYPE_CHECKING:
    from optimizer.data import ImageDataset
    from optimizer.tasks.detection import BatchDetections

__all__ = ["DetectionRecorder", "read_detections"]

SCHEMA_VERSION = 1


@dataclass
class DetectionRecorder:
    """Collects the detections of each hop, batch by batch. See `PredictionRecord`."""

    indices: list[NDArray[np.int64]] = field(default_factory=list)
    hops: dict[str, list[Detections]] = field(default_factory=dict)

    def start_batch(self, indices: NDArray[np.int64]) -> None:
        """See `PredictionRecord.start_batch`."""
        self.indices.append(indices)

    def add(self, hop: str, predictions: BatchDetections) -> None:
        """See `PredictionRecord.add`."""
        self.hops.setdefault(hop, []).extend(predictions.detections)

    def forget(self, hop: str) -> None:
        """See `PredictionRecord.forget`."""
        self.hops.pop(hop, None)

    def merge(self, other: DetectionRecorder) -> None:
        """See `PredictionRecord.merge`."""
        self.indices.extend(other.indices)
        self.hops = {
            hop: found + other.hops[hop] for hop, found in self.hops.items() if hop in other.hops
        }

    def write(self, path: Path, dataset: ImageDataset, sha256: str) -> None:
        """See `PredictionRecord.write`.

        For each hop: ``boxes_<i>`` M x 4 float32, ``scores_<i>`` M float32, ``classes_<i>`` M int64
        and ``counts_<i>``, the number of detections of each image.
        """
        indices = np.concatenate(self.indices)
        order = np.argsort(indices, kind="stable")
        names = [dataset.image_id(int(index)) for index in indices[order]]
        head = {
            "schema_version": SCHEMA_VERSION,
            "task": "detection",
            "dataset_sha256": sha256,
            "hops": list(self.hops),
        }
        arrays: dict[str, NDArray] = {
            "head": np.array(json.dumps(head)),
            "image_ids": np.array(names, dtype=np.str_),
        }
        for number, found in enumerate(self.hops.values()):
            images = [found[position] for position in order]
            arrays[f"counts_{number}"] = np.array([len(d.scores) for d in images], np.int64)
            arrays[f"boxes_{number}"] = np.concatenate([d.boxes for d in images])
            arrays[f"scores_{number}"] = np.concatenate([d.scores for d in images])
            arrays[f"classes_{number}"] = np.concatenate([d.classes for d in images])
        with write_atomically(path) as temporary, temporary.open("wb") as stream:
            np.savez_compressed(stream, allow_pickle=False, **arrays)


def read_detections(path: Path) -> dict[str, dict[str, Detections]]:
    """Read a file of detections: by hop and image.

    Raises:
        OSError, ValueError, KeyError: It is not such a file.
    """
    with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
        head = json.loads(str(file["head"]))
        names = [str(name) for name in file["image_ids"]]
        hops = {}
        for number, hop in enumerate(head["hops"]):
            borders = np.cumsum(file[f"counts_{number}"])[:-1]
            parts = [
                np.split(file[f"{values}_{number}"], borders)
                for values in ("boxes", "scores", "classes")
            ]
            found = [Detections(*image) for image in zip(*parts, strict=True)]
            hops[hop] = dict(zip(names, found, strict=True))
        return hops
