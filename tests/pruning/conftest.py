"""A tiny trained network, and what a pruning of it needs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from optimizer.data import open_dataset
from optimizer.models import Model, save_checkpoint
from optimizer.options import TableOptions, TrainOptions
from optimizer.pruning import check_prunable
from optimizer.pruning.table_roofline import roofline_table
from optimizer.results import write_result
from optimizer.search.cost import GPU
from optimizer.training import train
from tests.pruning.networks import tiny


@pytest.fixture(scope="session")
def learned() -> Model:
    """A tiny network that reads most digits."""
    options = TrainOptions(epochs=5, batch_size=16, lr=0.05)
    return replace(
        train(
            open_dataset("digits:train", limit=480, workers=0), options, init=tiny("resnet18")
        ).model,
        source="learned",
    )


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Some of the digits, as pixels in a file."""
    from sklearn.datasets import load_digits

    found = load_digits()
    pixels = (found.images[:420] * 15).astype(np.uint8)
    path = tmp_path_factory.mktemp("data") / "digits.npz"
    np.savez(path, images=np.repeat(pixels[..., None], 3, axis=3), labels=found.target[:420])
    return str(path)


@pytest.fixture(scope="session")
def checkpoint(learned: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    return save_checkpoint(learned, path, details={}).path


@pytest.fixture(scope="session")
def table(learned: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A modelled table, so that no test depends on how busy the machine is."""
    made = roofline_table(
        learned, check_prunable(learned), TableOptions(batch="1,8"), "openvino", GPU, "a test"
    )
    path = tmp_path_factory.mktemp("table") / "table.json"
    write_result(made, path)
    return path
