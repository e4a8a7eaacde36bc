"""Calibration statistics: collected in one streaming pass, in fixed memory, independent of any engine.

Per observed tensor and channel: minimum, maximum, mean, and a histogram. All results are bitwise
independent of the order and batching of the images:

* Histogram bins have a width of 2^e and edges at multiples of it. When a value falls outside the
  histogram, e is increased and neighbouring bins are merged, which gives exactly the counts of
  binning everything at the final width.
* Means are sums of fixed-point integers, and integer addition is associative.

Histograms use at most `POSITIONS` positions per image (a fixed grid); minimum, maximum and mean use
all of them.

The executor always gets groups of one fixed size, whatever the size of the incoming batches: kernels
may sum a single image in another order than a batch, which changes the last bits. Groups are smaller
for larger images, so memory is bounded too.

A sample of the images is stored with the statistics, for the passes that need more than histograms
(`ranges`, `correction`). It consists of the images whose contents have the smallest digests, so it
does not depend on the order either.
"""

from __future__ import annotations

import hashlib
import heapq
import json
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from optimizer.data.npz_arrays import read_arrays
from optimizer.errors import ArtifactError, GraphError
from optimizer.processes import hardware_threads

__all__ = ["Collector", "Executor", "Statistics", "TensorStatistics"]

BINS = 512
"""Bins per channel: all for positive values after a ReLU, otherwise half for each sign."""
POSITIONS = 196
_FIXED_POINT = 2.0**20
_LEAST_EXPONENT = -60
_GROUP_VALUES = 620_000
"""Input values per group of images: 4 images of 224 x 224, 64 of 32 x 32 or less."""
_SAMPLE_VALUES = 10_000_000
_SAMPLE_IMAGES = range(16, 257)
_SIMULATION_VALUES = 2_500_000
SCHEMA_VERSION = 2

Executor = Callable[[NDArray[Any]], Mapping[str, NDArray[Any]]]
"""Runs the FP32 graph on a batch and returns the observed tensors by name."""


@dataclass
class TensorStatistics:
    """Statistics of one tensor, one row per channel.

    Attributes:
        positive: The tensor is the output of a ReLU: bins start at zero instead of -BINS / 2.
        minimum, maximum: float32[C].
        sums: int64[C], fixed-point sum of per-image means.
        zeros: int64[C], number of exact zeros among the binned values (they have no quantization
            error).
        exponent: int32[C], bins are 2^exponent wide.
        counts: uint32[C, BINS].
        images: Number of images.
    """

    positive: bool
    minimum: NDArray[np.float32]
    maximum: NDArray[np.float32]
    sums: NDArray[np.int64]
    zeros: NDArray[np.int64]
    exponent: NDArray[np.int32]
    counts: NDArray[np.uint32]
    images: int = 0

    @classmethod
    def empty(cls, channels: int, *, positive: bool) -> TensorStatistics:
        """Statistics of no images."""
        return cls(
            positive=positive,
            minimum=np.full(channels, np.inf, np.float32),
            maximum=np.full(channels, -np.inf, np.float32),
            sums=np.zeros(channels, np.int64),
            zeros=np.zeros(channels, np.int64),
            exponent=np.full(channels, _LEAST_EXPONENT, np.int32),
            counts=np.zeros((channels, BINS), np.uint32),
        )

    @property
    def origin(self) -> int:
        """Index of the bin that starts at zero."""
        return 0 if self.positive else BINS // 2

    @property
    def mean(self) -> NDArray[np.float64]:
        """float64[C]."""
        return self.sums / (_FIXED_POINT * max(self.images, 1))

    @property
    def absolute_maximum(self) -> NDArray[np.float32]:
        """float32[C]: the largest absolute value."""
        return np.maximum(np.abs(self.minimum), np.abs(self.maximum))

    def add(self, values: NDArray[np.float32]) -> None:
        """Add a batch: N x C, or N x C x H x W float32.

        Raises:
            ValueError: NaN or infinite values; nothing of the batch is counted.
        """
        flat = values.reshape(len(values), values.shape[1], -1)
        low, high = flat.min(axis=(0, 2)), flat.max(axis=(0, 2))  # both propagate NaN
        if not (np.isfinite(low).all() and np.isfinite(high).all()):
            raise ValueError("NaN or infinite values")
        np.minimum(self.minimum, low, out=self.minimum)
        np.maximum(self.maximum, high, out=self.maximum)
        means = flat.mean(axis=2, dtype=np.float64)
        self.sums += np.rint(means * _FIXED_POINT).astype(np.int64).sum(axis=0)
        self.images += len(values)
        self._extend(np.maximum(np.abs(low), np.abs(high)))
        self._count(_subsampled(values))

    def _extend(self, largest: NDArray[np.float32]) -> None:
        half = BINS - self.origin
        _, exponent = np.frexp(largest.astype(np.float64))  # largest < 2^exponent
        exponent = np.where(largest == 0, _LEAST_EXPONENT, exponent)  # frexp(0) has exponent 0
        needed = np.maximum(exponent - int(np.log2(half)), _LEAST_EXPONENT).astype(np.int32)
        for channel in np.flatnonzero(needed > self.exponent):
            shift = int(needed[channel] - self.exponent[channel])
            self.counts[channel] = _merged(self.counts[channel], shift, self.origin)
            self.exponent[channel] = needed[channel]

    def _count(self, sample: NDArray[np.float32]) -> None:
        channels = sample.shape[1]
        # A product with a power of two is exact, and `_extend` has made the range wide enough.
        scaled = sample * np.ldexp(np.float32(1), -self.exponent)[None, :, None]
        if not self.positive:
            np.floor(scaled, out=scaled)  # of non-negative values, the cast below takes the floor
        bins = scaled.astype(np.int32)
        bins += (np.arange(channels, dtype=np.int32) * BINS + self.origin)[None, :, None]
        counts = np.bincount(bins.ravel(), minlength=channels * BINS)
        self.counts += counts.reshape(channels, BINS).astype(np.uint32)
        self.zeros += (sample == 0).sum(axis=(0, 2))

    def merge(self, other: TensorStatistics) -> None:
        """Add the statistics that another collector has of the same tensor."""
        np.minimum(self.minimum, other.minimum, out=self.minimum)
        np.maximum(self.maximum, other.maximum, out=self.maximum)
        self.sums += other.sums
        self.zeros += other.zeros
        self.images += other.images
        for channel in range(len(self.exponent)):
            first, second = int(self.exponent[channel]), int(other.exponent[channel])
            common = max(first, second)
            self.counts[channel] = _merged(
                self.counts[channel], common - first, self.origin
            ) + _merged(other.counts[channel], common - second, self.origin)
            self.exponent[channel] = common


