"""Reading weights from files without running anything in them, and fitting them to a network."""

from __future__ import annotations

import pickle
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimizer.errors import CheckpointError
from optimizer.models.architectures import build_module, check_arch, expected_shapes, infer_arch

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ["CHECKPOINTS", "WEIGHT_SUFFIXES", "fit_weights", "read_weights"]

CHECKPOINTS = (".safetensors", ".pth", ".pt", ".ckpt")
"""Suffixes of files that are a model wherever an engine may stand."""
WEIGHT_SUFFIXES = (*CHECKPOINTS, ".bin", ".tar")

State = dict[str, "torch.Tensor"]
# Averaged weights are what a trainer meant to be used, so they come first (timm does the same).
_EMA_KEYS = ("state_dict_ema", "model_ema", "ema_state_dict")
_STATE_KEYS = ("state_dict", "model", "model_state_dict", "net")
_PREFIXES = ("module.", "_orig_mod.", "model.", "backbone.")
_SAVE_STATE = "save its weights alone: torch.save(model.state_dict(), 'weights.pth')"


def read_weights(path: Path) -> tuple[State, str]:
    """Read the state dict in a weights file.

    ``.safetensors`` files hold tensors only. Others are read by ``torch.load`` with
    ``weights_only=True``, which refuses every Python object but tensors and plain containers:
    nothing in the file is executed. Wrappers (``{"state_dict": …}``, ``{"model": …}``, averaged
    weights first) and prefixes of ``DataParallel`` and ``torch.compile`` are taken off.

    Returns:
        The tensors by name, and a remark for the reader (which part of the file they were).

    Raises:
        CheckpointError: The file is damaged, holds something else, or holds no tensors.
    """
    if path.suffix == ".safetensors":
        return _without_prefix(_read_safetensors(path)), ""
    state, part = _find_state(path, _read_torch(path))
    return _without_prefix(state), part


def _read_safetensors(path: Path) -> State:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        state: State = load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} is damaged or no safetensors file: {error}", hint="copy it again"
        ) from error
    if not state:
        raise CheckpointError(f"{path} holds no tensors")
    return state


def _read_torch(path: Path) -> Any:
    import torch

    if _is_torchscript(path):
        raise CheckpointError(f"{path} is a TorchScript program, not weights", hint=_SAVE_STATE)
    try:
        with warnings.catch_warnings():
            # Whether the reader can read another pickle protocol is seen by trying.
            warnings.filterwarnings("ignore", "Detected pickle protocol", UserWarning)
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # weights_only's own message is long and advises to switch the protection off.
        if "Unsupported global" in str(error) or "Unsupported class" in str(error):
            raise CheckpointError(
                f"{path} holds Python objects beside tensors; they could run code and are not read",
                hint=_SAVE_STATE,
            ) from error
        raise CheckpointError(
            f"{path} is damaged or no PyTorch file", hint="copy it again"
        ) from error
    except (RuntimeError, EOFError, ValueError, LookupError, AttributeError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"{path} is damaged or no PyTorch file: {reason}", hint="copy it again"
        ) from error


