"""Reads image files of any mode as RGB; errors name the file."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from optimizer.data.tar_members import ImagePlace
from optimizer.errors import DataError

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["IMAGE_FORMATS", "IMAGE_SUFFIXES", "open_image", "to_rgb"]

# torchvision's IMG_EXTENSIONS, and other names and formats that every Pillow reads
IMAGE_SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".gif", ".bmp", ".webp", ".tif", ".tiff",
    ".ppm", ".pgm", ".pbm", ".pnm", ".tga",
)  # fmt: skip
IMAGE_FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP", "GIF", "TGA")
"""Pillow's names of the formats that are decoded, whatever the file is called. Pillow knows others that
start programs (EPS starts Ghostscript) or that nobody stores photos in."""

# Exceptions that Pillow's plugins raise for damaged files; UnidentifiedImageError is an OSError.
_DAMAGED = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    EOFError,
    ArithmeticError,
    AttributeError,
    MemoryError,
    struct.error,
    zlib.error,
)


def open_image(path: ImagePlace, channels: int = 3) -> Image.Image:
    """Decode an image file to RGB, or to RGBA for networks of four channels.

    Grayscale, palette, CMYK and 16-bit images are converted; an alpha channel is dropped. Like
    torchvision, this ignores the EXIF orientation. Of animations, the first frame is read.

    Args:
        path: The file, or the member of an archive.
        channels: Channels of the network's input; only with four the fourth channel is kept.

    Raises:
        DataError: The file is not an image, is truncated, exceeds Pillow's pixel limit, or has no
            fourth channel where one is needed.
    """
    from PIL import Image

    limit = Image.MAX_IMAGE_PIXELS or 0
    too_large = DataError(
        f"{path} has too many pixels to be decoded safely (a decompression bomb?)",
        hint=f"reduce it to less than {limit / 1e6:.0f} megapixels, or remove it",
    )
    try:
        stored = path if isinstance(path, Path) else io.BytesIO(path.read())
        with Image.open(stored, formats=IMAGE_FORMATS) as image:
            if limit and image.width * image.height > limit:
                raise too_large
            return _four_channels(image) if channels == 4 else to_rgb(image)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise too_large from error
    except DataError as error:
        if error is too_large:
            raise
        raise DataError(
            f"cannot read the image {path}: {error.message}", hint=error.hint
        ) from error
    except _DAMAGED as error:
        reason = " ".join(str(error).split()).replace(str(path), path.name)
        raise DataError(
            f"cannot read the image {path}: {reason or type(error).__name__}",
            hint="remove or replace it (in a dataset: --skip-bad-images)",
        ) from error


def _four_channels(image: Image.Image) -> Image.Image:
    if image.mode != "RGBA":
        raise DataError(
            f"it has {len(image.getbands())} channels ({image.mode}), the network takes four",
            hint="use images with four channels (PNG or TIFF), or N x H x W x 4 arrays",
        )
    image.load()
    return image


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert a Pillow image of any mode to RGB, 8 bits per channel.

    Raises:
        DataError: The pixels are floating-point (their range is unknown) or exceed 16 bits.
    """
    from PIL import Image

    if image.mode == "RGB":
        image.load()  # the file is closed after this
        return image
    if image.mode == "F":
        raise DataError(
            "floating-point pixels have no known range",
            hint="save it with 8 or 16 bits per channel",
        )
    if image.mode.startswith("I"):  # 16 bits: convert() would clip everything above 255 to white
        values = np.asarray(image).astype(np.int64)
        if values.min(initial=0) < 0 or values.max(initial=0) > 0xFFFF:
            raise DataError(
                "pixels of more than 16 bits", hint="save it with 8 or 16 bits per channel"
            )
        eight_bits = ((values + 128) // 257).astype(np.uint8)
        return Image.fromarray(eight_bits).convert("RGB")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")
