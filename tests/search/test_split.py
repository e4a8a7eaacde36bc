"""Images of the search's own, and what they say of a graph."""

from __future__ import annotations

import pytest

from optimizer.data import open_dataset, shared_images
from optimizer.errors import DataError
from optimizer.evaluation.tally import Tally
from optimizer.search.split import Budget, Measured, Split, divided
from optimizer.search.variants import Variants
from tests.search.networks import labelled


def test_no_image_calibrates_and_is_searched_on() -> None:
    digits = open_dataset("digits:train")
    calibration, searched = divided(digits, 256)
    assert (len(calibration), len(searched)) == (256, 512)
    assert shared_images(calibration, searched) == 0
    # The same images that calibrate without a search.
    assert calibration.sha256 == open_dataset("digits:train", limit=256).sha256
    small, rest = divided(open_dataset("digits:train", limit=40), 256)
    assert (len(small), len(rest)) == (20, 20)


def test_too_few_images_are_refused() -> None:
    with pytest.raises(DataError, match="too few to calibrate and to search"):
        divided(open_dataset("digits:train", limit=15), 256)


def _measured(n: int, losses: int = 0, flips: int = 0, expected: float = 0.0) -> Measured:
    tally = Tally()
    tally.n, tally.losses, tally.flips = n, losses, max(flips, losses)
    return Measured(tally, expected, 0.0, expected)


@pytest.mark.parametrize(
    ("measured", "holds"),
    [
        (_measured(512), True),
        (_measured(512, losses=1), False),  # as for the judge: 1.1 points cannot be ruled out
        (_measured(512, expected=0.9), False),  # luck that none was lost
        (_measured(512, expected=0.1), True),
        (_measured(2000, losses=5), True),
        (_measured(512, flips=9), True),  # from one wrong class to another
        (_measured(64), True),  # too few to rule anything out: no flips will do
        (_measured(64, flips=1), False),
        (_measured(64, expected=0.6), False),
    ],
)
def test_a_budget_of_one_point(measured: Measured, holds: bool) -> None:
    assert Budget(1.0).holds(measured) is holds


def test_a_variant_is_held_against_the_network(variants: Variants) -> None:
    images, labels = labelled(96, 7)
    split = Split(variants.simulation, variants.base, [images[:40], images[40:]], labels)
    assert len(split) == 96
    whole = split.measure(variants.encodings(frozenset(variants.layers)))
    assert (whole.tally.flips, whole.tally.losses, whole.tally.gains) == (0, 0, 0)
    assert whole.flips < 0.05
    assert whole.tally.correct == whole.tally.n == 96
    bad = split.measure(variants.encodings(frozenset()))
    assert bad.tally.losses > 0
    assert bad.flips > 0.5
    assert bad.db < whole.db
