"""Several processes: each image counts exactly once, and all end with the same result."""

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
from optimizer.evaluation.predictions import read_predictions
from optimizer.results import Gates
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
    return result.model_copy(update={"created": "", "predictions_file": ""}).model_dump_json()


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


def test_two_processes_give_what_one_gives(folder: Path) -> None:
    alone = json.loads(_validate(folder, folder / "alone.npz"))
    mp.start_processes(_process, args=(folder,), nprocs=2, start_method="spawn")
    results = [json.loads((folder / f"result{rank}.json").read_text()) for rank in range(2)]
    assert results[0] == results[1]
    assert results[0]["dataset"]["n"] == IMAGES
    for one, both in zip(alone["hops"], results[0]["hops"], strict=True):
        for name, value in one.items():
            if isinstance(value, float):
                assert both[name] == pytest.approx(value, rel=1e-6)
            else:
                assert both[name] == value
    expected, found = (
        read_predictions(folder / "alone.npz"),
        read_predictions(folder / "p0.npz"),
    )
    assert found.image_ids == expected.image_ids
    assert (found.labels == expected.labels).all()
    for hop in expected.classes:
        assert (found.classes[hop] == expected.classes[hop]).all()


def test_torchrun_needs_nothing_else(folder: Path) -> None:
    script = folder / "job.py"
    script.write_text(
        "import os\n"
        "from pathlib import Path\n"
        "from tests.evaluation.test_shards import _validate\n"
        "here = Path(__file__).parent\n"
        "rank = os.environ['RANK']\n"
        "(here / f'result{rank}.json').write_text(_validate(here, here / f'p{rank}.npz'))\n"
    )
    root = Path(__file__).resolve().parents[2]
    run = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
         str(script)],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    results = [json.loads((folder / f"result{rank}.json").read_text()) for rank in range(2)]
    assert results[0] == results[1]
    assert results[0]["dataset"]["n"] == IMAGES
    assert [hop["n"] for hop in results[0]["hops"]] == [IMAGES, IMAGES]
    assert (folder / "p0.npz").is_file()
    assert not (folder / "p1.npz").exists()