def _is_torchscript(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except (zipfile.BadZipFile, OSError):
        return False


def _find_state(path: Path, content: Any) -> tuple[State, str]:
    if isinstance(content, Mapping):
        if _is_state(content):
            return dict(content), ""
        for key in (*_EMA_KEYS, *_STATE_KEYS):
            inner = content.get(key)
            if isinstance(inner, Mapping) and _is_state(inner):
                return dict(inner), f"averaged weights, {key}" if key in _EMA_KEYS else ""
        keys = ", ".join(str(key) for key in list(content)[:5]) or "nothing"
        raise CheckpointError(f"{path} holds no weights (it holds {keys})", hint=_SAVE_STATE)
    raise CheckpointError(f"{path} holds a {type(content).__name__}, no weights", hint=_SAVE_STATE)


def _is_state(content: Mapping[Any, Any]) -> bool:
    import torch

    return bool(content) and all(
        isinstance(name, str) and isinstance(tensor, torch.Tensor)
        for name, tensor in content.items()
    )


def _without_prefix(state: State) -> State:
    found = True
    while found:
        found = False
        for prefix in _PREFIXES:
            if all(name.startswith(prefix) for name in state):
                state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
                found = True
    return state


# --- into a network ----------------------------------------------------------------------------


def fit_weights(
    state: State, arch: str | None, source: str, *, head: str | None = None
) -> tuple[nn.Module, str]:
    """Build the network that the weights belong to.

    Args:
        state: Tensors by name.
        arch: The architecture; ``None`` tells it from the weights.
        source: Where the weights come from, for messages.
        head: The last layer, where it stands in a Sequential (``fc.1``): somebody has said that
            nothing around it computes anything, which weights cannot show.

    Returns:
        The network (FP32, evaluation mode) and its architecture.

    Raises:
        CheckpointError: The weights belong to another architecture, or hold NaN or infinity.
    """
    import torch

    state = _with_plain_head(state, head, source)
    inferred = infer_arch(state)
    arch = inferred if arch is None else check_arch(arch)
    if arch is None:
        first = next(iter(state))
        raise CheckpointError(
            f"cannot tell the architecture of {source} (its first tensor is {first})",
            hint="pass --arch to see what does not fit it",
        )
    _check_names_and_shapes(state, arch, inferred, source)
    _check_values(state, source)
    with torch.device("meta"):
        module = build_module(arch, state["fc.weight"].shape[0])
    complete = {
        name: _as_fp32(state[name]) if name in state else torch.zeros((), dtype=torch.int64)
        for name in module.state_dict()
    }
    module.load_state_dict(complete, assign=True)
    return module.eval(), arch


def _with_plain_head(state: State, head: str | None, source: str) -> State:
    """The weights with ``fc`` as their last layer."""
    names = (name.rpartition(".")[0] for name in state if name.startswith("fc."))
    heads = list(dict.fromkeys(names))
    if heads == ["fc"] or not heads:
        return state
    if len(heads) > 1:
        raise CheckpointError(
            f"the head of {source} has {len(heads)} modules with weights ({', '.join(heads)}), "
            "a ResNet's is one linear layer",
            hint="export it with torch.onnx.export: quantize, build and validate take the .onnx file",
        )
    if head != heads[0]:
        raise CheckpointError(
            f"the head of {source} is {heads[0]} in a Sequential, and weights do not show what else "
            "is in there" + (f" (its card says {head})" if head else ""),
            hint=f'if it is Dropout alone, say so in {source}.card.json: {{"head": "{heads[0]}"}}; '
            "if not, export it with torch.onnx.export",
        )
    return {name.replace(f"{head}.", "fc.", 1): tensor for name, tensor in state.items()}


def _as_fp32(tensor: torch.Tensor) -> torch.Tensor:
    if not tensor.is_floating_point():
        return tensor
    return tensor.detach().float().contiguous()


def _check_names_and_shapes(state: State, arch: str, inferred: str | None, source: str) -> None:
    expected = expected_shapes(arch)
    missing = [n for n in expected if n not in state and not n.endswith("num_batches_tracked")]
    unexpected = [name for name in state if name not in expected]
    other_shape = [
        f"{name} is {tuple(state[name].shape)}, not {shape}"
        for name, shape in expected.items()
        if name in state and not _same_shape(name, tuple(state[name].shape), shape)
    ]
    found = []
    if missing:
        found.append(f"{len(missing)} tensors missing, the first is {missing[0]}")
    if unexpected:
        found.append(f"{len(unexpected)} tensors unexpected, the first is {unexpected[0]}")
    if other_shape:
        found.append(f"{len(other_shape)} of another shape, {other_shape[0]}")
    if not found:
        return
    hint = "pass the architecture they were trained for as --arch"
    stem = state.get("conv1.weight")
    if stem is not None and stem.ndim == 4 and stem.shape[1] == 1:
        hint = (
            "networks of one channel are not supported: repeat conv1.weight / 3 over three channels, and "
            'say "color": "grayscale" in a card'
        )
    if inferred is not None:
        hint = f"they are weights of {inferred}: pass --arch {inferred}"
    raise CheckpointError(f"{source} does not fit {arch}: {'; '.join(found)}", hint=hint)


def _same_shape(name: str, found: tuple[int, ...], expected: tuple[int, ...]) -> bool:
    if name.startswith("fc."):  # the number of classes is free
        return len(found) == len(expected) and found[1:] == expected[1:] and found[0] > 0
    return found == expected


def _check_values(state: State, source: str) -> None:
    import torch

    if state["fc.weight"].shape[0] != state["fc.bias"].shape[0]:
        raise CheckpointError(f"{source}: fc.weight and fc.bias have different numbers of classes")
    for name, tensor in state.items():
        if not tensor.is_floating_point():
            continue
        if not torch.isfinite(tensor).all():
            raise CheckpointError(
                f"{source}: {name} holds NaN or infinite values",
                hint="take a checkpoint from before the training diverged",
            )
        if name.endswith("running_var") and bool((tensor < 0).any()):
            raise CheckpointError(f"{source}: {name} holds negative variances")
