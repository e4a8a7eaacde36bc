"""One pass over the calibration images, shard by shard, in one or several processes.

What a process has collected is stored after each shard (`optimizer.precision.int8.partial_statistics`),
so a killed calibration loses the shard that it was computing. Under torchrun each process takes every
k-th of the shards that are missing, and what all have collected is merged.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optimizer.data import Batch, Dataset, Preprocessing, by_group, shards_of
from optimizer.errors import DataError
from optimizer.graphs.importing import load_graph
from optimizer.graphs.metadata import preprocessed_metadata
from optimizer.graphs.taps import tapped
from optimizer.graphs.topology import analyse
from optimizer.precision.int8 import Collector, Statistics
from optimizer.precision.int8.partial_statistics import Part, PartialStatistics, shard_ids
from optimizer.processes import hardware_threads
from optimizer.processes.ranks import gathered, rank_and_world
from optimizer.progress import Progress
from optimizer.targets.hardware import cpu_features

__all__ = ["collect", "partial_statistics"]


def partial_statistics(folder: Path | None, network: dict[str, Any]) -> PartialStatistics | None:
    """The store of a calibration, on this machine; ``None`` without a folder.

    Args:
        folder: From `partial_folder`.
        network: What the statistics depend on, apart from images and machine.
    """
    if folder is None:
        return None
    machine = {"cpu": asdict(cpu_features()), "threads": hardware_threads()}
    return PartialStatistics(folder, {**network, **machine})


def collect(
    graph: Path,
    dataset: Dataset,
    batch: int,
    progress: Progress,
    store: PartialStatistics | None = None,
) -> Statistics:
    """Collect the statistics of a graph's tensors.

    Args:
        graph: The FP32 graph, with its preprocessing in the metadata.
        dataset: The images; those that cannot be read are added to its ``skipped``, also if an
            earlier run found them.
        batch: Images that are read at once.
        progress: Receives progress updates.
        store: Where parts are stored and looked for; ``None`` stores nothing.

    Raises:
        DataError: No image can be read.
        GraphError: The graph cannot be quantized, or produces NaN or infinite values.
    """
    return _CalibrationPass(graph, dataset, batch, progress).run(store)


@dataclass(frozen=True)
class _Shard:
    """Images that are collected, stored and shared out together."""

    id: str
    indices: NDArray[np.int64]


class _CalibrationPass:
    def __init__(self, graph: Path, dataset: Dataset, batch: int, progress: Progress) -> None:
        topology = analyse(load_graph(graph))
        observed = {name: topology.after_relu(name) for name in topology.observed_tensors()}
        metadata = preprocessed_metadata(graph)
        assert metadata.preprocessing is not None
        self._preprocessing = Preprocessing.from_dict(metadata.preprocessing)
        dataset.check_depth(self._preprocessing)
        self._as_uint8 = metadata.get("input") == "uint8-nhwc"
        self._observed, self._execute = observed, tapped(graph, list(observed))
        self._collector = Collector(self._observed, self._execute)
        self._part = Part()
        self._dataset, self._batch, self._progress = dataset, batch, progress

    def run(self, store: PartialStatistics | None) -> Statistics:
        """The statistics of all images; the same in every process."""
        rank, world = rank_and_world()
        shards = self._shards(stored=store is not None)
        if store is not None and rank == 0:
            ids = [shard.id for shard in shards]
            for part in store.load(ids, skip_bad_images=self._dataset.skip_bad_images):
                self._add(part)
        covered = gathered(set(self._part.unreadable))[0]
        missing = [shard for shard in shards if shard.id not in covered]
        mine = missing[rank::world]
        found = sum(len(shard.indices) for shard in shards) - sum(len(s.indices) for s in missing)
        self._progress.start(
            "calibrate", total=sum(len(shard.indices) for shard in mine) + found * (rank == 0)
        )
        self._progress.advance(found * (rank == 0))
        with contextlib.closing(self._batches(mine)) as batches:
            for shard, images in zip(mine, batches, strict=True):
                self._part.unreadable[shard.id] = self._compute(shard, images)
                if store is not None and (world > 1 or shard is not mine[-1]):
                    self._part.statistics = self._collector.collected()
                    store.save(self._part)
        return self._finish(shards, found, store)

    def _batches(self, shards: Sequence[_Shard]) -> Generator[Iterator[Batch], None, None]:
        groups = [shard.indices for shard in shards]
        batches = self._dataset.grouped_batches(
            groups, self._batch, self._preprocessing, as_uint8=self._as_uint8
        )
        with contextlib.closing(batches):
            yield from by_group(batches, groups)

    def _compute(self, shard: _Shard, batches: Iterable[Batch]) -> list[int]:
        """Collect a shard; returns the positions of the images that cannot be read."""
        missing = set(range(len(shard.indices)))
        for batch in batches:
            self._collector.add(batch.images)
            missing -= set((batch.indices - shard.indices[0]).tolist())
            self._progress.advance(len(batch.indices))
        return sorted(missing)

    def _add(self, part: Part) -> None:
        self._collector.merge(part.statistics)
        self._part.unreadable |= part.unreadable

    def _finish(
        self, shards: Sequence[_Shard], found: int, store: PartialStatistics | None
    ) -> Statistics:
        """Merge what all processes have collected, and say what was found."""
        self._part.statistics = self._collector.collected()
        if rank_and_world()[1] > 1:
            parts = gathered(self._part)
            self._part, self._collector = Part(), Collector(self._observed, self._execute)
            for part in parts:
                self._add(part)
        skipped = [
            self._dataset.image_id(int(shard.indices[position]))
            for shard in shards
            for position in self._part.unreadable[shard.id]
        ]
        self._dataset.skipped[:] = list(dict.fromkeys([*skipped, *self._dataset.skipped]))
        statistics = self._collector.statistics
        if not statistics.images:
            raise DataError(f"no image of {self._dataset.name} can be read", hint="check the files")
        notes = [f"{statistics.images} images, {len(statistics.tensors)} tensors"]
        if found:
            notes.append(f"statistics of {found} images were stored before")
        if store is not None and store.error is not None:
            notes.append(f"what is complete cannot be stored: {store.error}")
        self._progress.finish("; ".join(notes))
        return statistics

    def _shards(self, *, stored: bool) -> list[_Shard]:
        parts = shards_of(np.arange(len(self._dataset), dtype=np.int64))
        ids = [self._dataset.content(part) if stored else str(part[0]) for part in parts]
        return [_Shard(*pair) for pair in zip(shard_ids(ids), parts, strict=True)]
