"""The batches of a training: read, augmented and divided among processes."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from optimizer.data import ImageDataset, Preprocessing
from optimizer.data.decoding import Operation, decode_ahead, workers_for
from optimizer.data.tar_members import ImagePlace
from optimizer.errors import UsageError
from optimizer.options import TrainOptions
from optimizer.processes.child_main import resolve
from optimizer.training.distribution import World
from optimizer.training.image_order import draws, epoch_order, share

__all__ = ["Reading", "TrainingImages"]

# Preprocessed datasets up to this size are kept in memory after the first read.
_MAX_IN_MEMORY_BYTES = 512 << 20

Wanted = Iterator[tuple[int, int]]
"""Positions in the dataset, each with the number that decides the image's augmentation."""


class Reading(Protocol):
    """How images are changed at random, and how they become a batch."""

    operation: Operation | None
    """The random change of each image; ``None`` if the preprocessing is applied as it is."""

    def batch(
        self, images: NDArray[Any], indices: NDArray[np.int64], numbers: NDArray[np.int64]
    ) -> Any:
        """A batch, with ``indices`` as an attribute.

        Args:
            images: N x H x W x channels uint8, or N x channels x H x W float32, normalized.
            indices: Positions of the images in the dataset.
            numbers: What decides the random change of each.
        """


class TrainingImages:
    """The training images in the order of `optimizer.training.image_order`.

    What a process gets in a step depends only on seed, step, batch size and number of processes.

    Attributes:
        total: Images per step in all processes.
        steps_per_epoch: Steps per epoch. The last, smaller batch is dropped: BatchNorm at 1 x 1
            needs more than one image, and the next epoch is in another order.
    """

    def __init__(
        self,
        data: ImageDataset,
        preprocessing: Preprocessing,
        settings: TrainOptions,
        world: World,
        reading: Reading,
    ) -> None:
        """Read the images into memory if they fit.

        Args:
            data: The images.
            preprocessing: Preprocessing of the network.
            settings: Complete options: batch size, accumulation and seed are used here.
            world: The processes.
            reading: How images are changed and become batches.

        Raises:
            UsageError: There are fewer images than processes need for one step.
            DataError: An image cannot be read, or preprocessed images would have to be cropped.
        """
        assert settings.batch_size is not None
        assert settings.accumulate is not None
        self._data, self._preprocessing, self._world = data, preprocessing, world
        self._seed, self._accumulate = settings.seed, settings.accumulate
        parts = world.size * settings.accumulate
        batch = min(settings.batch_size, len(data) // parts)
        if batch < 2:
            raise UsageError(
                f"{data.name} has {len(data)} images, too few for {parts} batches per step",
                hint="use fewer processes, or a smaller --accumulate",
            )
        self._batch = batch
        self.total = batch * parts
        self.steps_per_epoch = len(data) // self.total
        self._reading = reading
        self._operation = reading.operation
        self._cached = self._read_all() if self._fits() else None

    def stream(self, first: int, end: int) -> Generator[list[Any], None, None]:
        """The batches of this process in steps ``first`` to ``end`` - 1, ``accumulate`` per step.

        Close or exhaust it to stop the processes that decode.
        """
        steps = self._steps(first, end)
        wanted = (pair for of_step in steps for pair in zip(*map(_plain, of_step), strict=True))
        with contextlib.closing(self._pixels(wanted)) as pixels:
            for indices, numbers in self._steps(first, end):
                parts = zip(
                    indices.reshape(self._accumulate, -1),
                    numbers.reshape(self._accumulate, -1),
                    strict=True,
                )
                yield [self._batch_of(pixels, *part) for part in parts]

    def _steps(self, first: int, end: int) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """This process's images in each step, and the numbers that decide their augmentation."""
        order = numbers = np.empty(0, dtype=np.int64)
        for step in range(first, end):
            epoch, within = divmod(step, self.steps_per_epoch)
            if step == first or within == 0:
                order = epoch_order(self._seed, epoch, len(self._data))
                numbers = draws(self._seed, epoch, len(self._data))
            chosen = share(order, within, self.total, self._world.rank, self._world.size)
            yield chosen, numbers[chosen]

    def _batch_of(
        self,
        pixels: Iterator[NDArray[Any]],
        indices: NDArray[np.int64],
        numbers: NDArray[np.int64],
    ) -> Any:
        images = np.stack([next(pixels) for _ in indices])
        return self._reading.batch(images, indices, numbers)

    # --- reading ------------------------------------------------------------------------------

    def _fits(self) -> bool:
        side = self._preprocessing.image_size
        channels = self._preprocessing.channels
        bytes_needed = len(self._data) * channels * side * side * np.dtype(np.float32).itemsize
        return self._operation is None and bytes_needed <= _MAX_IN_MEMORY_BYTES

    def _read_all(self) -> NDArray[np.float32]:
        batches = self._data.batches(256, self._preprocessing)
        return np.concatenate([batch.images for batch in batches])

    def _pixels(self, wanted: Wanted) -> Generator[NDArray[Any], None, None]:
        workers = workers_for(self._data.workers, len(self._data))
        if self._cached is not None:
            for index, _ in wanted:
                yield self._cached[index]
        elif workers and self._data.source.file(0) is not None:
            yield from self._decoded(wanted, workers)
        else:
            yield from self._in_process(wanted)

    def _decoded(self, wanted: Wanted, workers: int) -> Generator[NDArray[np.uint8], None, None]:
        ahead = max(2 * self._batch, 8 * workers)
        images = decode_ahead(
            self._files(wanted),
            self._preprocessing,
            workers=workers,
            ahead=ahead,
            operation=self._operation,
        )
        with contextlib.closing(images):
            for image in images:
                if image.error is not None:
                    raise image.error
                assert image.pixels is not None
                yield image.pixels

    def _files(self, wanted: Wanted) -> Iterator[tuple[ImagePlace, int]]:
        for index, number in wanted:
            path = self._data.source.file(int(self._data.positions[index]))
            assert path is not None
            yield path, number

    def _in_process(self, wanted: Wanted) -> Generator[NDArray[Any], None, None]:
        source, positions = self._data.source, self._data.positions
        if self._operation is None:
            for index, _ in wanted:
                yield source.read(int(positions[index]), self._preprocessing)
            return
        change = resolve(self._operation.function)(self._preprocessing, self._operation.settings)
        for index, number in wanted:
            image = source.image(int(positions[index]), self._preprocessing.channels)
            yield change(image, number)


def _plain(values: NDArray[np.int64]) -> list[int]:
    plain: list[int] = values.tolist()
    return plain
