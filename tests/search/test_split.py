"""Images of the search's own, and what they say of a graph."""

from __future__ import annotations

import numpy as np
import pytest

from optimizer.data import open_dataset, shared_images
from optimizer.errors import DataError
from optimizer.evaluation.tally import Tally
from optimizer.search.split import Budget, Split, divided
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


def _tally(n: int, losses: int = 0, flips: int = 0) -> Tally:
    tally = Tally()
    tally.n, tally.losses, tally.flips = n, losses, max(flips, losses)
    return tally


@pytest.mark.parametrize(
    ("tally", "holds"),
    [
        (_tally(512), True),
        (_tally(512, losses=1), False),  # as for the judge: 1.1 points cannot be ruled out
        (_tally(2000, losses=5), True),
        (_tally(512, flips=9), True),  # from one wrong class to another
        (_tally(64), True),  # too few to rule anything out: no flips will do
        (_tally(64, flips=1), False),
    ],
)
def test_a_budget_of_one_point(tally: Tally, holds: bool) -> None:
    assert Budget(1.0).holds(tally) is holds


def test_a_variant_is_held_against_the_network(variants: Variants) -> None:
    images, labels = labelled(96, 7)
    split = Split(variants.simulation, variants.base, [images[:40], images[40:]], labels)
    assert len(split) == 96
    whole = split.measure(variants.encodings(frozenset(variants.layers)))
    assert (whole.flips, whole.losses, whole.gains) == (0, 0, 0)
    assert whole.correct == 96
    bad = split.measure(variants.encodings(frozenset()))
    assert bad.losses > 0
    assert bad.n == 96
    assert np.isfinite(bad.noise.db or 0)
