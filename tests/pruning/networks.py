"""Networks of a few channels: every kind of block, in milliseconds."""

from __future__ import annotations

import torch

from optimizer.data import Preprocessing
from optimizer.models import Model, Widths, build_module, weights_digest
from optimizer.models.architectures import full_widths

STREAM = {1: 16, 2: 24, 3: 32, 4: 40}


def tiny(arch: str, *, seed: int = 0, inner: int = 16, classes: int = 10) -> Model:
    """A narrow network of an architecture with random weights and BatchNorm statistics.

    Args:
        arch: The architecture.
        seed: Seed of the weights.
        inner: Channels inside of all blocks.
        classes: Number of outputs.
    """
    blocks = {}
    for name, block in full_widths(arch).blocks:
        blocks[name] = (*(inner,) * (len(block) - 1), STREAM[int(name[5])])
    widths = Widths(16, tuple(blocks.items()))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = build_module(arch, classes, widths=widths)
        for name, tensor in module.state_dict().items():
            if "bn" in name and name.endswith(("weight", "running_var")):
                tensor.uniform_(0.5, 1.5)
            if "bn" in name and name.endswith(("bias", "running_mean")):
                tensor.uniform_(-0.3, 0.3)
    module.eval()
    return Model(
        module=module,
        arch=arch,
        classes=tuple("0123456789"[:classes]),
        num_classes=classes,
        preprocessing=Preprocessing.digits(32),
        source=f"tiny {arch}",
        sha256=weights_digest(module.state_dict()),
    )
