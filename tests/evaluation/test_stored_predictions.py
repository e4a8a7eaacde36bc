"""Predictions are computed once: stored by shard, found again, and never trusted blindly."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from onnx import helper

from optimizer.artifacts import Cache, DisabledCache, tensor_files
from optimizer.data import ImageDataset, open_dataset
from optimizer.engines.onnxruntime import as_written
from optimizer.evaluation import Chain, executors, validate
from optimizer.evaluation.executors import Executor
from optimizer.evaluation.stored_predictions import (
    PredictionStore,
    PredictionStores,
    StoredShard,
    open_stores,
)
from optimizer.progress import Silent
from optimizer.results import Gates, ValidateResult
from optimizer.tasks.predictions import read_predictions
from tests.evaluation.graphs import PREPROCESSING, classifier

GATES = Gates(max_drop_pp=2.0)
IMAGES = 600
SHARD = 256
"""Images of a shard with 32 images a call."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reference, an INT8 graph of it, and images labelled by the reference."""
    folder = tmp_path_factory.mktemp("stored")
    reference = classifier(folder / "reference.onnx")
    gain = 1 + np.random.default_rng(1).normal(scale=0.1, size=(1, 5)).astype(np.float32)
    nodes = [helper.make_node("Mul", ["features", "gain"], ["seen"], "gain")]
    classifier(folder / "g.onnx", middle=nodes, constants={"gain": gain}, precision="int8")
    pixels = np.random.default_rng(2).integers(0, 256, (IMAGES, 8, 8, 3), dtype=np.uint8)
    logits = as_written(reference).run(PREPROCESSING.normalize(pixels))
    np.savez(folder / "data.npz", images=pixels, labels=logits.argmax(axis=1))
    return folder


class Computed:
    """Counts the images that graphs and engines compute."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.images = 0
        self.die_after: int | None = None
        run = Executor.run

        def counted(executor: Executor, batch: np.ndarray) -> np.ndarray:
            if self.die_after is not None and self.images >= self.die_after:
                raise KeyboardInterrupt
            self.images += len(batch)
            return run(executor, batch)

        monkeypatch.setattr(Executor, "run", counted)

    def since_last(self) -> int:
        count, self.images = self.images, 0
        return count


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> Computed:
    return Computed(monkeypatch)


def _validate(
    folder: Path, stores: Path | None, data: ImageDataset | None = None, graph: str = "g.onnx"
) -> ValidateResult:
    data = data or open_dataset(folder / "data.npz")
    result = validate(
        [Chain.of(folder / graph)],
        folder / "reference.onnx",
        data,
        GATES,
        batch=32,
        stores=None if stores is None else PredictionStores(stores),
        predictions=None if stores is None else stores.parent / "predictions.npz",
    )
    return result.model_copy(update={"created": "", "timing": None, "predictions_sha256": None})


def test_the_second_validation_computes_nothing_and_says_the_same(
    folder: Path, tmp_path: Path, computed: Computed
) -> None:
    first = _validate(folder, tmp_path / "stores")
    before = read_predictions(tmp_path / "predictions.npz")
    assert computed.since_last() == IMAGES
    second = _validate(folder, tmp_path / "stores")
    assert computed.since_last() == 0
    assert second == first
    after = read_predictions(tmp_path / "predictions.npz")
    assert all(np.array_equal(after.logits[hop], before.logits[hop]) for hop in before.logits)
    plain = _validate(folder, None)
    assert plain.model_copy(update={"predictions_file": first.predictions_file}) == first


def test_another_graph_finds_the_predictions_of_the_reference(
    folder: Path, tmp_path: Path, computed: Computed, monkeypatch: pytest.MonkeyPatch
) -> None:
    _validate(folder, tmp_path / "stores")
    shutil.copy(folder / "reference.onnx", tmp_path / "reference.onnx")
    classifier(tmp_path / "other.onnx", seed=3, precision="int8")
    computed.since_last()
    saved = []
    save = PredictionStore.save
    monkeypatch.setattr(
        PredictionStore, "save", lambda self, *a: (saved.append(self.key), save(self, *a))
    )
    _validate(tmp_path, tmp_path / "stores", open_dataset(folder / "data.npz"), "other.onnx")
    assert computed.since_last() == IMAGES
    assert len(set(saved)) == 1


@pytest.mark.parametrize("computed_images", [0, 32, SHARD, SHARD + 32, IMAGES - 32])
def test_an_interrupt_loses_at_most_one_shard(
    folder: Path, tmp_path: Path, computed: Computed, computed_images: int
) -> None:
    undisturbed = _validate(folder, tmp_path / "undisturbed" / "stores")
    computed.since_last()
    computed.die_after = computed_images
    with pytest.raises(KeyboardInterrupt):
        _validate(folder, tmp_path / "stores")
    reached, computed.die_after = computed.since_last(), None
    assert _validate(folder, tmp_path / "stores") == undisturbed
    assert computed.since_last() <= IMAGES - reached + SHARD


def test_only_the_shard_of_a_changed_image_is_computed_again(
    folder: Path, tmp_path: Path, computed: Computed
) -> None:
    _validate(folder, tmp_path / "stores")
    computed.since_last()
    with np.load(folder / "data.npz") as file:
        images, labels = file["images"].copy(), file["labels"]
    images[300] = 255 - images[300]
    np.savez(tmp_path / "changed.npz", images=images, labels=labels)
    changed = _validate(folder, tmp_path / "stores", open_dataset(tmp_path / "changed.npz"))
    assert computed.since_last() == SHARD
    assert changed.dataset.n == IMAGES


def test_predictions_of_other_images_per_call_are_not_used(
    folder: Path, tmp_path: Path, computed: Computed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last bits of outputs may depend on it."""
    _validate(folder, tmp_path / "stores")
    computed.since_last()
    monkeypatch.setattr(executors, "_CHUNK_PIXELS", 4 * 8**2)
    _validate(folder, tmp_path / "stores")
    assert computed.since_last() == IMAGES


