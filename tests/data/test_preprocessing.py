from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_sample_image

from optimizer.data import Preprocessing
from optimizer.errors import DataError


def photo(name: str = "china.jpg") -> Image.Image:
    return Image.fromarray(load_sample_image(name))


@pytest.mark.parametrize("weights", ["IMAGENET1K_V1", "IMAGENET1K_V2"])
@pytest.mark.parametrize(
    "size", [None, (300, 500), (101, 100), (64, 64), (3, 40), (255, 256), (257, 251)]
)
def test_photos_match_torchvision(weights: str, size: tuple[int, int] | None) -> None:
    from torchvision.models import ResNet50_Weights

    transforms = ResNet50_Weights[weights].transforms()
    image = photo() if size is None else photo().resize(size)
    ours = Preprocessing.from_torchvision(transforms).apply(image)
    assert ours.dtype == np.float32
    np.testing.assert_array_equal(ours, transforms(image).numpy())


@pytest.mark.parametrize(("resize", "crop"), [(40, 64), (63, 64), (17, 16), (30, 17), (225, 224)])
def test_padding_and_odd_borders_match_torchvision(resize: int, crop: int) -> None:
    from torchvision.transforms._presets import ImageClassification

    transforms = ImageClassification(crop_size=crop, resize_size=resize)
    image = photo("flower.jpg")
    ours = Preprocessing(resize=resize, crop=crop).apply(image)
    np.testing.assert_array_equal(ours, transforms(image).numpy())


def test_bicubic_matches_torchvision() -> None:
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms._presets import ImageClassification

    transforms = ImageClassification(
        crop_size=64, resize_size=80, interpolation=InterpolationMode.BICUBIC
    )
    ours = Preprocessing.from_torchvision(transforms)
    assert ours.interpolation == "bicubic"
    np.testing.assert_array_equal(ours.apply(photo()), transforms(photo()).numpy())


def test_without_antialias_it_matches_interpolate() -> None:
    import torch
    from torch.nn.functional import interpolate

    image = photo().crop((0, 0, 400, 400))
    ours = Preprocessing(resize=50, crop=50, antialias=False).apply_uint8(image)
    tensor = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].double()
    theirs = interpolate(tensor, size=(50, 50), mode="bilinear", antialias=False)
    difference = np.abs(ours - theirs[0].permute(1, 2, 0).numpy())
    assert difference.max() <= 1
    smooth = Preprocessing(resize=50, crop=50).apply_uint8(image)
    assert np.abs(ours.astype(int) - smooth).max() > 20


def test_no_resize_crops_the_middle() -> None:
    image = photo()
    ours = Preprocessing(resize=None, crop=100).apply_uint8(image)
    top, left = round((image.height - 100) / 2), round((image.width - 100) / 2)
    np.testing.assert_array_equal(ours, np.array(image)[top : top + 100, left : left + 100])


def test_colour_orders() -> None:
    size: dict[str, Any] = {"resize": 40, "crop": 32}
    rgb = Preprocessing(**size).apply_uint8(photo())
    bgr = Preprocessing(**size, color="BGR").apply_uint8(photo())
    gray = Preprocessing(**size, color="grayscale").apply_uint8(photo())
    np.testing.assert_array_equal(bgr, rgb[..., ::-1])
    assert (gray[..., 0] == gray[..., 1]).all()
    assert (gray[..., 0] == gray[..., 2]).all()
    luminance = rgb @ np.array([0.299, 0.587, 0.114])
    assert np.abs(gray[..., 0] - luminance).max() < 2.5


def test_apply_is_normalize_of_apply_uint8() -> None:
    ours = Preprocessing.imagenet(48)
    pixels = ours.apply_uint8(photo())
    assert pixels.shape == (48, 48, 3)
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(ours.normalize(pixels[None])[0], ours.apply(photo()))


@given(st.integers(0, 255), st.integers(0, 2))
def test_normalize_matches_the_formula(value: int, channel: int) -> None:
    ours = Preprocessing.imagenet(4)
    pixels = np.full((1, 4, 4, 3), value, dtype=np.uint8)
    expected = (value / 255 - ours.mean[channel]) / ours.std[channel]
    np.testing.assert_allclose(ours.normalize(pixels)[0, channel], expected, rtol=0, atol=1e-6)


