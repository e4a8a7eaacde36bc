"""Datasets in one NPZ file: ``images``, ``labels`` and, optionally, ``classes``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optimizer.data.dataset import ImageDataset, Source
from optimizer.data.labels import as_labels
from optimizer.data.npz_arrays import read_arrays
from optimizer.data.pixels import PixelSource, TensorSource
from optimizer.errors import DataError

__all__ = ["open_npz"]

_CHANNELS = (1, 3, 4)
_KEYS = ("images", "labels", "classes")
_FORMAT = (
    "images: N x H x W x 3 uint8 (or 1, or 4 channels), or N x 3 x H x W float32 already "
    "preprocessed; labels: N integers"
)


def open_npz(path: Path, *, labelled: bool = True, labels_from: int = 0) -> ImageDataset:
    """Open an NPZ file.

    Args:
        path: File with ``images`` (N x H x W x 3 uint8, or already preprocessed N x 3 x H x W
            float32; 1 and 4 channels are accepted, too), ``labels`` (N integers) and, optionally,
            ``classes`` (names in the order of the labels). Object arrays are rejected, never
            unpickled.
        labelled: Whether ``labels`` are required; if missing, every label is 0.
        labels_from: Label of the first class.

    Raises:
        DataError: The file is damaged, an array is missing or has the wrong shape or type, or a
            label is negative or has no class.
    """
    arrays = _load(path)
    if not labelled and "images" in arrays and "labels" not in arrays:
        count = arrays["images"].shape[0] if arrays["images"].ndim else 0
        arrays = {"images": arrays["images"], "labels": np.full(count, labels_from, np.int64)}
    for key in ("images", "labels"):
        if key not in arrays:
            present = ", ".join(sorted(arrays)) or "nothing"
            raise DataError(f"{path.name} has no array {key!r} (it has {present})", hint=_FORMAT)
    images, labels = arrays["images"], arrays["labels"]
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise DataError(
            f"{path.name}: labels must be N integers, not {labels.dtype} of shape {labels.shape}",
            hint=_FORMAT,
        )
    source = _source(path, images)
    if len(images) != len(labels):
        raise DataError(f"{path.name}: {len(images)} images but {len(labels)} labels", hint=_FORMAT)
    if len(labels) == 0:
        raise DataError(f"{path.name} contains no images")
    classes = _classes(path, arrays.get("classes"))
    labels = as_labels(
        labels, path.name, None if classes is None else len(classes), first=labels_from
    )
    return ImageDataset(
        name=str(path),
        classes=classes,
        labels=labels,
        source=source,
        positions=np.arange(len(labels), dtype=np.int64),
    )


def _load(path: Path) -> dict[str, NDArray[Any]]:
    try:
        return read_arrays(path, _KEYS.__contains__)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"cannot read {path}: {reason}", hint=_FORMAT) from error


def _source(path: Path, images: NDArray[Any]) -> Source:
    shape = images.shape
    if images.ndim in (3, 4) and 0 not in shape[1:]:
        # Without an axis for channels, N x H x W could also be one image: H x W x channels.
        pixels = shape[3] in _CHANNELS if images.ndim == 4 else shape[2] not in _CHANNELS
        if images.dtype == np.uint8 and pixels:
            return PixelSource(images, path.name)
        if images.dtype == np.float32 and images.ndim == 4 and shape[1] in _CHANNELS:
            return TensorSource(images, path.name)
    raise DataError(f"{path.name}: images are {images.dtype} of shape {shape}", hint=_FORMAT)


def _classes(path: Path, names: NDArray[Any] | None) -> tuple[str, ...] | None:
    if names is None:
        return None
    if names.ndim != 1 or names.dtype.kind != "U":
        raise DataError(
            f"{path.name}: classes must be N names, not {names.dtype} of shape {names.shape}"
        )
    return tuple(str(name) for name in names)