def test_labels_may_change(folder: Path, tmp_path: Path, computed: Computed) -> None:
    """Predictions do not depend on them."""
    _validate(folder, tmp_path / "stores")
    computed.since_last()
    with np.load(folder / "data.npz") as file:
        np.savez(tmp_path / "x.npz", images=file["images"], labels=(file["labels"] + 1) % 6)
    wrong = _validate(folder, tmp_path / "stores", open_dataset(tmp_path / "x.npz"))
    assert computed.since_last() == 0
    assert wrong.hops[0].top1 == 0


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:100],
        lambda data: data[:-7] + b"\0" * 7,
        lambda data: b"\xff" * len(data),
        lambda data: data + b"more",
    ],
)
def test_a_damaged_shard_is_computed_again(
    folder: Path, tmp_path: Path, computed: Computed, damage: Callable[[bytes], bytes]
) -> None:
    first = _validate(folder, tmp_path / "stores")
    computed.since_last()
    for file in (tmp_path / "stores").glob("*.safetensors"):
        if file.stat().st_size > 1000:
            file.write_bytes(damage(file.read_bytes()))
    assert _validate(folder, tmp_path / "stores") == first
    assert computed.since_last() == IMAGES
    assert _validate(folder, tmp_path / "stores") == first
    assert computed.since_last() == 0


def test_a_full_disk_stops_storing_but_not_the_validation(
    folder: Path, tmp_path: Path, computed: Computed, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    notes: list[str] = []

    class Notes(Silent):
        def finish(self, note: str | None = None) -> None:
            notes.append(str(note))

    undisturbed = _validate(folder, tmp_path / "a" / "stores")
    with monkeypatch.context() as patch:
        patch.setattr(tensor_files, "write_atomically", full)
        result = validate(
            [Chain.of(folder / "g.onnx")],
            folder / "reference.onnx",
            open_dataset(folder / "data.npz"),
            GATES,
            batch=32,
            stores=PredictionStores(tmp_path / "stores"),
            progress=Notes(),
        )
    assert result.hops == undisturbed.hops
    assert "predictions cannot be stored: No space left on device" in notes[-1]


def test_images_that_cannot_be_read_are_skipped_again(
    folder: Path, tmp_path: Path, computed: Computed
) -> None:
    from PIL import Image

    for number in range(40):
        (tmp_path / "images" / str(number % 6)).mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / str(number % 6) / f"{number}.png")
    bad = tmp_path / "images" / "0" / "12.png"
    bad.write_bytes(bad.read_bytes()[:40])
    results = []
    for _ in range(2):
        data = open_dataset(tmp_path / "images", skip_bad_images=True, workers=0)
        classes = open_dataset(tmp_path / "images", skip_bad_images=True).relabel(data.labels, None)
        results.append(_validate(folder, tmp_path / "stores", classes))
    assert computed.since_last() == 39
    assert results[0] == results[1]
    assert results[1].dataset.skipped == ["0/12.png"]
    assert results[1].dataset.n == 39


