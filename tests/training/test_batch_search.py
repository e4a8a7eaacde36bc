from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from optimizer.data import ImageDataset, open_dataset
from optimizer.errors import EnvironmentFault, UsageError
from optimizer.options import TrainOptions
from optimizer.processes import call
from optimizer.training import batch_search, train, train_checkpoint
from optimizer.training.batch_search import largest_that_fits, sized
from optimizer.training.distribution import World
from optimizer.training.training_job import TrainingJob, prepare

CPU = torch.device("cpu")
SMALL: dict[str, Any] = {"arch": "resnet18", "image_size": 32, "epochs": 1, "batch_size": 16}


@pytest.fixture(scope="module")
def few() -> ImageDataset:
    return open_dataset("digits:train", limit=64)


def job_of(data: ImageDataset, **options: Any) -> TrainingJob:
    return prepare(TrainOptions.parse({**SMALL, **options}), data, None, None)


@pytest.mark.parametrize("limit", [0, 1, 2, 3, 5, 17, 64, 1000, 4000])
@pytest.mark.parametrize("most", [2, 3, 63, 64, 1257])
def test_the_largest_batch_is_found_with_few_steps(limit: int, most: int) -> None:
    tried: list[int] = []

    def fits(batch: int) -> bool:
        tried.append(batch)
        return batch <= limit

    found = largest_that_fits(fits, most)
    best = min(limit, most)
    assert found <= best
    assert found >= best - max(1, best // 16) + 1 if best >= 2 else found == 0
    assert max(tried) <= most
    assert len(tried) == len(set(tried)) <= 16


@pytest.mark.parametrize(
    ("options", "processes", "batch", "accumulate"),
    [
        ({"effective_batch": 64}, 1, 16, 4),
        ({"effective_batch": 64}, 2, 16, 2),
        ({"effective_batch": 24}, 1, 12, 2),
        ({"effective_batch": 8}, 1, 8, 1),
        ({}, 1, 16, 1),
    ],
)
def test_accumulation_keeps_the_images_per_step(
    few: ImageDataset, options: dict[str, Any], processes: int, batch: int, accumulate: int
) -> None:
    settings = sized(job_of(few, **options), World(0, processes), CPU, None).settings
    assert (settings.batch_size, settings.accumulate) == (batch, accumulate)


@pytest.mark.parametrize(("images", "processes"), [(17, 1), (6, 4), (37, 2)])
def test_what_cannot_be_divided_is_refused_with_a_number_that_can(
    few: ImageDataset, images: int, processes: int
) -> None:
    world = World(0, processes)
    with pytest.raises(UsageError, match=f"{images} images per step cannot be divided") as caught:
        sized(job_of(few, effective_batch=images), world, CPU, None)
    hinted = int(str(caught.value.hint).split()[-1])
    assert sized(job_of(few, effective_batch=hinted), world, CPU, None).settings.batch_size


def test_a_training_with_accumulation_says_so(few: ImageDataset) -> None:
    options = TrainOptions.parse({**SMALL, "image_size": 8, "effective_batch": 32})
    trained = train(few, options)
    assert "batches of 16 images, 2 per step" in trained.notes
    assert len(trained.losses) == 1


@pytest.mark.long
def test_what_is_found_on_a_cpu_fits(few: ImageDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """The memory of a step of the size that was found is measured."""
    job = job_of(few, arch="resnet50", image_size=64)
    free = call("optimizer.training.batch_search:step_memory", [job, (2,)])[0] + (400 << 20)
    monkeypatch.setattr(batch_search, "available_memory", lambda: free)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    found = batch_search._on_cpu(job, 1000)
    assert 8 <= found < 1000
    (used,) = call("optimizer.training.batch_search:step_memory", [job, (found,)])
    assert 0.6 * free < used < free
    monkeypatch.setattr(batch_search, "available_memory", lambda: 1 << 20)
    with pytest.raises(EnvironmentFault, match="not even 2 images"):
        sized(job_of(few, find_batch_size=True), World(), CPU, None)


@pytest.mark.long
def test_a_continued_training_keeps_its_batch(few: ImageDataset, tmp_path: Path) -> None:
    options = {**SMALL, "image_size": 8, "find_batch_size": True, "epochs": 2}
    artifact = train_checkpoint(TrainOptions.parse(options), few, tmp_path / "m.safetensors")
    assert artifact.manifest.settings["batch_size"] == 64
    assert "batches of 64 images: all images" in artifact.manifest.details["notes"]
