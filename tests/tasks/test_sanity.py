"""The reference itself must reach its expected accuracy."""

from __future__ import annotations

import pytest

from optimizer.errors import AccuracyGateFailed
from optimizer.tasks.sanity import check_early, check_reference


def test_accuracy_far_below_expectation_means_wrong_data() -> None:
    with pytest.raises(AccuracyGateFailed) as caught:
        check_reference(700, 1000, 0.80, "val")
    assert caught.value.exit_code == 4
    assert "70.00 % top-1 on 1000 images of val" in caught.value.message
    assert (
        "instead of the expected 80.00 %: the data or the preprocessing is wrong"
        in caught.value.message
    )
    assert caught.value.hint is not None


def test_deviations_within_chance_and_higher_accuracy_pass() -> None:
    check_reference(780, 1000, 0.80, "val")
    check_reference(900, 1000, 0.80, "val")
    check_reference(0, 10, None, "val")
    check_reference(0, 0, 0.8, "val")


def test_a_wrong_resize_is_detected_on_all_of_imagenet_but_not_on_few_images() -> None:
    """ResNet-50 V2 with the V1 transform: 0.8 pp below its 80.858 %."""
    with pytest.raises(AccuracyGateFailed):
        check_reference(round(0.8006 * 50_000), 50_000, 0.80858, "val")
    check_reference(round(0.8006 * 1000), 1000, 0.80858, "val")


def test_the_early_check_stops_only_what_chance_cannot_explain() -> None:
    check_early(0, 100, 0.8, "val")  # too few images to decide
    check_early(375, 512, 0.8, "val")
    with pytest.raises(AccuracyGateFailed):
        check_early(51, 512, 0.8, "val")
