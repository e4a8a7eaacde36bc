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

IMAGES = 539  # three shards, for two processes; no multiple of the batch


def _validate(folder: Path, predictions: Path, until_decided: bool = False) -> str:
    result = validate(
        [Chain.of(folder / "other.onnx")],
        folder / "reference.onnx",
        open_dataset(folder / "data.npz"),
        Gates(max_drop_pp=90.0 if until_decided else 1.0),
        batch=8,
        predictions=predictions,
        until_decided=until_decided,
    )
    return result.model_copy(
        update={
            "created": "",
            "predictions_file": "",
            "predictions_sha256": None,
            "timing": None,
        }
    ).model_dump_json()


def _process(rank: int, folder: Path, world: int, until_decided: bool) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world
    )
    try:
        text = _validate(folder, folder / f"p{rank}.npz", until_decided)
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


@pytest.mark.parametrize("until_decided", [False, pytest.param(True, marks=pytest.mark.long)])
@pytest.mark.parametrize("world", [2, pytest.param(3, marks=pytest.mark.long)])
def test_several_processes_give_the_result_of_one(
    folder: Path, world: int, until_decided: bool
) -> None:
    """Bit for bit, since shards are summed up in their order."""
    alone = json.loads(_validate(folder, folder / "alone.npz", until_decided))
    arguments = (folder, world, until_decided)
    mp.start_processes(_process, args=arguments, nprocs=world, start_method="spawn")
    results = [json.loads((folder / f"result{rank}.json").read_text()) for rank in range(world)]
    assert results == [alone] * world
    assert alone["dataset"]["n"] == (256 if until_decided else IMAGES)
    expected, actual = (
        read_predictions(folder / "alone.npz"),
        read_predictions(folder / "p0.npz"),
    )
    assert actual.image_ids == expected.image_ids
    assert (actual.labels == expected.labels).all()
    for hop in expected.classes:
        assert (actual.classes[hop] == expected.classes[hop]).all()
        assert (actual.logits[hop] == expected.logits[hop]).all()


@pytest.mark.long
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
