"""The images of a search, and the budget they have to meet."""

from __future__ import annotations

import pytest

from optimizer.data import open_dataset, shared_images
from optimizer.errors import DataError
from optimizer.search.split import Budget, Measured, Split, split_images
from optimizer.search.variants import Variants
from optimizer.tasks.tally import Tally
from tests.search.networks import labelled


def test_calibration_and_search_images_are_disjoint() -> None:
    digits = open_dataset("digits:train")
    calibration, searched = split_images(digits, 256)
    assert (len(calibration), len(searched)) == (256, 512)
    assert shared_images(calibration, searched) == 0
    # The same calibration images as without a search.
    assert calibration.sha256 == open_dataset("digits:train", limit=256).sha256
    small, rest = split_images(open_dataset("digits:train", limit=40), 256)
    assert (len(small), len(rest)) == (20, 20)


def test_too_few_images_are_rejected() -> None:
    with pytest.raises(DataError, match="too few for calibration and search"):
        split_images(open_dataset("digits:train", limit=15), 256)


def _measured(n: int, losses: int = 0, flips: int = 0, expected: float = 0.0) -> Measured:
    tally = Tally()
    tally.n, tally.losses, tally.flips = n, losses, max(flips, losses)
    return Measured(tally, expected, 0.0, expected)


@pytest.mark.parametrize(
    ("measured", "holds"),
    [
        (_measured(512), True),
        (_measured(512, losses=1), False),  # as in validation: 1.1 points cannot be ruled out
        (_measured(512, expected=0.9), False),  # no loss only by chance
        (_measured(512, expected=0.1), True),
        (_measured(2000, losses=5), True),
        (_measured(512, flips=9), True),  # from one wrong class to another
        (_measured(64), True),  # too few to rule out a drop: no flips required
        (_measured(64, flips=1), False),
        (_measured(64, expected=0.6), False),
    ],
)
def test_a_budget_of_one_point(measured: Measured, holds: bool) -> None:
    assert Budget(1.0).holds(measured) is holds


def test_a_variant_is_compared_with_the_fp32_network(variants: Variants) -> None:
    images, labels = labelled(96, 7)
    split = Split(variants, [images[:40], images[40:]], labels)
    assert len(split) == 96
    all_kept = split.measure(variants.encodings(frozenset(variants.layers)))
    assert (all_kept.tally.flips, all_kept.tally.losses, all_kept.tally.gains) == (0, 0, 0)
    assert all_kept.flips < 0.05
    assert all_kept.tally.correct == all_kept.tally.n == 96
    all_int8 = split.measure(variants.encodings(frozenset()))
    assert all_int8.tally.losses > 0
    assert all_int8.flips > 0.5
    assert all_int8.db < all_kept.db