@pytest.fixture
def three(tmp_path: Path) -> list[PredictionStore]:
    """Stores of equal size, the first used last."""
    shard = StoredShard(np.arange(3), (2,), {"logits": np.ones((3, 2), np.float32)})
    root = tmp_path / "predictions"
    stores = [PredictionStore(root, {"network": name}) for name in "abc"]
    for age, store in enumerate(stores):
        store.save("images", shard)
        (file,) = root.glob(f"{store.key}.*")
        os.utime(file, (1000 + age, 1000 + age))
    assert stores[0].load("images") is not None  # used now
    return stores


def _left(stores: list[PredictionStore]) -> list[bool]:
    return [store.has("images") for store in stores]


def test_stores_that_were_not_used_for_longest_are_removed(
    three: list[PredictionStore], tmp_path: Path
) -> None:
    files = (tmp_path / "predictions").glob("*.safetensors")
    size = sum(file.stat().st_size for file in files)
    for limit, left in (
        (size, [True, True, True]),
        (size - 1, [True, False, True]),
        (1, [False, False, False]),
    ):
        with open_stores(Cache(tmp_path), limit):
            pass
        assert _left(three) == left
    with open_stores(Cache(tmp_path), 0) as nothing, open_stores(DisabledCache(), 9) as disabled:
        assert nothing is None
        assert disabled is None


def test_a_store_that_this_process_uses_stays(three: list[PredictionStore], tmp_path: Path) -> None:
    with open_stores(Cache(tmp_path), 1) as outer:
        assert outer is not None
        outer.store({"network": "b"})
        with open_stores(Cache(tmp_path), 1):
            pass
        assert _left(three) == [False, True, False]
    assert _left(three) == [False, False, False]
    assert list((tmp_path / "predictions").iterdir()) == []


_HOLDING = """
import sys
from pathlib import Path
from optimizer.evaluation.stored_predictions import PredictionStores
with PredictionStores(Path(sys.argv[1])) as stores:
    stores.store({"network": "b"})
    print("holds", flush=True)
    sys.stdin.read()
"""


def test_a_store_that_a_living_process_uses_stays_until_its_death(
    three: list[PredictionStore], tmp_path: Path
) -> None:
    root = tmp_path / "predictions"
    command = [sys.executable, "-c", _HOLDING, str(root)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as p:
        assert p.stdout is not None
        assert p.stdout.readline() == "holds\n"
        with open_stores(Cache(tmp_path), 1):
            pass
        assert _left(three) == [False, True, False]
        p.kill()
    with open_stores(Cache(tmp_path), 1):
        pass
    assert list(root.iterdir()) == []


def test_stored_predictions_are_read_back_exactly(tmp_path: Path) -> None:
    logits = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    store = PredictionStore(tmp_path, {"network": "n", "batch": 32})
    store.save("images", StoredShard(np.array([0, 1, 3, 4, 6]), (3,), {"logits": logits}))
    for other in ({"network": "n", "batch": 1}, {"network": "m", "batch": 32}):
        assert PredictionStore(tmp_path, other).load("images") is None
    found = PredictionStore(tmp_path, {"batch": 32, "network": "n"}).load("images")
    assert found is not None
    assert (found.kept.tolist(), found.shape) == ([0, 1, 3, 4, 6], (3,))
    assert np.array_equal(found.arrays["logits"], logits)
    assert store.load("others") is None
