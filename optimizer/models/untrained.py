"""Networks with seeded random weights: for latency, for export, and for tests."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from optimizer.data import Preprocessing, open_dataset
from optimizer.models.architectures import build_module
from optimizer.models.model import Model, weights_digest

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ["random_detector", "random_model"]

_SEED = 0
_SIZE = 64
_LOGIT_STD = 2.0


def random_model(arch: str, num_classes: int = 1000) -> Model:
    """Build a network whose weights depend only on ``arch`` and ``num_classes``.

    Weights are torchvision's initialization with a fixed seed. With BatchNorm's initial statistics
    (mean 0, variance 1) the activations of a deep ResNet grow by orders of magnitude, unlike in a
    trained network, so the statistics are taken from one batch of bundled images. The last layer is
    scaled and centred on the same batch, so that different images get different classes. The
    forward pass runs in one thread, so that the weights do not depend on the thread count; other
    CPU types may round differently. The caller's random state is unchanged.
    """
    import torch

    preprocessing = Preprocessing.imagenet()
    images = torch.from_numpy(_sample_images(preprocessing.with_image_size(_SIZE)))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        module = build_module(arch, num_classes)
    with torch.no_grad(), _one_thread():
        _scale_head(module, _set_batchnorm_statistics(module, images))
    module.eval()
    return Model(
        module=module,
        arch=arch,
        classes=None,
        num_classes=num_classes,
        preprocessing=preprocessing,
        source=f"{arch}:random",
        sha256=weights_digest(module.state_dict()),
        preprocessing_assumed=True,
    )


_DETECTOR_SIZE = 128
_DETECTOR_BIAS = -5.0
"""With logits of `_LOGIT_STD` around it, about 2 % of the anchors' scores exceed 0.3."""


def random_detector(arch: str, num_classes: int = 91) -> Model:
    """Build a detector whose weights depend only on ``arch`` and ``num_classes``.

    As in `random_model`, BatchNorm's statistics come from one batch of bundled images; class logits
    are scaled on it so that a few boxes have high scores, and boxes so that they differ from the
    anchors a little. The input size is 128 pixels.
    """
    import torch

    from optimizer.models.detectors import initialize_towers

    images = torch.from_numpy(_sample_images(Preprocessing.detection(_SIZE))[::2])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        module = build_module(arch, num_classes)
        initialize_towers(module)
    with torch.no_grad(), _one_thread():
        with _batchnorm_of_one_batch(module):
            module.train()(images)
        module.eval()
        logits, boxes = "head.classification_head.cls_logits", "head.regression_head.bbox_reg"
        _scale_outputs(module, logits, images, mean=_DETECTOR_BIAS, std=_LOGIT_STD)
        # Deltas of RetinaNet around its anchors; distances of FCOS around one anchor's size.
        center = 2.0 if arch.startswith("fcos") else 0.0
        _scale_outputs(module, boxes, images, mean=center, std=0.3)
    return Model(
        module=module,
        arch=arch,
        classes=None,
        num_classes=num_classes,
        preprocessing=Preprocessing.detection(_DETECTOR_SIZE),
        source=f"{arch}:random",
        sha256=weights_digest(module.state_dict()),
        preprocessing_assumed=True,
    )


def _scale_outputs(
    module: nn.Module, name: str, images: torch.Tensor, *, mean: float, std: float
) -> None:
    """Scale the last layer of a head so that each channel has this mean and all this deviation."""
    import torch
    from torch import nn

    layer = module.get_submodule(name)
    assert isinstance(layer, nn.Conv2d)
    assert layer.bias is not None
    layer.bias.zero_()
    levels: list[torch.Tensor] = []
    hook = layer.register_forward_hook(lambda _, __, output: levels.append(output.flatten(2)))
    module(images)
    hook.remove()
    values = torch.cat(levels, dim=2).movedim(1, 0).flatten(1)  # channels x positions
    factor = std / float((values - values.mean(dim=1, keepdim=True)).std())
    layer.weight.mul_(factor)
    layer.bias.copy_(mean - factor * values.mean(dim=1))


def _sample_images(preprocessing: Preprocessing) -> NDArray[np.float32]:
    """Eight digits and eight crops of scikit-learn's two photos, N x 3 x size x size float32."""
    from PIL import Image
    from sklearn.datasets import load_sample_image

    digits = next(open_dataset("digits:train", limit=8).batches(8, preprocessing)).images
    photos = [
        preprocessing.apply(Image.fromarray(load_sample_image(name)[:, left : left + 160]))
        for name in ("china.jpg", "flower.jpg")
        for left in (0, 160, 320, 480)
    ]
    return np.concatenate([digits, np.stack(photos)])


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _set_batchnorm_statistics(module: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Set BatchNorm's statistics from one batch; return the inputs of the last layer."""
    features: list[torch.Tensor] = []
    hook = module.get_submodule("fc").register_forward_pre_hook(
        lambda _, inputs: features.append(inputs[0])
    )
    with _batchnorm_of_one_batch(module):
        module.train()(images)
    hook.remove()
    return features[0]


@contextlib.contextmanager
def _batchnorm_of_one_batch(module: nn.Module) -> Iterator[None]:
    """The running statistics become those of the batch that is computed in this block."""
    from torch import nn

    norms = [layer for layer in module.modules() if isinstance(layer, nn.BatchNorm2d)]
    momentum = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    yield
    for norm, value in zip(norms, momentum, strict=True):
        norm.momentum = value
        assert norm.num_batches_tracked is not None
        norm.num_batches_tracked.zero_()


def _scale_head(module: nn.Module, features: torch.Tensor) -> None:
    from torch import nn

    head = module.get_submodule("fc")
    assert isinstance(head, nn.Linear)
    head.bias.zero_()
    spread = features - features.mean(dim=0)
    head.weight.mul_(_LOGIT_STD / float(head(spread).std()))
    head.bias.copy_(-head(features).mean(dim=0))
