"""The script that compares quantizers on a detector."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import detection_quantizers
import pytest

from optimizer.data import Preprocessing
from optimizer.models import load_model, save_checkpoint


@pytest.mark.long
def test_it_writes_a_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = replace(
        load_model("fcos_resnet18_fpn:random:10"),
        preprocessing=Preprocessing.detection(64),
        preprocessing_assumed=False,
    )
    save_checkpoint(model, tmp_path / "detector.safetensors", details={})
    arguments = [
        str(tmp_path / "detector.safetensors"), "--only", "onnxruntime s8 minmax", "--only", "nncf mixed",
        "--python", f"nncf={sys.executable}", "--no-engines", "--test-images", "4",
        "--calib-images", "8", "--keep", str(tmp_path / "kept"), "-o", str(tmp_path),
    ]  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["x", *arguments])
    detection_quantizers.main()
    record = json.loads((tmp_path / "quantizers.json").read_text())
    assert record["test_images"] == 4
    measured, *_ = record["rows"]
    assert measured["status"] == "ok"
    assert 0 < measured["sqnr_db"] < 80
    assert "| onnxruntime s8 minmax (onnxruntime" in capsys.readouterr().out


def test_peers_that_cannot_run_are_listed_with_the_reason() -> None:
    record = {
        "arch": "retinanet_resnet50_fpn", "image_size": 96, "test": "scenes", "test_images": 9,
        "reference": {"ap": 0.1234, "ap50": 0.2, "detections": 200, "score_threshold": 0.3},
        "rows": [
            {"name": "nncf mixed", "status": "not run", "reason": "No module named 'nncf'"},
            {"name": "ours", "status": "ok", "version": "resnet-opt 0", "sqnr_db": 34.0,
             "sqnr_scores_db": 30.0, "lost": 3, "new": 2, "drop_pp": 0.1, "drop_ci95_pp": [0, 0.2]},
        ],
        "engines": [{"engine": "openvino", "status": "ok", "computed": {"int8": 0.987}}],
    }  # fmt: skip
    text = detection_quantizers.markdown(record)
    assert "| nncf mixed | not run: No module named 'nncf' |" in text
    assert "| 3 | 2 | 2.5% |" in text
    assert "| openvino | 98.7% |" in text
