"""Calibration: `calibrate` collects statistics, `halves` checks how stable their scales are."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from optimizer.artifacts import (
    Artifact,
    Cache,
    Input,
    Plan,
    library_versions,
    produce,
    scratch_folder,
)
from optimizer.errors import DataError
from optimizer.graphs.metadata import preprocessed_metadata
from optimizer.options import ForeignGraph
from optimizer.precision.foreign import check_described, prepared
from optimizer.progress import Progress, Silent

if TYPE_CHECKING:
    from optimizer.data import Dataset, ImageDataset
    from optimizer.precision.int8.halves import ScaleDifference
    from optimizer.precision.int8.statistics import Statistics

__all__ = ["calibrate", "halves"]

_LIBRARIES = ("onnx", "onnx-ir", "numpy")
_RECOMMENDED_IMAGES = 64


def calibrate(
    graph: Path,
    dataset: Dataset,
    output: Path,
    *,
    batch: int = 32,
    source: ForeignGraph | None = None,
    cache: Cache | None = None,
    progress: Progress | None = None,
) -> Artifact:
    """Collect statistics of all tensors that any target may quantize.

    Args:
        graph: The FP32 graph, with its preprocessing in the metadata. For a Q/DQ graph, its
            equivalent float graph is calibrated and written next to the output.
        dataset: Calibration images; their order does not matter.
        output: Path of the statistics (``.npz``).
        batch: Batch size.
        source: What the file does not say itself.
        cache: Artifact cache.
        progress: Receives progress updates.

    Raises:
        DataError: Fewer than 8 images.
        GraphError: The graph cannot be quantized, or produces NaN or infinite values.
    """
    from optimizer.data import Preprocessing
    from optimizer.precision.int8.encode import LEAST_IMAGES

    if len(dataset) < LEAST_IMAGES:
        raise DataError(
            f"{dataset.name} gives {len(dataset)} calibration image{'s'[: len(dataset) != 1]}, too few "
            "to estimate ranges",
            hint=f"use data of at least {LEAST_IMAGES} images, better 256 or more",
        )
    check_described(graph, source or ForeignGraph())
    graph = prepared(graph, output, source, cache=cache, progress=progress)
    metadata = preprocessed_metadata(graph)
    dataset.check_depth(Preprocessing.from_dict(metadata.preprocessing or {}))
    plan = Plan(
        kind="statistics",
        settings={"images": len(dataset), "dataset": dataset.name},
        inputs=[
            Input.of("graph", graph),
            Input(role="calibration", file=dataset.name, sha256=dataset.sha256),
        ],
        libraries=library_versions(*_LIBRARIES, "onnxruntime-gpu", "onnxruntime"),
        preprocessing=metadata.preprocessing,
    )

    def write(path: Path) -> dict[str, Any]:
        statistics = _collect(graph, dataset, batch, progress or Silent())
        statistics.key = {"graph": plan.inputs[0].sha256, "images": dataset.sha256}
        statistics.save(path)
        notes = list(dataset.notes)
        if dataset.skipped:
            notes.append(
                f"{len(dataset.skipped)} unreadable images were skipped, "
                f"the first is {dataset.skipped[0]}"
            )
        if len(dataset) < _RECOMMENDED_IMAGES:
            notes.append(f"only {len(dataset)} images; 256 or more give more stable ranges")
        return {"tensors": len(statistics.tensors), "notes": notes}

    return produce(plan, output, write, cache=cache)


def halves(
    graph: Path,
    dataset: ImageDataset,
    *,
    batch: int = 32,
    source: ForeignGraph | None = None,
    progress: Progress | None = None,
) -> list[ScaleDifference]:
    """Calibrate on two disjoint, stratified halves of the images and compare the scales.

    Args:
        graph: The FP32 graph, or a Q/DQ graph.
        dataset: The images; of an odd number, one is not used.
        batch: Batch size.
        source: As in `calibrate`.
        progress: Receives progress updates.

    Returns:
        See `optimizer.precision.int8.halves.compare_halves`.

    Raises:
        DataError: Fewer than 16 images.
        GraphError: As in `calibrate`.
    """
    from optimizer.data import stratified_subset
    from optimizer.precision.int8.encode import LEAST_IMAGES
    from optimizer.precision.int8.halves import compare_halves

    size = len(dataset) // 2
    if size < LEAST_IMAGES:
        raise DataError(
            f"{len(dataset)} calibration images are too few to split into halves",
            hint=f"use at least {2 * LEAST_IMAGES}: --calib-images",
        )
    chosen = stratified_subset(dataset.labels, size, 0)
    rest = np.setdiff1d(np.arange(len(dataset)), chosen)[:size]
    with scratch_folder("halves") as folder:
        graph = prepared(graph, folder / "halves", source)
        return compare_halves(
            *(
                _collect(graph, dataset.select(part), batch, progress or Silent())
                for part in (chosen, rest)
            )
        )


def _collect(graph: Path, dataset: Dataset, batch: int, progress: Progress) -> Statistics:
    from optimizer.data import Preprocessing
    from optimizer.graphs.importing import load_graph
    from optimizer.graphs.taps import tapped
    from optimizer.graphs.topology import analyse
    from optimizer.precision.int8 import Collector

    topology = analyse(load_graph(graph))
    observed = {name: topology.after_relu(name) for name in topology.observed_tensors()}
    metadata = preprocessed_metadata(graph)
    assert metadata.preprocessing is not None
    preprocessing = Preprocessing.from_dict(metadata.preprocessing)
    collector = Collector(observed, tapped(graph, list(observed)))
    progress.start("calibrate", total=len(dataset))
    as_uint8 = metadata.get("input") == "uint8-nhwc"
    for images in _batches(dataset, batch, preprocessing, as_uint8=as_uint8):
        collector.add(images)
        progress.advance(len(images))
    statistics = collector.statistics
    progress.finish(f"{len(dataset)} images, {len(observed)} tensors")
    return statistics


def _batches(
    dataset: Dataset, size: int, preprocessing: Any, *, as_uint8: bool
) -> Iterator[np.ndarray]:
    for batch in dataset.batches(size, preprocessing, as_uint8=as_uint8):
        yield batch.images
