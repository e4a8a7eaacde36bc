"""What sources of encoded images share: an image is decoded from its file whenever it is read."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from optimizer.data.dataset import Pixels
from optimizer.data.images import open_image
from optimizer.data.preprocessing import Preprocessing
from optimizer.data.tar_members import ImagePlace

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["EncodedSource"]


class EncodedSource(ABC):
    """The part of a `Source` that follows from `file`."""

    preprocessed = False
    channels: int | None = None

    @abstractmethod
    def file(self, position: int) -> ImagePlace:
        """See `Source.file`."""

    def read(self, position: int, preprocessing: Preprocessing) -> Pixels:
        """See `Source.read`."""
        return preprocessing.apply_uint8(self.image(position, preprocessing.channels))

    def image(self, position: int, channels: int = 3) -> Image.Image:
        """See `Source.image`."""
        return open_image(self.file(position), channels)

    def check(self, position: int) -> None:
        """See `Source.check`: decodes the whole image."""
        open_image(self.file(position))
