from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from optimizer.data import Preprocessing, open_dataset
from optimizer.errors import DataError


def test_a_limit_takes_a_stratified_subset() -> None:
    whole = open_dataset("digits:test")
    part = open_dataset("digits:test", limit=100)
    assert len(part) == 100
    assert np.bincount(part.labels).min() >= 9
    assert part.name == "digits:test"
    assert part.sha256 != whole.sha256
    assert part.sha256 == open_dataset("digits:test", limit=100).sha256
    assert part.sha256 != open_dataset("digits:test", limit=100, seed=1).sha256
    assert open_dataset("digits:test", limit=10_000).sha256 == whole.sha256
    with pytest.raises(DataError, match="at least one"):
        open_dataset("digits", limit=0)


def test_subsets_keep_images_and_labels_together() -> None:
    whole = open_dataset("digits")
    part = open_dataset("digits", limit=50)
    preprocessing = Preprocessing.digits(8)
    (everything,) = whole.batches(2000, preprocessing)
    (some,) = part.batches(2000, preprocessing)
    for i in range(len(part)):
        original = int(part.image_id(i).split("/")[1])
        np.testing.assert_array_equal(some.images[i], everything.images[original])
        assert part.labels[i] == whole.labels[original]


def test_batch_sizes_do_not_change_the_images() -> None:
    data = open_dataset("digits", limit=50)
    preprocessing = Preprocessing.digits(16)
    (whole,) = data.batches(64, preprocessing)
    parts = list(data.batches(7, preprocessing))
    assert [len(part.labels) for part in parts] == [7] * 7 + [1]
    np.testing.assert_array_equal(np.concatenate([part.images for part in parts]), whole.images)
    assert whole.images.shape == (50, 3, 16, 16)
    with pytest.raises(DataError, match="batch"):
        next(data.batches(0, preprocessing))


def test_what_is_not_there_is_answered_with_the_accepted_forms(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no data at 'digit'.*digits:train.*file\.npz"):
        open_dataset("digit")
    (tmp_path / "data.csv").write_text("1,2")
    with pytest.raises(DataError, match="neither a folder nor an NPZ"):
        open_dataset(tmp_path / "data.csv")


def test_the_import_is_light() -> None:
    code = (
        "import sys, optimizer.data, optimizer.models, optimizer.training\n"
        "heavy = {'torch', 'torchvision', 'sklearn', 'scipy', 'PIL', 'timm'} & set(sys.modules)\n"
        "sys.exit(' '.join(heavy) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
