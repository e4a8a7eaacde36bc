"""Engines: the backends that compile graphs, and opening compiled engines."""

from optimizer.engines.opening import closing, open_engine, open_streams
from optimizer.engines.protocol import (
    Availability,
    Backend,
    Bound,
    BuildSettings,
    Built,
    ConcurrentBackend,
    Opening,
    Session,
    TensorSpec,
    TimesLayers,
)
from optimizer.engines.registry import backends, get_backend, register

__all__ = [
    "Availability",
    "Backend",
    "Bound",
    "BuildSettings",
    "Built",
    "ConcurrentBackend",
    "Opening",
    "Session",
    "TensorSpec",
    "TimesLayers",
    "backends",
    "closing",
    "get_backend",
    "open_engine",
    "open_streams",
    "register",
]
