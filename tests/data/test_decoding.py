"""Worker processes: same pixels, same order, and clean termination after any failure."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from optimizer.data import ImageDataset, Preprocessing, decoding, open_dataset
from optimizer.data.decoding import decode_ahead, workers_for
from optimizer.errors import DataError, EnvironmentFault

SMALL = Preprocessing(resize=40, crop=32)
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hundred JPEG crops of two photographs, of many sizes, in two classes."""
    root = tmp_path_factory.mktemp("photos")
    random = np.random.RandomState(0)
    for label, pixels in enumerate(load_sample_images().images):
        (root / f"c{label}").mkdir()
        for i in range(50):
            width, height = random.randint(24, 200, 2)
            x, y = random.randint(0, 640 - width), random.randint(0, 427 - height)
            cut = Image.fromarray(pixels[y : y + height, x : x + width])
            cut.save(root / f"c{label}" / f"{i:02d}.jpg", quality=int(random.randint(60, 96)))
    return root


def _children() -> list[psutil.Process]:
    return [
        p
        for p in psutil.Process().children()
        if "optimizer.data.decode_worker:serve" in p.cmdline()
    ]


def _pixels(data: ImageDataset, batch: int = 16) -> np.ndarray:
    return np.concatenate([b.images for b in data.batches(batch, SMALL)])


# --- results -------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 3])
def test_workers_give_torchvisions_pixels_in_its_order(photos: Path, workers: int) -> None:
    import torch
    from torchvision import transforms
    from torchvision.datasets import ImageFolder

    pipeline = transforms.Compose(
        [
            transforms.Resize(40),
            transforms.CenterCrop(32),
            transforms.ToTensor(),
            transforms.Normalize(SMALL.mean, SMALL.std),
        ]
    )
    theirs = ImageFolder(str(photos), pipeline)
    expected = torch.stack([image for image, _ in theirs]).numpy()
    data = open_dataset(photos, workers=workers)
    read = list(data.batches(16, SMALL))
    np.testing.assert_array_equal(np.concatenate([b.images for b in read]), expected)
    assert np.concatenate([b.indices for b in read]).tolist() == list(range(100))
    assert np.concatenate([b.labels for b in read]).tolist() == theirs.targets
    assert data.spent.cpu_s > 0
    assert not _children()


def test_batch_size_and_workers_do_not_change_the_pixels(photos: Path) -> None:
    expected = _pixels(open_dataset(photos, workers=0))
    for workers, batch in ((1, 1), (2, 100), (7, 13)):
        np.testing.assert_array_equal(
            _pixels(open_dataset(photos, workers=workers), batch), expected
        )


def test_any_order_is_kept(photos: Path) -> None:
    order = np.random.RandomState(1).randint(0, 100, 300)
    plain = open_dataset(photos, workers=0)
    (everything,) = plain.batches(100, SMALL, as_uint8=True)
    read = list(open_dataset(photos, workers=2).batches(7, SMALL, as_uint8=True, order=order))
    np.testing.assert_array_equal(np.concatenate([b.indices for b in read]), order)
    images = np.concatenate([b.images for b in read])
    np.testing.assert_array_equal(images, everything.images[order])


