"""Finds the networks among the tensors of a checkpoint, whatever its trainer called them.

A trainer adds prefixes (``model.``, ``module.``, ``_orig_mod.``), tensors that are no part of the
network (a loss's class weights, counters) and second copies (averaged weights). Families name the
layers themselves differently: torchvision and timm, OpenMMLab (``backbone.``, ``head.fc``),
Hugging Face (``encoder.stages``), and networks taken apart into a Sequential (``4.0.conv1``).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from optimizer.errors import CheckpointError
from optimizer.models.architectures import infer_network

if TYPE_CHECKING:
    import torch

__all__ = ["ONNX_ROUTE", "Copy", "choose", "find_copies", "summary"]

State = dict[str, "torch.Tensor"]

ONNX_ROUTE = (
    "export it where it was trained with torch.onnx.export(model.eval(), (images,), 'model.onnx'): "
    "quantize, build and validate accept the .onnx file"
)
"""The way in for networks that this package cannot rebuild from their weights."""

_MAX_DEPTH = 4
_OWN = frozenset({"conv1", "bn1", "layer1", "layer2", "layer3", "layer4", "fc"})
# Wrappers that put their name in the middle of a path; what they wrap keeps its own name.
_WRAPPERS = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
_AVERAGED = frozenset({"ema", "swa", "averaged", "average", "avg", "shadow", "teacher"})
# Tensors beside the layers that no ResNet computes its outputs with.
_BESIDE = re.compile(
    r"(n_averaged|num_updates|decay|queue|queue_ptr|.*(criterion|loss|metric|accuracy|ema)"
    r"|(train|val|valid|test)_(acc|auc|auroc|f1).*|(class|pos)_weights?)(\..*)?",
    re.IGNORECASE,
)
_NORMALIZATION = re.compile(r"(.*\.)?\w*(mean|std)(_values?)?")
_COUNTERS = re.compile(r"(.*\.)?total_(ops|params)")  # of the profiler thop
_CHILDREN = {
    "0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"
}  # fmt: skip
_HUGGING_FACE_PARTS = (
    (re.compile(r"embedder\.embedder\.convolution\.(.+)"), r"conv1.\1"),
    (re.compile(r"embedder\.embedder\.normalization\.(.+)"), r"bn1.\1"),
)
_HUGGING_FACE_BLOCK = re.compile(
    r"encoder\.stages\.(\d+)\.layers\.(\d+)\."
    r"(?:layer\.(\d+)|(shortcut))\.(convolution|normalization)\.(.+)"
)


@dataclass(frozen=True)
class Copy:
    """A network found in a checkpoint.

    Attributes:
        key: Where its state dict is in the file (``state_dict``), or empty.
        prefix: What precedes the names of its layers (``model.``), or empty.
        state: Its tensors under torchvision's names, and unknown tensors beside its layers.
        left_out: Names of the tensors of the state dict that are no part of any network.
        averaged: Whether it is a moving average of the weights.
        heads: Linear layers beside the network that could be its last layer.
    """

    key: str
    prefix: str
    state: State
    left_out: tuple[str, ...] = ()
    averaged: bool = False
    heads: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Its name for messages and ``--weights``."""
        return "/".join(filter(None, (self.key, self.prefix))) or "the weights"

    @property
    def complete(self) -> bool:
        """Whether it has a last layer, and all other tensors of an architecture."""
        return (
            any(name.startswith("fc.") for name in self.state)
            and infer_network(self.state) is not None
        )

    def is_called(self, name: str) -> bool:
        """Whether ``--weights NAME`` means this copy; a final dot may be left out."""
        names = {self.name, self.prefix, self.key}
        return name.rstrip(".") in {text.rstrip(".") for text in names if text}


def find_copies(content: Any, *, head: str | None = None) -> list[Copy]:
    """All networks in a checkpoint: in the mapping itself and in the mappings inside it.

    Args:
        content: What the file holds: a state dict, or mappings that contain some.
        head: The last layer of a network that has none of its own, such as ``classifier``.

    Returns:
        The networks in the order of the file, with torchvision's names, complete or not. Of two
        with the same values only the first, unless one of them is an average.
    """
    copies: list[Copy] = []
    for key, state in _state_dicts(content, (), _MAX_DEPTH):
        for copy in _copies_in(key, _unwrapped(state), head):
            same = (c for c in copies if c.averaged == copy.averaged)
            if not any(_equal(copy.state, other.state) for other in same):
                copies.append(copy)
    return copies


def _state_dicts(content: Any, path: tuple[str, ...], depth: int) -> Iterator[tuple[str, State]]:
    import torch

    if not isinstance(content, Mapping) or depth == 0:
        return
    tensors = {
        name: value
        for name, value in content.items()
        if isinstance(name, str) and isinstance(value, torch.Tensor)
    }
    if tensors:
        yield ".".join(path), tensors
    for name, inner in content.items():
        if isinstance(name, str):
            yield from _state_dicts(inner, (*path, name), depth - 1)


