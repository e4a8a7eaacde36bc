"""Layer-by-layer differences between two engines of one network, by PyTorch module name.

Engines name and fuse their layers differently, so layers are paired by the PyTorch modules that
they compute.
"""

from __future__ import annotations

from collections.abc import Sequence

from optimizer.results import LayerDifference, LayerInfo, LayerSide

__all__ = ["compare_layers"]

_SHARE_TOLERANCE = 5e-4
"""Smaller differences of a FLOP share are rounding."""


def compare_layers(a: Sequence[LayerInfo], b: Sequence[LayerInfo]) -> list[LayerDifference]:
    """Compare the layers of two engines.

    Only the first optimization profile of each engine is compared.

    Returns:
        One entry per group of modules that share a layer in both engines, in the order of ``a``;
        only groups that differ. Layers without PyTorch names (e.g. reformats) are left out.
    """
    a, b = ([layer for layer in layers if layer.profile == 0] for layers in (a, b))
    ours, theirs = _owners(a), _owners(b)
    shared: dict[tuple[int | None, int | None], list[str]] = {}
    for module in dict.fromkeys([*ours, *theirs]):
        shared.setdefault((ours.get(module), theirs.get(module)), []).append(module)
    totals = [sum(layer.flops or 0 for layer in layers) for layers in (a, b)]
    differences = []
    for (left, right), modules in shared.items():
        sides = (
            None if left is None else _side(a[left], modules, totals[0]),
            None if right is None else _side(b[right], modules, totals[1]),
        )
        differing = _differing(*sides)
        if differing:
            differences.append(
                LayerDifference(modules=modules, a=sides[0], b=sides[1], differing=differing)
            )
    return differences


def _owners(layers: Sequence[LayerInfo]) -> dict[str, int]:
    """The layer that computes each module; among several, the one with FLOPs."""
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
        "FLOP share": abs((a.flop_share or 0) - (b.flop_share or 0)) < _SHARE_TOLERANCE,
        "size": a.bytes == b.bytes,
    }
    return [name for name, equal in same.items() if not equal]
