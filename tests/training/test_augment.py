from __future__ import annotations

import numpy as np
import pytest

from optimizer.training.augment import Augmentation
from optimizer.training.image_order import draws

IMAGES = np.random.RandomState(0).rand(200, 3, 8, 8).astype(np.float32)


def numbers(seed: int) -> np.ndarray:
    return draws(seed, 0, len(IMAGES))


def shifted(image: np.ndarray, top: int, left: int, shift: int) -> np.ndarray:
    padded = np.pad(image, ((0, 0), (shift, shift), (shift, shift)), mode="edge")
    return padded[:, top : top + 8, left : left + 8]


@pytest.mark.parametrize("flip", [False, True])
def test_each_image_is_one_of_the_allowed_changes(flip: bool) -> None:
    changed = Augmentation(shift=1, flip=flip).apply(IMAGES, numbers(1))
    seen = set()
    for before, after in zip(IMAGES, changed, strict=True):
        kinds = [
            (top, left, mirrored)
            for top in range(3)
            for left in range(3)
            for mirrored in ([False, True] if flip else [False])
            if np.array_equal(after, shifted(before, top, left, 1)[..., :: -1 if mirrored else 1])
        ]
        assert len(kinds) == 1
        seen.add(kinds[0])
    assert len(seen) == (18 if flip else 9)


def test_results_depend_on_the_seed_and_the_input_is_unchanged() -> None:
    augmentation = Augmentation(shift=2, flip=True)
    before = IMAGES.copy()
    first = augmentation.apply(IMAGES, numbers(3))
    np.testing.assert_array_equal(first, augmentation.apply(IMAGES, numbers(3)))
    assert not np.array_equal(first, augmentation.apply(IMAGES, numbers(4)))
    np.testing.assert_array_equal(IMAGES, before)


def test_without_shift_and_flip_images_are_unchanged() -> None:
    changed = Augmentation(shift=0, flip=False).apply(IMAGES, numbers(0))
    np.testing.assert_array_equal(changed, IMAGES)