def _unwrapped(state: State) -> State:
    """The state dict without wrappers in the middle of names, profiler's counters and masks."""
    renamed: State = {}
    for name, tensor in state.items():
        parts = [part for part in name.split(".") if part not in _WRAPPERS]
        plain = ".".join(parts)
        renamed[name if plain in state or plain in renamed else plain] = tensor
    return {name: tensor for name, tensor in renamed.items() if not _COUNTERS.fullmatch(name)}


def _copies_in(key: str, state: State, head: str | None) -> list[Copy]:
    found: dict[str, tuple[State, set[str]]] = {}
    for anchor, rename in _FAMILIES.items():
        for prefix in _prefixes(state, anchor):
            found[prefix] = _with_head(rename(state, prefix), state, prefix, head)
    taken = set().union(*(names for _, names in found.values()))
    rest = [name for name in state if name not in taken]
    copies = []
    for prefix, (own, _) in found.items():
        # Unknown tensors beside the layers may be layers, too: they are kept, and then refused.
        beside = [name for name in rest if name.startswith(prefix)]
        if prefix == "":
            beside = [name for name in beside if not _is_wrapper_only(name, found)]
        foreign = [name for name in beside if not _BESIDE.fullmatch(name.removeprefix(prefix))]
        heads = _linear_layers(state, rest, own)
        if heads and not any(name.startswith("fc.") for name in own):
            foreign = []  # the missing head is the better message
        kept = {name.removeprefix(prefix): state[name] for name in foreign}
        copies.append(
            Copy(
                key=key,
                prefix=prefix,
                state=own | kept,
                left_out=tuple(name for name in rest if name not in foreign),
                averaged=_is_averaged(key, prefix),
                heads=heads,
            )
        )
    return copies


def _with_head(
    layers: tuple[State, set[str]], state: State, prefix: str, head: str | None
) -> tuple[State, set[str]]:
    """Take the last layer from ``head``, in the network or in what contains it."""
    own, names = layers
    if head is None or any(name.startswith("fc.") for name in own):
        return layers
    parts = prefix.split(".")[:-1]
    for depth in range(len(parts), -1, -1):
        outer = "".join(f"{part}." for part in parts[:depth])
        found = {
            n: f"fc.{n.removeprefix(f'{outer}{head}.')}"
            for n in state
            if n.startswith(f"{outer}{head}.")
        }
        if found:
            return own | {plain: state[n] for n, plain in found.items()}, names | set(found)
    return layers


def _linear_layers(state: State, names: Sequence[str], own: State) -> tuple[str, ...]:
    """Names of modules that could be the last layer: they take the pooled features."""
    last = own.get("layer4.0.downsample.0.weight")
    if last is None:
        return ()
    return tuple(
        name.removesuffix(".weight")
        for name in names
        if name.endswith(".weight")
        and state[name].ndim == 2
        and state[name].shape[1] == last.shape[0]
    )


def _is_wrapper_only(name: str, found: Iterable[str]) -> bool:
    """Whether a tensor belongs to the wrapper of another copy, such as ``ema_model.step``."""
    return any(prefix and name.startswith(prefix.split(".")[0] + ".") for prefix in found)


def _prefixes(state: State, anchor: str) -> list[str]:
    """What precedes ``anchor`` in the names of a state dict."""
    return [
        name.removesuffix(anchor) for name in state if name == anchor or name.endswith(f".{anchor}")
    ]


def _sequential(state: State, prefix: str) -> tuple[State, set[str]]:
    """Layers of ``nn.Sequential(*list(resnet.children())[:-1])``."""
    result: State = {}
    names: set[str] = set()
    for name, tensor in state.items():
        position, _, rest = name.removeprefix(prefix).partition(".")
        if name.startswith(prefix) and position in _CHILDREN:
            result[f"{_CHILDREN[position]}.{rest}"] = tensor
            names.add(name)
    return result, names


def _torchvision(state: State, prefix: str) -> tuple[State, set[str]]:
    """Layers under torchvision's names; OpenMMLab keeps the last one in ``head.fc``."""
    own = {
        name: tensor
        for name, tensor in state.items()
        if name.startswith(prefix) and name.removeprefix(prefix).split(".")[0] in _OWN
    }
    result = {name.removeprefix(prefix): tensor for name, tensor in own.items()}
    names = set(own)
    outside = prefix.removesuffix("backbone.")
    if outside != prefix and not any(name.startswith("fc.") for name in result):
        head = f"{outside}head.fc."
        heads = [name for name in state if name.startswith(head)]
        result |= {f"fc.{name.removeprefix(head)}": state[name] for name in heads}
        names |= set(heads)
    return result, names


