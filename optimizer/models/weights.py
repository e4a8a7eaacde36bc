"""Reads weights from files without executing their content, and loads them into a network."""

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
"""Suffixes of files that are treated as a model where an engine is also accepted."""
WEIGHT_SUFFIXES = (*CHECKPOINTS, ".bin", ".tar")

State = dict[str, "torch.Tensor"]
# Averaged weights are meant for inference, so they take precedence (as in timm).
_EMA_KEYS = ("state_dict_ema", "model_ema", "ema_state_dict")
_STATE_KEYS = ("state_dict", "model", "model_state_dict", "net")
_PREFIXES = ("module.", "_orig_mod.", "model.", "backbone.")
_SAVE_STATE = "save only the weights: torch.save(model.state_dict(), 'weights.pth')"


def read_weights(path: Path) -> tuple[State, str]:
    """Read the state dict from a weights file.

    ``.safetensors`` files contain only tensors. Others are read by ``torch.load`` with
    ``weights_only=True``, which rejects every Python object except tensors and plain containers, so
    nothing in the file is executed. Wrappers (``{"state_dict": …}``, ``{"model": …}``, averaged
    weights first) and prefixes of ``DataParallel`` and ``torch.compile`` are removed.

    Returns:
        The tensors by name, and a note on which part of the file they come from (may be empty).

    Raises:
        CheckpointError: The file is damaged, contains something else, or contains no tensors.
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
            f"{path} is damaged or not a safetensors file: {error}", hint="copy it again"
        ) from error
    if not state:
        raise CheckpointError(f"{path} contains no tensors")
    return state


def _read_torch(path: Path) -> Any:
    import torch

    if _is_torchscript(path):
        raise CheckpointError(f"{path} is a TorchScript program, not weights", hint=_SAVE_STATE)
    try:
        with warnings.catch_warnings():
            # If the pickle protocol is not supported, loading fails anyway.
            warnings.filterwarnings("ignore", "Detected pickle protocol", UserWarning)
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # torch's own message is long and advises disabling weights_only.
        if "Unsupported global" in str(error) or "Unsupported class" in str(error):
            raise CheckpointError(
                f"{path} contains Python objects besides tensors; they could run code and are not read",
                hint=_SAVE_STATE,
            ) from error
        raise CheckpointError(
            f"{path} is damaged or not a PyTorch file", hint="copy it again"
        ) from error
    except (RuntimeError, EOFError, ValueError, LookupError, AttributeError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"{path} is damaged or not a PyTorch file: {reason}", hint="copy it again"
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
        keys = ", ".join(str(key) for key in list(content)[:5])
        contents = f"only {keys}" if keys else "it is empty"
        raise CheckpointError(f"{path} contains no weights ({contents})", hint=_SAVE_STATE)
    raise CheckpointError(
        f"{path} contains a {type(content).__name__}, not weights", hint=_SAVE_STATE
    )


def _is_state(content: Mapping[Any, Any]) -> bool:
    import torch

    return bool(content) and all(
        isinstance(name, str) and isinstance(tensor, torch.Tensor)
        for name, tensor in content.items()
    )


def _without_prefix(state: State) -> State:
    changed = True
    while changed:
        changed = False
        for prefix in _PREFIXES:
            if all(name.startswith(prefix) for name in state):
                state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
                changed = True
    return state


# --- loading into a network --------------------------------------------------------------------


def fit_weights(
    state: State, arch: str | None, source: str, *, head: str | None = None
) -> tuple[nn.Module, str]:
    """Build the network that the weights belong to.

    Args:
        state: Tensors by name.
        arch: The architecture; ``None`` infers it from the weights.
        source: Origin of the weights, for messages.
        head: The last layer if it is in a Sequential (``fc.1``). The card confirms that the other
            modules of the Sequential compute nothing, which the weights cannot show.

    Returns:
        The network (FP32, evaluation mode) and its architecture.

    Raises:
        CheckpointError: The weights belong to another architecture, or contain NaN or infinity.
    """
    import torch

    state = _with_plain_head(state, head, source)
    inferred = infer_arch(state)
    arch = inferred if arch is None else check_arch(arch)
    if arch is None:
        first = next(iter(state))
        raise CheckpointError(
            f"cannot infer the architecture of {source} (its first tensor is {first})",
            hint="pass --arch to see what does not match",
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
    """The weights with the last layer renamed to ``fc``."""
    names = (name.rpartition(".")[0] for name in state if name.startswith("fc."))
    heads = list(dict.fromkeys(names))
    if heads == ["fc"] or not heads:
        return state
    if len(heads) > 1:
        raise CheckpointError(
            f"the head of {source} has {len(heads)} modules with weights ({', '.join(heads)}), "
            "but a ResNet's is one linear layer",
            hint="export it with torch.onnx.export: quantize, build and validate accept the .onnx file",
        )
    if head != heads[0]:
        raise CheckpointError(
            f"the head of {source} is {heads[0]} in a Sequential, and the weights do not show what "
            "else it contains" + (f" (its card says {head})" if head else ""),
            hint=f'if that is only Dropout, write {{"head": "{heads[0]}"}} into {source}.card.json; '
            "otherwise export it with torch.onnx.export",
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
    problems = []
    if missing:
        problems.append(f"{len(missing)} tensors missing, the first is {missing[0]}")
    if unexpected:
        problems.append(f"{len(unexpected)} tensors unexpected, the first is {unexpected[0]}")
    if other_shape:
        problems.append(f"{len(other_shape)} of another shape, {other_shape[0]}")
    if not problems:
        return
    hint = "pass the architecture they were trained for as --arch"
    stem = state.get("conv1.weight")
    if stem is not None and stem.ndim == 4 and stem.shape[1] == 1:
        hint = (
            "networks with one input channel are not supported: repeat conv1.weight / 3 over three "
            'channels and set "color": "grayscale" in a card'
        )
    if inferred is not None:
        hint = f"these are weights of {inferred}: pass --arch {inferred}"
    raise CheckpointError(f"{source} does not match {arch}: {'; '.join(problems)}", hint=hint)


def _same_shape(name: str, shape: tuple[int, ...], expected: tuple[int, ...]) -> bool:
    if name.startswith("fc."):  # any number of classes
        return len(shape) == len(expected) and shape[1:] == expected[1:] and shape[0] > 0
    return shape == expected


def _check_values(state: State, source: str) -> None:
    import torch

    if state["fc.weight"].shape[0] != state["fc.bias"].shape[0]:
        raise CheckpointError(f"{source}: fc.weight and fc.bias have different numbers of classes")
    for name, tensor in state.items():
        if not tensor.is_floating_point():
            continue
        if not torch.isfinite(tensor).all():
            raise CheckpointError(
                f"{source}: {name} contains NaN or infinite values",
                hint="use a checkpoint from before the training diverged",
            )
        if name.endswith("running_var") and bool((tensor < 0).any()):
            raise CheckpointError(f"{source}: {name} contains negative variances")
