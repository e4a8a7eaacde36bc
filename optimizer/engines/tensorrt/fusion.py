"""Whether INT8 convolutions are fused with the operations around them."""

from __future__ import annotations

from collections.abc import Sequence

from optimizer.engines.tensorrt.layers import RawLayer

__all__ = ["fusion_note"]

_NARROW = {"int8", "fp8"}


def fusion_note(layers: Sequence[RawLayer], title: str) -> str | None:
    """A note if most quantized products write FP32 or FP16; ``None`` otherwise.

    A product fused with bias, ReLU, the residual and the next Q writes INT8. One that writes FP32 or FP16
    moves two or four times the bytes, and a separate kernel reads them again. An FP16 engine, where all
    of this is fused, may then be faster.

    Args:
        layers: The engine's layers, as the library lists them.
        title: The library's name.
    """
    products = [
        layer
        for layer in layers
        if layer.profile == 0 and layer.is_product and layer.inputs and layer.outputs
        and layer.inputs[0].type in _NARROW
    ]  # fmt: skip
    wide = [layer for layer in products if layer.outputs[0].type not in _NARROW | {"unknown"}]
    if not products or len(wide) <= len(products) / 2:
        return None
    kind = products[0].inputs[0].type.upper()
    return (
        f"{len(wide)} of {len(products)} {kind} kernels write a wider type, which {title} quantizes again "
        "in separate kernels: FP16 may be faster. Build it too and compare with resnet-opt bench"
    )
