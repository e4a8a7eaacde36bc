from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from optimizer.data import Preprocessing
from optimizer.errors import DataError
from optimizer.models import load_model
from optimizer.training import open_training_data, preprocessing_for


def fill(root: Path, classes: tuple[str, ...], count: int) -> None:
    random = np.random.RandomState(len(str(root)))
    for name in classes:
        (root / name).mkdir(parents=True)
        for i in range(count):
            pixels = random.randint(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{i}.png")


def test_digits_have_a_fixed_split() -> None:
    train, held_out = open_training_data("digits")
    assert (train.name, len(train)) == ("digits:train", 1257)
    assert (held_out.name, len(held_out)) == ("digits:test", 540)
    assert len(open_training_data("digits", limit=100)[0]) == 100


def test_a_fifth_of_other_data_is_held_out(tmp_path: Path) -> None:
    fill(tmp_path, ("a", "b"), 10)
    train, held_out = open_training_data(str(tmp_path))
    assert (len(train), len(held_out)) == (16, 4)
    assert np.bincount(held_out.labels).tolist() == [2, 2]
    ids = [{part.image_id(i) for i in range(len(part))} for part in (train, held_out)]
    assert not ids[0] & ids[1]
    assert len(ids[0] | ids[1]) == 20
    assert "held out" in held_out.name


def test_existing_split_folders_are_used(tmp_path: Path) -> None:
    fill(tmp_path / "train", ("a", "b"), 4)
    fill(tmp_path / "val", ("a", "b"), 3)
    train, held_out = open_training_data(str(tmp_path))
    assert (len(train), len(held_out)) == (8, 6)
    fill(tmp_path / "val", ("c",), 3)
    with pytest.raises(DataError, match="different class folders"):
        open_training_data(str(tmp_path))


def test_bad_images_are_left_out_before_the_split(tmp_path: Path) -> None:
    fill(tmp_path, ("a", "b"), 10)
    (tmp_path / "a" / "3.png").write_bytes(b"")
    train, held_out = open_training_data(str(tmp_path), skip_bad_images=True)
    assert len(train) + len(held_out) == 19
    assert train.skipped == ["a/3.png"]


def test_a_list_is_split_with_its_first_label(tmp_path: Path) -> None:
    pixels = np.zeros((8, 8, 3), np.uint8)
    for number in range(10):
        Image.fromarray(pixels + number).save(tmp_path / f"{number}.png")
    names = [f"{number}.png {1 + number % 2}" for number in range(10)]
    (tmp_path / "list.txt").write_text("\n".join(names))
    for part in open_training_data(str(tmp_path / "list.txt"), labels_from=1, workers=0):
        assert set(part.labels.tolist()) == {0, 1}
        assert part.workers == 0


def test_too_few_images_are_rejected(tmp_path: Path) -> None:
    fill(tmp_path, ("a", "b"), 1)
    with pytest.raises(DataError, match="too few"):
        open_training_data(str(tmp_path))


def test_preprocessing_depends_on_the_model_and_the_data() -> None:
    assert preprocessing_for("digits:train", 32) == Preprocessing.digits(32)
    assert preprocessing_for("photos", 64) == Preprocessing.imagenet(64)
    init = load_model("resnet18:random:10")
    assert preprocessing_for("digits", 32, init) == init.preprocessing.with_image_size(32)
