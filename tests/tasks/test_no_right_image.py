"""Nothing passes where the reference is right on no image."""

from __future__ import annotations

import numpy as np
import pytest

from optimizer.results import Gates
from optimizer.tasks.classification import Classification
from optimizer.tasks.tally import Tally

IMAGES = 2000


def _tally(right: int, changed: int) -> Tally:
    """A reference that is right on the first ``right`` images, and a hop that changes the last."""
    logits = np.zeros((IMAGES, 3), np.float32)
    logits[:, 1] = 1.0
    other = logits.copy()
    other[IMAGES - changed :, 2] = 2.0
    labels = np.where(np.arange(IMAGES) < right, 1, 0)
    tally = Tally()
    tally.add(other, labels, np.arange(IMAGES), logits, None)
    return tally


@pytest.mark.parametrize("informative", [True, False])
@pytest.mark.parametrize(("right", "verdict"), [(0, "inconclusive"), (1, "pass")])
def test_a_reference_that_is_never_right_is_no_pass(
    right: int, verdict: str, informative: bool
) -> None:
    gates = Gates(max_drop_pp=1.0)
    found = Classification().verdict(_tally(right, 0), gates, labels_informative=informative)
    assert found == verdict


def test_a_failure_stays_one() -> None:
    gates = Gates(max_drop_pp=1.0, max_flips=0.01)
    assert Classification().verdict(_tally(0, 1000), gates, labels_informative=False) == "fail"
