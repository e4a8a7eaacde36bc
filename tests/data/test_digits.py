from __future__ import annotations

import numpy as np
import pytest
from sklearn.datasets import load_digits

from optimizer.data import Preprocessing, open_dataset
from optimizer.errors import DataError


def test_the_split_covers_everything_once() -> None:
    train, test = open_dataset("digits:train"), open_dataset("digits:test")
    whole = open_dataset("digits")
    assert (len(train), len(test), len(whole)) == (1257, 540, 1797)
    ids = {data.name: {data.image_id(i) for i in range(len(data))} for data in (train, test, whole)}
    assert ids["digits:train"] | ids["digits:test"] == ids["digits"]
    assert not ids["digits:train"] & ids["digits:test"]


def test_the_split_is_stratified() -> None:
    whole, test = open_dataset("digits"), open_dataset("digits:test")
    shares = np.bincount(test.labels) / np.bincount(whole.labels)
    assert shares == pytest.approx(np.full(10, 540 / 1797), abs=0.005)


def test_the_split_never_changes() -> None:
    assert open_dataset("digits:train").sha256.startswith("77f1ecf3")
    assert open_dataset("digits:test").sha256.startswith("84e9de13")


def test_the_pixels_are_the_bundled_ones() -> None:
    bundle = load_digits()
    digits = open_dataset("digits")
    assert digits.classes == tuple("0123456789")
    np.testing.assert_array_equal(digits.labels, bundle.target)
    (batch,) = digits.batches(2000, Preprocessing.digits(8), as_uint8=True)
    assert batch.images.shape == (1797, 8, 8, 3)
    np.testing.assert_array_equal(batch.images[..., 0], batch.images[..., 2])
    np.testing.assert_allclose(batch.images[..., 0] / 255 * 16, bundle.images, atol=0.04)


def test_mean_and_deviation_match_the_training_images() -> None:
    preprocessing = Preprocessing.digits(8)
    batches = open_dataset("digits:train").batches(2000, preprocessing)
    images = np.concatenate([batch.images for batch in batches])
    assert float(images.mean()) == pytest.approx(0, abs=0.02)
    assert float(images.std()) == pytest.approx(1, abs=0.02)


def test_an_unknown_split_is_rejected() -> None:
    with pytest.raises(DataError, match=r"digits:val.*digits:train"):
        open_dataset("digits:val")
