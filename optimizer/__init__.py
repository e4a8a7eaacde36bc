"""resnet-opt: trained ResNets made fast, with evidence for every claim.

``import optimizer`` imports nothing heavy; each verb imports what it needs when it is called::

    import optimizer

    checkpoint = optimizer.train("model.safetensors", arch="resnet50", data="digits:train")
    graph = optimizer.export("model.safetensors", "model.onnx")
    engine = optimizer.build("model.onnx", "model.blob", precision="int8", calib="digits:train")
    result = optimizer.validate([engine.path], reference="model.safetensors", data="digits:test")
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from optimizer._version import __version__

if TYPE_CHECKING:
    from optimizer.pipeline import run
    from optimizer.verbs import (
        bench,
        build,
        calibrate,
        compare_decoders,
        compare_halves,
        export,
        load,
        profile,
        quantize,
        refit,
        train,
        validate,
    )

__all__ = [
    "__version__",
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
    "run",
    "train",
    "validate",
]


def __getattr__(name: str) -> object:
    import importlib

    if name in __all__:
        home = "optimizer.pipeline" if name == "run" else "optimizer.verbs"
        # The room of the same name must not shadow the verb once it has been imported.
        value: object = getattr(importlib.import_module(home), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'optimizer' has no attribute {name!r}")
