"""Engine layers, from the inspector or the build log: what they compute, and in which precision."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace

from optimizer.engines.tensorrt.names import modules_in, split_profile
from optimizer.engines.tensorrt.tactics import precision_in_tactic
from optimizer.results import LayerInfo

__all__ = ["RawLayer", "Tensor", "describe", "precision_of", "with_profiles"]

_ITEM_BYTES = {
    "fp32": 4.0,
    "tf32": 4.0,
    "fp16": 2.0,
    "bf16": 2.0,
    "int8": 1.0,
    "fp8": 1.0,
    "int4": 0.5,
    "int32": 4.0,
    "int64": 8.0,
    "uint8": 1.0,
    "bool": 1.0,
    "fp4": 0.5,
}
# Widest first: a layer with mixed types computes in the widest type of its operands.
_WIDTH = ("fp32", "tf32", "bf16", "fp16", "fp8", "int8", "uint8", "int4", "fp4")
# TensorRT 10 writes "Thirty-two wide channel vectorized row major Int8 format", 11 writes "Int8".
_TYPES = (
    ("bf16", r"BFloat16|BF16"),
    ("fp16", r"Half|FP16"),
    ("fp8", r"FP8|E4M3"),
    ("fp4", r"FP4|E2M1"),
    ("uint8", r"UInt8"),
    ("int8", r"Int8"),
    ("int4", r"Int4"),
    ("int32", r"Int32"),
    ("int64", r"Int64"),
    ("bool", r"Bool"),
    ("fp32", r"Float|FP32"),
)
_PRODUCT_TYPE = re.compile(r"conv|gemm|correlation|matrix|matmul|fullyconnected", re.IGNORECASE)
_PRODUCT_IN_FUSION = re.compile(r"(?:Fc|Conv|Corr|Gemm|Bmm|MatMul)(?=[A-Z_]|$)")
_STUB_TACTICS = {"", "__myelin_CASK_STUB"}
_MYELIN_GRAPH = re.compile(r"_myl(\d+)_\d+$")
"""``fc_myl11_2``: layer 2 of the compiled subgraph 11."""


@dataclass(frozen=True)
class Tensor:
    """An input, constant or output of an engine layer; -1 marks a dynamic dimension."""

    name: str
    shape: tuple[int, ...]
    type: str

    @property
    def elements(self) -> int:
        """The number of elements; for one image if the batch is dynamic."""
        return math.prod(d if d > 0 else 1 for d in self.shape)

    @property
    def is_matrix(self) -> bool:
        """Whether its shape is that of a layer's weights, not of a bias or a scale."""
        return sum(d != 1 for d in self.shape) >= 2


@dataclass(frozen=True)
class RawLayer:
    """A layer as listed in the library's log or JSON.

    Attributes:
        weights: The type of the weights if the library lists it separately (TensorRT 10).
        profile: The optimization profile it belongs to; see `with_profiles`.
    """

    name: str
    type: str
    inputs: Sequence[Tensor] = ()
    constants: Sequence[Tensor] = ()
    outputs: Sequence[Tensor] = ()
    weights: str | None = None
    tactic: str = ""
    metadata: str = ""
    modules: list[str] = field(default_factory=list)
    profile: int = 0

    @property
    def plain_name(self) -> str:
        """The name without its profile suffix."""
        return split_profile(self.name)[0]

    @property
    def is_product(self) -> bool:
        """Whether it computes a convolution or a matrix product."""
        if self.weights is not None or _PRODUCT_TYPE.search(self.type):
            return True
        return self.name.startswith("__myl_") and bool(_PRODUCT_IN_FUSION.search(self.name))


def precision_of(text: str) -> str:
    """``fp16`` for ``Half`` or ``Channel major FP16 format``; an unrecognized type in lower case.

    ``unknown`` for an empty text and for ``N/A due to dynamic shapes``.
    """
    if text.lower().startswith("n/a"):
        return "unknown"
    for precision, pattern in _TYPES:
        if re.search(rf"(?<![A-Za-z])(?:{pattern})(?![A-Za-z0-9])", text, re.IGNORECASE):
            return precision
    return text.lower() or "unknown"


def describe(
    raw: Iterable[RawLayer],
    *,
    nodes: Collection[str] | None = None,
    weighted: Collection[str] | None = None,
    tf32: bool = False,
    batch: int = 1,
    images: int = 1,
) -> list[LayerInfo]:
    """Turn raw layers into the layers of the report.

    Layers without tensors (synchronization, shape computations) are left out.

    Args:
        raw: The layers in execution order.
        nodes: Modules of the graph; other names are dropped. ``None`` if the graph is not available.
        weighted: Modules with weights; each is assigned to the one layer that computes its product.
            ``None`` if the graph is not available: then every module that a product names counts.
        tf32: Whether FP32 products may compute in TF32.
        batch: The fixed batch size included in the shapes; 1 if it is dynamic.
        images: The number of images that ``bytes`` refers to.
    """
    layers = [_with_modules(layer, nodes) for layer in raw if layer.inputs or layer.outputs]
    described: dict[int, LayerInfo] = {}
    for profile in {layer.profile for layer in layers}:
        members = {index: layer for index, layer in enumerate(layers) if layer.profile == profile}
        for index, modules, is_product in _assign_modules(members, weighted):
            precision = _precision(layers[index], is_product=is_product, tf32=tf32)
            moved = _bytes(layers[index], batch, images)
            described[index] = _info(layers[index], modules, precision, moved)
    return [described[index] for index in sorted(described)]


