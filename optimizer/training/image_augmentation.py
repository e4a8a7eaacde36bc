"""Random crops and changes of one image, by torchvision; the processes that decode run this."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from optimizer.data import Preprocessing

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["randomized"]


def randomized(
    preprocessing: Preprocessing, settings: Mapping[str, Any]
) -> Callable[[Image.Image, int], NDArray[np.uint8]]:
    """A function that crops and changes an image in a way that depends only on its second argument.

    Args:
        preprocessing: Preprocessing of the network: size, interpolation, order of the colours, mean.
        settings: ``augment`` (``crop``, ``trivial`` or ``rand``), ``flip``, and ``erasing`` (a
            probability).

    Returns:
        A function of an RGB image (RGBA for four channels) and a seed; it returns size x size x
        channels uint8, and seeds torch's global generator.
    """
    import torch
    from torchvision.transforms import v2

    interpolation = v2.InterpolationMode(preprocessing.interpolation)
    # Pillow weights colours by the fourth channel when it resizes; tensors have equal channels.
    steps: list[Any] = [v2.PILToTensor()] if preprocessing.color == "RGBA" else []
    steps.append(
        v2.RandomResizedCrop(preprocessing.image_size, interpolation=interpolation, antialias=True)
    )
    if settings["flip"]:
        steps.append(v2.RandomHorizontalFlip())
    if settings["augment"] == "trivial":
        steps.append(v2.TrivialAugmentWide(interpolation=interpolation))
    elif settings["augment"] == "rand":
        steps.append(v2.RandAugment(interpolation=interpolation))
    if preprocessing.color != "RGBA":
        steps.append(v2.PILToTensor())
    if settings["erasing"]:
        mean = [round(255 * channel) for channel in preprocessing.mean]
        steps.append(v2.RandomErasing(settings["erasing"], value=mean))
    transform = v2.Compose(steps)

    def apply(image: Image.Image, seed: int) -> NDArray[np.uint8]:
        torch.manual_seed(seed)
        if preprocessing.color == "grayscale":
            image = image.convert("L")
            image = image.convert("RGB") if preprocessing.channels == 3 else image
        pixels: NDArray[np.uint8] = transform(image).permute(1, 2, 0).numpy()
        if preprocessing.color == "BGR":
            pixels = pixels[:, :, ::-1]
        return np.ascontiguousarray(pixels)

    return apply
