"""Preprocessing of images into the network's input, as one frozen, hashed object.

The object is stored in the checkpoint's card, the graph's metadata and every manifest, so that an
engine is always validated with the preprocessing its network was trained with. Images are resized
by Pillow: with equal settings the result is bit-identical to torchvision's ``ImageClassification``
preset (a test compares the two).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from optimizer.artifacts import content_key
from optimizer.errors import DataError

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["COLORS", "IMAGENET_MEAN", "IMAGENET_STD", "INTERPOLATIONS", "Preprocessing"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos", "box", "hamming")
COLORS = ("RGB", "BGR", "grayscale", "RGBA")
_DEPTHS = {"RGB": (3,), "BGR": (3,), "grayscale": (1, 3), "RGBA": (4,)}
FITS = ("crop", "letterbox")

# Mean and standard deviation of the pixels of scikit-learn's digits, as fractions of 255.
_DIGITS_MEAN = 0.3053
_DIGITS_STD = 0.3760
_MAX_SIZE = 8192
_MOST_PIXELS = 1 << 27
"""Of a resized image before it is cropped; a square of the largest size has half as many."""


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """Resize the shorter side, crop the centre, scale to [0, 1], subtract mean, divide by std.

    For detection the longer side is resized instead, and the rest of the square, right of the image
    or below it, is filled with the mean colour (`fit` is ``letterbox``): every object stays in the
    image with its proportions, and the filling is zero after normalization.

    Attributes:
        resize: Length of the shorter side after resizing, pixels; ``None`` does not resize.
        crop: Side of the centre crop, pixels; smaller images are padded with black, as
            torchvision does.
        interpolation: One of `INTERPOLATIONS`.
        antialias: Whether downscaling widens the filter, as Pillow and torchvision do. ``False``
            samples without antialiasing, like OpenCV's ``INTER_LINEAR``.
        color: The channels and their order: ``RGB``, ``BGR``, ``RGBA`` (four channels that are
            resized independently of each other), or ``grayscale`` (luminance, in one channel if
            ``mean`` has one value, else in three equal ones).
        mean: Mean of each channel, in that order, as a fraction of 255.
        std: Standard deviation of each channel, likewise.
        fit: ``crop`` or ``letterbox``.
    """

    resize: int | None
    crop: int
    interpolation: str = "bilinear"
    antialias: bool = True
    color: str = "RGB"
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    fit: str = "crop"

    def __post_init__(self) -> None:
        if self.color not in COLORS:
            raise DataError(
                f"preprocessing: unknown colour order {self.color!r}",
                hint=f"use one of {', '.join(COLORS)}",
            )
        self._check_statistics()
        for name, size in (("crop", self.crop), ("resize", self.resize)):
            whole = isinstance(size, int) and not isinstance(size, bool)
            if size is not None and not (whole and 1 <= size <= _MAX_SIZE):
                raise DataError(
                    f"preprocessing: {name} must be 1 to {_MAX_SIZE} pixels, not {size!r:.40}"
                )
        if self.interpolation not in INTERPOLATIONS:
            raise DataError(
                f"preprocessing: unknown interpolation {self.interpolation!r}",
                hint=f"use one of {', '.join(INTERPOLATIONS)}",
            )
        if not self.antialias and self.interpolation not in ("nearest", "bilinear", "bicubic"):
            raise DataError(f"preprocessing: {self.interpolation} always antialiases")
        self._check_fit()

    def _check_fit(self) -> None:
        if self.fit not in FITS:
            raise DataError(
                f"preprocessing: unknown fit {self.fit!r}", hint=f"use one of {', '.join(FITS)}"
            )
        if self.fit == "letterbox" and self.resize != self.crop:
            raise DataError(
                f"preprocessing: a letterbox of {self.crop} pixels resizes the longer side to "
                f"{self.crop}, not to {self.resize}"
            )
        if self.fit == "letterbox" and len(self.mean) != 3:
            raise DataError(
                f"preprocessing: a letterbox is for images of three channels, not {len(self.mean)}"
            )

    def _check_statistics(self) -> None:
        depths = _DEPTHS[self.color]
        for name in ("mean", "std"):
            values = tuple(float(v) for v in getattr(self, name))
            if len(values) not in depths or not all(math.isfinite(v) for v in values):
                numbers = " or ".join(map(str, depths))
                raise DataError(
                    f"preprocessing: {name} of {self.color} must be {numbers} finite "
                    f"number{'' if depths == (1,) else 's'}, not {values}"
                )
            object.__setattr__(self, name, values)
        if len(self.mean) != len(self.std):
            raise DataError(
                f"preprocessing: mean has {len(self.mean)} values and std {len(self.std)}"
            )
        if max(map(abs, self.mean)) > 1 or max(self.std) > 1:
            raise DataError(
                f"preprocessing: mean {self.mean} and std {self.std} must be from 0 to 1",
                hint="divide values for pixels from 0 to 255 by 255",
            )
        if min(self.std) <= 0:
            raise DataError(f"preprocessing: std must be positive, not {self.std}")

    # --- constructors ----------------------------------------------------------------------

    @classmethod
    def imagenet(cls, image_size: int = 224) -> Preprocessing:
        """Standard ImageNet evaluation, scaled to size: shorter side 256, crop 224, bilinear."""
        return cls(resize=256, crop=224).with_image_size(image_size)

    @classmethod
    def digits(cls, image_size: int = 32) -> Preprocessing:
        """For the bundled digits: the whole image resized, normalized with the digits' statistics."""
        return cls(
            resize=image_size, crop=image_size, mean=(_DIGITS_MEAN,) * 3, std=(_DIGITS_STD,) * 3
        )

    @classmethod
    def detection(cls, image_size: int) -> Preprocessing:
        """For detectors: a letterbox of ``image_size`` pixels, ImageNet's mean and std."""
        return cls(resize=image_size, crop=image_size, fit="letterbox")

    @classmethod
    def from_torchvision(cls, transforms: Any) -> Preprocessing:
        """From the transforms of torchvision weights, ``weights.transforms()``."""
        return cls(
            resize=int(transforms.resize_size[0]),
            crop=int(transforms.crop_size[0]),
            interpolation=str(transforms.interpolation.value),
            # torchvision always antialiases Pillow images, which evaluation uses.
            antialias=True,
            mean=tuple(transforms.mean),
            std=tuple(transforms.std),
        )

    @classmethod
    def from_timm(cls, config: Mapping[str, Any]) -> Preprocessing:
        """From a timm data config (``timm.data.resolve_data_config``, or a ``pretrained_cfg``).

        Raises:
            DataError: A crop mode other than ``center``, or an input that is not a square RGB image.
        """
        channels, height, width = config["input_size"]
        if channels != 3 or height != width:
            raise DataError(
                f"timm data config: input {config['input_size']} is not a square RGB image"
            )
        mode = config.get("crop_mode") or "center"
        if mode != "center":
            raise DataError(f"timm data config: crop mode {mode!r} is not supported, only 'center'")
        return cls(
            resize=math.floor(height / float(config.get("crop_pct") or 0.875)),
            crop=int(height),
            interpolation=str(config.get("interpolation") or "bicubic"),
            mean=tuple(config.get("mean") or IMAGENET_MEAN),
            std=tuple(config.get("std") or IMAGENET_STD),
        )

    def with_image_size(self, image_size: int) -> Preprocessing:
        """A copy with another crop; the shorter side is scaled by the same factor."""
        if image_size == self.crop:
            return self
        resize = (
            None if self.resize is None else max(1, round(self.resize * image_size / self.crop))
        )
        return replace(self, resize=resize, crop=image_size)

    def with_channels(self, channels: int) -> Preprocessing:
        """A copy for a network of 1 channel (luminance), 3 channels, or 4 (RGBA).

        One channel takes the average of mean and std. A fourth one takes 0.5 for both, which maps its
        values to -1 to 1.

        Raises:
            DataError: It is for another number than three channels, or in another order than RGB.
        """
        if channels == self.channels:
            return self
        if self.channels != 3 or channels not in (1, 4):
            raise DataError(
                f"preprocessing: {self.color} of {self.channels} channels does not become {channels}"
            )
        if channels == 1:
            mean, std = (
                values[0] if len({*values}) == 1 else round(sum(values) / 3, 6)
                for values in (self.mean, self.std)
            )
            return replace(self, color="grayscale", mean=(mean,), std=(std,))
        if self.color != "RGB":
            raise DataError(f"preprocessing: four channels are RGBA, not {self.color} and a fourth")
        return replace(self, color="RGBA", mean=(*self.mean, 0.5), std=(*self.std, 0.5))

    # --- serialization ---------------------------------------------------------------------

    @property
    def image_size(self) -> int:
        """Side of the network's input, pixels."""
        return self.crop

    @property
    def channels(self) -> int:
        """Channels of the network's input: 1, 3 or 4."""
        return len(self.mean)

    @property
    def sha256(self) -> str:
        """Digest over all fields."""
        return content_key(self._fields())

    def _fields(self) -> dict[str, Any]:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        if self.fit == "crop":
            del values["fit"]  # digests of classifiers are those of files without this field
        return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}

    def to_dict(self) -> dict[str, Any]:
        """A JSON-serializable mapping of all fields and ``sha256``."""
        return {**self._fields(), "sha256": self.sha256}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Preprocessing:
        """The inverse of `to_dict`; ``sha256`` is optional.

        Raises:
            DataError: Unknown or missing fields, or a ``sha256`` that does not match the values.
        """
        given = dict(values)
        expected = given.pop("sha256", None)
        unknown = sorted(set(given) - {field.name for field in fields(cls)})
        if unknown:
            raise DataError(f"preprocessing: unknown field {unknown[0]!r}")
        try:
            result = cls(**given)
        except (TypeError, ValueError) as error:
            raise DataError(f"preprocessing: {error}") from error
        if expected is not None and expected != result.sha256:
            raise DataError(
                "preprocessing: the values were changed after writing (sha256 differs)",
                hint="remove the sha256 if the change is intended",
            )
        return result

    def __str__(self) -> str:
        resize = (
            "" if self.resize is None else f"shorter side {self.resize} ({self.interpolation}), "
        )
        if self.fit == "letterbox":
            return f"letterbox {self.crop} ({self.interpolation}), {self.color}"
        return f"{resize}crop {self.crop}, {self.color}"

    # --- image operations ------------------------------------------------------------------

    @property
    def in_words(self) -> str:
        """All of it, for messages: size, colors, mean and standard deviation."""
        mean, std = (", ".join(f"{v:.3g}" for v in values) for values in (self.mean, self.std))
        return f"{self}, mean {mean}, std {std}"

    def apply_uint8(self, image: Image.Image) -> NDArray[np.uint8]:
        """Resize and crop an image.

        Args:
            image: RGB or grayscale; RGBA if `color` is.

        Returns:
            crop x crop x channels uint8, channels in the order of `color`.

        Raises:
            DataError: `color` is RGBA and the image has no fourth channel.
        """
        if self.color == "RGBA":
            return self._apply_to_channels(image)
        if self.color == "grayscale":
            image = image.convert("L")
        mode = "L" if self.channels == 1 else "RGB"
        if image.mode != mode:  # Pillow would copy it
            image = image.convert(mode)
        fitted = (
            self._letterbox(image) if self.fit == "letterbox" else self._crop(self._resize(image))
        )
        pixels = np.array(fitted, dtype=np.uint8)
        pixels = pixels.reshape(self.crop, self.crop, self.channels)
        if self.color == "BGR":
            pixels = np.ascontiguousarray(pixels[:, :, ::-1])
        return pixels

    def _apply_to_channels(self, image: Image.Image) -> NDArray[np.uint8]:
        """Resize each channel alone: Pillow weights colours by the fourth channel."""
        if image.mode != "RGBA":
            raise DataError(
                f"the network takes four channels, the image is {image.mode}",
                hint="use images with four channels (PNG or TIFF), or N x H x W x 4 arrays",
            )
        bands = [self._crop(self._resize(band)) for band in image.split()]
        return np.stack([np.array(band, dtype=np.uint8) for band in bands], axis=-1)

    def apply(self, image: Image.Image) -> NDArray[np.float32]:
        """Resize, crop and normalize an image.

        Returns:
            channels x crop x crop float32.
        """
        normalized: NDArray[np.float32] = self.normalize(self.apply_uint8(image)[np.newaxis])[0]
        return normalized

    def normalize(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Normalize resized and cropped images.

        Args:
            images: N x H x W x channels uint8, channels in the order of `color`.

        Returns:
            N x channels x H x W float32, contiguous: ``(x / 255 - mean) / std`` in single precision, with
            torchvision's order of operations.
        """
        if images.ndim != 4 or images.shape[3] != self.channels or images.dtype != np.uint8:
            raise DataError(
                f"normalize needs N x H x W x {self.channels} uint8, not {images.shape} {images.dtype}"
            )
        count, height, width, channels = images.shape
        mean, std = (np.array(v, dtype=np.float32).reshape(-1, 1, 1) for v in (self.mean, self.std))
        result = np.empty((count, channels, height, width), dtype=np.float32)
        for index in range(count):  # one image at a time stays in the CPU cache
            values = result[index]
            values[...] = images[index].transpose(2, 0, 1)
            values /= np.float32(255)
            values -= mean
            values /= std
        return result

    def _resize(self, image: Image.Image) -> Image.Image:
        if self.resize is None:
            return image
        width, height = image.size
        long_side = int(self.resize * max(width, height) / min(width, height))
        if self.resize * long_side > _MOST_PIXELS:
            raise DataError(
                f"an image of {width} x {height} pixels would be resized to {self.resize} x {long_side}",
                hint="crop it: no photo is that narrow",
            )
        size = (self.resize, long_side) if width <= height else (long_side, self.resize)
        return self._resized(image, size)

    def fitted_size(self, width: int, height: int) -> tuple[int, int]:
        """Width and height that an image of this size has inside the letterbox, pixels."""
        longer = max(width, height)
        return tuple(max(1, round(self.crop * side / longer)) for side in (width, height))  # type: ignore[return-value]

    def _letterbox(self, image: Image.Image) -> Image.Image:
        from PIL import Image

        fitted = self._resized(image, self.fitted_size(*image.size))
        mean = self.mean[::-1] if self.color == "BGR" else self.mean  # channels are swapped later
        filling = tuple(round(255 * value) for value in mean)
        square = Image.new("RGB", (self.crop, self.crop), filling)
        square.paste(fitted, (0, 0))
        return square

    def _resized(self, image: Image.Image, size: tuple[int, int]) -> Image.Image:
        from PIL import Image

        if size == image.size:
            return image
        if self.antialias:
            return image.resize(size, Image.Resampling[self.interpolation.upper()])
        # transform() samples at the pixel centres without antialiasing.
        return image.transform(
            size,
            Image.Transform.EXTENT,
            (0, 0, *image.size),
            Image.Resampling[self.interpolation.upper()],
        )

    def _crop(self, image: Image.Image) -> Image.Image:
        from PIL import ImageOps

        width, height = image.size
        missing_x, missing_y = max(0, self.crop - width), max(0, self.crop - height)
        if missing_x or missing_y:
            border = (missing_x // 2, missing_y // 2, (missing_x + 1) // 2, (missing_y + 1) // 2)
            image = ImageOps.expand(image, border=border, fill=0)
            width, height = image.size
        # Rounds half to even like torchvision: this decides which side loses the odd pixel.
        left, top = round((width - self.crop) / 2), round((height - self.crop) / 2)
        return image.crop((left, top, left + self.crop, top + self.crop))
