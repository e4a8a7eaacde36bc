"""Running sums compared with the same numbers computed from all images at once."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from optimizer.tasks.tally import Tally, label_rank


def _case(seed: int, n: int, classes: int) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(seed)
    reference = rng.normal(size=(n, classes)).astype(np.float32)
    parent = (reference + rng.normal(scale=0.3, size=reference.shape)).astype(np.float32)
    logits = (parent + rng.normal(scale=0.5, size=reference.shape)).astype(np.float32)
    return reference, parent, logits, rng.integers(0, classes, n)


@given(st.integers(0, 2**32 - 1), st.integers(2, 60), st.integers(2, 12), st.integers(1, 59))
@settings(max_examples=60, deadline=None)
def test_batches_add_up_to_the_whole(seed: int, n: int, classes: int, cut: int) -> None:
    reference, parent, logits, labels = _case(seed, n, classes)
    cut = min(cut, n)
    first, second, whole = Tally(), Tally(), Tally()
    index = np.arange(n)
    for tally, part in ((first, slice(0, cut)), (second, slice(cut, n)), (whole, slice(0, n))):
        if len(index[part]):
            tally.add(logits[part], labels[part], index[part], reference[part], parent[part])
    first.merge(second)
    for name in ("n", "correct", "correct5", "losses", "gains", "flips", "flips_vs_parent"):
        assert getattr(first, name) == getattr(whole, name)
    assert first.noise.db == pytest.approx(whole.noise.db, abs=1e-9)
    assert (first.max_abs_diff, first.worst) == (whole.max_abs_diff, whole.worst)

    right, before = logits.argmax(1) == labels, reference.argmax(1) == labels
    assert whole.correct == right.sum()
    assert whole.losses == (before & ~right).sum()
    assert whole.gains == (right & ~before).sum()
    assert whole.flips == (logits.argmax(1) != reference.argmax(1)).sum()
    assert whole.flips_vs_parent == (logits.argmax(1) != parent.argmax(1)).sum()
    assert whole.paired.drop == pytest.approx(before.mean() - right.mean())
    difference = np.abs(logits.astype(np.float64) - reference)
    assert whole.max_abs_diff == difference.max()
    assert whole.worst == difference.max(axis=1).argmax()
    exact = reference.astype(np.float64)
    db = 10 * np.log10((exact**2).sum() / ((logits - exact) ** 2).sum())
    assert whole.noise.db == pytest.approx(db)


@given(arrays(np.float32, (6, 7), elements=st.integers(-3, 3).map(float)))
@settings(max_examples=60, deadline=None)
def test_ties_are_broken_like_argmax(logits: np.ndarray) -> None:
    for label in range(7):
        labels = np.full(6, label)
        assert ((label_rank(logits, labels) == 0) == (logits.argmax(1) == label)).all()
        order = np.argsort(-logits, axis=1, kind="stable")
        assert (label_rank(logits, labels) == (order == label).argmax(1)).all()


def test_top5_of_five_classes_is_undefined() -> None:
    reference, _, logits, labels = _case(0, 8, 5)
    tally = Tally()
    tally.add(logits, labels, np.arange(8), reference, None)
    assert tally.top5 is None
    assert tally.n_vs_parent == 0


def test_identical_outputs_have_no_noise_and_no_worst_image() -> None:
    reference, _, _, labels = _case(1, 8, 6)
    tally = Tally()
    tally.add(reference, labels, np.arange(8), reference, reference)
    assert (tally.noise.db, tally.worst, tally.max_abs_diff, tally.flips) == (None, None, 0.0, 0)
