"""Several processes: each image counts exactly once, and all get the same result."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from optimizer.data import Preprocessing, open_dataset
from optimizer.engines.onnxruntime import as_written
from optimizer.evaluation import Chain, validate
from optimizer.results import Gates
from optimizer.tasks.predictions import read_predictions
from tests.evaluation.graphs import PREPROCESSING, classifier

pytestmark = pytest.mark.slow

IMAGES = 103  # no multiple of two processes or of the batch


def _validate(folder: Path, predictions: Path) -> str:
    result = validate(
        [Chain.of(folder / "other.onnx")],
        folder / "reference.onnx",
        open_dataset(folder / "data.npz"),
        Gates(max_drop_pp=1.0),
        batch=8,
        predictions=predictions,
    )
    return result.model_copy(
        update={"created": "", "predictions_file": "", "predictions_sha256": None}
    ).model_dump_json()


def _process(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2
    )
    try:
        text = _validate(folder, folder / f"p{rank}.npz")
        (folder / f"result{rank}.json").write_text(text)
    finally:
        dist.destroy_process_group()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    reference = classifier(tmp_path / "reference.onnx")
    classifier(tmp_path / "other.onnx", seed=5, precision="int8")
    (pixels,) = open_dataset("digits:test", limit=IMAGES).batches(
        IMAGES, Preprocessing(resize=None, crop=8), as_uint8=True
    )
    logits = as_written(reference).run(PREPROCESSING.normalize(pixels.images))
    np.savez(tmp_path / "data.npz", images=pixels.images, labels=logits.argmax(axis=1))
    return tmp_path


def test_two_processes_give_the_same_result_as_one(folder: Path) -> None:
    alone = json.loads(_validate(folder, folder / "alone.npz"))
    mp.start_processes(_process, args=(folder,), nprocs=2, start_method="spawn")
    results = [json.loads((folder / f"result{rank}.json").read_text()) for rank in range(2)]
    assert results[0] == results[1]
    assert results[0]["dataset"]["n"] == IMAGES
    for single, sharded in zip(alone["hops"], results[0]["hops"], strict=True):
        for name, value in single.items():
            if isinstance(value, float):
                assert sharded[name] == pytest.approx(value, rel=1e-6)
            else:
                assert sharded[name] == value
    expected, actual = (
        read_predictions(folder / "alone.npz"),
        read_predictions(folder / "p0.npz"),
    )
    assert actual.image_ids == expected.image_ids
    assert (actual.labels == expected.labels).all()
    for hop in expected.classes:
        assert (actual.classes[hop] == expected.classes[hop]).all()


def test_the_command_under_torchrun(folder: Path) -> None:
    """One result is written; it counts each image once and equals that of one process."""
    root = Path(__file__).resolve().parents[2]
    run = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
         "-m", "optimizer", "validate", "other.onnx", "--reference", "reference.onnx",
         "--data", "data.npz", "--max-drop", "100pp", "--batch", "8", "-o", "v.json"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("details in v.json") == 1
    result = json.loads((folder / "v.json").read_text())
    assert result["dataset"]["n"] == IMAGES
    alone = json.loads(_validate(folder, folder / "alone.npz"))
    for single, sharded in zip(alone["hops"], result["hops"], strict=True):
        assert [sharded[key] for key in ("n", "top1", "flips")] == [
            single[key] for key in ("n", "top1", "flips")
        ]
    predictions = read_predictions(folder / "v.predictions.npz")
    assert predictions.image_ids == read_predictions(folder / "alone.npz").image_ids
