"""A killed calibration loses at most one shard, and its rerun gives the same file."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from optimizer.artifacts import Cache, tensor_files
from optimizer.data import ImageDataset, open_dataset
from optimizer.errors import DataError
from optimizer.precision import calibrate
from optimizer.precision.int8 import Collector
from optimizer.progress import Silent
from tests.evaluation.graphs import classifier

IMAGES = 600
SHARD = 256


class Notes(Silent):
    """Remembers what a step says at its end."""

    def __init__(self) -> None:
        self.last = ""

    def finish(self, note: str | None = None) -> None:
        self.last = str(note)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small graph, images, and the statistics of an undisturbed calibration."""
    folder = tmp_path_factory.mktemp("calibration")
    classifier(folder / "model.onnx")
    pixels = np.random.default_rng(2).integers(0, 256, (IMAGES, 8, 8, 3), dtype=np.uint8)
    np.savez(folder / "data.npz", images=pixels)
    calibrate(folder / "model.onnx", _data(folder), folder / "undisturbed.npz")
    return folder


def _data(folder: Path, **options: bool) -> ImageDataset:
    return open_dataset(folder / "data.npz", labelled=False, **options)


def _calibrate(
    folder: Path, cache: Path, output: Path, data: ImageDataset | None = None
) -> tuple[bytes, str]:
    """The statistics file, and what the step said at its end."""
    notes = Notes()
    calibrate(
        folder / "model.onnx", data or _data(folder), output, cache=Cache(cache), progress=notes
    )
    return output.read_bytes(), notes.last


def _stored(cache: Path) -> list[Path]:
    return list((cache / "calibrations").glob("*"))


