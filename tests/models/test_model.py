from __future__ import annotations

import torch

from optimizer.models import Model, weights_digest


def test_the_digest_covers_names_types_shapes_and_values() -> None:
    base = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(2)}
    digest = weights_digest(base)
    assert weights_digest(dict(reversed(base.items()))) == digest
    assert weights_digest({**base, "bn.num_batches_tracked": torch.tensor(3)}) == digest
    others = [
        {"a": base["a"], "c": base["b"]},
        {"a": base["a"].reshape(3, 2), "b": base["b"]},
        {"a": base["a"].double(), "b": base["b"]},
        {"a": base["a"], "b": torch.tensor([1.0, 1.0000001])},
        {"a": base["a"]},
    ]
    assert len({digest, *map(weights_digest, others)}) == len(others) + 1


def test_the_digest_does_not_depend_on_memory_layout(resnet18: Model) -> None:
    state = resnet18.module.state_dict()
    channels_last = {
        name: tensor.contiguous(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor
        for name, tensor in state.items()
    }
    assert weights_digest(channels_last) == resnet18.sha256
