"""What an engine computes: its layers and the audit of its precisions."""

from __future__ import annotations

from optimizer.results.result_model import Model, VerdictName

__all__ = ["Audit", "LayerDifference", "LayerInfo", "LayerSide"]


class LayerInfo(Model):
    """One layer of a compiled engine, as the engine itself tells it."""

    name: str
    torch_names: list[str] = []
    """PyTorch modules fused into this layer (``layer1.0.conv2``); empty if it cannot be told."""
    type: str
    precision: str
    """What the layer computes in: ``fp32``, ``tf32``, ``fp16``, ``bf16``, ``int8``, ``fp8`` …"""
    flops: int | None = None
    """Multiply and add operations of one image (2 x MAC), for layers with weights."""
    bytes: int | None = None
    """Weights, inputs and outputs, once each: of one image, and of the whole batch in
    `time_layers`."""
    tactic: str | None = None
    memory_bytes: int | None = None
    time_ms: float | None = None
    """Of one call; from `time_layers` alone."""
    profile: int = 0
    """The optimization profile in which it runs: TensorRT compiles every layer once for each."""


class Audit(Model):
    """What was asked of an engine and what it computes."""

    asked: str
    computed: dict[str, float]
    """Share of the convolution and fully-connected FLOPs by precision; shares add up to one."""
    share: float | None
    """Share of those FLOPs in the asked precision; ``None`` if the engine does not tell."""
    min_share: float
    differing: list[LayerInfo] = []
    """Layers with weights that compute in another precision than asked."""
    verdict: VerdictName
    reason: str
    """One sentence a person can read."""


class LayerSide(Model):
    """What one engine made of PyTorch modules."""

    layer: str
    """The engine's own name of the layer."""
    type: str
    precision: str
    tactic: str | None = None
    fused_with: list[str] = []
    """Further PyTorch modules that this layer computes."""
    flop_share: float | None = None
    """The layer's share of the operations of the engine's layers with weights."""
    bytes: int | None = None
    """What it reads and writes for one image, weights included."""


class LayerDifference(Model):
    """PyTorch modules that two engines compute in different ways."""

    modules: list[str]
    """The modules that share a layer in both engines."""
    a: LayerSide | None = None
    """``None`` if the engine names no layer for them."""
    b: LayerSide | None = None
    differing: list[str]
    """In what: ``precision``, ``type``, ``tactic``, ``fusion``, ``FLOP share``, ``size``, ``presence``."""
