"""A labelled set of images that is read batch by batch, always in the same order."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from optimizer.data.decoding import decode_ahead, workers_for
from optimizer.data.objects import Objects
from optimizer.data.preprocessing import Preprocessing
from optimizer.data.tar_members import ImagePlace
from optimizer.errors import DataError

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["Batch", "Dataset", "ImageDataset", "Source", "TimeSpent", "by_group"]

Pixels = NDArray[np.uint8] | NDArray[np.float32]
_CHECKED = np.empty((0,), dtype=np.uint8)


class Batch(NamedTuple):
    """Images with their labels and their positions in the dataset.

    Attributes:
        images: N x channels x H x W float32, or N x H x W x channels uint8 if requested.
        labels: N int64.
        indices: N int64, positions in the dataset.
    """

    images: NDArray[Any]
    labels: NDArray[np.int64]
    indices: NDArray[np.int64]


def by_group(
    batches: Iterator[Batch], groups: Sequence[NDArray[np.int64]]
) -> Generator[Iterator[Batch], None, None]:
    """The batches of each group in turn, from `Dataset.grouped_batches` for the same groups.

    A group none of whose images can be read has no batch. Exhaust each before the next.
    """
    numbers = {int(index): number for number, group in enumerate(groups) for index in group}
    grouped = itertools.groupby(batches, lambda batch: numbers[int(batch.indices[0])])
    upcoming = next(grouped, None)
    for number in range(len(groups)):
        if upcoming is None or upcoming[0] != number:
            yield iter(())
            continue
        yield upcoming[1]
        upcoming = next(grouped, None)


@dataclass
class TimeSpent:
    """Time spent on reading so far.

    Attributes:
        cpu_s: CPU seconds of decoding, resizing, cropping and normalizing, in all processes.
    """

    cpu_s: float = 0.0


class Dataset(Protocol):
    """A dataset as other packages see it."""

    @property
    def name(self) -> str:
        """The name the dataset was opened with."""

    @property
    def classes(self) -> tuple[str, ...] | None:
        """Class names in the order of the labels; ``None`` if the data has none."""

    @property
    def labels(self) -> NDArray[np.int64]:
        """Label of each image, shape (N,)."""

    @property
    def objects(self) -> tuple[Objects, ...] | None:
        """For detection, the objects of each image; ``None`` for classification."""

    @property
    def sha256(self) -> str:
        """Digest of the contents; see `ImageDataset.sha256`."""

    @property
    def skipped(self) -> list[str]:
        """Images left out because they cannot be read."""

    @property
    def skip_bad_images(self) -> bool:
        """Whether images that cannot be read are left out instead of being an error."""

    @property
    def notes(self) -> tuple[str, ...]:
        """Files left out when the dataset was opened."""

    def __len__(self) -> int: ...

    def check_depth(self, preprocessing: Preprocessing) -> None:
        """Check the number of channels; see `ImageDataset.check_depth`."""

    def image_id(self, index: int) -> str:
        """A readable name that identifies one image."""

    def batches(
        self,
        batch_size: int,
        preprocessing: Preprocessing,
        *,
        as_uint8: bool = False,
        order: Sequence[int] | NDArray[np.int64] | None = None,
    ) -> Generator[Batch, None, None]:
        """Read the images; see `ImageDataset.batches`."""

    def grouped_batches(
        self,
        groups: Sequence[NDArray[np.int64]],
        batch_size: int,
        preprocessing: Preprocessing,
        *,
        as_uint8: bool = False,
    ) -> Generator[Batch, None, None]:
        """Read groups of images; see `ImageDataset.grouped_batches`."""

    def content(self, indices: NDArray[np.int64]) -> str:
        """Digest of the pixels of some images; see `ImageDataset.content`."""


class Source(Protocol):
    """The source of the pixels: an array or files."""

    preprocessed: bool
    """Whether the images are float32 that was preprocessed elsewhere."""
    channels: int | None
    """Channels of every image; ``None`` if they are only known when an image is read."""

    def file(self, position: int) -> ImagePlace | None:
        """The file, or member of an archive, that an image is decoded from.

        ``None`` for every image of an in-memory source.
        """

    def read(self, position: int, preprocessing: Preprocessing) -> Pixels:
        """One image: H x W x channels uint8, or channels x H x W float32 if already preprocessed."""

    def image(self, position: int, channels: int = 3) -> Image.Image:
        """One image as it is stored: RGB, or with this number of channels.

        Raises:
            DataError: It cannot be read, or was preprocessed elsewhere.
        """

    def check(self, position: int) -> None:
        """Raise DataError if the image cannot be read."""

    def image_id(self, position: int) -> str:
        """A readable name that identifies one image."""

    def fingerprint(self, position: int) -> Iterable[bytes]:
        """The bytes of one image that go into the dataset's digest."""

    def content(self, position: int) -> Iterable[bytes]:
        """Like `fingerprint`, but independent of the image's name."""

    def size(self, position: int) -> int:
        """Size of the image as stored, bytes; equal images have equal sizes."""

    def remember(self) -> None:
        """Keep for the next run what `fingerprint` computed, if that is worth it."""


