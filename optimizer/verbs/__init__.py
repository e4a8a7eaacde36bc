"""The verbs: what the command line and ``import optimizer`` offer, one function each.

Every verb takes paths and plain values, opens what it needs, calls its room, and returns a typed
result. They hold no logic of their own beyond joining rooms.
"""

from optimizer.verbs.judging import (
    audit_engine,
    bench,
    compare_decoders,
    compare_halves,
    load,
    profile,
    validate,
)
from optimizer.verbs.making import build, calibrate, export, quantize, train
from optimizer.verbs.refitting import refit

__all__ = [
    "audit_engine",
    "bench",
    "build",
    "calibrate",
    "compare_decoders",
    "compare_halves",
    "export",
    "load",
    "profile",
    "quantize",
    "refit",
    "train",
    "validate",
]