def test_normalize_rejects_other_arrays() -> None:
    with pytest.raises(DataError, match="uint8"):
        Preprocessing.imagenet(4).normalize(np.zeros((1, 3, 4, 4), dtype=np.uint8))


SIZES = st.integers(1, 512)
NUMBERS = st.tuples(*[st.floats(0.01, 1.0)] * 3)


@given(SIZES | st.none(), SIZES, st.sampled_from(["bilinear", "bicubic"]), NUMBERS, NUMBERS)
def test_dictionaries_round_trip_through_json(
    resize: int | None,
    crop: int,
    interpolation: str,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> None:
    ours = Preprocessing(resize=resize, crop=crop, interpolation=interpolation, mean=mean, std=std)
    back = Preprocessing.from_dict(json.loads(json.dumps(ours.to_dict())))
    assert back == ours
    assert back.sha256 == ours.sha256


@pytest.mark.parametrize(
    "change",
    [
        {"resize": 257},
        {"crop": 223},
        {"interpolation": "bicubic"},
        {"antialias": False},
        {"color": "BGR"},
        {"mean": (0.5, 0.5, 0.5)},
        {"std": (0.5, 0.5, 0.5)},
    ],
)
def test_the_digest_depends_on_every_field(change: dict[str, Any]) -> None:
    base: dict[str, Any] = {"resize": 256, "crop": 224}
    assert Preprocessing(**{**base, **change}).sha256 != Preprocessing(**base).sha256


def test_a_changed_dictionary_is_rejected() -> None:
    values = Preprocessing.imagenet().to_dict()
    with pytest.raises(DataError, match="changed"):
        Preprocessing.from_dict({**values, "crop": 200})
    with pytest.raises(DataError, match="unknown field 'croppct'"):
        Preprocessing.from_dict({**values, "croppct": 1})
    with pytest.raises(DataError, match="missing"):
        Preprocessing.from_dict({"resize": 3})


@pytest.mark.parametrize(
    "wrong",
    [
        {"crop": 0},
        {"resize": -1},
        {"interpolation": "sinc"},
        {"color": "YUV"},
        {"std": (1.0, 0.0, 1.0)},
        {"mean": (1.0, 2.0)},
        {"mean": (float("nan"), 0.0, 0.0)},
        {"interpolation": "lanczos", "antialias": False},
    ],
)
def test_invalid_values_are_rejected(wrong: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="preprocessing"):
        Preprocessing(**{"resize": 256, "crop": 224, **wrong})


def test_another_image_size_scales_the_resize() -> None:
    assert Preprocessing.imagenet(32) == Preprocessing(resize=37, crop=32)
    assert Preprocessing(resize=None, crop=64).with_image_size(32).resize is None
    assert Preprocessing.imagenet(288).image_size == 288


@settings(max_examples=30)
@given(st.integers(1, 512), st.integers(1, 512), st.integers(8, 64), st.integers(8, 64))
def test_any_image_comes_out_square(width: int, height: int, resize: int, crop: int) -> None:
    pixels = Preprocessing(resize=resize, crop=crop).apply_uint8(Image.new("RGB", (width, height)))
    assert pixels.shape == (crop, crop, 3)


def test_from_timm_rounds_the_resize_down_as_timm_does() -> None:
    config = {
        "input_size": (3, 224, 224),
        "interpolation": "bicubic",
        "mean": (0.5, 0.5, 0.5),
        "std": (0.25, 0.25, 0.25),
        "crop_pct": 0.95,
        "crop_mode": "center",
    }
    ours = Preprocessing.from_timm(config)
    assert (ours.resize, ours.crop, ours.interpolation) == (235, 224, "bicubic")
    assert ours.mean == (0.5, 0.5, 0.5)
    with pytest.raises(DataError, match="squash"):
        Preprocessing.from_timm({**config, "crop_mode": "squash"})
    with pytest.raises(DataError, match="square"):
        Preprocessing.from_timm({**config, "input_size": (3, 224, 200)})
