"""Reads weights from files without executing their content, and loads them into a network."""

from __future__ import annotations

import argparse
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimizer.errors import CheckpointError
from optimizer.models.architectures import (
    build_module,
    check_arch,
    closest_arch,
    expected_shapes,
    infer_arch,
    infer_network,
    stem_name,
)
from optimizer.models.copies import ONNX_ROUTE, choose, find_copies, summary
from optimizer.models.heads import (
    has_hidden_layers,
    load_hidden_layers,
    without_hidden,
)
from optimizer.models.narrow import Widths
from optimizer.models.number_scalars import ScalarType, number
from optimizer.models.stored_sizes import check_archive, check_stored

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = [
    "CHECKPOINTS",
    "Weights",
    "choose_weights",
    "fit_weights",
    "read_content",
    "read_weights",
]

CHECKPOINTS = (".safetensors", ".pth", ".pt", ".ckpt", ".bin", ".tar")
"""Suffixes of checkpoints; ``.pth.tar`` is a checkpoint of PyTorch's ImageNet example."""

State = dict[str, "torch.Tensor"]
_SAVE_STATE = "save only the weights: torch.save(model.state_dict(), 'weights.pth')"
_NUMPY_SCALAR = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")


@dataclass(frozen=True, kw_only=True)
class Weights:
    """The weights that were chosen from a file.

    Attributes:
        state: The tensors under torchvision's names.
        part: Which part of the file they come from, if it has several; may be empty.
        remarks: What the user should know: other copies, tensors that were left out.
        stated_arch: The architecture that the trainer recorded; ``None`` if it did not.
    """

    state: State
    part: str = ""
    remarks: tuple[str, ...] = ()
    stated_arch: str | None = None


def read_weights(path: Path, *, copy: str | None = None, head: str | None = None) -> Weights:
    """Read a network's state dict from a weights file.

    ``.safetensors`` files contain only tensors. Others are read by ``torch.load`` with
    ``weights_only=True``, which rejects every Python object except tensors, plain containers,
    ``argparse.Namespace`` and NumPy's numbers, so nothing in the file is executed. The network is
    found under any prefix and in any mapping of the file; see `find_copies`.

    Args:
        path: The file.
        copy: Which network, if there are several: ``ema`` for averaged weights, or its name.
        head: Name of the last layer outside of the network (``classifier``), stated by the card.

    Raises:
        CheckpointError: The file is damaged, contains something else, or contains no network; or
            there is no network of that name, or several of which none is named.
    """
    return choose_weights(read_content(path), path, copy=copy, head=head)


def read_content(path: Path) -> Any:
    """What a weights file contains: tensors by name, or plain containers of such.

    Raises:
        CheckpointError: The file is damaged, or contains something else.
    """
    return _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)


def choose_weights(
    content: Any, path: Path, *, copy: str | None = None, head: str | None = None
) -> Weights:
    """The network's state dict in the contents of a file; see `read_weights`."""
    copies = find_copies(content, head=head)
    if not copies:
        raise _no_network(path, content)
    chosen, remarks = choose(copies, str(path), copy)
    part = f"averaged weights, {chosen.name}" if chosen.averaged else ""
    if not part and len(copies) > 1:
        part = chosen.name
    if chosen.heads and not any(name.startswith("fc.") for name in chosen.state):
        raise CheckpointError(
            f"{path} has no layer fc, but other layers beside the network: {summary(chosen.heads)}",
            hint=f'if the pooled features go straight into it, write {{"head": "{chosen.heads[0]}"}} '
            f"into {path}.card.json; otherwise {ONNX_ROUTE}",
        )
    return Weights(
        state=chosen.state, part=part, remarks=tuple(remarks), stated_arch=_stated_arch(content)
    )


def _no_network(path: Path, content: Any) -> CheckpointError:
    """The error for a file without a ResNet."""
    import torch

    if not isinstance(content, Mapping):
        kind = type(content).__name__
        return CheckpointError(f"{path} contains a {kind}, not weights", hint=_SAVE_STATE)
    names = [n for n, value in content.items() if isinstance(value, torch.Tensor)]
    inner = [n for v in content.values() if isinstance(v, Mapping) for n in v]
    tensors = names or [n for n in inner if isinstance(n, str) and n.endswith(".weight")]
    if tensors:
        return CheckpointError(
            f"{path} contains no ResNet under any known names (its first tensor is {tensors[0]})",
            hint=ONNX_ROUTE,
        )
    keys = ", ".join(str(key) for key in list(content)[:5])
    contents = f"only {keys}" if keys else "it is empty"
    return CheckpointError(f"{path} contains no weights ({contents})", hint=_SAVE_STATE)


