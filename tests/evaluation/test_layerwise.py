"""Block-by-block comparison: naming, alignment, and where the signal falls."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optimizer.evaluation.layerwise import _ChannelSums, block_outputs
from optimizer.results import BlockNoise
from tests.evaluation.conftest import largest_fall


def test_a_block_ends_at_its_last_relu() -> None:
    tensors = [
        "conv1", "relu", "maxpool",
        "layer1.0.conv1", "layer1.0.relu", "layer1.0.conv2", "layer1.0.add", "layer1.0.relu_1",
        "layer1.1.conv1", "layer1.1.relu", "layer1.1.add", "layer1.1.relu_1",
        "avgpool", "flatten", "logits",
    ]  # fmt: skip
    assert block_outputs(tensors) == {
        "maxpool": "maxpool",
        "layer1.0": "layer1.0.relu_1",
        "layer1.1": "layer1.1.relu_1",
    }


def test_the_dequantized_tensor_is_compared_if_a_block_is_quantized() -> None:
    tensors = [
        "maxpool", "maxpool.quantized", "maxpool.dequantized",
        "layer1.0.relu.quantized", "layer1.0.relu.dequantized", "layer1.0.conv2.weight.dequantized",
        "layer1.0.add", "layer1.0.relu_1.quantized", "layer1.0.relu_1.dequantized",
        "layer1.1.relu", "layer1.1.relu_1",
    ]  # fmt: skip
    assert block_outputs(tensors) == {
        "maxpool": "maxpool.dequantized",
        "layer1.0": "layer1.0.relu_1.dequantized",
        "layer1.1": "layer1.1.relu_1",
    }


def _sums(reference: np.ndarray, other: np.ndarray, parts: int = 3) -> _ChannelSums:
    sums = _ChannelSums(reference.shape[1])
    for expected, actual in zip(
        np.array_split(reference, parts), np.array_split(other, parts), strict=True
    ):
        sums.add(expected, actual)
    return sums


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_aligned_noise_is_the_residual_of_least_squares(seed: int) -> None:
    rng = np.random.default_rng(seed)
    reference = rng.normal(size=(9, 4, 3, 3)).astype(np.float32)
    other = (reference + rng.normal(scale=0.2, size=reference.shape)).astype(np.float32)
    noise = 0.0
    for channel in range(4):
        x, y = other[:, channel].ravel(), reference[:, channel].ravel()
        design = np.stack([x, np.ones_like(x)], axis=1).astype(np.float64)
        noise += float(np.linalg.lstsq(design, y.astype(np.float64))[1][0])
    expected = 10 * np.log10((reference.astype(np.float64) ** 2).sum() / noise)
    assert _sums(reference, other).aligned_db == pytest.approx(expected, abs=1e-6)
    exact = reference.astype(np.float64)
    plain = 10 * np.log10((exact**2).sum() / ((other - exact) ** 2).sum())
    assert _sums(reference, other).plain_db == pytest.approx(plain, abs=1e-6)


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_scale_and_offset_of_a_channel_do_not_count_as_noise(seed: int) -> None:
    """Equalization and shifted tensors change the values but not the information."""
    rng = np.random.default_rng(seed)
    reference = rng.normal(size=(9, 4, 3, 3)).astype(np.float32)
    noisy = reference + rng.normal(scale=0.1, size=reference.shape)
    factor = rng.uniform(0.2, 5, (1, 4, 1, 1))
    moved = (noisy - rng.normal(size=(1, 4, 1, 1))) / factor
    before, after = _sums(reference, noisy), _sums(reference, moved)
    assert after.aligned_db == pytest.approx(before.aligned_db, abs=1e-4)
    assert after.plain_db is not None
    assert before.plain_db is not None
    assert after.plain_db < before.plain_db


def test_identical_tensors_and_dead_channels() -> None:
    reference = np.random.default_rng(0).normal(size=(6, 3, 2, 2)).astype(np.float32)
    reference[:, 1] = 0
    assert _sums(reference, reference).plain_db is None
    dead = reference.copy()
    dead[:, 0] = 7.0  # a constant channel carries no information
    lost = float(((reference[:, 0] - reference[:, 0].mean()) ** 2).sum())
    expected = 10 * np.log10(float((reference**2).sum()) / lost)
    assert _sums(reference, dead).aligned_db == pytest.approx(expected, abs=1e-4)


def test_the_largest_fall_is_found() -> None:
    blocks = [("maxpool", 50.0), ("layer1.0", 48.0), ("layer2.0", 20.0), ("logits", 22.0)]
    noise = [BlockNoise(module=m, sqnr_db=db) for m, db in blocks]
    assert largest_fall(noise) == ("layer2.0", 28.0)
    assert largest_fall(noise[:1]) is None
    assert largest_fall([BlockNoise(module="logits", sqnr_db=None)]) is None
