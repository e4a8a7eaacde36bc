"""Precision lives in the graph: FP32 graphs in, explicit FP16, BF16 and INT8 graphs out."""

from optimizer.graphs.facts import is_quantized
from optimizer.precision.asked import check_options
from optimizer.precision.calibration import calibrate, halves
from optimizer.precision.foreign import prepared
from optimizer.precision.stages import PRECISIONS, quantize

__all__ = [
    "PRECISIONS", "calibrate", "check_options", "halves", "is_quantized", "prepared", "quantize",
]  # fmt: skip
