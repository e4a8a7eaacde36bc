"""Compare image decoders and resizers: a mismatch here is often mistaken for quantization loss.

The pixels of this package (Pillow decodes and resizes) are compared with other pipelines that are
common for ResNets, each differing in a single step: torchvision's JPEG decoder, and resizing a
tensor with or without antialiasing. With a model, changed predictions are counted too, which shows
whether the pixel differences matter.

Not covered: OpenCV, DALI and GPU decoders.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from optimizer.data import ImageDataset, Preprocessing, open_image
from optimizer.data.folder import FileSource
from optimizer.errors import UsageError
from optimizer.progress import Progress, Silent
from optimizer.tasks.one_output import as_classes

if TYPE_CHECKING:
    from PIL import Image

    from optimizer.models import Model

__all__ = ["Difference", "compare_decoders"]

Pixels = NDArray[np.uint8]
Pipeline = Callable[[Path, Preprocessing], Pixels]
_BATCH = 32
_TENSOR_INTERPOLATIONS = ("nearest", "bilinear", "bicubic")


@dataclass
class Difference:
    """How another pipeline's pixels differ on the same images.

    Attributes:
        pipeline: Description of the step that differs.
        images: Images compared.
        differing: Images with at least one different pixel.
        mean: Mean absolute difference over all pixels, in levels of 0 to 255.
        largest: Largest difference of a single pixel.
        worst: The image with the largest mean difference.
        flips: Images whose predicted class changes; ``None`` without a model.
    """

    pipeline: str
    images: int = 0
    differing: int = 0
    mean: float = 0.0
    largest: int = 0
    worst: str | None = None
    flips: int | None = None
    _worst_mean: float = field(default=0.0, repr=False)

    def add(self, ours: Pixels, theirs: Pixels, name: str) -> None:
        """Add one image."""
        delta = np.abs(ours.astype(np.int16) - theirs.astype(np.int16))
        mean = float(delta.mean())
        self.mean = (self.mean * self.images + mean) / (self.images + 1)
        self.images += 1
        self.differing += bool(delta.any())
        self.largest = max(self.largest, int(delta.max()))
        if mean > self._worst_mean:
            self.worst, self._worst_mean = name, mean


def compare_decoders(
    data: ImageDataset,
    preprocessing: Preprocessing,
    *,
    model: Model | None = None,
    progress: Progress | None = None,
) -> list[Difference]:
    """Compare other decoders and resizers with those of this package.

    Args:
        data: An image folder.
        preprocessing: The preprocessing to apply.
        model: If given, changed predictions are counted.
        progress: Receives progress updates per image.

    Returns:
        One entry per pipeline that supports this preprocessing.

    Raises:
        UsageError: The data has no image files, or the network takes four channels.
        DataError: An image cannot be read.
    """
    if preprocessing.channels == 4:
        raise UsageError(
            "other decoders are compared for colour and grayscale images, not for four channels",
            hint="resnet-opt validate compares engines on these images",
        )
    files = _files(data)
    pipelines = _pipelines(preprocessing)
    differences = {name: Difference(name, flips=None if model is None else 0) for name in pipelines}
    progress = progress or Silent()
    progress.start("compare decoders", total=len(files))
    for batch in _batches(files):
        ours = [
            preprocessing.apply_uint8(open_image(path, preprocessing.channels)) for _, path in batch
        ]
        classes = None if model is None else _classes(model, preprocessing, ours)
        for name, pipeline in pipelines.items():
            theirs = [pipeline(path, preprocessing) for _, path in batch]
            for (image, _), our_pixels, their_pixels in zip(batch, ours, theirs, strict=True):
                differences[name].add(our_pixels, their_pixels, image)
            if model is not None:
                changed = _classes(model, preprocessing, theirs) != classes
                flips = int(np.count_nonzero(changed))
                differences[name].flips = (differences[name].flips or 0) + flips
        progress.advance(len(batch))
    progress.finish()
    return list(differences.values())


def _files(data: ImageDataset) -> list[tuple[str, Path]]:
    source = data.source
    if not isinstance(source, FileSource):
        raise UsageError(
            f"{data.name} contains no image files, so there is nothing to decode",
            hint="give a folder with one subfolder per class",
        )
    return [(data.image_id(i), source.file(int(p))) for i, p in enumerate(data.positions)]


def _batches(files: list[tuple[str, Path]]) -> Iterator[list[tuple[str, Path]]]:
    for start in range(0, len(files), _BATCH):
        yield files[start : start + _BATCH]


def _classes(model: Model, preprocessing: Preprocessing, images: list[Pixels]) -> NDArray[Any]:
    import torch

    with torch.inference_mode():
        logits = model.module(torch.from_numpy(preprocessing.normalize(np.stack(images))))
    return np.asarray(as_classes(logits.numpy()).argmax(axis=1))


# --- pipelines ---------------------------------------------------------------------------------


def _pipelines(preprocessing: Preprocessing) -> dict[str, Pipeline]:
    pipelines: dict[str, Pipeline] = {
        "torchvision decoder, Pillow resize": _decode_with_torchvision
    }
    if preprocessing.resize is not None and preprocessing.interpolation in _TENSOR_INTERPOLATIONS:
        method = preprocessing.interpolation
        for antialias, suffix in ((True, "antialias"), (False, "no antialias")):
            name = f"Pillow decoder, tensor resize ({method}, {suffix})"
            pipelines[name] = _resize_tensors(antialias)
    return pipelines


def _decode_with_torchvision(path: Path, preprocessing: Preprocessing) -> Pixels:
    from PIL import Image
    from torchvision.io import ImageReadMode, decode_image

    if path.suffix.lower() not in {".jpg", ".jpeg", ".png", ".webp"}:
        return preprocessing.apply_uint8(open_image(path))  # torchvision cannot decode it
    pixels = decode_image(str(path), ImageReadMode.RGB).permute(1, 2, 0).numpy()
    return preprocessing.apply_uint8(Image.fromarray(pixels))


def _resize_tensors(antialias: bool) -> Pipeline:
    def pipeline(path: Path, preprocessing: Preprocessing) -> Pixels:
        return _resized_tensor(open_image(path), preprocessing, antialias)

    return pipeline


def _resized_tensor(image: Image.Image, preprocessing: Preprocessing, antialias: bool) -> Pixels:
    import torch
    from PIL import Image
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.v2 import functional

    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    resized = functional.resize(
        pixels,
        [int(preprocessing.resize or 0)],
        InterpolationMode(preprocessing.interpolation),
        antialias=antialias,
    )
    small = Image.fromarray(np.ascontiguousarray(resized.permute(1, 2, 0).numpy()))
    return preprocessing.apply_uint8(small)  # already resized: only crops and converts colours