def _subsampled(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """N x C x P with at most `POSITIONS` positions of each image, on a fixed grid."""
    if values.ndim == 4:
        positions = values.shape[2] * values.shape[3]
        step = int(np.ceil(np.sqrt(positions / POSITIONS)))
        start = step // 2
        values = values[:, :, start::step, start::step]
    return np.ascontiguousarray(values.reshape(len(values), values.shape[1], -1))


def _merged(counts: NDArray[np.uint32], shift: int, origin: int) -> NDArray[np.uint32]:
    """Counts for bins 2^shift times as wide, with bin ``origin`` still starting at zero."""
    if shift == 0:
        return counts
    shift = min(31, shift)
    old = np.arange(len(counts)) - origin
    merged = np.zeros_like(counts)
    np.add.at(merged, (old >> shift) + origin, counts)
    return merged


@dataclass
class Statistics:
    """Statistics of all observed tensors of one graph.

    Attributes:
        tensors: By tensor name.
        key: Digests of their source: graph and images.
        sample: Some of the images, in the graph's input format: N x C x H x W (float16, or float32
            if float16 would overflow) or N x H x W x C (uint8), smallest digests first; at most 256
            images, and about 10 million values. May be empty.
    """

    tensors: dict[str, TensorStatistics] = field(default_factory=dict)
    key: dict[str, Any] = field(default_factory=dict)
    sample: NDArray[Any] = field(default_factory=lambda: np.zeros((0, 3, 1, 1), np.float16))

    @property
    def images(self) -> int:
        """Number of images."""
        return max((t.images for t in self.tensors.values()), default=0)

    @property
    def largest(self) -> dict[str, float]:
        """The largest absolute value of each tensor."""
        return {
            name: float(tensor.absolute_maximum.max(initial=0.0))
            for name, tensor in self.tensors.items()
        }

    @property
    def simulation_sample(self) -> NDArray[Any]:
        """The part of the sample that whole networks are simulated on: 16 images at 224 x 224."""
        size = max(self.sample[0].size, 1) if len(self.sample) else 1
        return self.sample[: max(_SAMPLE_IMAGES[0], _SIMULATION_VALUES // size)]

    def as_arrays(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """The tensors as named arrays, and what they do not say as JSON values."""
        arrays: dict[str, NDArray[Any]] = {}
        header: dict[str, Any] = {}
        for number, (name, tensor) in enumerate(self.tensors.items()):
            header[name] = {"positive": tensor.positive, "images": tensor.images}
            for part in _PARTS:
                arrays[f"{number}.{part}"] = getattr(tensor, part)
        return arrays, header

    @classmethod
    def from_arrays(
        cls, header: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]], sample: NDArray[Any]
    ) -> Statistics:
        """The inverse of `as_arrays`, with a sample.

        Raises:
            ValueError, KeyError: They do not fit each other, or are not what `Collector` writes.
        """
        tensors = {
            name: _tensor(
                name,
                _TensorHeader.model_validate(fields),
                {part: arrays[f"{number}.{part}"] for part in _PARTS},
            )
            for number, (name, fields) in enumerate(header.items())
        }
        _check_sample(sample)
        return cls(tensors, {}, sample)

    def save(self, path: Path) -> None:
        """Write as one compressed ``.npz`` file."""
        arrays, tensors = self.as_arrays()
        header = {"schema_version": SCHEMA_VERSION, "key": self.key, "tensors": tensors}
        arrays["sample"] = self.sample
        arrays["header"] = np.frombuffer(json.dumps(header).encode(), np.uint8)
        with path.open("wb") as stream:
            np.savez_compressed(stream, **arrays)  # type: ignore[arg-type]

    @classmethod
    def load(cls, path: Path) -> Statistics:
        """Read a file written by `save`.

        Raises:
            ArtifactError: Not a statistics file, damaged, or of another schema version.
        """
        try:
            arrays = read_arrays(path)
            header = _Header.model_validate_json(arrays["header"].tobytes())
            if header.schema_version != SCHEMA_VERSION:
                raise ArtifactError(
                    f"{path.name} has schema version {header.schema_version}, "
                    f"expected {SCHEMA_VERSION}",
                    hint="calibrate again",
                )
            loaded = cls.from_arrays(header.tensors, arrays, arrays["sample"])
        except (OSError, ValueError, KeyError) as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else "it is damaged"
            raise ArtifactError(
                f"{path.name} does not contain calibration statistics: {reason}",
                hint="write it with resnet-opt calibrate",
            ) from error
        return replace(loaded, key=header.key)


class _TensorHeader(BaseModel):
    """What the header says of one tensor."""

    model_config = ConfigDict(extra="forbid", strict=True)
    positive: bool
    images: int = Field(ge=0, lt=2**31)


class _Header(BaseModel):
    """The header of a statistics file."""

    model_config = ConfigDict(extra="forbid", strict=True)
    schema_version: int
    key: dict[str, Any]
    tensors: dict[str, _TensorHeader]


_PARTS = {
    "minimum": np.float32, "maximum": np.float32, "sums": np.int64, "zeros": np.int64,
    "exponent": np.int32, "counts": np.uint32,
}  # fmt: skip
"""The arrays of one tensor, and their types."""


def _tensor(
    name: str, header: _TensorHeader, parts: Mapping[str, NDArray[Any]]
) -> TensorStatistics:
    """One tensor of a file.

    Raises:
        ValueError: Arrays have other shapes, types or values than `Collector` writes.
    """
    channels = len(parts["minimum"]) if parts["minimum"].ndim else 0
    for part, kind in _PARTS.items():
        shape = (channels, BINS) if part == "counts" else (channels,)
        if parts[part].dtype != kind or parts[part].shape != shape or channels == 0:
            raise ValueError(
                f"{part} of {name} is {parts[part].dtype} of shape {parts[part].shape}"
            )
    finite = np.isfinite(parts["minimum"]).all() and np.isfinite(parts["maximum"]).all()
    if not finite or (parts["minimum"] > parts["maximum"]).any():
        raise ValueError(f"minimum and maximum of {name} are not a range")
    if (parts["zeros"] < 0).any() or (np.abs(parts["exponent"].astype(np.int64)) > 128).any():
        raise ValueError(f"zeros or exponent of {name} are out of range")
    return TensorStatistics(positive=header.positive, images=header.images, **parts)


def _check_sample(sample: NDArray[Any]) -> None:
    kinds = (np.float16, np.float32, np.uint8)
    if sample.ndim != 4 or sample.dtype not in kinds or not np.isfinite(sample).all():
        raise ValueError(f"the sample is {sample.dtype} of shape {sample.shape}, or not finite")


class _Sample:
    """The images whose contents have the smallest digests, among all that were added."""

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, NDArray[Any]]] = []
        self._added = 0

    def add(self, image: NDArray[Any]) -> None:
        """Add an image; it is copied if it is kept, because it may be part of a whole batch."""
        limit = max(_SAMPLE_IMAGES[0], min(_SAMPLE_IMAGES[-1], _SAMPLE_VALUES // image.size))
        digest = int.from_bytes(hashlib.sha256(image.tobytes()).digest()[:8], "big")
        self._added += 1
        entry = (-digest, self._added, image)  # the heap drops the largest digest first
        if len(self._heap) < limit:
            heapq.heappush(self._heap, (-digest, self._added, image.copy()))
        elif entry > self._heap[0]:
            heapq.heapreplace(self._heap, (-digest, self._added, image.copy()))

    @property
    def images(self) -> NDArray[Any]:
        """The images, smallest digest first; of no images an empty array."""
        if not self._heap:
            return Statistics().sample
        return np.stack([image for *_, image in sorted(self._heap, key=lambda e: (-e[0], e[1]))])


def _compact(sample: NDArray[Any]) -> NDArray[Any]:
    """The sample as it is stored with the statistics: float16 unless that would overflow."""
    if sample.dtype != np.float32 or np.abs(sample).max() > np.finfo(np.float16).max:
        return sample
    return sample.astype(np.float16)


class Collector:
    """Runs images through an executor and collects statistics.

    Args:
        observed: Names of tensors, each with whether it is the output of a ReLU.
        execute: Runs the FP32 graph.
    """

    def __init__(self, observed: Mapping[str, bool], execute: Executor) -> None:
        self._observed = dict(observed)
        self._execute = execute
        self._statistics = Statistics()
        self._buffer: list[NDArray[Any]] = []
        self._sample = _Sample()
        self._pool = ThreadPoolExecutor(hardware_threads())
        self._updates: list[Future[None]] = []

    def add(self, batch: NDArray[Any]) -> None:
        """Add a batch of images, of any size.

        Raises:
            GraphError: A tensor has NaN or infinite values on images of this batch or an earlier
                one; the message names the tensor.
        """
        self._buffer.extend(batch)
        for image in batch:
            self._sample.add(image)
        while self._buffer and len(self._buffer) >= self._group_size(self._buffer[0]):
            self._execute_group()

    @property
    def statistics(self) -> Statistics:
        """Statistics of all images added so far.

        Raises:
            GraphError: As `add`, on the remaining images.
        """
        self._statistics = replace(self._statistics, sample=_compact(self.collected().sample))
        return self._statistics

    def collected(self) -> Statistics:
        """Like `statistics`, with the sample as it was added, so that it can be merged.

        The tensors are not copied: later images are added to them.

        Raises:
            GraphError: As `add`, on the remaining images.
        """
        if self._buffer:
            self._execute_group()
        self._wait()
        return replace(self._statistics, sample=self._sample.images)

    def merge(self, others: Statistics) -> None:
        """Add what another collector of the same graph has `collected` on other images."""
        self._wait()
        for name, tensor in others.tensors.items():
            if name in self._statistics.tensors:
                self._statistics.tensors[name].merge(tensor)
            else:
                self._statistics.tensors[name] = tensor
        for image in others.sample:
            self._sample.add(image)

    @staticmethod
    def _group_size(image: NDArray[Any]) -> int:
        return min(64, max(2, _GROUP_VALUES // image.size))

    def _execute_group(self) -> None:
        size = self._group_size(self._buffer[0])
        images, self._buffer = self._buffer[:size], self._buffer[size:]
        missing = size - len(images)
        values = self._execute(np.stack([*images, *[images[-1]] * missing]))
        count = len(images)
        for name, positive in self._observed.items():
            if name not in self._statistics.tensors:
                channels = values[name].shape[1]
                self._statistics.tensors[name] = TensorStatistics.empty(channels, positive=positive)
        self._wait()
        # Tensors are independent: they are processed while the executor computes the next group.
        self._updates = [
            self._pool.submit(self._update, name, values[name][:count]) for name in self._observed
        ]

    def _wait(self) -> None:
        """Wait until the previous group has been processed."""
        updates, self._updates = self._updates, []
        for update in updates:
            update.result()

    def _update(self, name: str, values: NDArray[Any]) -> None:
        try:
            self._statistics.tensors[name].add(np.asarray(values, np.float32))
        except ValueError as error:
            raise GraphError(
                f"{name} has {error} on the calibration images",
                hint="check the checkpoint and the preprocessing",
            ) from error
