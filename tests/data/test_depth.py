"""Images of one, three and four channels."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from optimizer.data import Preprocessing, open_dataset, open_image
from optimizer.errors import DataError

GRAY = Preprocessing(resize=None, crop=4, color="grayscale", mean=(0.5,), std=(0.25,))
COLOR = Preprocessing(resize=None, crop=4)
FOUR = Preprocessing(resize=8, crop=8, color="RGBA", mean=(0.5,) * 4, std=(0.25,) * 4)


def _npz(path: Path, images: np.ndarray) -> Path:
    np.savez(path, images=images, labels=np.arange(len(images)))
    return path


def test_one_channel_is_the_luminance(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 3), np.uint8)
    (batch,) = open_dataset(_npz(tmp_path / "a.npz", pixels)).batches(2, GRAY)
    gray = [np.asarray(Image.fromarray(image).convert("L")) for image in pixels]
    np.testing.assert_allclose(batch.images[:, 0], (np.stack(gray) / 255 - 0.5) / 0.25, rtol=1e-5)
    (digits,) = open_dataset("digits:test", limit=4).batches(4, GRAY)
    assert digits.images.shape == (4, 1, 4, 4)


@pytest.mark.parametrize("shape", [(2, 8, 8), (2, 8, 8, 1)])
def test_arrays_of_one_channel_fit_colour_and_grayscale(
    shape: tuple[int, ...], tmp_path: Path
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    data = open_dataset(_npz(tmp_path / "a.npz", pixels))
    for stated, channels in ((GRAY, 1), (COLOR, 3)):
        preprocessing = replace(stated, crop=8)
        (batch,) = data.batches(2, preprocessing, as_uint8=True)
        assert batch.images.shape == (2, 8, 8, channels)
        assert (batch.images[..., 0] == pixels.reshape(2, 8, 8)).all()


def test_four_channels_are_resized_independently(tmp_path: Path) -> None:
    """Pillow would weight the colours by the fourth channel, and lose them where it is 0."""
    pixels = np.random.default_rng(0).integers(0, 256, (4, 4, 4), np.uint8)
    pixels[..., 3] = 0
    Image.fromarray(pixels, "RGBA").save(tmp_path / "a.png")
    result = FOUR.apply_uint8(open_image(tmp_path / "a.png", 4))
    bands = [np.asarray(FOUR._resize(Image.fromarray(pixels[..., i]))) for i in range(4)]
    np.testing.assert_array_equal(result, np.stack(bands, axis=-1))
    assert result[..., :3].any()


@pytest.mark.parametrize("workers", [0, 1])
def test_files_of_four_channels(workers: int, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.new("RGBA", (8, 8), (10, 20, 30, 40)).save(tmp_path / name / "x.png")
    (batch,) = open_dataset(tmp_path, workers=workers).batches(2, FOUR, as_uint8=True)
    assert batch.images.shape == (2, 8, 8, 4)
    assert batch.images[0, 0, 0].tolist() == [10, 20, 30, 40]
    Image.new("RGB", (8, 8)).save(tmp_path / "a" / "x.png")
    with pytest.raises(
        DataError, match=r"x\.png: it has 3 channels \(RGB\), the network takes four"
    ):
        list(open_dataset(tmp_path, workers=workers).batches(2, FOUR))


def test_images_of_the_wrong_depth_are_refused_before_they_are_read(tmp_path: Path) -> None:
    four = open_dataset(_npz(tmp_path / "four.npz", np.zeros((2, 8, 8, 4), np.uint8)))
    tensors = open_dataset(_npz(tmp_path / "t.npz", np.zeros((2, 3, 8, 8), np.float32)))
    four.check_depth(FOUR)
    for data, preprocessing, message in (
        (open_dataset("digits:test"), FOUR, "digits:test have 3 channels, but the network takes 4"),
        (four, COLOR, "have 4 channels, but the network takes 3"),
        (tensors, GRAY, "have 3 channels, but the network takes 1"),
    ):
        with pytest.raises(DataError, match=message):
            data.check_depth(preprocessing)
        with pytest.raises(DataError, match=message):
            next(data.batches(1, preprocessing))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"color": "RGBA"}, "mean of RGBA must be 4 finite numbers"),
        ({"mean": (0.5,), "std": (0.5,)}, "mean of RGB must be 3 finite numbers"),
        ({"color": "grayscale", "mean": (0.5,)}, "mean has 1 values and std 3"),
        ({"color": "grayscale", "mean": (0.5, 0.5)}, "must be 1 or 3 finite numbers"),
    ],
)
def test_means_and_colour_must_agree(fields: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Preprocessing(resize=None, crop=4, **fields)
