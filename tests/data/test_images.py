from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_image

from optimizer.data import Preprocessing, open_image
from optimizer.data.images import to_rgb
from optimizer.errors import DataError


def photo() -> Image.Image:
    return Image.fromarray(load_sample_image("flower.jpg")).resize((60, 40))


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tiff", ".ppm"])
def test_lossless_files_round_trip(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"image{suffix}"
    photo().save(path)
    np.testing.assert_array_equal(np.array(open_image(path)), np.array(photo()))


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "1", "CMYK", "I;16", "YCbCr"])
def test_every_mode_becomes_rgb(mode: str, tmp_path: Path) -> None:
    suffix = {"CMYK": ".jpg", "YCbCr": ".jpg"}.get(mode, ".png")
    path = tmp_path / f"image{suffix}"
    gray = np.array(photo().convert("L"))
    if mode == "I;16":
        Image.fromarray(gray.astype(np.uint16) * 257).save(path)
    else:
        photo().convert(mode).save(path)
    image = open_image(path)
    assert image.mode == "RGB"
    assert image.size == (60, 40)
    tolerance = {"1": 255, "P": 60}.get(mode, 30)
    decoded = np.array(image.convert("L")).astype(int)
    assert np.abs(decoded - gray).max() <= tolerance
    if mode == "I;16":
        np.testing.assert_array_equal(np.array(image)[..., 0], gray)


def test_transparent_palettes_are_read_without_warning(tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    photo().convert("P").save(path, transparency=bytes(range(256)))
    assert open_image(path).mode == "RGB"


def test_a_truncated_jpeg_is_named(tmp_path: Path) -> None:
    path = tmp_path / "cut.jpg"
    photo().save(path)
    path.write_bytes(path.read_bytes()[:400])
    with pytest.raises(DataError, match=r"cannot read the image .*cut\.jpg"):
        open_image(path)


@pytest.mark.parametrize("content", [b"", b"not an image", b"\xff\xd8\xff\xe0", b"\x89PNG\r\n"])
def test_files_that_are_not_images_are_named(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "broken.png"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"cannot read the image .*broken\.png"):
        open_image(path)


@pytest.mark.parametrize("megapixels", [100, 400])
def test_decompression_bombs_are_named(megapixels: int, tmp_path: Path) -> None:
    # One bit per pixel, all zero: a few kilobytes that would decode to a gigabyte.
    path = tmp_path / "bomb.png"
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        Image.new("1", (megapixels * 1000, 1000)).save(path)
    finally:
        Image.MAX_IMAGE_PIXELS = limit
    with pytest.raises(DataError, match=r"bomb\.png has too many pixels"):
        open_image(path)


def test_floating_point_images_are_rejected() -> None:
    with pytest.raises(DataError, match="no known range"):
        to_rgb(Image.new("F", (4, 4)))


def test_32_bit_images_are_rejected() -> None:
    with pytest.raises(DataError, match="16 bits"):
        to_rgb(Image.new("I", (4, 4), 70_000))


@pytest.mark.parametrize(
    ("format_", "suffix"), [("PNG", ".JPEG"), ("JPEG", ".png"), ("BMP", ".jpg")]
)
def test_a_wrong_extension_is_ignored(format_: str, suffix: str, tmp_path: Path) -> None:
    """ImageNet itself has a PNG named .JPEG; the content decides."""
    right, wrong = tmp_path / f"right.{format_.lower()}", tmp_path / f"wrong{suffix}"
    photo().save(right)
    wrong.write_bytes(right.read_bytes())
    np.testing.assert_array_equal(np.array(open_image(wrong)), np.array(open_image(right)))


@pytest.mark.parametrize("mode", ["L", "CMYK", "RGB"])
def test_jpegs_of_any_mode_match_torchvision(mode: str, tmp_path: Path) -> None:
    from torchvision.datasets.folder import pil_loader

    path = tmp_path / "image.jpg"
    photo().convert(mode).save(path)
    np.testing.assert_array_equal(np.array(open_image(path)), np.array(pil_loader(str(path))))


def test_only_listed_formats_are_decoded_whatever_the_name(tmp_path: Path) -> None:
    """Pillow would start Ghostscript for an EPS file with another name."""
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n(x) show\n%%EOF\n"
    for name in ("a.jpg", "b.png"):
        (tmp_path / name).write_bytes(eps)
        with pytest.raises(DataError, match="cannot identify image file"):
            open_image(tmp_path / name)


def test_images_too_narrow_to_be_resized(tmp_path: Path) -> None:
    Image.new("RGB", (1, 60_000)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match="would be resized to 256 x 15360000"):
        Preprocessing.imagenet().apply_uint8(open_image(tmp_path / "a.png"))