def test_requests_never_fill_the_pipe(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With space for one request at a time, all images still arrive in order."""
    expected = _pixels(open_dataset(photos, workers=0))
    monkeypatch.setattr(decoding, "_REQUEST_BYTES", 1)
    np.testing.assert_array_equal(_pixels(open_dataset(photos, workers=2)), expected)


def test_memory_is_bounded_for_any_read_ahead(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding, "_SLOTS_BYTES", 5 * 3 * 32 * 32)
    files = sorted(photos.rglob("*.jpg"))
    with contextlib.closing(decode_ahead(files, SMALL, workers=2, ahead=10**6)) as images:
        first = next(images)
        (child, *_) = _children()
        memory = next(m for m in child.memory_maps() if m.path.endswith("/pixels"))
        assert memory.size <= 5 * 3 * 32 * 32 + 2 * 4096
        assert first.pixels is not None
        assert sum(1 for _ in images) == len(files) - 1


def test_images_in_memory_need_no_workers() -> None:
    data = open_dataset("digits:test", workers=4)
    batches = data.batches(8, SMALL)
    next(batches)
    assert not _children()
    batches.close()


def test_one_worker_per_core_and_none_for_few_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    assert [workers_for(None, n) for n in (10, 63, 64, 200, 50_000)] == [0, 0, 1, 3, 8]
    assert [workers_for(requested, 10) for requested in (0, 4, 40)] == [0, 4, 10]
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert workers_for(None, 50_000) == 2
    with pytest.raises(DataError, match="-1 worker processes"):
        open_dataset("digits", workers=-1)


# --- failures ------------------------------------------------------------------------------------


@pytest.fixture
def damaged(photos: Path, tmp_path: Path) -> Path:
    """Five good images and two bad ones."""
    for i, source in enumerate(sorted(photos.rglob("*.jpg"))[:7]):
        folder = tmp_path / f"c{i % 2}"
        folder.mkdir(exist_ok=True)
        content = source.read_bytes()
        (folder / f"{i}.jpg").write_bytes(content[: len(content) // 2] if i in (2, 5) else content)
    return tmp_path


def test_a_bad_image_is_named_with_a_hint(damaged: Path) -> None:
    with pytest.raises(DataError, match=r"c0/2\.jpg.*--skip-bad-images"):
        _pixels(open_dataset(damaged, workers=2))
    assert not _children()


def test_bad_images_are_left_out_and_counted(damaged: Path) -> None:
    data = open_dataset(damaged, workers=2, skip_bad_images=True)
    expected = open_dataset(damaged, workers=0, skip_bad_images=True)
    np.testing.assert_array_equal(_pixels(data), _pixels(expected))
    assert data.skipped == expected.skipped == ["c0/2.jpg", "c1/5.jpg"]
    checked = open_dataset(damaged, workers=2, skip_bad_images=True).verify()
    assert (len(checked), checked.skipped) == (5, ["c0/2.jpg", "c1/5.jpg"])


def test_pillows_limits_apply_in_workers(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20_000)
    with pytest.raises(DataError, match="has too many pixels"):
        _pixels(open_dataset(photos, workers=2))


def test_a_killed_worker_is_an_error_and_does_not_hang(photos: Path) -> None:
    files = [path for _ in range(50) for path in sorted(photos.rglob("*.jpg"))]
    with contextlib.closing(decode_ahead(files, SMALL, workers=2, ahead=16)) as images:
        next(images)
        victim, other = _children()
        victim.kill()
        with pytest.raises(
            EnvironmentFault, match=r"by SIGKILL.* before it had read .*\.jpg"
        ) as got:
            for _ in images:
                pass
    assert got.value.hint is not None
    assert "fewer --workers" in got.value.hint
    assert not other.is_running()


def test_a_worker_that_cannot_start_is_an_error(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for program, message in (
        ("/bin/false", "exit code 1 before it had read"),
        ("/no/such/python", "cannot start a process that decodes images"),
    ):
        monkeypatch.setattr(sys, "executable", program)
        with pytest.raises(EnvironmentFault, match=message):
            _pixels(open_dataset(photos, workers=1))


def test_no_space_for_the_pixels_is_an_error(photos: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(EnvironmentFault, match=r"no space for the pixels .*File too large"):
            _pixels(open_dataset(photos, workers=1))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_reader_that_fails_or_stops_leaves_no_process(photos: Path) -> None:
    def fails() -> None:
        with contextlib.closing(open_dataset(photos, workers=2).batches(4, SMALL)) as batches:
            for _ in batches:
                assert len(_children()) == 2
                raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    assert not _children()


_SCRIPT = """
import sys, time
from optimizer.data import Preprocessing, open_dataset
print("run once", flush=True)
data = open_dataset(sys.argv[1], workers=2)
for batch in data.batches(10, Preprocessing(resize=40, crop=32)):
    print(len(batch.labels), flush=True)
    time.sleep(float(sys.argv[2]))
"""


def _script(photos: Path, tmp_path: Path, pause: float) -> subprocess.Popen[str]:
    script = tmp_path / "scripts" / "script.py"
    script.parent.mkdir()
    script.write_text(_SCRIPT)
    return subprocess.Popen(
        [sys.executable, str(script), str(photos), str(pause)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(script.parent)},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path,
    )  # fmt: skip


def test_a_script_without_a_main_guard_runs_once(photos: Path, tmp_path: Path) -> None:
    """A file in the current folder that has a library's name does not shadow the library."""
    (tmp_path / "json.py").write_text("raise SystemExit('the wrong json')")
    process = _script(photos, tmp_path, 0)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    assert out.splitlines() == ["run once", *["10"] * 10]


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL])
def test_no_worker_outlives_its_reader(photos: Path, tmp_path: Path, end: signal.Signals) -> None:
    process = _script(photos, tmp_path, 60)
    assert process.stdout is not None
    while process.stdout.readline() != "10\n":
        assert process.poll() is None
    workers = psutil.Process(process.pid).children()
    assert len(workers) == 2
    process.send_signal(end)
    _, err = process.communicate(timeout=60)
    assert process.returncode == -end
    assert err.count("Traceback") == (1 if end == signal.SIGINT else 0)  # from the script
    deadline = time.monotonic() + 30
    while any(w.is_running() and w.status() != psutil.STATUS_ZOMBIE for w in workers):
        assert time.monotonic() < deadline, "a worker outlived its reader"
        time.sleep(0.05)
    assert not list((tmp_path / "scripts").glob("resnet-opt-*")), "a memory file is left behind"
