"""Loads weights into detectors, from this package's checkpoints and from torchvision's."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from optimizer.errors import CheckpointError
from optimizer.models.architectures import DETECTORS, build_module, check_arch, expected_shapes

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ["detector_state", "fit_detector"]

State = Mapping[str, "torch.Tensor"]
_LOGITS = "head.classification_head.cls_logits"
_OLD_TOWER = re.compile(r"(head\.\w+_head\.conv)\.([0246])\.(weight|bias)$")
_ROI_HEADS = "roi_heads."


def detector_state(content: Any) -> State | None:
    """The tensors of a detector in the contents of a file; ``None`` if there are none.

    They may be in the mapping ``model`` or ``state_dict``, as torchvision's scripts write them, and
    under ``module.``.
    """
    if not isinstance(content, Mapping):
        return None
    for part in (content, content.get("model"), content.get("state_dict")):
        if not isinstance(part, Mapping):
            continue
        state = {str(name).removeprefix("module."): value for name, value in part.items()}
        if any(name.startswith(("head.classification_head.", _ROI_HEADS)) for name in state):
            return state
    return None


def fit_detector(state: State, arch: str | None, source: str) -> tuple[nn.Module, str, int]:
    """Build the detector that the weights belong to.

    Args:
        state: Tensors by name, as torchvision names them.
        arch: The architecture; ``None`` infers it from the weights.
        source: Origin of the weights, for messages.

    Returns:
        The network (FP32, evaluation mode), its architecture and its number of classes.

    Raises:
        CheckpointError: The weights belong to another architecture, or contain NaN or infinity.
    """
    import torch

    if any(name.startswith(_ROI_HEADS) for name in state):
        check_arch("fasterrcnn")  # raises with the reason
    if arch is not None and check_arch(arch) not in DETECTORS:
        raise CheckpointError(
            f"{source} holds the weights of a detector, not of {arch}",
            hint=f"omit --arch, or use one of {', '.join(DETECTORS)}",
        )
    state = _current_names(state)
    arch = arch or _infer(state, source)
    num_classes = _num_classes(state, arch, source)
    with torch.device("meta"):
        module = build_module(arch, num_classes)
    complete = {}
    for name, tensor in module.state_dict().items():
        if name.endswith("num_batches_tracked"):  # frozen BatchNorm has none
            complete[name] = torch.zeros((), dtype=torch.int64)
            continue
        if name not in state or state[name].shape != tensor.shape:
            found = tuple(state[name].shape) if name in state else "missing"
            raise CheckpointError(
                f"{source} does not match {arch}: {name} is {found}, not {tuple(tensor.shape)}",
                hint="pass the architecture they were trained for as --arch",
            )
        complete[name] = state[name].detach().float().contiguous()
        if not torch.isfinite(complete[name]).all():
            raise CheckpointError(
                f"{source}: {name} contains NaN or infinite values",
                hint="use a checkpoint from before the training diverged",
            )
    if unexpected := sorted(set(state) - set(complete)):
        raise CheckpointError(
            f"{source} does not match {arch}: unexpected tensor {unexpected[0]}",
            hint="pass the architecture they were trained for as --arch",
        )
    module.load_state_dict(complete, assign=True)
    return module.eval(), arch, num_classes


def _current_names(state: State) -> dict[str, torch.Tensor]:
    """Rename RetinaNet's towers of torchvision before 0.13: ``conv.2.weight`` is ``conv.1.0.weight``.

    FCOS has a GroupNorm between the convolutions, and its names have not changed.
    """
    if "head.classification_head.conv.1.weight" in state:
        return dict(state)
    return {
        _OLD_TOWER.sub(lambda m: f"{m[1]}.{int(m[2]) // 2}.0.{m[3]}", name): tensor
        for name, tensor in state.items()
    }


def _infer(state: State, source: str) -> str:
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    for arch in DETECTORS:
        expected = {
            name: shape
            for name, shape in expected_shapes(arch).items()
            if not name.startswith(_LOGITS) and not name.endswith("num_batches_tracked")
        }
        if all(shapes.get(name) == shape for name, shape in expected.items()):
            return arch
    raise CheckpointError(
        f"cannot infer the architecture of {source}",
        hint=f"supported detectors: {', '.join(DETECTORS)}; pass --arch to see what does not match",
    )


def _num_classes(state: State, arch: str, source: str) -> int:
    bias = state.get(f"{_LOGITS}.bias")
    per_class = expected_shapes(arch)[f"{_LOGITS}.bias"][0]  # anchors per position
    if bias is None or bias.ndim != 1 or not len(bias) or len(bias) % per_class:
        raise CheckpointError(
            f"{source} does not match {arch}: {_LOGITS}.bias is "
            f"{'missing' if bias is None else tuple(bias.shape)}",
            hint="pass the architecture they were trained for as --arch",
        )
    return len(bias) // per_class
