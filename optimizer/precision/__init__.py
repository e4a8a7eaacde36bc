"""Precision conversion: FP32 graphs become explicit FP16, BF16, FP8 and INT8 graphs."""

from optimizer.graphs.facts import is_quantized
from optimizer.precision.calibration import calibrate, halves
from optimizer.precision.conversion import PRECISIONS, encode, quantize, rules_with
from optimizer.precision.foreign import prepared
from optimizer.precision.option_checks import check_options

__all__ = [
    "PRECISIONS", "calibrate", "check_options", "encode", "halves", "is_quantized", "prepared",
    "quantize", "rules_with",
]  # fmt: skip
