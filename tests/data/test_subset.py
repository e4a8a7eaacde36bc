from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimizer.data import stratified_subset
from optimizer.errors import DataError

LABELS = st.lists(st.integers(0, 6), min_size=1, max_size=200).map(
    lambda values: np.array(values, dtype=np.int64)
)


@given(LABELS, st.integers(1, 250), st.integers(0, 5))
def test_it_is_a_subset_of_the_right_size(labels: np.ndarray, count: int, seed: int) -> None:
    chosen = stratified_subset(labels, count, seed)
    assert chosen.dtype == np.int64
    assert len(chosen) == min(count, len(labels))
    assert (np.diff(chosen) > 0).all()
    assert chosen.min() >= 0
    assert chosen.max() < len(labels)


@given(LABELS, st.integers(1, 250), st.integers(0, 5))
def test_each_class_keeps_its_share(labels: np.ndarray, count: int, seed: int) -> None:
    chosen = labels[stratified_subset(labels, count, seed)]
    for label in np.unique(labels):
        exact = (labels == label).sum() * min(count, len(labels)) / len(labels)
        assert abs((chosen == label).sum() - exact) < 1


@given(LABELS, st.integers(1, 250), st.integers(0, 5))
def test_it_is_fixed_by_the_seed(labels: np.ndarray, count: int, seed: int) -> None:
    np.testing.assert_array_equal(
        stratified_subset(labels, count, seed), stratified_subset(labels, count, seed)
    )


def test_the_choice_never_changes() -> None:
    # Hard-coded so that a change by another NumPy, machine or release is noticed.
    labels = np.array([0, 0, 0, 0, 1, 1, 1, 1, 1, 1], dtype=np.int64)
    assert stratified_subset(labels, 5, 0).tolist() == [2, 3, 4, 5, 6]
    assert stratified_subset(labels, 5, 1).tolist() != [2, 3, 4, 5, 6]


def test_zero_images_are_rejected() -> None:
    with pytest.raises(DataError, match="at least one"):
        stratified_subset(np.zeros(3, dtype=np.int64), 0)