@dataclass(frozen=True, kw_only=True)
class ImageDataset:
    """A dataset over a source; subsets share the source.

    Attributes:
        name: The name the dataset was opened with.
        classes: Class names in the order of the labels, or ``None``.
        labels: Label of each image, shape (N,), int64.
        source: The source of the pixels.
        positions: Position of each image in the source, shape (N,), int64.
        skip_bad_images: Leave out images that cannot be read instead of failing.
        workers: Processes that decode files; 0 decodes in this process, ``None`` means one per
            core.
        skipped: The images that were left out; filled while reading and by `verify`.
        notes: What was left out when the dataset was opened, and why.
        spent: Time spent on reading; shared by subsets.
        objects: For detection, the objects of each image; ``None`` for classification. Labels are
            then the class that covers the largest area.
        category_ids: Ids of the classes in the data's own numbering, if it has one.
    """

    name: str
    classes: tuple[str, ...] | None
    labels: NDArray[np.int64]
    source: Source
    positions: NDArray[np.int64]
    skip_bad_images: bool = False
    workers: int | None = None
    skipped: list[str] = field(default_factory=list)
    notes: tuple[str, ...] = ()
    spent: TimeSpent = field(default_factory=TimeSpent, compare=False)
    objects: tuple[Objects, ...] | None = None
    category_ids: tuple[int, ...] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def image_id(self, index: int) -> str:
        """A readable name that identifies one image."""
        return self.source.image_id(int(self.positions[index]))

    @property
    def preprocessed(self) -> bool:
        """Whether the images were preprocessed elsewhere, in an unknown way."""
        return self.source.preprocessed

    @cached_property
    def sha256(self) -> str:
        """Digest over images and labels in order.

        For digits and NPZ files it covers every pixel; for folders it covers the relative paths and
        the contents of the files. Files are read once, on first use, and are not decoded.
        """
        hasher = hashlib.sha256()
        for position, label in zip(self.positions, self.labels, strict=True):
            for part in self.source.fingerprint(int(position)):
                hasher.update(part)
            hasher.update(int(label).to_bytes(8, "little", signed=True))
        for objects in self.objects or ():
            hasher.update(objects.digest)
        self.source.remember()
        return hasher.hexdigest()

    def select(self, indices: NDArray[np.int64]) -> ImageDataset:
        """A subset of the images, in the given order."""
        return replace(
            self,
            labels=self.labels[indices],
            positions=self.positions[indices],
            skipped=list(self.skipped),
            objects=None
            if self.objects is None
            else tuple(self.objects[int(index)] for index in indices),
        )

    def relabel(self, labels: NDArray[np.int64], classes: Sequence[str] | None) -> ImageDataset:
        """The same images with other labels."""
        names = None if classes is None else tuple(classes)
        return replace(
            self, labels=labels.astype(np.int64), classes=names, skipped=list(self.skipped)
        )

    def check_depth(self, preprocessing: Preprocessing) -> None:
        """Check that the images have the channels that a network takes, without reading them.

        Raises:
            DataError: They do not, and cannot be converted to them.
        """
        found, wanted = self.source.channels, preprocessing.channels
        converts = not self.preprocessed and found != 4 and wanted != 4  # grayscale and colour
        if found is None or found == wanted or converts:
            return
        raise DataError(
            f"the images of {self.name} have {found} channels, but the network takes {wanted}",
            hint=f"use an NPZ file with images of N x H x W x {wanted} uint8"
            + (", or image files with four channels (PNG, TIFF)" if wanted == 4 else ""),
        )

    def relabel_objects(
        self, mapping: NDArray[np.int64], classes: Sequence[str] | None
    ) -> ImageDataset:
        """The same images with class ``mapping[c]`` for class ``c`` of their objects."""
        assert self.objects is not None
        return replace(
            self,
            classes=None if classes is None else tuple(classes),
            objects=tuple(objects.relabel(mapping) for objects in self.objects),
            skipped=list(self.skipped),
        )

    def without_bad_images(self) -> ImageDataset:
        """What `verify` returns, if `skip_bad_images` is set; else this dataset, which is not read."""
        return self.verify() if self.skip_bad_images else self

    def verify(self) -> ImageDataset:
        """Decode every image once, so that every later reader gets the same images.

        Returns:
            This dataset, or with `skip_bad_images` a subset without the unreadable images, which
            its ``skipped`` lists.

        Raises:
            DataError: An image cannot be read and `skip_bad_images` is not set, or no image can.
        """
        good: list[int] = []
        with contextlib.closing(self._read(range(len(self)), None, ahead=0)) as images:
            good.extend(index for index, _ in images)
        if not good:
            raise DataError(f"no image of {self.name} can be read", hint="check the files")
        return self if len(good) == len(self) else self.select(np.array(good, dtype=np.int64))

    def batches(
        self,
        batch_size: int,
        preprocessing: Preprocessing,
        *,
        as_uint8: bool = False,
        order: Sequence[int] | NDArray[np.int64] | None = None,
    ) -> Generator[Batch, None, None]:
        """Read the images batch by batch; at most a few batches are in memory.

        Files are decoded by worker processes, up to one batch ahead; see `optimizer.data.decoding`.
        Close or exhaust the iterator to stop them.

        Args:
            batch_size: Images per batch; the last batch may be smaller.
            preprocessing: Preprocessing applied to the images.
            as_uint8: Skip the normalization and yield N x H x W x 3 uint8.
            order: Indices of the images to read, in this order; by default all of them.

        Raises:
            DataError: An image cannot be read and `skip_bad_images` is not set, or images that are
                already preprocessed have the wrong size or were requested as uint8.
            EnvironmentFault: A worker process died.
        """
        if batch_size < 1:
            raise DataError(f"a batch needs at least one image, not {batch_size}")
        self.check_depth(preprocessing)
        indices = range(len(self)) if order is None else order
        yielded = False
        group = np.asarray(indices, dtype=np.int64)
        batches = self.grouped_batches([group], batch_size, preprocessing, as_uint8=as_uint8)
        with contextlib.closing(batches):
            for batch in batches:
                yield batch
                yielded = True
        if not yielded and len(indices):
            raise DataError(f"no image of {self.name} can be read", hint="check the files")

    def grouped_batches(
        self,
        groups: Sequence[NDArray[np.int64]],
        batch_size: int,
        preprocessing: Preprocessing,
        *,
        as_uint8: bool = False,
    ) -> Generator[Batch, None, None]:
        """Like `batches`, for several groups of images; no batch holds images of two groups.

        Args:
            groups: Indices of the images, each in one group.
            batch_size: Images per batch; the last batch of a group may be smaller.
            preprocessing: Preprocessing applied to the images.
            as_uint8: Skip the normalization and yield N x H x W x 3 uint8.

        Raises:
            DataError, EnvironmentFault: As `batches`; nothing is raised if no image can be read.
        """
        indices = [int(index) for group in groups for index in group]
        numbers = {int(index): number for number, group in enumerate(groups) for index in group}
        images: list[Pixels] = []
        kept: list[int] = []
        with contextlib.closing(self._read(indices, preprocessing, ahead=batch_size)) as results:
            for index, pixels in results:
                if kept and (len(kept) == batch_size or numbers[index] != numbers[kept[0]]):
                    yield self._batch(images, kept, preprocessing, as_uint8)
                    images, kept = [], []
                images.append(pixels)
                kept.append(index)
        if kept:
            yield self._batch(images, kept, preprocessing, as_uint8)

    def content(self, indices: NDArray[np.int64]) -> str:
        """Digest of the contents of these images in this order, regardless of names and labels."""
        hasher = hashlib.sha256()
        for position in self.positions[indices]:
            for part in self.source.content(int(position)):
                hasher.update(hashlib.sha256(part).digest())
        return hasher.hexdigest()

    def _batch(
        self, images: list[Pixels], kept: list[int], preprocessing: Preprocessing, as_uint8: bool
    ) -> Batch:
        indices = np.array(kept, dtype=np.int64)
        pixels: NDArray[Any] = np.stack(images)
        if pixels.dtype == np.uint8 and not as_uint8:
            started = time.thread_time()
            pixels = preprocessing.normalize(pixels)
            self.spent.cpu_s += time.thread_time() - started
        elif pixels.dtype != np.uint8 and as_uint8:
            raise DataError(
                f"{self.name} holds preprocessed float32 images, but the input is uint8 pixels",
                hint="store the images as N x H x W x 3 uint8",
            )
        return Batch(pixels, self.labels[indices], indices)

    def _read(
        self, indices: Sequence[int], preprocessing: Preprocessing | None, *, ahead: int
    ) -> Generator[tuple[int, Pixels], None, None]:
        """Read images in order; skip bad ones if `skip_bad_images` is set.

        Without ``preprocessing`` images are only checked and no pixels are returned.
        """
        workers = workers_for(self.workers, len(indices))
        if workers and self.source.file(0) is not None:
            read = self._decoded(indices, preprocessing, workers, max(ahead, 8 * workers))
        else:
            read = self._in_process(indices, preprocessing)
        with contextlib.closing(read):
            for index, result in zip(indices, read, strict=True):
                if not isinstance(result, DataError):
                    yield index, result
                    continue
                if not self.skip_bad_images:
                    raise result
                name = self.image_id(index)
                if name not in self.skipped:
                    self.skipped.append(name)

    def _decoded(
        self, indices: Sequence[int], preprocessing: Preprocessing | None, workers: int, ahead: int
    ) -> Generator[Pixels | DataError, None, None]:
        paths = (self.source.file(int(self.positions[index])) for index in indices)
        files = (path for path in paths if path is not None)
        images = decode_ahead(files, preprocessing, workers=workers, ahead=ahead)
        with contextlib.closing(images):
            for image in images:
                self.spent.cpu_s += image.cpu_s
                yield image.error or (_CHECKED if image.pixels is None else image.pixels)

    def _in_process(
        self, indices: Sequence[int], preprocessing: Preprocessing | None
    ) -> Generator[Pixels | DataError, None, None]:
        for index in indices:
            started = time.thread_time()
            position = int(self.positions[index])
            result: Pixels | DataError = _CHECKED
            try:
                if preprocessing is None:
                    self.source.check(position)
                else:
                    result = self.source.read(position, preprocessing)
            except DataError as error:
                result = error
            self.spent.cpu_s += time.thread_time() - started
            yield result
