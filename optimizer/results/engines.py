"""The layers of an engine and its precision audit."""

from __future__ import annotations

from optimizer.results.result_model import Model, VerdictName

__all__ = ["Audit", "LayerDifference", "LayerInfo", "LayerSide"]


class LayerInfo(Model):
    """One layer of a compiled engine, as the engine reports it."""

    name: str
    torch_names: list[str] = []
    """PyTorch modules fused into this layer (``layer1.0.conv2``); empty if unknown."""
    type: str
    precision: str
    """Compute precision: ``fp32``, ``tf32``, ``fp16``, ``bf16``, ``int8``, ``fp8`` …"""
    flops: int | None = None
    """Multiply and add operations per image (2 x MAC), for layers with weights."""
    bytes: int | None = None
    """Weights, inputs and outputs, counted once each, per image; in `time_layers` per batch."""
    tactic: str | None = None
    memory_bytes: int | None = None
    time_ms: float | None = None
    """Time per call; set only by `time_layers`."""
    profile: int = 0
    """Index of its optimization profile: TensorRT compiles every layer once per profile."""


class Audit(Model):
    """The requested precision of an engine compared with those of its layers."""

    asked: str
    computed: dict[str, float]
    """Share of the convolution and fully-connected FLOPs by precision; shares add up to one."""
    share: float | None
    """Share of those FLOPs in the requested precision; ``None`` if the engine does not report it."""
    min_share: float
    differing: list[LayerInfo] = []
    """Layers with weights that compute in a precision other than requested."""
    verdict: VerdictName
    reason: str
    """The verdict explained in one sentence."""


class LayerSide(Model):
    """The layer of one engine that computes some PyTorch modules."""

    layer: str
    """The engine's name for the layer."""
    type: str
    precision: str
    tactic: str | None = None
    fused_with: list[str] = []
    """Further PyTorch modules that this layer computes."""
    flop_share: float | None = None
    """The layer's share of the FLOPs of all layers with weights."""
    bytes: int | None = None
    """Bytes read and written per image, including weights."""


class LayerDifference(Model):
    """PyTorch modules that two engines compute differently."""

    modules: list[str]
    """The modules that share a layer in both engines."""
    a: LayerSide | None = None
    """``None`` if the engine names no layer for them."""
    b: LayerSide | None = None
    differing: list[str]
    """Properties that differ: ``precision``, ``type``, ``tactic``, ``fusion``, ``FLOP share``,
    ``size``, ``presence``."""
