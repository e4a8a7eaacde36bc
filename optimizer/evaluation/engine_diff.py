"""In what two engines of one network differ, layer by layer, under the network's own names.

Engines name their layers as they please and fuse them differently, so layers are paired by the
PyTorch modules that they compute.
"""

from __future__ import annotations

from collections.abc import Sequence

from optimizer.results import LayerDifference, LayerInfo, LayerSide

__all__ = ["compare_layers"]

_SHARE = 5e-4
"""Differences of a FLOP share below this are rounding."""


def compare_layers(a: Sequence[LayerInfo], b: Sequence[LayerInfo]) -> list[LayerDifference]:
    """Compare the layers of two engines.

    Of an engine with several optimization profiles the first is compared.

    Returns:
        One entry for modules that share a layer in both, in the order of ``a``; only those that
        differ. Layers without PyTorch names (conversions of formats, say) are left out.
    """
    a, b = ([layer for layer in layers if layer.profile == 0] for layers in (a, b))
    ours, theirs = _owners(a), _owners(b)
    shared: dict[tuple[int | None, int | None], list[str]] = {}
    for module in dict.fromkeys([*ours, *theirs]):
        shared.setdefault((ours.get(module), theirs.get(module)), []).append(module)
    totals = [sum(layer.flops or 0 for layer in layers) for layers in (a, b)]
    found = []
    for (left, right), modules in shared.items():
        sides = (
            None if left is None else _side(a[left], modules, totals[0]),
            None if right is None else _side(b[right], modules, totals[1]),
        )
        differing = _differing(*sides)
        if differing:
            found.append(
                LayerDifference(modules=modules, a=sides[0], b=sides[1], differing=differing)
            )
    return found


def _owners(layers: Sequence[LayerInfo]) -> dict[str, int]:
    """For each module the layer that computes it: of several, the one with its operations."""
    owners: dict[str, int] = {}
    for index, layer in enumerate(layers):
        for name in layer.torch_names:
            if name not in owners or (layer.flops and not layers[owners[name]].flops):
                owners[name] = index
    return owners


def _side(layer: LayerInfo, modules: Sequence[str], total: int) -> LayerSide:
    return LayerSide(
        layer=layer.name,
        type=layer.type,
        precision=layer.precision,
        tactic=layer.tactic,
        fused_with=[name for name in layer.torch_names if name not in modules],
        flop_share=layer.flops / total if layer.flops else None,
        bytes=layer.bytes,
    )


def _differing(a: LayerSide | None, b: LayerSide | None) -> list[str]:
    if a is None or b is None:
        return ["presence"]
    same = {
        "precision": a.precision == b.precision,
        "type": a.type == b.type,
        "tactic": a.tactic == b.tactic,
        "fusion": sorted(a.fused_with) == sorted(b.fused_with),
        "FLOP share": abs((a.flop_share or 0) - (b.flop_share or 0)) < _SHARE,
        "size": a.bytes == b.bytes,
    }
    return [name for name, equal in same.items() if not equal]
