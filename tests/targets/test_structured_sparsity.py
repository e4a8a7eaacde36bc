from __future__ import annotations

import numpy as np
import pytest

from optimizer.targets.structured_sparsity import can_be_sparse, has_pattern, magnitude_mask


def test_the_two_largest_of_four_input_channels_are_kept() -> None:
    weight = np.array([[1.0, -4.0, 3.0, 2.0, 0.0, 0.0, 0.0, 5.0]], np.float32)
    assert magnitude_mask(weight).tolist() == [[False, True, True, False, True, False, False, True]]


@pytest.mark.parametrize("shape", [(3, 8), (5, 4, 3, 3), (2, 12, 1, 1)])
def test_each_position_of_the_kernel_has_the_pattern(shape: tuple[int, ...]) -> None:
    """Counted group by group, and no other two weights of a group are larger in sum."""
    weight = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    mask = magnitude_mask(weight)
    assert not has_pattern(weight)
    assert has_pattern(weight * mask)
    assert mask.mean() == 0.5
    for output in range(shape[0]):
        for start in range(0, shape[1], 4):
            for position in np.ndindex(shape[2:]):
                index = (output, slice(start, start + 4), *position)
                kept = np.abs(weight[index])[mask[index]]
                assert kept.tolist() == pytest.approx(
                    [v for v in np.abs(weight[index]) if v in np.sort(np.abs(weight[index]))[2:]]
                )


def test_layers_without_the_pattern() -> None:
    assert can_be_sparse((64, 64, 3, 3))
    assert not can_be_sparse((64, 3, 7, 7))
    assert not can_be_sparse((64, 8, 3, 3), groups=8)
    assert not has_pattern(np.zeros((4, 4), np.int8))
    assert not has_pattern(np.ones((4, 3), np.int8))
    dense_at_one_position = np.zeros((1, 4, 1, 2), np.int8)
    dense_at_one_position[0, :3, 0, 1] = 1
    assert not has_pattern(dense_at_one_position)
