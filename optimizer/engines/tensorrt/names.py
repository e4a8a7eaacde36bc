"""Maps the names in graphs and engines to PyTorch modules."""

from __future__ import annotations

import re
from collections.abc import Iterable

__all__ = ["module_path", "modules_in", "split_profile"]

_PROFILE = re.compile(r" \[profile (\d+)\]")
_MODULE = re.compile(r"[A-Za-z_]\w*(?:\.\w+)*")
_METADATA = re.compile(r"\[ONNX Layer: ([^\]]*)\]")
_SUFFIXES = (".quantize", ".dequantize", ".cast", ".weight", ".bias", ".scale", ".zero_point")


def module_path(node: str) -> str | None:
    """The PyTorch module a node belongs to; ``None`` if its name does not contain one.

    Supports the names of this package (``layer1.0.conv2``, ``layer1.0.conv2.input.quantize``) and
    those of PyTorch's TorchScript exporter (``/layer1/layer1.0/conv2/Conv``).
    """
    if node.startswith("/"):
        return _torchscript_path(node)
    for suffix in (".quantize", ".dequantize"):
        if node.endswith(suffix):
            node = node.removesuffix(suffix).rpartition(".")[0]
    return node if _MODULE.fullmatch(node) else None


def _torchscript_path(node: str) -> str | None:
    parts: list[str] = []
    for part in node.strip("/").split("/")[:-1]:
        if parts and part.startswith(parts[-1] + "."):
            parts[-1] = part  # /layer1/layer1.0: the second part repeats the first
        else:
            parts.append(part)
    return ".".join(parts) or None


def split_profile(name: str) -> tuple[str, int | None]:
    """Split a layer's or tensor's name into the plain name and the optimization profile.

    TensorRT lists every layer once per optimization profile. From the second profile on, names
    include it: ``conv1 [profile 1]``, or ``fc [profile 1]_myl11_2`` with its newer compiler.

    Returns:
        The plain name and the profile's number; ``None`` if the name has none.
    """
    match = _PROFILE.search(name)
    return (name, None) if match is None else (_PROFILE.sub("", name), int(match[1]))


def modules_in(name: str, metadata: str = "") -> list[str]:
    """The PyTorch modules named in an engine layer.

    Args:
        name: The layer's own name, ``layer1.0.conv2 + layer1.0.add + PWN(layer1.0.relu_1)``.
        metadata: The engine's record of the graph's nodes, ``[ONNX Layer: layer1.0.conv2]...``, with
            or without separators (U+001E in TensorRT 10, U+001F in 11 and RTX).

    Returns:
        Module paths in order of appearance, without Q/DQ, casts and weights.
    """
    nodes = _METADATA.findall(metadata) or _split_name(name)
    return list(dict.fromkeys(_computing(nodes)))


def _split_name(name: str) -> list[str]:
    if name.startswith(("{ForeignNode", "__myl", "__mye", "Reformatting CopyNode")):
        return []
    parts = re.sub(r"PWN\(([^()]*)\)", r"\1", name).split(" + ")
    return [part.strip() for part in parts if " " not in part.strip()]


def _computing(nodes: Iterable[str]) -> Iterable[str]:
    for node in nodes:
        if node.endswith(_SUFFIXES):
            continue
        path = module_path(node)
        if path is not None:
            yield path