def _stated_arch(content: Any) -> str | None:
    """The architecture that a trainer recorded: ``arch``, or ``args.arch`` or ``args.model``."""
    if not isinstance(content, Mapping):
        return None
    arguments = content.get("args")
    options = vars(arguments) if isinstance(arguments, argparse.Namespace) else {}
    for value in (content.get("arch"), options.get("arch"), options.get("model")):
        if isinstance(value, str) and value:
            return value
    return None


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

    check_archive(path)
    if _is_torchscript(path):
        raise CheckpointError(f"{path} is a TorchScript program, not weights", hint=_SAVE_STATE)
    try:
        with warnings.catch_warnings():
            # If the pickle protocol is not supported, loading fails anyway.
            warnings.filterwarnings("ignore", "Detected pickle protocol", UserWarning)
            with torch.serialization.safe_globals(_harmless()):
                return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # torch's own message is long and advises disabling weights_only.
        if "Unsupported global" in str(error) or "Unsupported class" in str(error):
            raise CheckpointError(
                f"{path} contains Python objects besides tensors{_named(error)}; they could run code "
                "and are not read",
                hint=f"{_SAVE_STATE} where the file was made",
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


def _harmless() -> list[Any]:
    """Types that trainers put beside the weights: parsed arguments and NumPy's numbers.

    NumPy's own functions are not called: `number` and `ScalarType` stand in for them.
    """
    scalars = [(number, name) for name in _NUMPY_SCALAR]
    return [argparse.Namespace, *scalars, (ScalarType, "numpy.dtype")]


def _named(error: Exception) -> str:
    """The class that was refused, in brackets."""
    match = re.search(r"(?:GLOBAL|[Uu]nsupported class) ([\w.]+)", str(error))
    return f" ({match.group(1)})" if match else ""


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

    check_stored(state, source)
    if has_hidden_layers(state):
        _check_values(state, source)
        module, arch = fit_weights(without_hidden(state, source), arch, source)
        load_hidden_layers(module, state)
        return module, arch
    state = _with_plain_head(state, head, source)
    found = infer_network(state, arch if arch is None else check_arch(arch))
    inferred = infer_arch(state) if found is None else found[0]
    widths = None if found is None else found[1]
    _check_names_and_shapes(state, (arch, widths), inferred, source)
    arch = arch or inferred
    assert arch is not None
    _check_values(state, source)
    with torch.device("meta"):
        stem, last = state[stem_name(state)], state["fc.weight"]
        module = build_module(arch, last.shape[0], channels=stem.shape[1], widths=widths)
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
            hint=ONNX_ROUTE,
        )
    if head != heads[0]:
        raise CheckpointError(
            f"the head of {source} is {heads[0]} in a Sequential, and the weights do not show what "
            "else it contains" + (f" (its card says {head})" if head else ""),
            hint=f'if that is only Dropout, write {{"head": "{heads[0]}"}} into {source}.card.json; '
            f"otherwise {ONNX_ROUTE}",
        )
    return {name.replace(f"{head}.", "fc.", 1): tensor for name, tensor in state.items()}


def _as_fp32(tensor: torch.Tensor) -> torch.Tensor:
    if not tensor.is_floating_point():
        return tensor
    return tensor.detach().float().contiguous()


def _check_names_and_shapes(
    state: State, stated: tuple[str | None, Widths | None], inferred: str | None, source: str
) -> None:
    """Compare with the stated, or with the inferred or else the closest architecture."""
    arch, widths = stated
    compared = arch or inferred or closest_arch(state)
    expected = expected_shapes(compared, widths)
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
    found = "; ".join(problems)
    if arch is not None:
        hint = ONNX_ROUTE
        if inferred is not None:
            hint = f"these are weights of {inferred}: pass --arch {inferred}"
        raise CheckpointError(f"{source} does not match {arch}: {found}", hint=hint)
    if inferred is not None:
        raise CheckpointError(
            f"{source} does not match {inferred}: {found}", hint=_without_head(missing)
        )
    raise CheckpointError(
        f"cannot infer the architecture of {source}{_other_network(state)}; "
        f"the closest is {compared}: {found}",
        hint=ONNX_ROUTE,
    )


def _without_head(missing: list[str]) -> str:
    if missing == ["fc.bias"]:
        return "add a bias of zeros: state['fc.bias'] = torch.zeros(len(state['fc.weight']))"
    return f"the network has no last layer: save the whole classifier, or {ONNX_ROUTE}"


def _other_network(state: State) -> str:
    """What kind of network the names and shapes belong to, if that can be told."""
    stem = state.get("conv1.weight")
    if "conv1.0.weight" in state or any(name.startswith("stem.") for name in state):
        return ", which has a deep stem of three convolutions (ResNet-C or -D)"
    if stem is not None and stem.ndim == 4 and stem.shape[2:] != (7, 7):
        return f", whose first convolution is {stem.shape[2]} x {stem.shape[3]}, not 7 x 7"
    for words, kind in _VARIANTS.items():
        if any(word in name for name in state for word in words):
            return f", which has {kind}"
    return ""


_VARIANTS = {
    (".se.", ".se_module.", ".se1."): "squeeze-and-excitation",
    (".ca.", ".sa.", ".cbam.", ".attn.", "attnpool."): "attention",
    (".weight_fake_quant.", ".activation_post_process.", "._packed_params"): "quantization modules",
    (".parametrizations.", ".weight_g"): "parametrized weights",
}
"""Modules that torchvision's ResNets do not have, by parts of their tensors' names."""


def _same_shape(name: str, shape: tuple[int, ...], expected: tuple[int, ...]) -> bool:
    if name.startswith("fc."):  # any number of classes
        return len(shape) == len(expected) and shape[1:] == expected[1:] and shape[0] > 0
    if (
        name in ("conv1.weight", "conv1.0.weight") and len(expected) == 4
    ):  # any number of input channels
        return len(shape) == 4 and (shape[0], *shape[2:]) == (expected[0], *expected[2:])
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
