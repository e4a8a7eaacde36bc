"""Where the time goes, and a validation of files that worker processes decode."""

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
from optimizer.evaluation.predictions import read_predictions
from optimizer.results import Gates, ValidateResult
from tests.evaluation.graphs import classifier

BAD = "3/0005.png"


def test_each_second_is_booked_where_it_is_spent(monkeypatch: pytest.MonkeyPatch) -> None:
    passed = {"wall": 100.0, "cpu": 7.0}
    time = SimpleNamespace(perf_counter=lambda: passed["wall"], process_time=lambda: passed["cpu"])
    monkeypatch.setattr("optimizer.evaluation.clock.time", time)

    def spend(wall: float, cpu: float) -> None:
        passed["wall"] += wall
        passed["cpu"] += cpu

    clock = Clock()
    spend(4.0, 4.0)  # opening the engines

    def batches() -> Iterator[int]:
        for batch in range(3):
            spend(0.5, 0.0)
            yield batch

    seen = []
    for batch in clock.waiting_for(batches()):
        seen.append(batch)
        with clock.computing("engine"):
            spend(1.0, 2.0)
        with clock.computing("other"):
            spend(0.25, 0.125)
        with clock.computing(CONSISTENCY):
            spend(0.125, 0.25)
    timing = clock.result(decoding_cpu_s=1.5)
    assert seen == [0, 1, 2]
    assert timing.waiting_s == 3 * 0.5
    assert list(timing.hops_cpu_s.items()) == [("engine", 3 * 2.0), ("other", 3 * 0.125)]
    assert timing.decoding_cpu_s == 1.5
    assert timing.consistency_cpu_s == 3 * 0.25
    assert timing.pass_s == 3 * (0.5 + 1.0 + 0.25 + 0.125)
    assert timing.wall_s == 4.0 + timing.pass_s


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hundred digits as PNG files, one of which is damaged, and a classifier of them."""
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


def test_workers_change_nothing_but_the_time(folder: Path) -> None:
    alone, helped = (_validate(folder, workers) for workers in (0, 2))
    same = {"created": "", "timing": None, "predictions_file": None}
    assert helped.model_copy(update=same) == alone.model_copy(update=same)
    assert (helped.dataset.n, helped.dataset.skipped) == (99, [BAD])
    assert (helped.hops[1].flips, helped.hops[1].drop_pp) == (0, 0.0)
    for workers, result in ((0, alone), (2, helped)):
        names = read_predictions(folder / f"{workers}.npz").image_ids
        assert len(names) == 99
        assert BAD not in names
        assert result.timing is not None
        assert result.timing.decoding_cpu_s > 0
        assert set(result.timing.hops_cpu_s) == {hop.name for hop in result.hops}


def test_what_was_read_before_is_not_booked(folder: Path) -> None:
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
def test_a_damaged_image_stops_everything_by_name(folder: Path, workers: int) -> None:
    with pytest.raises(DataError, match=rf"{BAD}.*--skip-bad-images"):
        validate(
            [Chain(label="same", graph=folder / "reference.onnx")],
            folder / "reference.onnx",
            open_dataset(folder / "data", workers=workers),
            Gates(max_drop_pp=10.0),
        )
