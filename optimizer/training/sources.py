"""Training images, held-out images and their preprocessing."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from optimizer.data import ImageDataset, Preprocessing, open_dataset, stratified_subset
from optimizer.errors import DataError
from optimizer.models import Model

__all__ = ["held_out_of", "is_digits", "open_training_data", "preprocessing_for"]

_HELD_OUT = {"digits:train": "digits:test", "digits-scenes:train": "digits-scenes:test"}
_HELD_OUT_SHARE = 0.2
_VALIDATION_FOLDERS = ("val", "test", "validation")


def open_training_data(
    name: str,
    *,
    limit: int | None = None,
    seed: int = 0,
    skip_bad_images: bool = False,
    workers: int | None = None,
    labels_from: int = 0,
) -> tuple[ImageDataset, ImageDataset]:
    """Open a dataset, split into training images and held-out images.

    ``digits`` has a fixed split. A folder with ``train`` and one of ``val``, ``test`` or
    ``validation`` is already split. Otherwise a stratified fifth is held out.

    Args:
        name: See `optimizer.data.open_dataset`.
        limit: Train on a stratified subset of this many images.
        seed: Seed of the subset and the split.
        skip_bad_images: Leave out images that cannot be read; all images are checked first.
        workers: Processes that decode files; see `optimizer.data.open_dataset`.
        labels_from: Number of the first class in a list.

    Returns:
        The training images and the held-out images.

    Raises:
        DataError: See `open_dataset`; or the two parts have different classes, or there are too few
            images.
    """
    reading = _Reading(skip_bad_images, workers, labels_from)
    if name == "digits":
        train, held_out = open_dataset("digits:train"), open_dataset("digits:test")
    elif (parts := _split_folders(Path(name))) is not None:
        train, held_out = (reading.open(str(part)) for part in parts)
        if train.classes != held_out.classes:
            raise DataError(f"{parts[0]} and {parts[1]} have different class folders")
    else:
        whole = reading.open(name)
        count = round(len(whole) * _HELD_OUT_SHARE)
        if count < 1:
            raise DataError(f"{name} has {len(whole)} images, which is too few to hold out a fifth")
        chosen = stratified_subset(whole.labels, count, seed)
        held_out = replace(whole.select(chosen), name=f"{name} (held out)")
        train = whole.select(np.setdiff1d(np.arange(len(whole)), chosen))
    if limit is not None:
        train = train.select(stratified_subset(train.labels, limit, seed))
    return train, held_out


@dataclass(frozen=True)
class _Reading:
    skip_bad_images: bool
    workers: int | None
    labels_from: int

    def open(self, name: str) -> ImageDataset:
        return open_dataset(name, **asdict(self)).without_bad_images()


def _split_folders(root: Path) -> tuple[Path, Path] | None:
    for name in _VALIDATION_FOLDERS:
        if (root / "train").is_dir() and (root / name).is_dir():
            return root / "train", root / name
    return None


def held_out_of(name: str) -> str | None:
    """The part of bundled data that belongs to its training part; ``None`` for other data."""
    return _HELD_OUT.get(name)


def is_digits(name: str) -> bool:
    """Whether a dataset is the bundled digits or a split of them."""
    return name.partition(":")[0] == "digits"


def preprocessing_for(name: str, image_size: int, init: Model | None = None) -> Preprocessing:
    """Preprocessing for training on a dataset.

    A fine-tuned model keeps its own preprocessing (at the new size), digits have their own, and
    everything else uses ImageNet's.
    """
    if init is not None:
        return init.preprocessing.with_image_size(image_size)
    if is_digits(name):
        return Preprocessing.digits(image_size)
    return Preprocessing.imagenet(image_size)
