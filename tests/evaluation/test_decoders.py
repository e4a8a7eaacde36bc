"""Decoders and resizers: identical where they must be, reported where they differ."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2.functional import resize

import optimizer
from optimizer.data import Preprocessing, open_dataset
from optimizer.errors import DataError, UsageError
from optimizer.evaluation.decoders import compare_decoders
from optimizer.models import load_model

DECODER, ANTIALIASED, ALIASED = (
    "torchvision decoder, Pillow resize",
    "Pillow decoder, tensor resize (bilinear, antialias)",
    "Pillow decoder, tensor resize (bilinear, no antialias)",
)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """scikit-learn's two photographs and crops of them, as JPEG and PNG."""
    from sklearn.datasets import load_sample_images

    root = tmp_path_factory.mktemp("photographs")
    for name, pixels in zip(("china", "flower"), load_sample_images().images, strict=True):
        folder = root / name
        folder.mkdir()
        for number in range(3):
            part = Image.fromarray(pixels[20 * number :, 30 * number :])
            part.save(folder / f"{number}.jpg", quality=90)
            part.save(folder / f"{number}.png")
    return root


def test_differences_between_pipelines(photographs: Path) -> None:
    differences = {d.pipeline: d for d in optimizer.preprocess(str(photographs))}
    assert list(differences) == [DECODER, ANTIALIASED, ALIASED]
    assert {d.images for d in differences.values()} == {12}
    # Pillow and tensor resizing occasionally round to neighbouring levels.
    assert differences[ANTIALIASED].largest <= 2
    assert differences[ANTIALIASED].mean < 0.2
    # Without antialiasing the image is clearly different.
    assert differences[ALIASED].differing == 12
    assert differences[ALIASED].mean > 10 * differences[ANTIALIASED].mean
    assert differences[ALIASED].worst is not None
    assert (photographs / differences[ALIASED].worst).is_file()


def test_all_decoders_agree_on_png(photographs: Path) -> None:
    for path in photographs.rglob("*.jpg"):
        path.rename(path.with_suffix(".txt"))
    try:
        data = open_dataset(str(photographs))
        differences = compare_decoders(data, Preprocessing.imagenet(64))
        assert differences[0].images == 6
        assert (differences[0].differing, differences[0].worst) == (0, None)
    finally:
        for path in photographs.rglob("*.txt"):
            path.rename(path.with_suffix(".jpg"))


def test_without_a_resize_only_the_decoder_is_compared(photographs: Path) -> None:
    data = open_dataset(str(photographs))
    differences = compare_decoders(data, Preprocessing(resize=None, crop=96))
    assert [d.pipeline for d in differences] == [DECODER]


def test_changed_predictions_are_counted_with_a_model(
    photographs: Path, small_checkpoint: Path
) -> None:
    """Compared with a count by hand."""
    model = load_model(str(small_checkpoint))
    data, preprocessing = open_dataset(str(photographs)), Preprocessing.imagenet(32)
    differences = {d.pipeline: d for d in compare_decoders(data, preprocessing, model=model)}
    images = [
        preprocessing.apply_uint8(Image.open(photographs / data.image_id(i))) for i in range(12)
    ]
    ours = model.module(torch.from_numpy(preprocessing.normalize(np.stack(images)))).argmax(1)
    theirs = []
    for i in range(12):
        pixels = torch.from_numpy(np.array(Image.open(photographs / data.image_id(i))))
        small = resize(pixels.permute(2, 0, 1), [37], antialias=False).permute(1, 2, 0).numpy()
        theirs.append(preprocessing.apply_uint8(Image.fromarray(np.ascontiguousarray(small))))
    other = model.module(torch.from_numpy(preprocessing.normalize(np.stack(theirs)))).argmax(1)
    assert preprocessing.resize == 37
    assert differences[ALIASED].flips == int((ours != other).sum())


def test_data_without_files_is_refused() -> None:
    with pytest.raises(UsageError, match="contains no image files"):
        optimizer.preprocess("digits:test")


def test_a_broken_image_is_named_or_skipped(photographs: Path, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    for name in ("a", "b"):
        (folder / name).mkdir(parents=True)
        pixels = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
        Image.fromarray(pixels).save(folder / name / "good.png")
    (folder / "a" / "bad.jpg").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"bad\.jpg"):
        optimizer.preprocess(str(folder))
    differences = optimizer.preprocess(str(folder), skip_bad_images=True)
    assert differences[0].images == 2
