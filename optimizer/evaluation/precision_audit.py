"""Whether an engine computes in the precision that was asked for.

An engine may keep a layer in FP32 although the graph says INT8, and most say nothing about it. The
answer is weighed by operations (FLOPs of convolutions and fully-connected layers), since one
large layer counts more than ten small ones.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence

from optimizer.artifacts import Manifest
from optimizer.results import Audit, LayerInfo

__all__ = ["audit", "audit_manifest"]

_ORDER = ("fail", "inconclusive", "pass")


def audit(
    asked: str,
    layers: Sequence[LayerInfo],
    min_share: float = 0.95,
    keep: Collection[str] = (),
) -> Audit:
    """Judge an engine by the layers it lists.

    Only layers with weights count (those with ``flops``). FP32 means FP32: TF32 keeps 10 bits of
    the mantissa and counts as another precision unless ``tf32`` was asked for.

    An engine with several optimization profiles lists its layers once for each, compiled apart: each
    profile is judged, and the worst one is the answer.

    Args:
        asked: The precision asked for (``fp32``, ``tf32``, ``fp16``, ``bf16``, ``int8``, ``fp8``),
            or ``mixed``: INT8 but for the layers to keep, and those not in INT8.
        layers: What the engine tells of its layers.
        min_share: Smallest share of the FLOPs that must be computed in ``asked``.
        keep: PyTorch modules that were to stay in a higher precision.

    Returns:
        The audit. Its verdict is ``inconclusive`` when the engine lists no layer with weights, or
        does not tell the precision of so many that either verdict is possible, or for ``mixed``
        without the layers to keep.
    """
    profiles = sorted({layer.profile for layer in layers})
    audits = [
        _audit_profile(asked, [x for x in layers if x.profile == profile], min_share, keep)
        for profile in profiles or [0]
    ]
    worst = min(audits, key=lambda found: _ORDER.index(found.verdict))
    if len(audits) == 1:
        return worst
    which = profiles[audits.index(worst)]
    return worst.model_copy(update={"reason": f"in profile {which}, {worst.reason}"})


def _audit_profile(
    asked: str, layers: Sequence[LayerInfo], min_share: float, keep: Collection[str]
) -> Audit:
    weighted = [layer for layer in layers if layer.flops]
    if not weighted or (asked == "mixed" and not keep):
        return Audit(
            asked=asked,
            computed={},
            share=None,
            min_share=min_share,
            verdict="inconclusive",
            reason="the graph does not say which layers were to stay in high precision"
            if weighted
            else "the engine lists no layer with weights, so its precision cannot be told",
        )
    flops: Counter[str] = Counter()
    for layer in weighted:
        flops[layer.precision] += layer.flops or 0
    total = sum(flops.values())
    computed = {name: count / total for name, count in flops.most_common()}
    differing = [layer for layer in weighted if not _as_asked(layer, asked, keep)]
    share = 1.0 - sum(layer.flops or 0 for layer in differing) / total
    possible = share + flops["unknown"] / total
    what = f"as asked ({_shares(computed)})" if keep else asked.upper()
    percent = f"{100 * share:.1f} % of the FLOPs are {what}"
    if share >= min_share:
        verdict, reason = "pass", percent + _named(differing)
    elif possible >= min_share:
        verdict = "inconclusive"
        reason = f"{percent}, and the engine does not tell the precision of{_names(differing)}"
    else:
        verdict = "fail"
        reason = f"{percent}, less than {100 * min_share:g} %{_named(differing)}"
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
    """Judge an engine by the layers and settings in its manifest."""
    layers = [LayerInfo.model_validate(raw) for raw in manifest.details.get("layers", [])]
    settings = manifest.settings
    options = settings.get("options") or {}
    asked, keep = str(settings.get("precision", "fp32")), settings.get("keep") or ()
    if options.get("storage_only") and not str(settings.get("backend")).startswith("tensorrt"):
        # A CPU engine built for storage alone was asked to compute everything in FP32.
        asked, keep = "fp32", ()
    if options.get("tf32") and asked == "fp32" and any(x.precision == "tf32" for x in layers):
        asked = "tf32"
    return audit(asked, layers, min_share, keep)


def _as_asked(layer: LayerInfo, asked: str, keep: Collection[str]) -> bool:
    quantized = "int8" if asked == "mixed" else asked
    if set(layer.torch_names) & set(keep):
        return layer.precision not in {quantized, "unknown"}
    return layer.precision == quantized


def _shares(computed: Mapping[str, float]) -> str:
    return ", ".join(f"{100 * share:.1f} % {name.upper()}" for name, share in computed.items())


def _named(layers: Sequence[LayerInfo]) -> str:
    return f"; not:{_names(layers)}" if layers else ""


def _names(layers: Sequence[LayerInfo]) -> str:
    shown = [f" {'+'.join(x.torch_names) or x.name} ({x.precision})" for x in layers[:3]]
    more = f" and {len(layers) - 3} more" if len(layers) > 3 else ""
    return ",".join(shown) + more