class Dies:
    """Interrupts the collector after a number of images, and counts what it is given."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.images, self.after = 0, IMAGES + 1
        add = Collector.add

        def counted(collector: Collector, batch: np.ndarray) -> None:
            if self.images >= self.after:
                raise KeyboardInterrupt
            self.images += len(batch)
            add(collector, batch)

        monkeypatch.setattr(Collector, "add", counted)


@pytest.mark.parametrize("reached", [0, 32, SHARD, SHARD + 32, 2 * SHARD, IMAGES - 32])
def test_an_interrupt_loses_at_most_one_shard(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reached: int
) -> None:
    dies = Dies(monkeypatch)
    dies.after = reached
    with pytest.raises(KeyboardInterrupt):
        _calibrate(folder, tmp_path / "cache", tmp_path / "s.npz")
    reached, dies.images, dies.after = dies.images, 0, IMAGES + 1
    written, said = _calibrate(folder, tmp_path / "cache", tmp_path / "s.npz")
    assert written == (folder / "undisturbed.npz").read_bytes()
    assert dies.images <= IMAGES - reached + SHARD
    found = IMAGES - dies.images
    assert (f"statistics of {found} images were stored before" in said) == (found > 0)
    assert not _stored(tmp_path / "cache")


@pytest.mark.slow
def test_kills_at_any_moment(folder: Path, tmp_path: Path) -> None:
    """Real processes, ended by SIGKILL when their first file appears and when it is replaced."""
    code = (
        "import sys, pathlib\n"
        "from optimizer.artifacts import Cache\n"
        "from optimizer.data import open_dataset\n"
        "from optimizer.precision import calibrate\n"
        "folder, cache, output = map(pathlib.Path, sys.argv[1:])\n"
        "data = open_dataset(folder / 'data.npz', labelled=False)\n"
        "calibrate(folder / 'model.onnx', data, output, cache=Cache(cache))\n"
    )
    command = [sys.executable, "-c", code, folder, tmp_path / "cache", tmp_path / "s.npz"]
    with subprocess.Popen(list(map(str, command))) as child:
        while child.poll() is None and not _stored(tmp_path / "cache"):
            time.sleep(0.001)
        child.send_signal(signal.SIGKILL)
    assert child.returncode in {-signal.SIGKILL, 0}
    written, _ = _calibrate(folder, tmp_path / "cache", tmp_path / "s.npz")
    assert written == (folder / "undisturbed.npz").read_bytes()


def _process(rank: int, folder: Path, output: Path, world: int, dying: int | None) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{output}/rendezvous", rank=rank, world_size=world
    )
    if rank == dying:
        add = Collector.add
        seen = 0

        def die_in_the_second_shard(collector: Collector, batch: np.ndarray) -> None:
            nonlocal seen
            seen += len(batch)
            if seen > SHARD:
                os._exit(9)
            add(collector, batch)

        Collector.add = die_in_the_second_shard  # type: ignore[method-assign]
    _calibrate(folder, output / "cache", output / "s.npz")
    dist.destroy_process_group()


@pytest.mark.long
@pytest.mark.parametrize("world", [2, 3])
def test_several_processes_give_the_result_of_one(folder: Path, tmp_path: Path, world: int) -> None:
    arguments = (folder, tmp_path, world, None)
    mp.start_processes(_process, args=arguments, nprocs=world, start_method="spawn")
    assert (tmp_path / "s.npz").read_bytes() == (folder / "undisturbed.npz").read_bytes()


@pytest.mark.long
def test_a_process_that_dies_leaves_its_shards_to_any_number_of_processes(
    folder: Path, tmp_path: Path
) -> None:
    arguments = (folder, tmp_path, 2, 0)  # the first of two processes has two of the three shards
    with pytest.raises(Exception, match=r"terminated|exit"):
        mp.start_processes(_process, args=arguments, nprocs=2, start_method="spawn")
    assert _stored(tmp_path / "cache")
    written, said = _calibrate(folder, tmp_path / "cache", tmp_path / "s.npz")
    assert written == (folder / "undisturbed.npz").read_bytes()
    assert "were stored before" in said


def test_a_damaged_file_is_computed_again(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dies = Dies(monkeypatch)
    dies.after = SHARD + 32
    with pytest.raises(KeyboardInterrupt):
        _calibrate(folder, tmp_path / "cache", tmp_path / "s.npz")
    (stored,) = _stored(tmp_path / "cache")
    content = bytearray(stored.read_bytes())
    content[len(content) // 2] ^= 1
    stored.write_bytes(content)
    dies.after, dies.images = IMAGES + 1, 0
    written, said = _calibrate(folder, tmp_path / "cache", tmp_path / "s.npz")
    assert written == (folder / "undisturbed.npz").read_bytes()
    assert "stored before" not in said
    assert dies.images == IMAGES


def test_a_full_disk_costs_only_what_would_have_been_stored(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(tensor_files, "write_atomically", full)
    written, said = _calibrate(folder, tmp_path / "cache", tmp_path / "s.npz")
    assert written == (folder / "undisturbed.npz").read_bytes()
    assert "cannot be stored: No space left on device" in said


def test_bad_images_are_remembered_over_runs(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from PIL import Image

    images = tmp_path / "images"
    images.mkdir()
    small = np.random.default_rng(4).integers(0, 256, (SHARD + 8, 8, 8, 3), dtype=np.uint8)
    for number, pixels in enumerate(small):
        Image.fromarray(pixels).save(images / f"{number:03d}.png")
    (images / "003.png").write_bytes((images / "003.png").read_bytes()[:40])

    def opened(skip: bool) -> ImageDataset:
        return open_dataset(images, labelled=False, skip_bad_images=skip, workers=0)

    undisturbed, _ = _calibrate(folder, tmp_path / "other", tmp_path / "u.npz", opened(True))
    dies = Dies(monkeypatch)
    dies.after = SHARD - 1
    with pytest.raises(KeyboardInterrupt):
        _calibrate(folder, tmp_path / "cache", tmp_path / "s.npz", opened(True))
    dies.after, dies.images = IMAGES, 0
    data = opened(True)
    written, _ = _calibrate(folder, tmp_path / "cache", tmp_path / "s.npz", data)
    assert written == undisturbed
    assert dies.images == 8
    assert data.skipped == ["003.png"]
    shutil.rmtree(tmp_path / "cache")
    dies.after, dies.images = SHARD - 1, 0
    with pytest.raises(KeyboardInterrupt):
        _calibrate(folder, tmp_path / "cache", tmp_path / "t.npz", opened(True))
    with pytest.raises(DataError, match=r"003\.png"):
        _calibrate(folder, tmp_path / "cache", tmp_path / "t.npz", opened(False))
