"""In-memory image sources: used for digits and NPZ files."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from optimizer.data.dataset import Pixels
from optimizer.data.preprocessing import Preprocessing
from optimizer.errors import DataError

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["PixelSource", "TensorSource"]


class PixelSource:
    """Pixels, N x H x W x channels uint8; resized and cropped like photos.

    Of one channel, N x H x W will do.
    """

    preprocessed = False

    def __init__(self, images: NDArray[np.uint8], name: str) -> None:
        self._images = images
        self._name = name
        self.channels = images.shape[3] if images.ndim == 4 else 1

    def file(self, position: int) -> None:
        """See `Source.file`."""

    def read(self, position: int, preprocessing: Preprocessing) -> Pixels:
        """See `Source.read`."""
        return preprocessing.apply_uint8(self.image(position))

    def image(self, position: int, channels: int = 3) -> Image.Image:
        """See `Source.image`: the channels are those that were stored."""
        del channels
        from PIL import Image

        image = self._images[position]
        if self.channels == 1:
            image = image.reshape(image.shape[:2])
        return Image.fromarray(image)

    def check(self, position: int) -> None:
        """See `Source.check`: pixels are always valid."""

    def image_id(self, position: int) -> str:
        """See `Source.image_id`."""
        return f"{self._name}/{position:05d}"

    def fingerprint(self, position: int) -> Iterable[bytes]:
        """See `Source.fingerprint`."""
        return self.content(position)

    def content(self, position: int) -> Iterable[bytes]:
        """See `Source.content`."""
        image = self._images[position]
        return (repr(image.shape).encode(), image.tobytes())

    def remember(self) -> None:
        """See `Source.remember`: nothing is worth it."""

    def size(self, position: int) -> int:
        """See `Source.size`."""
        return int(self._images[position].nbytes)


class TensorSource:
    """Images that are already preprocessed, N x channels x H x W float32."""

    preprocessed = True

    def __init__(self, images: NDArray[np.float32], name: str) -> None:
        self._images = images
        self._name = name
        self.channels = images.shape[1]

    def file(self, position: int) -> None:
        """See `Source.file`."""

    def read(self, position: int, preprocessing: Preprocessing) -> Pixels:
        """See `Source.read`; of ``preprocessing`` only the image size is used, as a check."""
        self.check(position)
        image: NDArray[np.float32] = self._images[position]
        size = preprocessing.image_size
        if image.shape[1:] != (size, size):
            raise DataError(
                f"{self._name} holds preprocessed images of {image.shape[1]} x {image.shape[2]} "
                f"pixels, but the network takes {size} x {size}",
                hint="preprocess them to this size, or store them as N x H x W x 3 uint8",
            )
        return image

    def image(self, position: int, channels: int = 3) -> Image.Image:
        """See `Source.image`: there is none."""
        del channels
        raise DataError(
            f"{self.image_id(position)} was preprocessed elsewhere and cannot be cropped or changed",
            hint="--augment shift or none, or store the images as N x H x W x 3 uint8",
        )

    def check(self, position: int) -> None:
        """See `Source.check`: values must not be infinite or NaN."""
        if not np.isfinite(self._images[position]).all():
            raise DataError(f"{self.image_id(position)} contains NaN or infinite values")

    def image_id(self, position: int) -> str:
        """See `Source.image_id`."""
        return f"{self._name}/{position:05d}"

    def fingerprint(self, position: int) -> Iterable[bytes]:
        """See `Source.fingerprint`."""
        return self.content(position)

    def content(self, position: int) -> Iterable[bytes]:
        """See `Source.content`."""
        image = self._images[position]
        return (b"float32", repr(image.shape).encode(), image.tobytes())

    def remember(self) -> None:
        """See `Source.remember`: nothing is worth it."""

    def size(self, position: int) -> int:
        """See `Source.size`."""
        return int(self._images[position].nbytes)
