"""The script that times the reading of boxes."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import detection_boxes
import pytest

from optimizer.models import DetectorSpec


def test_it_writes_a_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(detection_boxes, "CANDIDATES", (50,))
    output = tmp_path / "boxes.json"
    monkeypatch.setattr(sys, "argv", ["x", "--repetitions", "2", "-o", str(output)])
    detection_boxes.main()
    record = json.loads(output.read_text())
    assert [row["kind"] for row in record["rows"]] == ["retinanet", "fcos"]
    for row in record["rows"]:
        assert 0 < row["boxes"] <= row["candidates"] == 50
        assert 0 < row["median_ms"] <= row["p95_ms"]
    assert capsys.readouterr().out.count("50 candidates") == 2


def test_so_many_candidates_pass_the_threshold() -> None:
    from optimizer.data import Preprocessing
    from optimizer.tasks.boxes import BoxReader

    for kind in ("retinanet", "fcos"):
        spec = DetectorSpec.of(kind, detection_boxes.IMAGE_SIZE, detection_boxes.CLASSES)
        reader = BoxReader(spec, Preprocessing.detection(spec.image_size))
        candidates, _ = reader._candidates(detection_boxes.outputs_with(spec, 100))
        assert len(candidates) == 100
