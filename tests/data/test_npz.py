from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from optimizer.data import Preprocessing, open_dataset
from optimizer.errors import DataError

RANDOM = np.random.RandomState(0)
PIXELS = RANDOM.randint(0, 256, (6, 12, 16, 3), dtype=np.uint8)
TENSORS = RANDOM.rand(6, 3, 8, 8).astype(np.float32)
LABELS = np.array([0, 1, 2, 0, 1, 2])


def write_npz(tmp_path: Path, **arrays: Any) -> Path:
    path = tmp_path / "data.npz"
    np.savez(path, **arrays)
    return path


def test_pixels_are_preprocessed_like_photos(tmp_path: Path) -> None:
    preprocessing = Preprocessing(resize=10, crop=8)
    data = open_dataset(write_npz(tmp_path, images=PIXELS, labels=LABELS))
    (batch,) = data.batches(10, preprocessing)
    expected = np.stack([preprocessing.apply(Image.fromarray(image)) for image in PIXELS])
    np.testing.assert_array_equal(batch.images, expected)
    np.testing.assert_array_equal(batch.labels, LABELS)
    assert data.classes is None
    assert data.image_id(3) == "data.npz/00003"
    assert data.verify() is data


def test_preprocessed_images_are_unchanged(tmp_path: Path) -> None:
    data = open_dataset(write_npz(tmp_path, images=TENSORS, labels=LABELS, classes=["a", "b", "c"]))
    assert data.classes == ("a", "b", "c")
    first, second = data.batches(4, Preprocessing.imagenet(8))
    np.testing.assert_array_equal(np.concatenate([first.images, second.images]), TENSORS)
    assert first.images.dtype == np.float32


def test_preprocessed_images_must_have_the_networks_size(tmp_path: Path) -> None:
    data = open_dataset(write_npz(tmp_path, images=TENSORS, labels=LABELS))
    with pytest.raises(DataError, match="8 x 8 pixels, but the network takes 32 x 32"):
        next(data.batches(4, Preprocessing.imagenet(32)))
    with pytest.raises(DataError, match="uint8"):
        next(data.batches(4, Preprocessing.imagenet(8), as_uint8=True))


def test_nan_is_rejected(tmp_path: Path) -> None:
    images = TENSORS.copy()
    images[4, 1, 2, 3] = np.nan
    data = open_dataset(write_npz(tmp_path, images=images, labels=LABELS))
    with pytest.raises(DataError, match="00004 contains NaN"):
        list(data.batches(2, Preprocessing.imagenet(8)))


def test_the_digest_covers_pixels_labels_and_order(tmp_path: Path) -> None:
    def digest(images: Any, labels: Any) -> str:
        return open_dataset(write_npz(tmp_path, images=images, labels=labels)).sha256

    base = digest(PIXELS, LABELS)
    assert digest(PIXELS, LABELS) == base
    changed = PIXELS.copy()
    changed[5, 11, 15, 2] ^= 1
    assert digest(changed, LABELS) != base
    assert digest(PIXELS, LABELS[::-1].copy()) != base
    order = [1, 0, 2, 3, 4, 5]
    assert digest(PIXELS[order], LABELS[order]) != base


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"labels": LABELS}, "no array 'images'"),
        ({"images": PIXELS}, "no array 'labels'"),
        ({"images": PIXELS[0], "labels": LABELS}, "of shape"),
        ({"images": PIXELS[..., :2], "labels": LABELS}, "of shape"),
        ({"images": PIXELS.astype(np.float64), "labels": LABELS}, "float64"),
        ({"images": PIXELS, "labels": LABELS[:4]}, "6 images but 4 labels"),
        ({"images": PIXELS, "labels": LABELS.astype(float)}, "must be N integers"),
        ({"images": PIXELS, "labels": np.eye(6, dtype=int)}, "must be N integers"),
        ({"images": PIXELS, "labels": LABELS - 1}, "label -1 of image 0 is out of range"),
        ({"images": PIXELS, "labels": LABELS, "classes": ["a", "b"]}, "label 2 of image 2"),
        ({"images": PIXELS, "labels": LABELS, "classes": [1, 2, 3]}, "must be N names"),
        ({"images": PIXELS[:0], "labels": LABELS[:0]}, "contains no images"),
    ],
)
def test_arrays_that_do_not_fit_are_rejected(
    arrays: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=message):
        open_dataset(write_npz(tmp_path, **arrays))


def test_objects_are_never_unpickled(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "exploded",))

    images = np.array([Bomb()], dtype=object)
    path = tmp_path / "data.npz"
    np.savez(path, images=images, labels=LABELS, allow_pickle=True)
    with pytest.raises(DataError, match="cannot read"):
        open_dataset(path)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("content", [b"", b"nonsense", b"PK\x03\x04 cut off"])
def test_damaged_files_are_rejected(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    path.write_bytes(content)
    with pytest.raises(DataError, match="cannot read"):
        open_dataset(path)


def test_a_truncated_file_is_rejected(tmp_path: Path) -> None:
    path = write_npz(tmp_path, images=PIXELS, labels=LABELS)
    content = path.read_bytes()
    damaged = bytearray(content)
    damaged[200:240] = bytes(40)
    for broken in (content[: len(content) // 2], bytes(damaged)):
        path.write_bytes(broken)
        with pytest.raises(DataError, match="cannot read"):
            open_dataset(path)


def test_a_single_array_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    with path.open("wb") as stream:
        np.save(stream, PIXELS)
    with pytest.raises(DataError, match="single array"):
        open_dataset(path)
