"""Check whether an engine computes in the requested precision.

An engine may run a layer in FP32 although the graph says INT8, usually without reporting it. Layers
are weighted by FLOPs (convolutions and fully connected layers), since one large layer matters more
than ten small ones.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence

from optimizer.artifacts import Manifest
from optimizer.results import Audit, LayerInfo

__all__ = ["audit", "audit_manifest"]

_ORDER = ("fail", "inconclusive", "pass")


def audit(
    requested: str,
    layers: Sequence[LayerInfo],
    min_share: float = 0.95,
    keep: Collection[str] = (),
) -> Audit:
    """Judge an engine by the layers it lists.

    Only layers with weights count (those with ``flops``). TF32 keeps 10 bits of the mantissa and
    does not count as FP32; it passes only if ``tf32`` was requested.

    An engine with several optimization profiles compiles and lists its layers once per profile.
    Each profile is judged, and the worst result is returned.

    Args:
        requested: The requested precision (``fp32``, ``tf32``, ``fp16``, ``bf16``, ``int8``,
            ``fp8``), or ``mixed``: INT8 except for the layers in ``keep``, which must not be INT8.
        layers: The layers as the engine reports them.
        min_share: Smallest share of the FLOPs that must be computed in the requested precision.
        keep: PyTorch modules that were to stay in a higher precision.

    Returns:
        The audit. Its verdict is ``inconclusive`` if the engine lists no layer with weights, if too
        many layers have an unreported precision to decide, or for ``mixed`` without ``keep``.
    """
    profiles = sorted({layer.profile for layer in layers})
    audits = [
        _audit_profile(requested, [x for x in layers if x.profile == profile], min_share, keep)
        for profile in profiles or [0]
    ]
    worst = min(audits, key=lambda result: _ORDER.index(result.verdict))
    if len(audits) == 1:
        return worst
    profile = profiles[audits.index(worst)]
    return worst.model_copy(update={"reason": f"in profile {profile}, {worst.reason}"})


def _audit_profile(
    requested: str, layers: Sequence[LayerInfo], min_share: float, keep: Collection[str]
) -> Audit:
    weighted = [layer for layer in layers if layer.flops]
    if not weighted or (requested == "mixed" and not keep):
        return Audit(
            asked=requested,
            computed={},
            share=None,
            min_share=min_share,
            verdict="inconclusive",
            reason="the graph does not state which layers were to stay in high precision"
            if weighted
            else "the engine lists no layer with weights, so its precision is unknown",
        )
    flops: Counter[str] = Counter()
    for layer in weighted:
        flops[layer.precision] += layer.flops or 0
    total = sum(flops.values())
    computed = {name: count / total for name, count in flops.most_common()}
    differing = [layer for layer in weighted if not _as_requested(layer, requested, keep)]
    share = 1.0 - sum(layer.flops or 0 for layer in differing) / total
    possible = share + flops["unknown"] / total
    precision = f"the requested precision ({_shares(computed)})" if keep else requested.upper()
    percent = f"{100 * share:.1f} % of the FLOPs are computed in {precision}"
    if share >= min_share:
        verdict, reason = "pass", percent + _exceptions(differing)
    elif possible >= min_share:
        verdict = "inconclusive"
        reason = f"{percent}; the engine does not report the precision of{_names(differing)}"
    else:
        verdict = "fail"
        reason = f"{percent}, less than {100 * min_share:g} %{_exceptions(differing)}"
    return Audit(
        asked=requested,
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
    requested, keep = str(settings.get("precision", "fp32")), settings.get("keep") or ()
    if options.get("storage_only") and not str(settings.get("backend")).startswith("tensorrt"):
        # A storage-only CPU engine is meant to compute everything in FP32.
        requested, keep = "fp32", ()
    if options.get("tf32") and requested == "fp32" and any(x.precision == "tf32" for x in layers):
        requested = "tf32"
    return audit(requested, layers, min_share, keep)


def _as_requested(layer: LayerInfo, requested: str, keep: Collection[str]) -> bool:
    quantized = "int8" if requested == "mixed" else requested
    if set(layer.torch_names) & set(keep):
        return layer.precision not in {quantized, "unknown"}
    return layer.precision == quantized


def _shares(computed: Mapping[str, float]) -> str:
    return ", ".join(f"{100 * share:.1f} % {name.upper()}" for name, share in computed.items())


def _exceptions(layers: Sequence[LayerInfo]) -> str:
    return f"; except:{_names(layers)}" if layers else ""


def _names(layers: Sequence[LayerInfo]) -> str:
    shown = [f" {'+'.join(x.torch_names) or x.name} ({x.precision})" for x in layers[:3]]
    more = f" and {len(layers) - 3} more" if len(layers) > 3 else ""
    return ",".join(shown) + more
