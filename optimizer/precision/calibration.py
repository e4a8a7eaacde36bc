"""Calibration: `calibrate` collects statistics, `halves` checks how stable their scales are."""

from __future__ import annotations

from collections.abc import Callable
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
from optimizer.processes.ranks import gathered, joined, rank_and_world
from optimizer.progress import Progress, Silent

if TYPE_CHECKING:
    from optimizer.data import Dataset, ImageDataset
    from optimizer.precision.int8.halves import ScaleDifference
    from optimizer.precision.int8.partial_statistics import PartialStatistics
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

    With a cache, what is complete is kept until the statistics are written, so a killed calibration
    loses at most 256 images (`optimizer.precision.calibration_pass`). Under torchrun the processes
    share the images, and the result is that of one process.

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
    from optimizer.precision.calibration_pass import collect
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

    store = _store(plan, cache)

    def collected() -> Statistics:
        return collect(graph, dataset, batch, progress or Silent(), store)

    def write(path: Path) -> dict[str, Any]:
        statistics = collected()
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

    with joined():
        artifact = _produced_together(plan, output, write, collected, cache)
    if store is not None:
        store.clear()
    return artifact


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
    from optimizer.precision.calibration_pass import collect
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
    with joined(), scratch_folder("halves") as folder:
        graph = prepared(graph, folder / "halves", source)
        return compare_halves(
            *(
                collect(graph, dataset.select(part), batch, progress or Silent())
                for part in (chosen, rest)
            )
        )


def _store(plan: Plan, cache: Cache | None) -> PartialStatistics | None:
    """Where what is complete is kept until the calibration is done."""
    from optimizer.precision.calibration_pass import partial_statistics
    from optimizer.precision.int8.partial_statistics import partial_folder

    network = {
        "graph": plan.inputs[0].sha256,
        "libraries": plan.libraries,
        "preprocessing": plan.preprocessing,
        "tool": plan.tool,
    }
    return partial_statistics(partial_folder(cache), network)


def _produced_together(
    plan: Plan,
    output: Path,
    write: Callable[[Path], dict[str, Any]],
    collected: Callable[[], Statistics],
    cache: Cache | None,
) -> Artifact:
    """`produce` in the first process, to which the others contribute; the same artifact in all.

    Only the first takes the artifact's lock: whoever waited for it would keep the others waiting.
    """
    if rank_and_world()[0] > 0:
        if gathered(False)[0]:
            collected()
        artifact: Artifact = gathered(None)[0]  # type: ignore[assignment]
        return artifact
    told = False

    def told_others(path: Path) -> dict[str, Any]:
        nonlocal told
        told = gathered(True)[0]
        return write(path)

    artifact = produce(plan, output, told_others, cache=cache)
    if not told:
        gathered(False)
    return gathered(artifact)[0]
