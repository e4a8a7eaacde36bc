"""Predicting folders: nothing that is complete is lost."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import optimizer
from optimizer.data import shards
from optimizer.engines.onnxruntime import Session
from optimizer.errors import DataError
from optimizer.progress import Silent
from tests.conftest import Engines

IMAGES = 40
SHARD = 32


class Computed(Silent):
    """Counts the images that an engine computes, and keeps what the step says at its end."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.images, self.die_after, self.said = 0, IMAGES, ""
        run = Session.run

        def counted(session: Session, batch: np.ndarray) -> np.ndarray:
            if self.images >= self.die_after:
                raise KeyboardInterrupt
            self.images += len(batch)
            return run(session, batch)

        monkeypatch.setattr(Session, "run", counted)

    def finish(self, note: str | None = None) -> None:
        self.said = str(note)

    def predict(self, engine: Path, images: Path, **options: bool | str) -> Sequence[object]:
        self.images = 0
        return optimizer.predict(engine, images, workers=0, progress=self, **options)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    pixels = np.random.default_rng(0).integers(0, 256, (IMAGES, 8, 8, 3), dtype=np.uint8)
    for number, image in enumerate(pixels):
        Image.fromarray(image).save(folder / f"{number:03d}.png")
    return folder


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Computed:
    monkeypatch.setenv("RESNET_OPT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(shards, "SHARD", SHARD)
    return Computed(monkeypatch)


def test_an_interrupt_loses_at_most_one_shard(
    images: Path, small_engines: Engines, computed: Computed, tmp_path: Path
) -> None:
    engine = small_engines("onnxruntime", "fp32")
    computed.die_after = SHARD + 4
    with pytest.raises(KeyboardInterrupt):
        computed.predict(engine, images)
    computed.die_after = IMAGES
    continued = computed.predict(engine, images)
    assert computed.images == IMAGES - SHARD
    assert computed.said == f"{IMAGES} images; predictions for {SHARD} images were stored before"
    again = computed.predict(engine, images)
    assert computed.images == 0
    for file in (tmp_path / "cache" / "predictions").iterdir():
        file.write_bytes(file.read_bytes()[:-1])
    undisturbed = computed.predict(engine, images)
    assert computed.images == IMAGES
    assert continued == again == undisturbed
    assert len(undisturbed) == IMAGES


def test_bad_images_are_skipped_in_every_run_and_an_error_without_the_option(
    images: Path, small_engines: Engines, computed: Computed
) -> None:
    engine = small_engines("onnxruntime", "fp32")
    bad = images / "004.png"
    content = bad.read_bytes()
    bad.write_bytes(content[:40])
    try:
        for expected in (IMAGES - 1, 0):
            rows = computed.predict(engine, images, skip_bad_images=True)
            assert (len(rows), computed.images) == (IMAGES - 1, expected)
            assert computed.said.endswith(f"1 cannot be read, the first is {bad}")
        with pytest.raises(DataError, match=r"004\.png"):
            computed.predict(engine, images)
    finally:
        bad.write_bytes(content)


def test_the_space_is_limited_as_for_validations(
    images: Path, small_engines: Engines, computed: Computed, tmp_path: Path
) -> None:
    engine = small_engines("onnxruntime", "fp32")
    stored = tmp_path / "cache" / "predictions"
    computed.predict(engine, images, cache_limit="0B")
    assert not stored.exists()
    computed.predict(engine, images)
    (other,) = {path.name.partition(".")[0] for path in stored.iterdir()}
    size = sum(path.stat().st_size for path in stored.iterdir())
    computed.predict(small_engines("onnxruntime", "int8"), images, cache_limit=f"{size}B")
    (kept,) = {path.name.partition(".")[0] for path in stored.iterdir()}
    assert kept != other
    computed.predict(engine, images, cache_limit="1B")
    assert computed.images == IMAGES
    assert list(stored.iterdir()) == []