def _assign_modules(
    layers: dict[int, RawLayer], weighted: Collection[str] | None
) -> Iterable[tuple[int, list[str], bool]]:
    """For each layer of a profile: its index, the modules it computes, and whether it is a product."""
    owners = _owners(layers, weighted)
    products = {index for index, layer in layers.items() if layer.is_product}
    products |= set(owners.values())
    in_products = {name for index in products for name in layers[index].modules}
    for index, layer in layers.items():
        is_product = index in products
        # A kernel that prepares the input of a convolution, or adds its bias, also has its name.
        modules = [
            name
            for name in layer.modules
            if owners.get(name, -1) == index
            or (name not in owners and (is_product or name not in in_products))
        ]
        yield index, modules, is_product


def with_profiles(layers: Sequence[RawLayer]) -> list[RawLayer]:
    """The layers with the optimization profile that each belongs to.

    Most layers of the second and later profiles, or their tensors, have the profile in their names.
    Those inside a compiled subgraph do not; they belong to the profile of the other layers of that
    subgraph.
    """
    marks = [_profile_in_names(layer) for layer in layers]
    graphs = [match[1] if (match := _MYELIN_GRAPH.search(layer.name)) else None for layer in layers]
    of_graph = {
        graph: mark for graph, mark in zip(graphs, marks, strict=True) if graph and mark is not None
    }
    return [
        replace(layer, profile=mark if mark is not None else of_graph.get(graph, 0))
        for layer, mark, graph in zip(layers, marks, graphs, strict=True)
    ]


def _profile_in_names(layer: RawLayer) -> int | None:
    names = [layer.name, *(tensor.name for tensor in (*layer.inputs, *layer.outputs))]
    return next((mark for name in names if (mark := split_profile(name)[1]) is not None), None)


def _with_modules(layer: RawLayer, nodes: Collection[str] | None) -> RawLayer:
    modules = modules_in(layer.plain_name, layer.metadata)
    if nodes is not None:
        modules = [name for name in modules if name in nodes]
    return replace(layer, modules=modules)


def _owners(layers: dict[int, RawLayer], weighted: Collection[str] | None) -> dict[str, int]:
    """For each module with weights, the layer that multiplies by them.

    If a second layer that names the module counted too, the audit would check that one as well.
    """
    owners: dict[str, int] = {}
    for index, layer in layers.items():
        if not layer.is_product:
            continue
        for name in layer.modules:
            if weighted is not None and name not in weighted:
                continue
            if name not in owners or _is_named_after(layer, name) > _is_named_after(
                layers[owners[name]], name
            ):
                owners[name] = index
    for name in set(weighted or ()) - owners.keys():
        holder = _layer_with_weights(layers, name)
        if holder is not None:
            owners[name] = holder
    return owners


def _layer_with_weights(layers: dict[int, RawLayer], module: str) -> int | None:
    """The layer with a module's weights, if no type or name identifies its product."""
    candidates = [
        (max((t.elements for t in layer.constants if t.is_matrix), default=0), index)
        for index, layer in layers.items()
        if module in layer.modules
    ]
    size, index = max(candidates, default=(0, -1))
    return index if size else None


def _is_named_after(layer: RawLayer, module: str) -> bool:
    return (
        re.match(rf"{re.escape(module)}(?![\w.])|{re.escape(module)}_(?:myl|U)\d", layer.plain_name)
        is not None
    )


def _info(layer: RawLayer, modules: list[str], precision: str, moved: int) -> LayerInfo:
    return LayerInfo(
        name=layer.name,
        torch_names=modules,
        type=layer.type,
        precision=precision,
        bytes=moved,
        tactic=None if layer.tactic in _STUB_TACTICS else layer.tactic,
        profile=layer.profile,
    )


def _bytes(layer: RawLayer, batch: int, images: int) -> int:
    """Bytes that a layer reads and writes for a number of images.

    A tensor's first dimension is -1 or the fixed batch size; an engine may have both.
    """
    moved = 0.0
    for tensor in (*layer.inputs, *layer.outputs):
        is_fixed = bool(tensor.shape) and tensor.shape[0] > 0
        moved += _size(tensor) * images / (batch if is_fixed else 1)
    return round(moved + sum(_size(tensor) for tensor in layer.constants))


def _size(tensor: Tensor) -> float:
    return tensor.elements * _ITEM_BYTES.get(tensor.type, 0.0)


def _precision(layer: RawLayer, *, is_product: bool, tf32: bool) -> str:
    if not is_product:
        types = [tensor.type for tensor in (*layer.inputs, *layer.outputs)]
        return _widest([type_ for type_ in types if type_ != "unknown"])
    operands, in_tactic = _operands(layer), precision_in_tactic(layer.tactic)
    if not operands or "unknown" in operands:
        # TensorRT 8 to 10 list weights separately only if the kernel multiplies by them unconverted.
        return in_tactic or layer.weights or "unknown"
    precision = _widest(operands)
    if precision != "fp32":
        return precision
    if in_tactic in {"fp32", "tf32"}:
        return in_tactic
    return "tf32" if tf32 else "fp32"


def _operands(layer: RawLayer) -> list[str]:
    """The types that determine the precision of a product.

    A product computes in the wider type of its activation and its weights: INT8 times INT8 is an INT8
    product whatever type it writes, and FP16 times INT8 weights is an FP16 product. A second input is
    a residual, which is only added. (Other layers compute in the widest type of their tensors.)
    """
    operands = [tensor.type for tensor in layer.inputs[:1]]
    if layer.weights is not None:
        return [*operands, layer.weights]
    matrices = [tensor for tensor in layer.constants if tensor.is_matrix]
    if matrices:
        operands.append(max(matrices, key=lambda tensor: tensor.elements).type)
    return operands


def _widest(types: Sequence[str]) -> str:
    for width in _WIDTH:
        if width in types:
            return width
    return types[0] if types else "unknown"
