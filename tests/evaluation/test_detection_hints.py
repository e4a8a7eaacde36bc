"""What to do about an inconclusive validation of a detector."""

from __future__ import annotations

import pytest

import optimizer
from optimizer.errors import Inconclusive
from optimizer.results import DatasetInfo, DetectionMeasures, Gates, Hop, ValidateResult


@pytest.mark.parametrize(
    ("detections", "hint"), [(0, "lower --score-threshold"), (9, "raise the limit")]
)
def test_without_detections_the_threshold_is_named(detections: int, hint: str) -> None:
    measures = DetectionMeasures(
        ap=0.2, ap50=0.3, ap75=0.2, ap_small=None, ap_medium=None, ap_large=None, by_class={},
        score_threshold=0.9, detections=detections,
    )  # fmt: skip
    reference = Hop(
        name="reference", engine=None, executor="PyTorch", parent=None, precision="fp32",
        detection=measures,
    )  # fmt: skip
    result = ValidateResult(
        task="detection",
        created="2026-11-24T09:41:30+00:00",
        reference="detector.safetensors",
        dataset=DatasetInfo(name="scenes", n=9, sha256="0", image_size=64),
        hops=[reference],
        finding="9 images cannot decide",
        gates=Gates(max_drop_pp=1, max_lost=0.03, score_threshold=0.9),
        verdict="inconclusive",
    )
    with pytest.raises(Inconclusive) as caught:
        optimizer.raise_for_verdict(result)
    assert caught.value.hint is not None
    assert caught.value.hint.startswith(hint)
