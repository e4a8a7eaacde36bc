"""resnet-opt: fast inference for trained ResNets, with evidence for every claim.

Every verb of the command line is a function here; options are keywords or the verb's model::

    import optimizer

    optimizer.train("model.safetensors", arch="resnet50", data="digits:train")
    optimizer.export("model.safetensors", "model.onnx")
    engine = optimizer.build("model.onnx", "model.blob", precision="int8", calib="digits:train")
    print(engine.audit.verdict)
    result = optimizer.validate(engine.path, reference="model.safetensors", data="digits:test")
    print(result.verdict, result.finding)

A verdict is a field of the result; `raise_for_verdict` turns it into an exception. ``import
optimizer`` is fast, because each verb imports what it needs when it is called.
"""

# No import comes before this: ``python -m optimizer`` puts the current folder first on the path, and
# a file there may have the name of any module, `__future__` and `typing` too. Both modules are
# loaded by every interpreter before it looks into that folder.
import os
import sys


def _remove_current_folder() -> None:
    """Under ``python -m``, remove the current folder from ``sys.path``."""
    try:
        folder = os.getcwd()  # noqa: PTH109 - a string, as in `sys.path`
    except OSError:  # the folder was deleted
        return
    # runpy sets the name of the program only after the package is imported.
    started_by_module = getattr(sys, "argv", [])[:1] == ["-m"]
    if started_by_module and not sys.flags.safe_path and sys.path[:1] == [folder]:
        del sys.path[0]


_remove_current_folder()

from typing import TYPE_CHECKING  # noqa: E402

from optimizer._version import __version__  # noqa: E402

if TYPE_CHECKING:
    from optimizer.evaluation.validation import raise_for_verdict
    from optimizer.gpu_record.recording import record
    from optimizer.options import (
        BenchOptions,
        BuildOptions,
        CalibrateOptions,
        CompareOptions,
        ExportOptions,
        InspectOptions,
        LatencyTableOptions,
        PredictOptions,
        PreprocessOptions,
        ProfileOptions,
        PruneOptions,
        QuantizeOptions,
        RefitOptions,
        ReportOptions,
        TrainOptions,
        ValidateOptions,
    )
    from optimizer.recipe import Recipe, load_recipe
    from optimizer.verbs.audit import audit
    from optimizer.verbs.bench import bench
    from optimizer.verbs.build import build
    from optimizer.verbs.calibrate import calibrate
    from optimizer.verbs.compare import compare
    from optimizer.verbs.export import export
    from optimizer.verbs.inspect import inspect
    from optimizer.verbs.latency_table import latency_table
    from optimizer.verbs.machine import clean, doctor, load
    from optimizer.verbs.predict import predict
    from optimizer.verbs.preprocess import preprocess
    from optimizer.verbs.profile import profile
    from optimizer.verbs.prune import prune
    from optimizer.verbs.quantize import quantize
    from optimizer.verbs.refit import refit
    from optimizer.verbs.report import report
    from optimizer.verbs.run import demo, run
    from optimizer.verbs.train import train
    from optimizer.verbs.validate import validate

_HOMES = {
    **{
        verb: f"optimizer.verbs.{verb}"
        for verb in (
            "audit", "bench", "build", "calibrate", "compare", "export", "inspect",
            "latency_table", "predict", "preprocess", "profile", "prune", "quantize", "refit", "report",
            "run", "train", "validate",
        )
    },
    **dict.fromkeys(("clean", "doctor", "load"), "optimizer.verbs.machine"),
    "demo": "optimizer.verbs.run",
    "record": "optimizer.gpu_record.recording",
    "raise_for_verdict": "optimizer.evaluation.validation",
    **dict.fromkeys(("Recipe", "load_recipe"), "optimizer.recipe"),
    **{
        f"{stage}Options": "optimizer.options"
        for stage in (
            "Bench", "Build", "Calibrate", "Compare", "Export", "Inspect", "LatencyTable", "Predict",
            "Preprocess", "Profile", "Prune", "Quantize", "Refit", "Report", "Train", "Validate",
        )
    },
}  # fmt: skip

__all__ = [
    "BenchOptions",
    "BuildOptions",
    "CalibrateOptions",
    "CompareOptions",
    "ExportOptions",
    "InspectOptions",
    "LatencyTableOptions",
    "PredictOptions",
    "PreprocessOptions",
    "ProfileOptions",
    "PruneOptions",
    "QuantizeOptions",
    "Recipe",
    "RefitOptions",
    "ReportOptions",
    "TrainOptions",
    "ValidateOptions",
    "__version__",
    "audit",
    "bench",
    "build",
    "calibrate",
    "clean",
    "compare",
    "demo",
    "doctor",
    "export",
    "inspect",
    "latency_table",
    "load",
    "load_recipe",
    "predict",
    "preprocess",
    "profile",
    "prune",
    "quantize",
    "raise_for_verdict",
    "record",
    "refit",
    "report",
    "run",
    "train",
    "validate",
]


def __getattr__(name: str) -> object:
    import importlib

    if name in _HOMES:
        value: object = getattr(importlib.import_module(_HOMES[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'optimizer' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
