"""Trains a detector: torchvision's losses, a pretrained or random backbone, small datasets.

Losses are those of torchvision's `RetinaNet` (focal loss, Lin et al. 2017) and `FCOS`. The heads'
convolutions start with Kaiming's initialization instead of a standard deviation of 0.01, with which
short trainings hardly leave the start. A pretrained backbone learns at 0.3 of the rate. SGD, warm-up and
cosine decay are as for classifiers. Images are scaled and moved a little, with their boxes; nothing is
mirrored, because digits and letters have a direction.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from optimizer.artifacts import Artifact, Cache, Input, Plan, library_versions, produce
from optimizer.data import ImageDataset, Preprocessing
from optimizer.errors import DataError, UsageError
from optimizer.models import Model, weights_digest, write_weights
from optimizer.models.architectures import detector_parts
from optimizer.options import TrainOptions, flag
from optimizer.progress import Progress, Silent

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch
    from torch import nn

__all__ = ["DetectorSettings", "detection_options", "train_detector_checkpoint"]

_BACKBONE_RATE = 0.3
_MAX_SHIFT = 0.1
_SCALES = (0.8, 1.2)
_LARGEST_GRADIENT = 5.0
_OTHER_OPTIONS = {"data", "val", "init", "workers", "skip_bad_images", "image_folder"}


@dataclass(frozen=True, kw_only=True)
class DetectorSettings:
    """What decides a training; see `TrainOptions` for the fields."""

    arch: str
    image_size: int = 128
    epochs: int = 12
    batch_size: int = 16
    lr: float = 0.02
    momentum: float = 0.9
    weight_decay: float = 1e-4
    seed: int = 0


def detection_options(options: TrainOptions) -> DetectorSettings:
    """The settings, with detectors' defaults for those that were not given.

    Raises:
        UsageError: An option does not apply to detectors, or the images are too small.
    """
    given = options.as_given()
    names = {field.name for field in fields(DetectorSettings)}
    for name in given:
        if name not in _OTHER_OPTIONS and name not in names:
            raise UsageError(
                f"{flag(name)} is for classifiers; detectors are trained without it",
                hint=f"leave out {flag(name)}",
            )
    settings = DetectorSettings(**{name: given[name] for name in names if name in given})
    if settings.image_size < 64:
        raise UsageError(
            f"images of {settings.image_size} pixels are too small for five levels of a pyramid",
            hint="use --image-size 64 or more",
        )
    return settings


def train_detector_checkpoint(
    settings: DetectorSettings,
    data: ImageDataset,
    path: Path,
    *,
    held_out: ImageDataset | None = None,
    init: Model | None = None,
    measure: Callable[[Model, ImageDataset], Mapping[str, Any]] | None = None,
    cache: Cache | None = None,
    progress: Progress | None = None,
) -> Artifact:
    """Train a detector into a checkpoint, unless the result already exists or is cached.

    Args:
        settings: Architecture and hyperparameters; see `detection_options`.
        data: Images with objects.
        path: The ``.safetensors`` file.
        held_out: Images with objects to measure the result on.
        init: A classifier with the backbone's architecture, or a detector of the same architecture;
            the layers for the classes start anew if the classes differ.
        measure: Measures the trained model on ``held_out``; the result goes into the manifest.
        cache: Artifact cache.
        progress: Receives progress updates, one per batch.

    Raises:
        UsageError: ``init`` is another network, or the loss became NaN or infinite.
        DataError: The data has no objects, or too few images.
    """
    progress = progress or Silent()
    _check_data(data)
    preprocessing = Preprocessing.detection(settings.image_size)
    inputs = [Input(role="data", file=data.name, sha256=data.sha256)]
    if held_out is not None:
        inputs.append(Input(role="held_out", file=held_out.name, sha256=held_out.sha256))
    if init is not None:
        inputs.append(Input(role="init", file=init.source, sha256=init.sha256))
    plan = Plan(
        kind="checkpoint",
        settings={
            **asdict(settings),
            "num_classes": len(data.classes or ()),
            "preprocessing_assumed": False,
        },
        inputs=inputs,
        libraries=library_versions("torch", "torchvision", "numpy", "pillow"),
        preprocessing=preprocessing.to_dict(),
        classes=data.classes,
    )

    def write(temporary: Path) -> Mapping[str, Any]:
        model, losses = train_detector(settings, data, init=init, progress=progress)
        write_weights(model, temporary)
        measured: Mapping[str, Any] = {}
        if held_out is not None and measure is not None:
            measured = measure(model, held_out)
        name = None if held_out is None else held_out.name
        return {"losses": list(losses), "held_out": name, **measured}

    return produce(plan, path, write, cache=cache)


def train_detector(
    settings: DetectorSettings,
    data: ImageDataset,
    *,
    init: Model | None = None,
    progress: Progress | None = None,
) -> tuple[Model, tuple[float, ...]]:
    """Train a detector; see `train_detector_checkpoint`.

    Returns:
        The model, and the mean loss of each epoch.
    """
    import torch

    progress = progress or Silent()
    preprocessing = Preprocessing.detection(settings.image_size)
    classes = data.classes or ()
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        network = _initial_network(settings.arch, len(classes), init, classes)
        losses = _fit(network, data, preprocessing, settings, progress)
    from optimizer.models.detectors import HeadOnly

    module = HeadOnly(network.to(memory_format=torch.contiguous_format)).eval()
    model = Model(
        module=module,
        arch=settings.arch,
        classes=classes,
        num_classes=len(classes),
        preprocessing=preprocessing,
        source=f"trained on {data.name}",
        sha256=weights_digest(module.state_dict()),
    )
    progress.finish(f"loss {losses[-1]:.3f}")
    return model, losses


def _check_data(data: ImageDataset) -> None:
    if data.objects is None:
        raise DataError(
            f"{data.name} has one class per image, but a detector learns from boxes",
            hint="use digits-scenes:train, a COCO file or a YOLO folder",
        )
    if not any(len(objects.classes) for objects in data.objects):
        raise DataError(f"no image of {data.name} has an object to learn")
    if len(data) < 2:
        raise DataError(f"{data.name} has too few images to train on")


# --- the network -------------------------------------------------------------------------------


def _initial_network(
    arch: str, num_classes: int, init: Model | None, classes: tuple[str, ...]
) -> nn.Module:
    from optimizer.models.detectors import initialize_towers, torchvision_detector

    parts = detector_parts(arch)
    assert parts is not None
    kind, backbone = parts
    network = torchvision_detector(kind, backbone, num_classes)
    initialize_towers(network)
    if init is None:
        return network
    state = init.module.state_dict()
    if init.arch == backbone:
        body = {name: value for name, value in state.items() if not name.startswith("fc.")}
        network.get_submodule("backbone.body").load_state_dict(body)
        return network
    if init.arch != arch:
        raise UsageError(
            f"{init.source} is a {init.arch}, which is neither {arch} nor its backbone",
            hint=f"pass a checkpoint of {backbone} or of {arch}, or leave out --init",
        )
    if init.classes != classes:
        state = {name: value for name, value in state.items() if ".cls_logits." not in name}
    network.load_state_dict(state, strict=False)
    return network


def _optimizer(network: nn.Module, settings: DetectorSettings) -> torch.optim.Optimizer:
    import torch

    body = {id(p) for p in network.get_submodule("backbone.body").parameters()}
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for parameter in network.parameters():
        groups.setdefault((id(parameter) in body, parameter.ndim > 1), []).append(parameter)
    return torch.optim.SGD(
        [
            {
                "params": parameters,
                "lr": settings.lr * (_BACKBONE_RATE if is_body else 1),
                "weight_decay": settings.weight_decay if decays else 0.0,
            }
            for (is_body, decays), parameters in groups.items()
        ],
        momentum=settings.momentum,
        nesterov=settings.momentum > 0,
    )


# --- the loop ----------------------------------------------------------------------------------


def _fit(
    network: nn.Module,
    data: ImageDataset,
    preprocessing: Preprocessing,
    settings: DetectorSettings,
    progress: Progress,
) -> tuple[float, ...]:
    import torch

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    network.train()
    images = _Scenes(data, preprocessing, settings)
    total = settings.epochs * images.steps
    optimizer = _optimizer(network, settings)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        max_lr=[group["lr"] for group in optimizer.param_groups],
        total_steps=total,
        pct_start=0.1,
        cycle_momentum=False,
    )
    progress.start(f"training {settings.arch} on {data.name}", total)
    means = []
    for epoch in range(1, settings.epochs + 1):
        losses = []
        for pixels, targets in images.epoch():
            batch = torch.from_numpy(pixels).to(device, memory_format=torch.channels_last)
            moved = [{k: v.to(device) for k, v in target.items()} for target in targets]
            loss = sum(_losses(network, batch, moved).values())
            assert isinstance(loss, torch.Tensor)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(network.parameters(), _LARGEST_GRADIENT)
            optimizer.step()
            schedule.step()
            losses.append(_finite(float(loss.detach()), epoch, settings))
            progress.advance(note=f"epoch {epoch}/{settings.epochs}, loss {losses[-1]:.3f}")
        means.append(float(np.mean(losses)))
    network.to("cpu")
    return tuple(means)


def _losses(
    network: Any, images: torch.Tensor, targets: list[dict[str, torch.Tensor]]
) -> dict[str, torch.Tensor]:
    from torchvision.models.detection.image_list import ImageList

    features = list(network.backbone(images).values())
    outputs = network.head(features)
    sizes = [(images.shape[2], images.shape[3])] * len(images)
    anchors = network.anchor_generator(ImageList(images, sizes), features)
    if "bbox_ctrness" in outputs:
        counts = [level.shape[2] * level.shape[3] for level in features]
        losses: dict[str, torch.Tensor] = network.compute_loss(targets, outputs, anchors, counts)
    else:
        losses = network.compute_loss(targets, outputs, anchors)
    return losses


def _finite(loss: float, epoch: int, settings: DetectorSettings) -> float:
    if not math.isfinite(loss):
        raise UsageError(
            f"training diverged: the loss became {loss} in epoch {epoch}",
            hint=f"lower the learning rate: --lr {settings.lr / 10:g}",
        )
    return loss


# --- images ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Placement:
    """Scale and shift of an image, output pixels per input pixel and output pixels."""

    scale: float
    x: float
    y: float


class _Scenes:
    """Batches in a new order in each epoch, images placed at random."""

    def __init__(
        self, data: ImageDataset, preprocessing: Preprocessing, settings: DetectorSettings
    ) -> None:
        self._data, self._preprocessing = data, preprocessing
        self._batch = min(settings.batch_size, len(data))
        self._random = np.random.RandomState(settings.seed)
        self.steps = len(data) // self._batch

    def epoch(self) -> Iterator[tuple[NDArray[np.float32], list[dict[str, torch.Tensor]]]]:
        """Images N x 3 x H x W float32 and torchvision's targets; the last, smaller batch is dropped."""
        order = self._random.permutation(len(self._data))[: self.steps * self._batch]
        batches = self._data.batches(self._batch, self._preprocessing, as_uint8=True, order=order)
        for batch in batches:
            placed, targets = [], []
            for pixels, index in zip(batch.images, batch.indices.tolist(), strict=True):
                placement = self._placement()
                placed.append(self._place(pixels, placement))
                targets.append(self._target(index, placement))
            yield self._preprocessing.normalize(np.stack(placed)), targets

    def _placement(self) -> _Placement:
        size = self._preprocessing.image_size
        scale = float(self._random.uniform(*_SCALES))
        x, y = self._random.uniform(-_MAX_SHIFT, _MAX_SHIFT, 2) * size + (1 - scale) * size / 2
        return _Placement(scale, float(x), float(y))

    def _place(self, pixels: NDArray[np.uint8], placement: _Placement) -> NDArray[np.uint8]:
        from PIL import Image

        size = self._preprocessing.image_size
        inverse = 1 / placement.scale
        matrix = (inverse, 0, -placement.x * inverse, 0, inverse, -placement.y * inverse)
        filling = tuple(round(255 * value) for value in self._preprocessing.mean)
        image = Image.fromarray(pixels).transform(
            (size, size),
            Image.Transform.AFFINE,
            matrix,
            Image.Resampling.BILINEAR,
            fillcolor=filling,
        )
        brightness = self._random.uniform(0.8, 1.2)
        return np.clip(np.asarray(image) * brightness, 0, 255).astype(np.uint8)

    def _target(self, index: int, placement: _Placement) -> dict[str, torch.Tensor]:
        import torch

        assert self._data.objects is not None
        objects = self._data.objects[index]
        width, height = objects.size
        fitted = self._preprocessing.fitted_size(width, height)
        scale = np.array([fitted[0] / width, fitted[1] / height] * 2) * placement.scale
        boxes = objects.boxes * scale + np.array([placement.x, placement.y] * 2)
        size = self._preprocessing.image_size
        clipped = boxes.clip(0, size)
        area = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
        inside = np.prod(clipped[:, 2:] - clipped[:, :2], axis=1)
        keep = (inside > 0.5 * area) & (inside > 1) & ~objects.crowd
        return {
            "boxes": torch.from_numpy(clipped[keep].astype(np.float32)),
            "labels": torch.from_numpy(objects.classes[keep]),
        }
