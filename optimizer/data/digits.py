"""The bundled data: scikit-learn's 1,797 handwritten digits of 8 x 8 pixels.

They are real data (the test set of UCI's "Optical Recognition of Handwritten Digits") and need no
download, so the demo and the tests run anywhere.
"""

from __future__ import annotations

import numpy as np

from optimizer.data.dataset import ImageDataset
from optimizer.data.pixels import PixelSource
from optimizer.data.subset import stratified_subset
from optimizer.errors import DataError

__all__ = ["DIGITS_SPLITS", "TEST_IMAGES", "open_digits"]

TEST_IMAGES = 540
DIGITS_SPLITS = ("digits", "digits:train", "digits:test")
_SPLIT_SEED = 0


def open_digits(name: str = "digits") -> ImageDataset:
    """Open all digits or one part of the fixed, stratified split (1,257 train and 540 test images).

    Gray values 0 to 16 are scaled to 0 to 255 in three equal channels; from there on digits are
    handled like photos.

    Raises:
        DataError: The name is not one of `DIGITS_SPLITS`.
    """
    from sklearn.datasets import load_digits

    if name not in DIGITS_SPLITS:
        raise DataError(
            f"unknown split of digits: {name!r}", hint=f"use one of {', '.join(DIGITS_SPLITS)}"
        )
    bundle = load_digits()
    labels = bundle.target.astype(np.int64)
    gray = np.rint(bundle.images * (255 / 16)).astype(np.uint8)
    images = np.repeat(gray[..., np.newaxis], 3, axis=3)
    whole = ImageDataset(
        name=name,
        classes=tuple(str(digit) for digit in range(10)),
        labels=labels,
        source=PixelSource(images, "digits"),
        positions=np.arange(len(labels), dtype=np.int64),
    )
    test = stratified_subset(labels, TEST_IMAGES, _SPLIT_SEED)
    if name == "digits:test":
        return whole.select(test)
    if name == "digits:train":
        return whole.select(np.setdiff1d(whole.positions, test))
    return whole