def _hugging_face(state: State, prefix: str) -> tuple[State, set[str]]:
    """Layers of Hugging Face's ``ResNetForImageClassification``."""
    result: State = {}
    names: set[str] = set()
    head = f"{prefix.removesuffix('resnet.')}classifier.1."
    for name, tensor in state.items():
        plain = None
        if name.startswith(head):  # 0 is Flatten
            plain = f"fc.{name.removeprefix(head)}"
        elif name.startswith(prefix):
            plain = _from_hugging_face(name.removeprefix(prefix))
        if plain is not None:
            result[plain] = tensor
            names.add(name)
    return result, names


def _from_hugging_face(name: str) -> str | None:
    for pattern, plain in _HUGGING_FACE_PARTS:
        if match := pattern.fullmatch(name):
            return match.expand(plain)
    if (match := _HUGGING_FACE_BLOCK.fullmatch(name)) is None:
        return None
    stage, block, position, _, kind, rest = match.groups()
    normalization = kind == "normalization"
    if position is None:
        layer = f"downsample.{int(normalization)}"
    else:
        layer = f"{'bn' if normalization else 'conv'}{int(position) + 1}"
    return f"layer{int(stage) + 1}.{block}.{layer}.{rest}"


def _is_averaged(key: str, prefix: str) -> bool:
    words = re.split(r"[._/]", f"{key}.{prefix}".lower())
    return any(word in _AVERAGED or (word.endswith("ema") and word != "schema") for word in words)


def _equal(state: State, other: State) -> bool:
    import torch

    if state.keys() != other.keys():
        return False
    return all(
        tensor is other[name]
        or (tensor.shape == other[name].shape and torch.equal(tensor, other[name]))
        for name, tensor in state.items()
    )


_FAMILIES: dict[str, Callable[[State, str], tuple[State, set[str]]]] = {
    "layer1.0.conv1.weight": _torchvision,
    "4.0.conv1.weight": _sequential,
    "encoder.stages.0.layers.0.layer.0.convolution.weight": _hugging_face,
}
"""How layers are renamed, by the name of one tensor that every network of the family has."""


# --- the choice ----------------------------------------------------------------------------------


def choose(copies: Sequence[Copy], source: str, wanted: str | None) -> tuple[Copy, list[str]]:
    """The network to use, and what to tell the user about the others.

    Args:
        copies: The networks of one file, at least one.
        source: The file, for messages.
        wanted: ``ema`` for the averaged weights, or the name of a copy; ``None`` for the weights
            that were trained.

    Returns:
        The copy, and remarks: one that names the other copies, one that names the tensors that are
        left out.

    Raises:
        CheckpointError: No copy is called ``wanted``, or several are equally good.
    """
    whole = [copy for copy in copies if copy.complete] or list(copies)
    if wanted is None:
        candidates = [copy for copy in whole if not copy.averaged] or whole
    elif wanted == "ema":
        candidates = [copy for copy in whole if copy.averaged]
    else:
        candidates = [copy for copy in copies if copy.is_called(wanted)]
    names = [copy.name for copy in whole]
    if not candidates:
        missing = "averaged weights" if wanted == "ema" else f"weights named {wanted!r}"
        raise CheckpointError(
            f"{source} has no {missing} (it has {', '.join(names)})",
            hint="leave out --weights" if len(names) == 1 else f"--weights {names[0]}",
        )
    if len(candidates) > 1:
        raise CheckpointError(
            f"{source} has {len(candidates)} networks: {', '.join(c.name for c in candidates)}",
            hint=f"choose one with --weights, such as --weights {candidates[0].name}",
        )
    copy = candidates[0]
    remarks = []
    others = [other for other in whole if other is not copy]
    if others:
        listed = ", ".join(
            f"{other.name} (averaged weights)" if other.averaged else other.name for other in others
        )
        option = "ema" if [o.averaged for o in others] == [True] else others[0].name
        remarks.append(f"uses {copy.name}; also there: {listed} (--weights {option})")
    if inside := [name for name in copy.left_out if _NORMALIZATION.fullmatch(name)]:
        remarks.append(
            f"the network normalizes its images by {summary(inside)}: state mean and std in a card"
        )
    if copy.left_out:
        remarks.append(
            f"left out {_count(copy.left_out, 'tensor')} that the ResNet does not have: "
            f"{summary(copy.left_out)}"
        )
    return copy, remarks


def summary(names: Sequence[str], limit: int = 3) -> str:
    """The first few names, and how many more there are."""
    more = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {more} more" if more > 0 else "")


def _count(names: Sequence[str], noun: str) -> str:
    return f"{len(names)} {noun}{'' if len(names) == 1 else 's'}"
