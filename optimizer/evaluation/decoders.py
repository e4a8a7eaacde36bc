"""Decoders and resizers held against each other: a mismatch here is often blamed on quantization.

The pixels that this package makes (Pillow decodes, Pillow resizes) are compared with what else is
common in ResNet pipelines, each differing in one step alone: torchvision's own JPEG decoder, and
resizing a tensor with or without antialiasing. With a model, the predictions that change are counted
too, which is what a difference of pixels is worth.

Not handled: OpenCV, DALI and decoders on a GPU.
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

if TYPE_CHECKING:
    from PIL import Image

    from optimizer.models import Model

__all__ = ["Difference", "compare_decoders"]

Pixels = NDArray[np.uint8]
Pipeline = Callable[[Path, Preprocessing], Pixels]
_BATCH = 32
_ON_TENSORS = ("nearest", "bilinear", "bicubic")


@dataclass
class Difference:
    """What another pipeline makes of the same images.

    Attributes:
        pipeline: Which step differs, in words.
        images: Images compared.
        differing: Images with any other pixel.
        mean: Mean absolute difference of all pixels, levels of 0 to 255.
        largest: Largest difference of one pixel.
        worst: The image with the largest mean difference.
        flips: Images that the model puts into another class; ``None`` without a model.
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
        """Take in one image."""
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
    """Hold other decoders and resizers against this package's.

    Args:
        data: An image folder.
        preprocessing: What the images go through.
        model: Counts the predictions that change.
        progress: Told of the images.

    Returns:
        One difference for each pipeline that can do this preprocessing.

    Raises:
        UsageError: The data has no image files.
        DataError: An image cannot be read.
    """
    files = _files(data)
    pipelines = _pipelines(preprocessing)
    found = {name: Difference(name, flips=None if model is None else 0) for name in pipelines}
    progress = progress or Silent()
    progress.start("compare decoders", total=len(files))
    for batch in _batches(files):
        ours = [preprocessing.apply_uint8(open_image(path)) for _, path in batch]
        classes = None if model is None else _classes(model, preprocessing, ours)
        for name, pipeline in pipelines.items():
            theirs = [pipeline(path, preprocessing) for _, path in batch]
            for (image, _), one, other in zip(batch, ours, theirs, strict=True):
                found[name].add(one, other, image)
            if model is not None:
                changed = _classes(model, preprocessing, theirs) != classes
                found[name].flips = (found[name].flips or 0) + int(np.count_nonzero(changed))
        progress.advance(len(batch))
    progress.finish()
    return list(found.values())


def _files(data: ImageDataset) -> list[tuple[str, Path]]:
    source = data.source
    if not isinstance(source, FileSource):
        raise UsageError(
            f"{data.name} holds no image files, so there is nothing to decode",
            hint="name a folder with one folder a class",
        )
    return [(data.image_id(i), source.file(int(p))) for i, p in enumerate(data.positions)]


def _batches(files: list[tuple[str, Path]]) -> Iterator[list[tuple[str, Path]]]:
    for start in range(0, len(files), _BATCH):
        yield files[start : start + _BATCH]


def _classes(model: Model, preprocessing: Preprocessing, images: list[Pixels]) -> NDArray[Any]:
    import torch

    with torch.inference_mode():
        logits = model.module(torch.from_numpy(preprocessing.normalize(np.stack(images))))
    return np.asarray(logits.argmax(dim=1).numpy())


# --- pipelines ---------------------------------------------------------------------------------


def _pipelines(preprocessing: Preprocessing) -> dict[str, Pipeline]:
    found: dict[str, Pipeline] = {"torchvision's decoder, Pillow resizes": _torchvision_decodes}
    if preprocessing.resize is not None and preprocessing.interpolation in _ON_TENSORS:
        method = preprocessing.interpolation
        found[f"Pillow decodes, tensors resized ({method}, antialias)"] = _on_tensors(True)
        found[f"Pillow decodes, tensors resized ({method}, no antialias)"] = _on_tensors(False)
    return found


def _torchvision_decodes(path: Path, preprocessing: Preprocessing) -> Pixels:
    from PIL import Image
    from torchvision.io import ImageReadMode, decode_image

    if path.suffix.lower() not in {".jpg", ".jpeg", ".png", ".webp"}:
        return preprocessing.apply_uint8(open_image(path))  # a format it does not decode
    pixels = decode_image(str(path), ImageReadMode.RGB).permute(1, 2, 0).numpy()
    return preprocessing.apply_uint8(Image.fromarray(pixels))


def _on_tensors(antialias: bool) -> Pipeline:
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
    back = Image.fromarray(np.ascontiguousarray(resized.permute(1, 2, 0).numpy()))
    return preprocessing.apply_uint8(back)  # of the right size already: crop and colours alone
