"""Cuts a network: the chosen channels and blocks, with the weights of those that stay.

Written for ResNets rather than taken from torch-pruning: only channels inside of blocks are cut, so
what belongs together is a convolution's outputs, its BatchNorm and the next convolution's inputs,
which needs no tracing of the network. Networks that torch-pruning has cut are read all the same
(`optimizer.models.narrow`).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from optimizer.data import ImageDataset, stratified_subset
from optimizer.models import Model, Widths, build_module, weights_digest
from optimizer.pruning.prunable import Prunable
from optimizer.pruning.saliency import Saliency

__all__ = ["cut", "estimate_statistics"]

_BATCH = 32
Kept = dict[str, NDArray[np.int64]]


def cut(model: Model, widths: Widths, saliency: Saliency, prunable: Prunable) -> Model:
    """A narrow copy of a network.

    Args:
        model: The network.
        widths: The widths of the copy; of each inner layer those channels stay that have the largest
            saliency, in their order.
        saliency: Of the network.
        prunable: The channels that stay together.
    """
    kept = _kept_channels(model.widths, widths, saliency, prunable)
    state = model.module.state_dict()
    with torch.device("meta"):
        module = build_module(model.arch, model.num_classes, channels=model.channels, widths=widths)
    head = copy.deepcopy(model.module.get_submodule("fc"))
    module.register_module("fc", head)
    narrow = {name: _slice(name, state[name], model.widths, kept) for name in module.state_dict()}
    module.load_state_dict(narrow, assign=True)
    module.eval()
    for parameter in module.parameters():
        parameter.requires_grad_(True)
    return replace(
        model,
        module=module,
        source=f"{model.source}, pruned",
        sha256=weights_digest(narrow),
        expected_top1=None,
        remarks=(),
    )


def _kept_channels(before: Widths, after: Widths, saliency: Saliency, prunable: Prunable) -> Kept:
    """The channels that stay, by the layer that computes them."""
    kept: Kept = {}
    for name, block in after.blocks:
        unit = prunable.units[name]
        layers = [f"{name}.conv{number}" for number in range(1, len(block))]
        changed = block != before.by_block[name]
        if unit > 1 and changed:  # a group goes in all layers
            joint = sum(saliency.channels[layer] for layer in layers)
            together = Saliency({"": np.asarray(joint)}, {}, saliency.images)
            kept |= {layer: together.kept("", block[0], unit) for layer in layers}
        elif changed:
            widths = zip(layers, block, strict=False)
            kept |= {layer: saliency.kept(layer, width, unit) for layer, width in widths}
    return kept


def _slice(name: str, tensor: torch.Tensor, before: Widths, kept: Kept) -> torch.Tensor:
    """A tensor with the channels that stay: its own, and those of the layer before."""
    module, _, kind = name.rpartition(".")
    block, _, layer = module.rpartition(".")
    if kind == "num_batches_tracked" or not block.startswith("layer") or "downsample" in block:
        return tensor.clone()
    number = int(layer[-1])
    if (own := kept.get(f"{block}.conv{number}")) is not None:
        tensor = tensor[torch.from_numpy(own)]
    inputs = kept.get(f"{block}.conv{number - 1}") if tensor.ndim == 4 else None
    # Of grouped convolutions the second dimension is the size of a group, which stays.
    if inputs is not None and tensor.shape[1] == before.by_block[block][number - 2]:
        tensor = tensor[:, torch.from_numpy(inputs)]
    return tensor.clone()


def estimate_statistics(model: Model, data: ImageDataset, images: int) -> Model:
    """The network with BatchNorm's statistics of some training images, as plain averages.

    Cutting changes the inputs of every BatchNorm behind it. Weights stay as they are.

    Args:
        model: The network; it is changed in place, and returned with its new digest.
        data: Training images.
        images: How many of them are used.
    """
    chosen = stratified_subset(data.labels, min(images, len(data)), 0)
    part = data.select(np.random.default_rng(0).permutation(chosen))
    norms = [m for m in model.module.modules() if isinstance(m, nn.BatchNorm2d)]
    momentum = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the average over all batches
    model.module.train()
    with torch.no_grad():
        for batch in _even_batches(part, model):
            model.module(batch)
    for norm, value in zip(norms, momentum, strict=True):
        norm.momentum = value
    model.module.eval()
    return replace(model, sha256=weights_digest(model.module.state_dict()))


def _even_batches(data: ImageDataset, model: Model) -> Iterator[torch.Tensor]:
    """Whole batches only: a single image has no variance in the last layers."""
    size = min(_BATCH, len(data))
    for batch in data.batches(size, model.preprocessing):
        if len(batch.labels) == size:
            yield torch.from_numpy(batch.images)
