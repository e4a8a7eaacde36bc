"""Timing of a validation, and validation of files decoded by worker processes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from optimizer.data import Preprocessing, open_dataset
from optimizer.errors import DataError
from optimizer.evaluation import Chain, validate
from optimizer.evaluation.clock import CONSISTENCY, Clock
from optimizer.results import Gates, ValidateResult
from optimizer.tasks.predictions import read_predictions
from tests.evaluation.graphs import classifier

BAD = "3/0005.png"


def test_time_is_charged_to_the_hop_that_spends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    now = {"wall": 100.0, "cpu": 7.0}
    time = SimpleNamespace(perf_counter=lambda: now["wall"], process_time=lambda: now["cpu"])
    monkeypatch.setattr("optimizer.evaluation.clock.time", time)

    def spend(wall: float, cpu: float) -> None:
        now["wall"] += wall
        now["cpu"] += cpu

    clock = Clock()
    spend(4.0, 4.0)  # opening the engines

    def batches() -> Iterator[int]:
        for batch in range(3):
            spend(0.5, 0.0)
            yield batch

    yielded = []
    for batch in clock.waiting_for(batches()):
        yielded.append(batch)
        with clock.computing("engine"):
            spend(1.0, 2.0)
        with clock.computing("other"):
            spend(0.25, 0.125)
        with clock.computing(CONSISTENCY):
            spend(0.125, 0.25)
    timing = clock.result(decoding_cpu_s=1.5)
    assert yielded == [0, 1, 2]
    assert timing.waiting_s == 3 * 0.5
    assert list(timing.hops_cpu_s.items()) == [("engine", 3 * 2.0), ("other", 3 * 0.125)]
    assert timing.decoding_cpu_s == 1.5
    assert timing.consistency_cpu_s == 3 * 0.25
    assert timing.pass_s == 3 * (0.5 + 1.0 + 0.25 + 0.125)
    assert timing.wall_s == 4.0 + timing.pass_s


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hundred digits as PNG files, one of them damaged, and a classifier for them."""
    root = tmp_path_factory.mktemp("files")
    digits = open_dataset("digits:test", limit=100)
    (pixels,) = digits.batches(100, Preprocessing(resize=None, crop=8), as_uint8=True)
    for index, (image, label) in enumerate(zip(pixels.images, digits.labels, strict=True)):
        path = root / "data" / str(label) / f"{index:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    (root / "data" / BAD).write_bytes((root / "data" / BAD).read_bytes()[:60])
    classifier(root / "reference.onnx", classes=tuple("0123456789"))
    return root


def _validate(folder: Path, workers: int) -> ValidateResult:
    return validate(
        [Chain(label="same", graph=folder / "reference.onnx")],
        folder / "reference.onnx",
        open_dataset(folder / "data", skip_bad_images=True, workers=workers),
        Gates(max_drop_pp=10.0),
        batch=16,
        predictions=folder / f"{workers}.npz",
    )


def test_workers_change_only_the_timing(folder: Path) -> None:
    without, with_workers = (_validate(folder, workers) for workers in (0, 2))
    same = {"created": "", "timing": None, "predictions_file": None}
    assert with_workers.model_copy(update=same) == without.model_copy(update=same)
    assert (with_workers.dataset.n, with_workers.dataset.skipped) == (99, [BAD])
    assert (with_workers.hops[1].flips, with_workers.hops[1].drop_pp) == (0, 0.0)
    for workers, result in ((0, without), (2, with_workers)):
        names = read_predictions(folder / f"{workers}.npz").image_ids
        assert len(names) == 99
        assert BAD not in names
        assert result.timing is not None
        assert result.timing.decoding_cpu_s > 0
        assert set(result.timing.hops_cpu_s) == {hop.name for hop in result.hops}


def test_decoding_before_the_validation_is_not_charged(folder: Path) -> None:
    data = open_dataset(folder / "data", skip_bad_images=True).verify()
    data.spent.cpu_s = 1000.0
    result = validate(
        [Chain(label="same", graph=folder / "reference.onnx")],
        folder / "reference.onnx",
        data,
        Gates(max_drop_pp=10.0),
    )
    assert result.timing is not None
    assert 0 < result.timing.decoding_cpu_s < 100


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_image_is_an_error_with_its_name(folder: Path, workers: int) -> None:
    with pytest.raises(DataError, match=rf"{BAD}.*--skip-bad-images"):
        validate(
            [Chain(label="same", graph=folder / "reference.onnx")],
            folder / "reference.onnx",
            open_dataset(folder / "data", workers=workers),
            Gates(max_drop_pp=10.0),
        )
