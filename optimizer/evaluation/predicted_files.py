"""Predicts image files one by one, shard by shard: a killed run loses at most one shard.

Images are decoded ahead by worker processes. Of more than one shard, predictions are stored like those
of a validation (`optimizer.evaluation.stored_predictions`), and the next run finds them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from optimizer.artifacts import digest, library_versions
from optimizer.data import Batch, ImageDataset, Preprocessing, by_group, shards_of
from optimizer.data.folder import FileSource
from optimizer.evaluation.stored_predictions import PredictionStore, PredictionStores, StoredShard
from optimizer.options import ImageReading
from optimizer.progress import Progress, Silent

if TYPE_CHECKING:
    from optimizer.engines.protocol import Session

__all__ = ["FilePass", "Reading"]

_LIBRARIES = (
    "onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt", "tensorrt-rtx", "torch",
)  # fmt: skip
Array = NDArray[Any]
_T = TypeVar("_T")


@dataclass(frozen=True)
class Reading(Generic[_T]):
    """How outputs become predictions, and those become arrays that are stored.

    Attributes:
        task: Its name: two readings of one network are stored apart.
        read: The prediction from the outputs of one image and its file.
        pack: Predictions of several images as arrays with one row per image.
        unpack: The inverse of `pack`.
    """

    task: str
    read: Callable[[Array, Path], _T]
    pack: Callable[[Sequence[_T]], dict[str, Array]]
    unpack: Callable[[Mapping[str, Array]], Sequence[_T]]


@dataclass(frozen=True)
class FilePass(Generic[_T]):
    """One pass of an engine over image files.

    Attributes:
        engine: The engine or checkpoint.
        session: It, opened.
        preprocessing: What it expects.
        reading: How its outputs are read.
        options: How images are read.
        device: The GPU that it runs on, if one was named.
        stores: Stored predictions; ``None`` stores none.
        progress: Receives progress updates.
    """

    engine: Path
    session: Session
    preprocessing: Preprocessing
    reading: Reading[_T]
    options: ImageReading
    device: str | None = None
    stores: PredictionStores | None = None
    progress: Progress | None = None

    def predict(self, files: Sequence[Path]) -> Iterator[tuple[Path, _T]]:
        """The prediction of each file, in order; without bad images if they are skipped.

        Raises:
            DataError: An image cannot be decoded and is not skipped.
        """
        progress = self.progress or Silent()
        dataset = _dataset(files, self.options)
        shards = shards_of(np.arange(len(files), dtype=np.int64))
        store = self._store() if len(shards) > 1 else None
        digests = [dataset.content(shard) if store else "" for shard in shards]
        stored = [store is not None and store.has(images) for images in digests]
        missing = [shard for shard, there in zip(shards, stored, strict=True) if not there]
        progress.start("predict", total=len(files))
        found = 0
        with contextlib.closing(self._batches(dataset, missing)) as batches:
            for shard, images, there in zip(shards, digests, stored, strict=True):
                result = self._load(store, images, shard) if there else None
                if result is not None:
                    found += len(result.kept)
                    _remember_skipped(dataset, shard, result)
                    progress.advance(len(shard))
                else:
                    result = self._computed(dataset, shard, None if there else batches)
                    if store is not None and len(result.kept):
                        store.save(images, result)
                if len(result.kept):
                    rows = self.reading.unpack(result.arrays)
                    yield from zip((files[i] for i in shard[result.kept]), rows, strict=True)
        progress.finish("; ".join(_notes(len(files), found, dataset, store)))

    def _load(
        self, store: PredictionStore | None, images: str, shard: NDArray[np.int64]
    ) -> StoredShard | None:
        found = None if store is None else store.load(images)
        counts = self.options.skip_bad_images or (found and len(found.kept) == len(shard))
        return found if counts else None

    def _computed(
        self,
        dataset: ImageDataset,
        shard: NDArray[np.int64],
        batches: Iterator[Iterator[Batch]] | None,
    ) -> StoredShard:
        """Compute a shard from the next batches, or read it alone because its file was damaged."""
        with contextlib.ExitStack() as stack:
            if batches is None:
                batches = stack.enter_context(contextlib.closing(self._batches(dataset, [shard])))
            kept: list[int] = []
            rows: list[_T] = []
            for batch in next(batches):
                (index,) = batch.indices.tolist()
                file = Path(dataset.image_id(index))
                rows.append(self.reading.read(self.session.run(batch.images)[0], file))
                kept.append(index - int(shard[0]))
                (self.progress or Silent()).advance()
        arrays = self.reading.pack(rows) if rows else {}
        return StoredShard(np.array(kept, np.int64), (), arrays)

    def _batches(
        self, dataset: ImageDataset, shards: Sequence[NDArray[np.int64]]
    ) -> Generator[Iterator[Batch], None, None]:
        as_uint8 = self.session.input.dtype == "uint8"
        batches = dataset.grouped_batches(shards, 1, self.preprocessing, as_uint8=as_uint8)
        with contextlib.closing(batches):
            yield from by_group(batches, shards)

    def _store(self) -> PredictionStore | None:
        if self.stores is None:
            return None
        return self.stores.store(
            {
                "task": self.reading.task,
                "network": digest(self.engine),
                "device": self.device,
                "libraries": library_versions(*_LIBRARIES),
                "preprocessing": self.preprocessing.sha256,
            },
        )


def _remember_skipped(dataset: ImageDataset, shard: NDArray[np.int64], stored: StoredShard) -> None:
    """Images that an earlier run could not read count as skipped."""
    missing = np.setdiff1d(np.arange(len(shard)), stored.kept)
    dataset.skipped.extend(dataset.image_id(int(index)) for index in shard[missing])


def _dataset(files: Sequence[Path], options: ImageReading) -> ImageDataset:
    return ImageDataset(
        name="the images",
        classes=None,
        labels=np.zeros(len(files), np.int64),
        source=FileSource(Path(), [str(file) for file in files]),
        positions=np.arange(len(files), dtype=np.int64),
        skip_bad_images=options.skip_bad_images,
        workers=options.workers,
    )


def _notes(
    count: int, found: int, dataset: ImageDataset, store: PredictionStore | None
) -> Iterator[str]:
    yield f"{count} images"
    if found:
        yield f"predictions for {found} images were stored before"
    if dataset.skipped:
        yield f"{len(dataset.skipped)} cannot be read, the first is {dataset.skipped[0]}"
    if store is not None and store.error is not None:
        yield f"predictions cannot be stored: {store.error}"
