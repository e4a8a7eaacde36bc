"""Whether an engine computes in the precision that was asked for.

An engine may keep a layer in FP32 although the graph says INT8, and most say nothing about it. The
answer is weighed by operations (FLOPs of convolutions and fully-connected layers), since one
large layer counts more than ten small ones.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence

from optimizer.artifacts import Manifest
from optimizer.results import Audit, LayerInfo

__all__ = ["audit", "audit_manifest"]


def audit(
    asked: str,
    layers: Sequence[LayerInfo],
    min_share: float = 0.95,
    kept: Collection[str] = (),
) -> Audit:
    """Judge an engine by the layers it lists.

    Only layers with weights count (those with ``flops``). FP32 means FP32: TF32 keeps 10 bits of
    the mantissa and counts as another precision unless ``tf32`` was asked for.

    Args:
        asked: The precision asked for (``fp32``, ``tf32``, ``fp16``, ``bf16``, ``int8``, ``fp8``).
        layers: What the engine tells of its layers.
        min_share: Smallest share of the FLOPs that must be computed in ``asked``.
        kept: PyTorch names of layers that the graph keeps in another precision on purpose; they do
            not count, and are named.

    Returns:
        The audit. Its verdict is ``inconclusive`` when the engine lists no layer with weights, or
        does not tell the precision of so many that either verdict is possible.
    """
    on_purpose = [x for x in layers if x.flops and not set(kept).isdisjoint(x.torch_names)]
    weighted = [x for x in layers if x.flops and x not in on_purpose]
    if not weighted:
        return Audit(
            asked=asked,
            computed={},
            share=None,
            min_share=min_share,
            verdict="inconclusive",
            reason="the engine lists no layer with weights, so its precision cannot be told",
        )
    flops: Counter[str] = Counter()
    for layer in weighted:
        flops[layer.precision] += layer.flops or 0
    total = sum(flops.values())
    computed = {name: count / total for name, count in flops.most_common()}
    share = flops[asked] / total
    possible = share + flops["unknown"] / total
    differing = [layer for layer in weighted if layer.precision != asked]
    percent = f"{100 * share:.1f} % of the FLOPs are {asked.upper()}"
    if share >= min_share:
        verdict, reason = "pass", percent + _named(differing)
    elif possible >= min_share:
        verdict = "inconclusive"
        reason = f"{percent}, and the engine does not tell the precision of{_names(differing)}"
    else:
        verdict = "fail"
        reason = f"{percent}, less than {100 * min_share:g} %{_named(differing)}"
    if on_purpose:
        reason += f"; kept on purpose:{_names(on_purpose)}"
    return Audit(
        asked=asked,
        computed=computed,
        share=share,
        min_share=min_share,
        differing=differing,
        verdict=verdict,
        reason=reason,
    )


def audit_manifest(manifest: Manifest, min_share: float = 0.95) -> Audit:
    """Judge an engine by the layers that its manifest lists."""
    settings, details = manifest.settings, manifest.details
    layers = [LayerInfo.model_validate(raw) for raw in details.get("layers", [])]
    # An engine built for storage alone was asked to compute in FP32.
    storage_only = (settings.get("options") or {}).get("storage_only")
    asked = "fp32" if storage_only else str(settings.get("precision", "fp32"))
    return audit(asked, layers, min_share, details.get("kept", ()))


def _named(layers: Sequence[LayerInfo]) -> str:
    return f"; not:{_names(layers)}" if layers else ""


def _names(layers: Sequence[LayerInfo]) -> str:
    shown = [f" {'+'.join(x.torch_names) or x.name} ({x.precision})" for x in layers[:3]]
    more = f" and {len(layers) - 3} more" if len(layers) > 3 else ""
    return ",".join(shown) + more
